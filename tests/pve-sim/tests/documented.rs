//! docs/proxmox.md says of each thing that users of such clients run into which tests show that we survive it. They exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const TABLE: &str = "## What users of such clients run into";
/// As many as there are rows.
const ROWS: u32 = 40;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The rows of the table by number: what is done about it, and the tests that show it.
fn rows() -> BTreeMap<u32, (String, Vec<String>)> {
    let page = fs::read_to_string(root().join("docs/proxmox.md")).unwrap();
    let (_, table) = page.split_once(TABLE).expect("the table has another heading now");
    let lines = table
        .lines()
        .skip(1)
        .take_while(|line| !line.starts_with("## "))
        .filter(|line| line.starts_with('|'));
    let mut rows = BTreeMap::new();
    for line in lines {
        let cells: Vec<&str> = line.split(" | ").collect();
        let number = cells[0].trim_start_matches('|').trim().parse();
        let Ok(number) = number else { continue };
        assert_eq!(cells.len(), 4, "row {number} has a bar within a cell");
        let tests = cells[3].split('`').skip(1).step_by(2).map(str::to_owned);
        let twice = rows.insert(number, (cells[2].to_owned(), tests.collect()));
        assert!(twice.is_none(), "row {number} is there twice");
    }
    rows
}

/// Names of all functions of the workspace. One that is called like a test and is none would be unused, which does not
/// compile without a warning.
fn functions_of(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            functions_of(&path, found);
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path).unwrap();
            let named = text.lines().filter_map(|line| line.split_once("fn "));
            let named = named.filter_map(|(_, rest)| rest.split(['(', '<']).next());
            found.extend(named.map(str::to_owned));
        }
    }
}

#[test]
fn every_row_of_what_users_run_into_has_tests_that_exist_or_a_reason() {
    let mut existing = BTreeSet::new();
    functions_of(&root(), &mut existing);
    let rows = rows();
    let numbers: Vec<u32> = rows.keys().copied().collect();
    assert_eq!(numbers, (1..=ROWS).collect::<Vec<_>>());
    let mut missing = Vec::new();
    for (number, (here, tests)) in &rows {
        assert!(
            here.len() > 15 || !tests.is_empty(),
            "row {number} says nothing: {here}"
        );
        missing.extend(
            tests
                .iter()
                .filter(|test| !existing.contains(*test))
                .map(|test| format!("row {number}: {test}")),
        );
    }
    assert!(missing.is_empty(), "there are no such tests: {missing:#?}");
}
