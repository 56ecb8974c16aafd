//! Work of a guest that means harm, made by real git.

use super::*;
use crate::git::gate::RiskKind;
use crate::git::review;

/// Commits a tree that git itself would not make, and gives its bundle.
fn forged(lab: &Lab, entries: &[(&str, &str, &str)]) -> (PathBuf, String) {
    let (bundle, _) = lab.guests_work("HEAD");
    let guest = lab.dir.path().join("guest");
    let mut listed = String::new();
    for (mode, name, text) in entries {
        let path = lab.dir.path().join("text");
        fs::write(&path, text).unwrap();
        let blob = git_in(&guest, &["hash-object", "-w", path.to_str().unwrap()]);
        listed.push_str(&format!("{mode} blob {blob}\t{name}\n"));
    }
    let list = lab.dir.path().join("list");
    fs::write(&list, listed).unwrap();
    let made = std::process::Command::new("sh")
        .args(["-euc", "git mktree < ../list > ../tree"])
        .current_dir(&guest)
        .status();
    assert!(made.unwrap().success());
    let tree = fs::read_to_string(lab.dir.path().join("tree")).unwrap();
    let tree = tree.trim();
    let commit = git_in(&guest, &["commit-tree", tree, "-p", "HEAD", "-m", "Harmless"]);
    git_in(&guest, &["update-ref", "HEAD", &commit]);
    (bundle, lab.bundled())
}

#[tokio::test]
async fn strict_takes_out_whatever_the_names_are_and_puts_back_what_was_there() {
    let lab = Lab::with_commit();
    lab.commit(".envrc", "ours\n");
    let names = [
        "two words/Makefile",
        "new\nline",
        "esc\x1b[2J",
        "quo\"te/Makefile",
        "back\\slash",
        "tab\there/.npmrc",
        "-rf",
        ":(top)x/build.rs",
        "trailing ",
        "GITMOD~1",
        "caf\u{e9}/setup.py",
    ];
    let mut script = "echo evil > .envrc; rm a.txt; mkdir a.txt; echo evil > a.txt/Makefile;".to_owned();
    for name in names {
        let quoted = name.replace('\'', "'\\''");
        script.push_str(&format!(
            "mkdir -p -- \"$(dirname -- './{quoted}')\"; echo evil > './{quoted}';"
        ));
    }
    // Hidden text in a file whose name has a space: git writes a tab behind it.
    script.push_str("printf 'x\\342\\200\\256y\\n' > 'hidden text.c'; printf '\\033[2Jx\\n' > 'esc.c'");
    let (bundle, head) = lab.work_of(&script);
    let job = job();
    let mut work = work(&job, &bundle, &head);
    let seen = review::review(&lab.repository(), &work).await.unwrap();
    for name in names
        .iter()
        .chain(&[".envrc", "a.txt/Makefile", "hidden text.c", "esc.c"])
    {
        assert!(
            seen.risks.iter().any(|risk| risk.path == *name),
            "{name:?} is not in {:?}",
            seen.risks
        );
    }
    work.strict = true;
    work.merge = true;
    let fetched = apply::fetch(&lab.repository(), &work).await.unwrap();
    let tree = lab.git(&["ls-tree", "-r", "--name-only", &fetched.reference]);
    assert_eq!(tree, ".envrc\nb.txt");
    assert_eq!(
        fs::read_to_string(lab.repository().join(".envrc")).unwrap(),
        "ours\n"
    );
    let message = lab.git(&["log", "-1", "--format=%B", &fetched.reference]);
    assert!(
        !message.contains('\x1b') && message.contains("new\\nline"),
        "{message:?}"
    );
}

#[tokio::test]
async fn what_git_refuses_for_its_name_or_its_submodule_never_arrives() {
    for (mode, name, text) in [
        ("100644", "GIT~1", "x"),
        ("100644", ".git ", "x"),
        ("100644", ".g\u{200c}it", "x"),
        (
            "100644",
            ".gitmodules",
            "[submodule \"x\"]\n\tpath = x\n\turl = -u./evil\n",
        ),
        (
            "100644",
            ".gitmodules",
            "[submodule \"x\"]\n\tpath = x\n\turl = --upload-pack=evil\n",
        ),
        (
            "100644",
            ".gitmodules",
            "[submodule \"../../hooks\"]\n\tpath = x\n\turl = https://x\n",
        ),
        (
            "100644",
            ".gitmodules",
            "[submodule \"x\"]\n\tpath = x\n\turl = https://x\n\tupdate = !evil\n",
        ),
        ("120000", ".gitmodules", "../elsewhere"),
    ] {
        let lab = Lab::with_commit();
        let (bundle, head) = forged(&lab, &[(mode, name, text)]);
        let job = job();
        // Before 2.46 git looks at what a bundle holds only when that goes on into another repository.
        match review::review(&lab.repository(), &work(&job, &bundle, &head)).await {
            Ok(seen) => assert!(seen.risks.iter().any(|risk| risk.path == name), "{name:?} {text}"),
            Err(error) => assert!(error.to_string().contains("git refuses"), "{name:?}: {error}"),
        }
        let refused = lab.apply(&bundle, Some(&head), None).await.unwrap_err();
        assert!(refused.to_string().contains("git refuses"), "{name:?}: {refused}");
        assert!(refused.hint().unwrap().contains("do not take it"));
        assert_eq!(
            lab.git(&["for-each-ref", "--format=%(refname)"]),
            "refs/heads/main"
        );
    }
}

#[tokio::test]
async fn what_only_the_guests_repository_knows_stays_there() {
    let lab = Lab::with_commit();
    let (bundle, head) = lab.work_of(
        "git config user.name T; git config user.email t@example.invalid
         git replace HEAD \"$(git commit-tree HEAD^{tree} -m Replaced)\"; git worktree add -q --detach ../other
         git notes add -m evil; git tag evil; git branch evil; echo fine > c.txt
         mkdir -p .git/hooks .git/info; echo '* filter=evil' > .git/info/attributes
         echo evil > .git/hooks/post-checkout; chmod +x .git/hooks/post-checkout
         git config core.fsmonitor /evil; git config includeIf.gitdir:/.path /evil; git config core.hooksPath /evil",
    );
    let before = lab.git(&["config", "--local", "--list"]);
    let fetched = lab.apply(&bundle, Some(&head), None).await.unwrap();
    assert_eq!(fetched.commit, head);
    assert_eq!(lab.git(&["config", "--local", "--list"]), before);
    assert_eq!(
        lab.git(&["for-each-ref", "--format=%(refname)"]),
        "refs/agentlab/job_000000000000\nrefs/heads/main"
    );
    for name in ["hooks/post-checkout", "info/attributes", "info/grafts", "shallow"] {
        assert!(!lab.repository().join(".git").join(name).exists(), "{name}");
    }
}

#[tokio::test]
async fn modes_binaries_and_types_are_told_apart() {
    let lab = Lab::with_commit();
    lab.commit("c.txt", "c\n");
    let (bundle, head) = lab.work_of(
        "chmod +x a.txt; rm c.txt; ln -s a.txt c.txt; printf 'a\\000b' > bytes; mkdir d; mv b.txt d/b.txt",
    );
    let job = job();
    let seen = review::review(&lab.repository(), &work(&job, &bundle, &head))
        .await
        .unwrap();
    let told: Vec<(&str, &str, Option<u64>)> = seen
        .files
        .iter()
        .map(|file| (file.path.as_str(), file.change, file.added))
        .collect();
    assert_eq!(
        told,
        [
            ("a.txt", "modified", Some(0)),
            ("bytes", "added", None),
            ("c.txt", "type_changed", Some(1)),
            ("d/b.txt", "added", Some(1))
        ]
    );
    assert!(
        seen.patch.contains("old mode 100644\nnew mode 100755"),
        "{}",
        seen.patch
    );
    assert!(
        !seen.risks.iter().any(|risk| risk.kind == RiskKind::Link),
        "{:?}",
        seen.risks
    );
}

#[tokio::test]
async fn a_few_objects_that_stand_for_endless_paths_are_refused() {
    let lab = Lab::with_commit();
    let (bundle, _) = lab.guests_work("HEAD");
    let guest = lab.dir.path().join("guest");
    let long = "n".repeat(200);
    let script = format!(
        "object=$(git rev-parse HEAD:a.txt); line=\"100644 blob $object\"
         for level in 1 2 3 4 5; do
             tree=$(for at in 0 1 2 3 4 5 6 7 8 9 a b c d e f; do printf '%s\\t{long}%s\\n' \"$line\" $at; done | git mktree)
             line=\"040000 tree $tree\"
         done
         git update-ref HEAD \"$(git -c user.name=T -c user.email=t commit-tree $tree -p HEAD -m Bomb)\""
    );
    let made = std::process::Command::new("sh")
        .args(["-euc", &script])
        .current_dir(&guest)
        .status();
    assert!(made.unwrap().success());
    let head = lab.bundled();
    let job = job();
    let refused = review::review(&lab.repository(), &work(&job, &bundle, &head))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("more files than"), "{refused}");
    assert!(lab.apply(&bundle, Some(&head), None).await.is_err());
}
