use super::*;

fn changed(path: &str) -> Change {
    Change {
        path: path.to_owned(),
        old: Some(Mode::File),
        new: Some(Mode::File),
    }
}

/// Nothing but changes.
fn listing<'a>(changes: &'a [Change], tree: &'a [String], texts: &'a BTreeMap<String, Texts>) -> Listing<'a> {
    Listing {
        changes,
        tree,
        links: &[],
        texts,
        patch: "",
        is_cut: false,
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
    risks(&listing(changes, &tree, &texts))
        .into_iter()
        .map(|risk| (risk.kind, risk.detail))
        .collect()
}

/// Path and reason of what is found in a tree of which the first paths are changed.
fn found_in(tree: &[&str], changed_ones: usize) -> Vec<(String, String)> {
    let changes: Vec<Change> = tree[..changed_ones].iter().map(|path| changed(path)).collect();
    let tree: Vec<String> = tree.iter().map(|path| (*path).to_owned()).collect();
    risks(&listing(&changes, &tree, &BTreeMap::new()))
        .into_iter()
        .map(|risk| (risk.path, risk.detail))
        .collect()
}

fn assert_named(path: &str, kind: RiskKind) {
    let found = kinds_of(&[changed(path)], &[]);
    let other: Vec<RiskKind> = found
        .iter()
        .map(|(kind, _)| *kind)
        .filter(|kind| *kind != RiskKind::Name)
        .collect();
    assert_eq!(other, [kind], "{path}: {found:?}");
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
        ("scripts/hooks/pre-push", RiskKind::Hook),
        ("lefthook.toml", RiskKind::Hook),
        (".Git /config", RiskKind::GitConfig),
        ("sub/GIT~1/config", RiskKind::GitConfig),
        (".g\u{200c}it/hooks/pre-commit", RiskKind::GitConfig),
        (".git::$INDEX_ALLOCATION/config", RiskKind::GitConfig),
        (".clinerules/always.md", RiskKind::Agent),
        (".kiro/steering/x.md", RiskKind::Agent),
        (".v\u{17f}code/tasks.json", RiskKind::Editor),
        (".idea/workspace.xml", RiskKind::Editor),
        (".gitpod.yml", RiskKind::Editor),
        (".gdbinit", RiskKind::Environment),
        (".python-version", RiskKind::Environment),
        (".circleci/config.yml", RiskKind::Pipeline),
        ("azure-pipelines-nightly.yml", RiskKind::Pipeline),
        ("ci/base.gitlab-ci.yml", RiskKind::Pipeline),
        ("tools/action.yml", RiskKind::Pipeline),
        ("CMakeLists.txt", RiskKind::Build),
        ("CMakePresets.json", RiskKind::Build),
        ("web/vite.config.ts", RiskKind::Build),
        (".eslintrc.cjs", RiskKind::Build),
        (".pylintrc", RiskKind::Build),
        ("app.xcodeproj/project.pbxproj", RiskKind::Build),
        ("compose.yaml", RiskKind::Build),
        ("requirements-dev.txt", RiskKind::Package),
        ("Gemfile", RiskKind::Package),
        (".yarn/releases/yarn-4.cjs", RiskKind::Package),
        ("go.mod", RiskKind::Lockfile),
        ("vendor/modules.txt", RiskKind::Lockfile),
    ] {
        assert_named(path, kind);
    }
}

#[test]
fn what_an_editor_a_shell_or_a_hook_of_another_tool_runs_unasked_is_named() {
    for (path, kind) in [
        ("lefthook-local.yml", RiskKind::Hook),
        (".lefthook.yml", RiskKind::Hook),
        (".huskyrc", RiskKind::Hook),
        (".local-overcommit.yml", RiskKind::Hook),
        (".commitlintrc.js", RiskKind::Build),
        (".markdownlint-cli2.mjs", RiskKind::Build),
        (".gitlint", RiskKind::Hook),
        (".bsp/sbt.json", RiskKind::Editor),
        ("hie.yaml", RiskKind::Editor),
        (".merlin", RiskKind::Editor),
        (".luarc.json", RiskKind::Editor),
        (".iex.exs", RiskKind::Environment),
        (".formatter.exs", RiskKind::Build),
        ("renv/activate.R", RiskKind::Environment),
        (".mypy.ini", RiskKind::Build),
        (".pytest.ini", RiskKind::Build),
        ("buildSrc/src/main/kotlin/Versions.kt", RiskKind::Build),
        ("cabal.project.local", RiskKind::Build),
        ("Rakefile.rb", RiskKind::Build),
        (".golangci.yml", RiskKind::Build),
    ] {
        assert_named(path, kind);
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
        "docs/requirements.md",
        "src/config.ts",
        "src/update.rs",
        "caf\u{e9}/stra\u{df}e.txt",
        "data/backup~",
        ".npmignore",
        "src/source.js",
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
fn a_manifest_that_was_not_read_is_named() {
    for name in ["package.json", "composer.json", "x/Cargo.toml", "pyproject.toml"] {
        let found = kinds_of(&[changed(name)], &[(name, "", "")]);
        assert!(
            found.len() == 1 && found[0].1.contains("too large"),
            "{name}: {found:?}"
        );
        assert_eq!(kinds_of(&[changed(name)], &[(name, "", "{")]).len(), 1, "{name}");
    }
}

#[test]
fn what_a_file_says_counts_when_its_name_does_not() {
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
            "[submodule \"x\"]\n\tpath = x\n\tURL = ext::sh -c id\n",
        )],
    );
    assert!(found.contains(&(RiskKind::Submodule, "URL = ext::sh -c id".to_owned())));
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
fn names_that_are_one_on_some_file_system_are_named() {
    assert_eq!(
        found_in(&["docs/guide.md", "docs/Guide.md"], 1),
        [(
            "docs/guide.md".to_owned(),
            "the same as docs/Guide.md on some file systems".to_owned()
        )]
    );
    // A directory that takes another one's place, as a link could.
    let found = found_in(&["SRC/x.rs", "src/main.rs"], 1);
    assert!(found[0].1.contains("the same as src on"), "{found:?}");
    for (one, other) in [
        ("caf\u{e9}", "cafe\u{301}"),
        ("\u{c5}ngstrom", "\u{212b}ngstrom"),
        ("stra\u{df}e", "STRASSE"),
        ("fi\u{17f}h", "fish"),
    ] {
        let found = found_in(&[one, other], 2);
        assert_eq!(found.len(), 2, "{one}: {found:?}");
    }
    assert_eq!(found_in(&["x", "A", "a"], 1), [], "it was so before");
    let spellings: Vec<String> = (0..64_u32)
        .map(|bits| {
            (0..6)
                .map(|at| if bits >> at & 1 == 1 { 'A' } else { 'a' })
                .collect()
        })
        .collect();
    let spellings: Vec<&str> = spellings.iter().map(String::as_str).collect();
    let found = found_in(&spellings, spellings.len());
    assert!(
        found.iter().all(|(_, detail)| detail.len() < 80),
        "{:?}",
        found[0]
    );
}

#[test]
fn a_repository_within_the_work_is_named_and_what_only_looks_like_one_is_not() {
    let inside = ["x/HEAD", "x/config", "x/objects/info/a", "x/refs/heads/b"];
    let found = found_in(&inside, 2);
    assert!(
        found.len() == 2 && found[1].1 == "x is a repository of its own",
        "{found:?}"
    );
    assert_eq!(found_in(&["x/HEAD", "x/objects/a", "refs/b"], 3), []);
}

#[test]
fn a_link_does_not_lead_out_by_way_of_another_one() {
    let links = ["here".to_owned(), "d/Up".to_owned()];
    let tree: Vec<String> = ["a", "d/a", "here", "d/Up"].map(str::to_owned).to_vec();
    for (path, target, leads_out) in [
        ("a", "here/../x", true),
        ("d/a", "up/x", true),
        ("a", "here", false),
        ("a", "there/../x", false),
        ("a", "x/.git./config", true),
        ("a", "x/GIT~1", true),
    ] {
        let change = Change {
            path: path.to_owned(),
            old: None,
            new: Some(Mode::Link),
        };
        let texts = Texts {
            old: None,
            new: Some(target.to_owned()),
        };
        let texts = BTreeMap::from([(path.to_owned(), texts)]);
        let changes = [change];
        let listing = Listing {
            links: &links,
            ..listing(&changes, &tree, &texts)
        };
        assert_eq!(!risks(&listing).is_empty(), leads_out, "{path} to {target}");
    }
}

#[test]
fn names_and_lines_that_hide_what_they_are_are_named() {
    let long = "n".repeat(256);
    for path in [
        "a\u{202e}txt.sh",
        "x\n.txt",
        "dir\\..\\x",
        "trailing.",
        "-rf",
        "con:x",
        "docs/CON.txt",
        "lpt1",
        "PROGRA~1/x",
        &long,
        &"d/".repeat(2048),
    ] {
        let found = kinds_of(&[changed(path)], &[]);
        assert!(found.iter().any(|(kind, _)| *kind == RiskKind::Name), "{path:?}");
    }
    let patch = "diff --git a/x.c b/x.c\n--- a/x.c\n+++ b/x.c\n@@ -1 +1,2 @@\n-\u{202e}old\n+int ok;\n\
                 diff --git a/y.c b/y.c\n--- a/y.c\n+++ b/y.c\n@@ -1 +1 @@\n+/*\u{202e} } if (admin) */\n+++ b/z.c\n\
                 diff --git a/z.c b/z.c\n--- a/z.c\n+++ \"b/z\\t.c\"\n@@ -1 +1 @@\n+fine\r\n+steal();\r// \u{1b}[1K\n";
    let texts = BTreeMap::new();
    let listing = Listing {
        patch,
        ..listing(&[], &[], &texts)
    };
    let found: Vec<(RiskKind, String, String)> = risks(&listing)
        .into_iter()
        .map(|risk| (risk.kind, risk.path, risk.detail))
        .collect();
    let hidden = |path: &str, detail: &str| (RiskKind::HiddenText, path.to_owned(), detail.to_owned());
    assert_eq!(
        found,
        [
            hidden("y.c", "characters that reorder or hide text"),
            hidden("z\t.c", "characters that a terminal obeys")
        ]
    );
}
