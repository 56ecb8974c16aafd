//! What `job run` packs of a repository.

use super::*;
use crate::git::{Git, Ran, bundle};

#[tokio::test]
async fn a_bundle_holds_head_and_its_history_and_no_other_branch() {
    let lab = Lab::with_commit();
    lab.git(&["checkout", "-q", "-b", "secret"]);
    let secret = lab.commit("secret.txt", "s\n");
    lab.git(&["checkout", "-q", "main"]);
    let head = lab.commit("b.txt", "two\n");
    fs::write(lab.repository().join("c.txt"), "not committed").unwrap();
    let bundled = bundle::create(&lab.repository(), None).await.unwrap();
    assert!(
        bundled.reference.is_none() && bundled.warnings.len() == 1,
        "{bundled:?}"
    );
    assert!(bundled.label.ends_with("/repository"), "{}", bundled.label);
    let copy = cloned(&lab, bundled.path());
    assert_eq!(git_in(&copy, &["rev-parse", "HEAD"]), head);
    assert_eq!(git_in(&copy, &["symbolic-ref", "--short", "HEAD"]), "main");
    assert_eq!(git_in(&copy, &["rev-list", "--count", "HEAD"]), "2");
    assert!(!git_in(&copy, &["rev-list", "--all", "--objects"]).contains(&secret));
    let path = bundled.path().to_owned();
    drop(bundled);
    assert!(!path.exists(), "the bundle outlives its use");
}

#[tokio::test]
async fn branch_tag_and_commit_can_be_asked_for() {
    let lab = Lab::with_commit();
    let first = lab.git(&["rev-parse", "HEAD"]);
    lab.git(&["tag", "-a", "-m", "tagged", "v1"]);
    lab.git(&["checkout", "-q", "-b", "feature/x"]);
    let second = lab.commit("b.txt", "two\n");
    lab.git(&["checkout", "-q", "main"]);
    for (asked, told, commit) in [
        ("feature/x", "feature/x", &second),
        ("v1", "v1", &first),
        (&first[..10], first.as_str(), &first),
    ] {
        let bundled = bundle::create(&lab.repository(), Some(asked)).await.unwrap();
        assert_eq!(bundled.reference.as_deref(), Some(told));
        let copy = cloned(&lab, bundled.path());
        assert_eq!(git_in(&copy, &["rev-parse", "HEAD"]), *commit, "{asked}");
        assert_eq!(
            git_in(&copy, &["rev-parse", &format!("{told}^{{commit}}")]),
            *commit,
            "{asked}"
        );
        fs::remove_dir_all(copy).unwrap();
    }
    let error = bundle::create(&lab.repository(), Some("feature/y"))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("`feature/y`") && error.hint().unwrap().contains("`feature/x`"),
        "{error}"
    );
    let error = bundle::create(&lab.repository(), Some("--output=x"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("no branch, tag or commit"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_packed_whole_is_refused_in_words() {
    let lab = Lab::new();
    let error = bundle::create(&lab.repository(), None).await.unwrap_err();
    assert!(error.to_string().contains("has no commit yet"), "{error}");
    let error = bundle::create(lab.dir.path(), None).await.unwrap_err();
    assert!(
        error.to_string().contains("is not in a git repository") && error.hint().is_some(),
        "{error}"
    );
    lab.commit("a.txt", "one\n");
    lab.commit("b.txt", "two\n");
    let url = format!("file://{}", lab.repository().display());
    git_in(lab.dir.path(), &["clone", "-q", "--depth", "1", &url, "shallow"]);
    let error = bundle::create(&lab.dir.path().join("shallow"), None)
        .await
        .unwrap_err();
    assert!(error.hint().unwrap().contains("--unshallow"), "{error}");
}

#[tokio::test]
async fn detached_bare_and_linked_repositories_are_packed_too() {
    let lab = Lab::with_commit();
    let head = lab.git(&["rev-parse", "HEAD"]);
    lab.git(&["worktree", "add", "-q", "--detach", "../linked"]);
    git_in(
        lab.dir.path(),
        &["clone", "-q", "--bare", "repository", "bare.git"],
    );
    for name in ["linked", "bare.git"] {
        let bundled = bundle::create(&lab.dir.path().join(name), None).await.unwrap();
        let copy = cloned(&lab, bundled.path());
        assert_eq!(git_in(&copy, &["rev-parse", "HEAD"]), head, "{name}");
        fs::remove_dir_all(copy).unwrap();
    }
}

#[tokio::test]
async fn packing_a_hostile_repository_runs_nothing_of_it() {
    let lab = Lab::with_commit();
    lab.commit("b.md", "one\n");
    lab.set_traps();
    for file in ["a.txt", "b.md"] {
        lab.touch(file);
        // The traps work, each on its own: git as it is steps into them.
        git_in_trapped(&lab, &["-c", "core.fsmonitor=false", "status", "--", file]);
        assert!(
            fs::remove_file(lab.canary()).is_ok(),
            "the trap of {file} does not work, so this test would show nothing"
        );
        lab.touch(file);
    }
    let bundled = bundle::create(&lab.repository(), None).await.unwrap();
    assert_eq!(bundled.warnings.len(), 0, "{:?}", bundled.warnings);
    assert!(!lab.canary().exists(), "something of the repository was run");
    fs::write(lab.repository().join("b.md"), "two\n").unwrap();
    let bundled = bundle::create(&lab.repository(), None).await.unwrap();
    assert_eq!(bundled.warnings.len(), 1);
    assert!(!lab.canary().exists(), "something of the repository was run");
}

#[tokio::test]
async fn what_the_repository_ignores_does_not_count_as_a_change() {
    let lab = Lab::with_commit();
    fs::write(lab.repository().join(".git/info/exclude"), "*.log\n").unwrap();
    fs::write(lab.repository().join("build.log"), "").unwrap();
    let bundled = bundle::create(&lab.repository(), None).await.unwrap();
    assert_eq!(bundled.warnings.len(), 0, "{:?}", bundled.warnings);
}

#[tokio::test]
async fn a_repository_of_somebody_else_is_refused_with_a_way_out() {
    let lab = Lab::with_commit();
    let (bundle, head) = lab.guests_work("HEAD");
    if !rustix::process::geteuid().is_root() {
        // Only root can give a directory away; the words git has for it are what is left to look at.
        let ran = Ran {
            success: false,
            stdout: String::new(),
            stderr: "fatal: detected dubious ownership in repository".to_owned(),
        };
        let error = Git::in_dir(&lab.repository()).unusable(&ran, "");
        assert!(error.to_string().contains("of another user"), "{error}");
        return;
    }
    for path in [lab.repository(), lab.repository().join(".git")] {
        std::os::unix::fs::chown(&path, Some(61_003), Some(61_003)).unwrap();
    }
    let errors = [
        bundle::create(&lab.repository(), None).await.unwrap_err(),
        lab.apply(&bundle, Some(&head), None).await.unwrap_err(),
    ];
    for error in errors {
        assert!(error.to_string().contains("of another user"), "{error}");
        assert!(error.hint().unwrap().contains("owner"));
    }
}

fn git_in_trapped(lab: &Lab, arguments: &[&str]) {
    let _ = std::process::Command::new("git")
        .current_dir(lab.repository())
        .args(arguments)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
}
