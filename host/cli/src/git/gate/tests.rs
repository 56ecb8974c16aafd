use super::*;

fn changed(path: &str) -> Change {
    Change {
        path: path.to_owned(),
        old: Some(Mode::File),
        new: Some(Mode::File),
    }
}

fn kinds_of(changes: &[Change], texts: &[(&str, &str, &str)]) -> Vec<(RiskKind, String)> {
    let texts = texts
        .iter()
        .map(|(path, old, new)| {
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let texts = Texts {
                old: some(old),
                new: some(new),
            };
            ((*path).to_owned(), texts)
        })
        .collect();
    let tree: Vec<String> = changes.iter().map(|change| change.path.clone()).collect();
    let listing = Listing {
        changes,
        tree: &tree,
        texts: &texts,
        patch: "",
    };
    risks(&listing)
        .into_iter()
        .map(|risk| (risk.kind, risk.detail))
        .collect()
}

#[test]
fn what_runs_by_its_name_is_named_wherever_it_stands_and_however_it_is_written() {
    for (path, kind) in [
        (".husky/pre-commit", RiskKind::Hook),
        (".githooks/post-checkout", RiskKind::Hook),
        (".pre-commit-config.yaml", RiskKind::Hook),
        ("sub/.gitconfig", RiskKind::GitConfig),
        ("vendored/.git/config", RiskKind::GitConfig),
        (".GIT/hooks/post-merge", RiskKind::GitConfig),
        ("deep/down/.gitattributes", RiskKind::Attributes),
        (".gitmodules", RiskKind::Submodule),
        (".claude/settings.json", RiskKind::Agent),
        (".Claude/settings.json", RiskKind::Agent),
        (".mcp.json", RiskKind::Agent),
        ("AGENTS.md", RiskKind::Agent),
        ("docs/CLAUDE.md", RiskKind::Agent),
        (".agentlab/run.sh", RiskKind::Agent),
        (".vscode/tasks.json", RiskKind::Editor),
        ("all.code-workspace", RiskKind::Editor),
        (".devcontainer/devcontainer.json", RiskKind::Editor),
        (".envrc", RiskKind::Environment),
        (".env.local", RiskKind::Environment),
        (".github/workflows/ci.yml", RiskKind::Pipeline),
        (".gitlab-ci.yml", RiskKind::Pipeline),
        ("Jenkinsfile", RiskKind::Pipeline),
        ("build.rs", RiskKind::Build),
        ("crates/x/build.rs", RiskKind::Build),
        ("Makefile", RiskKind::Build),
        ("rules.mk", RiskKind::Build),
        (".cargo/config.toml", RiskKind::Build),
        ("debian/rules", RiskKind::Build),
        ("tests/conftest.py", RiskKind::Build),
        ("app/build.gradle.kts", RiskKind::Build),
        ("Dockerfile.dev", RiskKind::Build),
        ("setup.py", RiskKind::Package),
        (".npmrc", RiskKind::Package),
        ("Cargo.lock", RiskKind::Lockfile),
        ("web/pnpm-lock.yaml", RiskKind::Lockfile),
    ] {
        let found = kinds_of(&[changed(path)], &[]);
        assert_eq!(found.len(), 1, "{path}: {found:?}");
        assert_eq!(found[0].0, kind, "{path}");
    }
}

#[test]
fn ordinary_work_is_no_risk_and_neither_is_what_is_gone() {
    for path in [
        "src/main.rs",
        "README.md",
        "docs/build.md",
        "src/build/mod.rs",
        "tests/makefile_parser.rs",
        "github/workflows.txt",
        ".gitignore",
        "src/hooks/useState.ts",
    ] {
        assert_eq!(kinds_of(&[changed(path)], &[]), [], "{path}");
    }
    let gone = Change {
        path: ".github/workflows/ci.yml".to_owned(),
        old: Some(Mode::File),
        new: None,
    };
    assert_eq!(kinds_of(&[gone], &[]), []);
}

#[test]
fn a_link_is_a_risk_when_it_leads_out_or_into_git() {
    for (path, target, leads_out) in [
        ("a", "b", false),
        ("d/a", "../b", false),
        ("d/e/a", "../../x/../b", false),
        ("a", "../b", true),
        ("d/a", "../../b", true),
        ("d/a", "x/../../../b", true),
        ("a", "/etc/passwd", true),
        ("a", "C:\\x", true),
        ("a", ".git/config", true),
        ("d/a", "../.GIT/hooks", true),
        ("a", "", true),
    ] {
        let link = Change {
            path: path.to_owned(),
            old: None,
            new: Some(Mode::Link),
        };
        let found = kinds_of(&[link], &[(path, "", target)]);
        let expected: &[RiskKind] = if leads_out { &[RiskKind::Link] } else { &[] };
        let kinds: Vec<RiskKind> = found.into_iter().map(|(kind, _)| kind).collect();
        assert_eq!(kinds, expected, "{path} to {target}");
    }
}

#[test]
fn what_a_file_says_counts_when_its_name_does_not() {
    let package = |scripts: &str| format!("{{\"name\":\"x\",\"scripts\":{{{scripts}}}}}");
    let before = package("\"test\":\"jest\"");
    let after = package("\"test\":\"jest\",\"postinstall\":\"node steal.js\"");
    let found = kinds_of(&[changed("package.json")], &[("package.json", &before, &after)]);
    assert_eq!(
        found,
        [(
            RiskKind::Package,
            "script `postinstall`: node steal.js".to_owned()
        )]
    );
    assert_eq!(
        kinds_of(&[changed("package.json")], &[("package.json", &before, &before)]),
        [],
        "a dependency alone is the lock file's matter"
    );
    let broken = kinds_of(&[changed("package.json")], &[("package.json", &before, "{")]);
    assert!(broken[0].1.contains("no valid JSON"));
    let found = kinds_of(
        &[changed(".gitattributes")],
        &[(
            ".gitattributes",
            "* text\n",
            "* text\n*.c filter=evil\n# x diff=y\n",
        )],
    );
    assert!(found.contains(&(RiskKind::Attributes, "*.c filter=evil".to_owned())));
    let found = kinds_of(
        &[changed(".gitmodules")],
        &[(
            ".gitmodules",
            "",
            "[submodule \"x\"]\n\tpath = x\n\turl = ext::sh -c id\n",
        )],
    );
    assert!(found.contains(&(RiskKind::Submodule, "url = ext::sh -c id".to_owned())));
    let found = kinds_of(
        &[changed("Cargo.toml")],
        &[(
            "Cargo.toml",
            "[package]\n",
            "[package]\nbuild = \"other.rs\"\nbuilder = 1\n",
        )],
    );
    assert_eq!(found, [(RiskKind::Build, "build = \"other.rs\"".to_owned())]);
    let before = "[project]\ndependencies = []\n";
    let after = "[build-system]\nbackend-path = [\"x\"]\n[project]\ndependencies = [\"y\"]\n";
    let found = kinds_of(&[changed("pyproject.toml")], &[("pyproject.toml", before, after)]);
    assert_eq!(found, [(RiskKind::Build, "backend-path = [\"x\"]".to_owned())]);
}

#[test]
fn a_submodule_is_a_risk_even_without_a_url() {
    let submodule = Change {
        path: "vendor/x".to_owned(),
        old: None,
        new: Some(Mode::Submodule),
    };
    assert_eq!(kinds_of(&[submodule], &[])[0].0, RiskKind::Submodule);
}

#[test]
fn names_that_are_one_where_case_does_not_count_are_both_named() {
    let listing = |changes: &[Change], tree: &[&str]| -> Vec<(String, String)> {
        let tree: Vec<String> = tree.iter().map(|path| (*path).to_owned()).collect();
        let listing = Listing {
            changes,
            tree: &tree,
            texts: &BTreeMap::new(),
            patch: "",
        };
        risks(&listing)
            .into_iter()
            .map(|risk| (risk.path, risk.detail))
            .collect()
    };
    let found = listing(&[changed("readme.md")], &["README.md", "readme.md"]);
    assert_eq!(
        found,
        [(
            "readme.md".to_owned(),
            "the same as README.md where case does not count".to_owned()
        )]
    );
    // A directory that takes another one's place, as a link could.
    let found = listing(&[changed("SRC/x.rs")], &["SRC/x.rs", "src/main.rs"]);
    assert!(found[0].1.contains("the same as src where case"), "{found:?}");
    assert_eq!(listing(&[changed("x")], &["A", "a", "x"]), [], "it was so before");
}

#[test]
fn names_and_lines_that_hide_what_they_are_are_named() {
    for path in [
        "a\u{202e}txt.sh",
        "x\n.txt",
        "dir\\..\\x",
        "trailing.",
        "-rf",
        "con:x",
    ] {
        let found = kinds_of(&[changed(path)], &[]);
        assert!(found.iter().any(|(kind, _)| *kind == RiskKind::Name), "{path:?}");
    }
    let patch = "diff --git a/x.c b/x.c\n--- a/x.c\n+++ b/x.c\n@@ -1 +1,2 @@\n-\u{202e}old\n+int ok;\n\
                 diff --git a/y.c b/y.c\n--- a/y.c\n+++ b/y.c\n@@ -1 +1 @@\n+/*\u{202e} } if (admin) */\n+++ b/z.c\n";
    let listing = Listing {
        changes: &[],
        tree: &[],
        patch,
        texts: &BTreeMap::new(),
    };
    let found = risks(&listing);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        (found[0].kind, found[0].path.as_str()),
        (RiskKind::HiddenText, "y.c")
    );
}
