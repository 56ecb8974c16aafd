//! Files that describe a package: what they say differs in how much it matters, so each changed entry is judged by its
//! key. What is not known to be harmless is named.

use serde_json::Value;

use super::RiskKind;

/// More entries of one file than this are told as a number.
const MOST: usize = 20;

/// One kind of such files.
pub(super) struct Manifest {
    /// How it is called, in lower case.
    name: &'static str,
    /// Keys under which nothing runs or is fetched.
    harmless: &'static str,
    /// Keys that say which foreign code is built.
    foreign: &'static str,
    /// What every other key is.
    pub(super) otherwise: RiskKind,
    parse: fn(&str) -> Option<Value>,
}

static MANIFESTS: [Manifest; 4] = [
    Manifest {
        name: "package.json",
        harmless: "$schema author browserslist bugs contributors description exports files funding homepage keywords
                   license main module name private repository sideEffects type types typings version",
        foreign: "bundleDependencies bundledDependencies dependencies devDependencies optionalDependencies overrides
                  peerDependencies pnpm resolutions workspaces",
        otherwise: RiskKind::Package,
        parse: json,
    },
    Manifest {
        name: "composer.json",
        harmless: "$schema authors description funding homepage keywords license name support type version",
        foreign: "conflict provide replace repositories require require-dev",
        otherwise: RiskKind::Package,
        parse: json,
    },
    Manifest {
        name: "cargo.toml",
        harmless: "badges bench bin example features lib.crate-type lib.name lib.path lints package.authors
                   package.categories package.description package.documentation package.edition package.exclude
                   package.homepage package.include package.keywords package.license package.license-file
                   package.name package.publish package.readme package.repository package.rust-version
                   package.version profile test workspace.exclude workspace.lints workspace.members workspace.package
                   workspace.resolver",
        foreign: "build-dependencies dependencies dev-dependencies patch replace target workspace.dependencies",
        otherwise: RiskKind::Build,
        parse: toml,
    },
    Manifest {
        name: "pyproject.toml",
        harmless: "project.authors project.classifiers project.description project.keywords project.license
                   project.maintainers project.name project.readme project.requires-python project.urls
                   project.version tool.black tool.isort tool.ruff",
        foreign: "build-system.requires dependency-groups project.dependencies project.optional-dependencies
                  tool.pdm tool.poetry tool.uv",
        otherwise: RiskKind::Build,
        parse: toml,
    },
];

fn json(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok()
}

fn toml(text: &str) -> Option<Value> {
    toml::from_str(text).ok()
}

/// The kind a file is of, by its name in lower case.
pub(super) fn known(name: &str) -> Option<&'static Manifest> {
    MANIFESTS.iter().find(|manifest| manifest.name == name)
}

impl Manifest {
    /// Entries that are new or changed, and what each is.
    pub(super) fn risks(&self, old: &str, new: &str) -> Vec<(RiskKind, String)> {
        let Some(new) = (self.parse)(new) else {
            return vec![(
                self.otherwise,
                "it cannot be read, so it was not looked at".to_owned(),
            )];
        };
        let old = (self.parse)(old).unwrap_or_default();
        let mut changed = Vec::new();
        differences("", Some(&old), &new, &mut changed);
        let mut found: Vec<(RiskKind, String)> = changed
            .into_iter()
            .filter(|(path, _)| !below(path, self.harmless))
            .map(|(path, value)| {
                let kind = if below(&path, self.foreign) {
                    RiskKind::Lockfile
                } else {
                    self.otherwise
                };
                (kind, format!("{path}: {value}").chars().take(200).collect())
            })
            .collect();
        // Those that run something first.
        found.sort();
        let more = found.len().saturating_sub(MOST);
        if more > 0 {
            found.truncate(MOST);
            found.push((self.otherwise, format!("and {more} more entries")));
        }
        found
    }
}

/// Whether a path of keys is one of these, or below one.
fn below(path: &str, keys: &str) -> bool {
    keys.split_whitespace().any(|key| {
        path.strip_prefix(key)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

/// Values of `new` that `old` does not have in the same place. A key's own dots are doubled, so that none looks like a
/// path.
fn differences(path: &str, old: Option<&Value>, new: &Value, changed: &mut Vec<(String, String)>) {
    if old == Some(new) {
        return;
    }
    if let Value::Object(entries) = new
        && (path.is_empty() || !entries.is_empty())
    {
        for (key, value) in entries {
            let doubled = key.replace('.', "..");
            let below = if path.is_empty() {
                doubled
            } else {
                format!("{path}.{doubled}")
            };
            let old = old.and_then(|old| old.get(key));
            differences(&below, old, value, changed);
        }
        return;
    }
    let value = new.as_str().map_or_else(|| new.to_string(), str::to_owned);
    changed.push((path.to_owned(), value));
}

#[cfg(test)]
mod tests {
    use super::*;
    use RiskKind::{Build, Lockfile, Package};

    /// Before each of these, its kind of file said this.
    const JSON: &str = r#"{"scripts":{"test":"x"}}"#;
    const TOML: &str = "[package]\nversion = '1'\n";

    /// Name, what it says now, and what of it is told.
    type Case = (&'static str, &'static str, Option<(RiskKind, &'static str)>);

    const CASES: &[Case] = &[
        (
            "package.json",
            r#"{"scripts":{"test":"x","postinstall":"node steal.js"}}"#,
            Some((Package, "scripts.postinstall: node steal.js")),
        ),
        (
            "package.json",
            r#"{"dependencies":{"left-pad":"git+ssh://x"}}"#,
            Some((Lockfile, "dependencies.left-pad: git+ssh://x")),
        ),
        (
            "package.json",
            r#"{"packageManager":"pnpm@9+sha1.0"}"#,
            Some((Package, "packageManager: pnpm@9+sha1.0")),
        ),
        (
            "package.json",
            r#"{"lint-staged":{"*":"sh x"}}"#,
            Some((Package, "lint-staged.*: sh x")),
        ),
        (
            "package.json",
            r#"{"version":"2","license":"MIT","scripts":{"test":"x"}}"#,
            None,
        ),
        (
            "composer.json",
            r#"{"autoload":{"files":["x.php"]}}"#,
            Some((Package, "autoload.files: [\"x.php\"]")),
        ),
        (
            "cargo.toml",
            "package.\"b\\u0075ild\" = 'other.rs'",
            Some((Build, "package.build: other.rs")),
        ),
        (
            "cargo.toml",
            "lib = { proc_macro = true }",
            Some((Build, "lib.proc_macro: true")),
        ),
        (
            "cargo.toml",
            "[target.'cfg(unix)'.dependencies]\nevil = '1'",
            Some((Lockfile, "target.cfg(unix).dependencies.evil: 1")),
        ),
        (
            "cargo.toml",
            "[package]\nversion = '2'\nedition = '2024'\n[features]\nbuild = []\n",
            None,
        ),
        (
            "pyproject.toml",
            "[build-system]\nbackend-path = ['x']\n",
            Some((Build, "build-system.backend-path: [\"x\"]")),
        ),
        (
            "pyproject.toml",
            "project.dependencies = ['y']\n",
            Some((Lockfile, "project.dependencies: [\"y\"]")),
        ),
        ("pyproject.toml", "[tool.ruff]\nline-length = 9\n", None),
    ];

    #[test]
    fn entries_are_judged_by_their_keys_however_they_are_written() {
        for (name, new, expected) in CASES {
            let old = if name.ends_with(".json") { JSON } else { TOML };
            let manifest = known(name).unwrap();
            let expected: Vec<(RiskKind, String)> = expected
                .iter()
                .map(|(kind, text)| (*kind, (*text).to_owned()))
                .collect();
            assert_eq!(manifest.risks(old, new), expected, "{name}: {new}");
            assert_eq!(manifest.risks(new, new), [], "{name}: {new}");
            let broken = manifest.risks(old, "{");
            assert!(
                broken.len() == 1 && broken[0].1.contains("cannot be read"),
                "{broken:?}"
            );
        }
    }

    #[test]
    fn of_very_many_entries_some_are_told_and_the_rest_counted() {
        let many: Vec<String> = (0..100).map(|at| format!("\"a{at}\":1")).collect();
        let found = known("package.json")
            .unwrap()
            .risks(JSON, &format!("{{{}}}", many.join(",")));
        assert_eq!(
            (found.len(), found[MOST].1.as_str()),
            (MOST + 1, "and 80 more entries")
        );
    }
}
