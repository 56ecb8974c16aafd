//! What docs/security.md promises is shown by tests, which it names: row by row they exist.
//!
//! ```text
//!   | S-05 | guarantee | probes S-05, `a_test_by_its_name`, fuzz target `stamp`, property tests of `plan` |
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

const PAGE: &str = "docs/security.md";
const PROBES: &str = "tests/netns/tests/isolation";
const FUZZ_TARGETS: &str = "tests/fuzz/src/target";
/// Fewer rows than this, and the page has another shape than is read here.
const ROWS: usize = 60;

/// What is wrong with the page.
pub(crate) fn check() -> Result<Vec<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = fs::read_to_string(root.join(PAGE)).with_context(|| format!("reading {PAGE}"))?;
    let mut tree = Tree::default();
    tree.read(&root)?;
    let mut findings = Vec::new();
    let mut seen = BTreeSet::new();
    for row in page.lines().filter_map(Row::read) {
        if !seen.insert(row.number) {
            findings.push(format!("{PAGE} has row {} twice", row.number));
        }
        findings.extend(row.missing(&tree));
    }
    if seen.len() < ROWS {
        let count = seen.len();
        findings.push(format!(
            "{PAGE} has {count} rows of guarantees, and had {ROWS} at least"
        ));
    }
    Ok(findings)
}

/// What there is to be named.
#[derive(Default)]
struct Tree {
    functions: BTreeSet<String>,
    /// Files of Rust, by their names without directory and ending.
    modules: BTreeSet<String>,
    fuzz_targets: BTreeSet<String>,
    /// All probes, as text.
    probes: String,
}

impl Tree {
    fn read(&mut self, dir: &Path) -> Result<()> {
        for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if path.is_dir() {
                // What cargo builds carries this tag.
                if !name.starts_with('.') && !path.join("CACHEDIR.TAG").exists() {
                    self.read(&path)?;
                }
            } else if let Some(module) = name.strip_suffix(".rs") {
                self.note(&path, module)?;
            }
        }
        Ok(())
    }

    fn note(&mut self, path: &PathBuf, module: &str) -> Result<()> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let named = text.lines().filter_map(|line| line.split_once("fn "));
        let named = named.filter_map(|(_, rest)| rest.split(['(', '<']).next());
        self.functions.extend(named.map(str::to_owned));
        self.modules.insert(module.to_owned());
        let is_below = |dir: &str| path.parent().is_some_and(|parent| parent.ends_with(dir));
        if is_below(FUZZ_TARGETS) {
            self.fuzz_targets.insert(module.to_owned());
        }
        if is_below(PROBES) {
            self.probes.push_str(&text);
        }
        Ok(())
    }
}

/// `S-05`.
fn is_number(word: &str) -> bool {
    word.split_once('-').is_some_and(|(letter, digits)| {
        letter.len() == 1 && !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// A guarantee.
struct Row<'a> {
    number: &'a str,
    shown_by: &'a str,
}

impl<'a> Row<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let line = line.strip_prefix("| ")?.strip_suffix(" |")?;
        let (number, rest) = line.split_once(" | ")?;
        let (_, shown_by) = rest.rsplit_once(" | ")?;
        is_number(number).then_some(Self { number, shown_by })
    }

    /// What it names and what is not there.
    fn missing(&self, tree: &Tree) -> Vec<String> {
        let number = self.number;
        let mut findings = Vec::new();
        let mut proofs = 0;
        let mut prove = |is_there: bool, what: String| {
            proofs += 1;
            if !is_there {
                findings.push(format!("{PAGE}, row {number}: there is no {what}"));
            }
        };
        let mut before = "";
        for (place, part) in self.shown_by.split('`').enumerate() {
            if place % 2 == 0 {
                before = part;
                for row in part.split([' ', ',']).filter(|word| is_number(word)) {
                    let is_there = tree.probes.contains(&format!("\"{row}\""));
                    prove(is_there, format!("probe of row {row}"));
                }
            } else if before.contains("fuzz target") {
                prove(tree.fuzz_targets.contains(part), format!("fuzz target `{part}`"));
            } else if before.contains("tests of") {
                prove(tree.modules.contains(part), format!("module `{part}`"));
            } else {
                prove(tree.functions.contains(part), format!("test `{part}`"));
            }
        }
        if proofs == 0 && self.shown_by != "all probes at sealed" {
            findings.push(format!("{PAGE}, row {number} names no test"));
        }
        findings
    }
}
