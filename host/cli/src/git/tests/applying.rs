//! How a job's commits come into a repository.

use super::*;

#[tokio::test]
async fn work_arrives_in_its_own_reference_and_runs_nothing() {
    let lab = Lab::with_commit();
    let (bundle, head) = lab.guests_work("HEAD");
    lab.set_traps();
    let fetched = lab.apply(&bundle, Some(&head), Some("fix")).await.unwrap();
    assert!(!lab.canary().exists(), "something of the repository was run");
    assert_eq!(
        (fetched.reference.as_str(), &fetched.commit),
        ("refs/agentlab/job_000000000000", &head)
    );
    assert!(
        fetched.subjects.len() == 1 && fetched.subjects[0].ends_with(" Fix it"),
        "{:?}",
        fetched.subjects
    );
    assert_eq!(lab.git(&["rev-parse", "refs/agentlab/job_000000000000"]), head);
    assert_eq!(lab.git(&["rev-parse", "refs/heads/fix"]), head);
    assert!(
        !lab.repository().join("b.txt").exists(),
        "the work tree was touched"
    );
    assert_eq!(lab.git(&["symbolic-ref", "HEAD"]), "refs/heads/main");
    lab.apply(&bundle, Some(&head), None).await.unwrap();
    let error = lab.apply(&bundle, Some(&head), Some("fix")).await.unwrap_err();
    assert!(error.to_string().contains("`fix` exists already"), "{error}");
    for name in ["-x", "a..b", "", "x.lock"] {
        assert!(
            lab.apply(&bundle, Some(&head), Some(name)).await.is_err(),
            "{name}"
        );
    }
}

#[tokio::test]
async fn the_works_reference_may_have_any_name_and_must_be_the_recorded_commit() {
    let lab = Lab::with_commit();
    let (bundle, head) = lab.guests_work("refs/heads/agentlab-work");
    let other = "1".repeat(40);
    let error = lab.apply(&bundle, Some(&other), None).await.unwrap_err();
    assert!(error.to_string().contains(&other), "{error}");
    assert_eq!(lab.apply(&bundle, None, None).await.unwrap().commit, head);
}

#[tokio::test]
async fn a_repository_without_the_base_is_told_so() {
    let lab = Lab::with_commit();
    let (bundle, head) = lab.guests_work("HEAD");
    let other = Lab::new();
    other.commit("q.txt", "unrelated\n");
    let error = other.apply(&bundle, Some(&head), None).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("does not hold the commit the job started from"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("--repo"));
}

#[tokio::test]
async fn objects_that_git_would_not_accept_are_refused() {
    let lab = Lab::with_commit();
    let guest = lab.dir.path().join("guest");
    git_in(lab.dir.path(), &["clone", "-q", "repository", "guest"]);
    let base = git_in(&guest, &["rev-parse", "HEAD"]);
    // A tree with an entry named `.git`: checking it out would replace the repository's own settings and hooks.
    let blob = git_in(&guest, &["rev-parse", "HEAD:a.txt"]);
    let raw = lab.dir.path().join("tree");
    let mut bytes = b"100644 .git\0".to_vec();
    bytes.extend(
        (0..blob.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&blob[at..at + 2], 16).unwrap()),
    );
    fs::write(&raw, bytes).unwrap();
    let tree = git_in(
        &guest,
        &[
            "hash-object",
            "-t",
            "tree",
            "-w",
            "--literally",
            raw.to_str().unwrap(),
        ],
    );
    let commit = git_in(&guest, &["commit-tree", &tree, "-p", &base, "-m", "Harmless"]);
    git_in(&guest, &["update-ref", "HEAD", &commit]);
    let bundle = lab.dir.path().join("evil.bundle");
    git_in(
        &guest,
        &[
            "bundle",
            "create",
            "-q",
            bundle.to_str().unwrap(),
            &format!("{base}..HEAD"),
        ],
    );
    let error = lab
        .apply(&bundle, Some(&commit), Some("taken"))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("fsck") || error.to_string().contains(".git"),
        "{error}"
    );
    assert_eq!(
        lab.git(&["for-each-ref", "--format=%(refname)"]),
        "refs/heads/main"
    );
    fs::write(&bundle, "not a bundle").unwrap();
    assert!(lab.apply(&bundle, None, None).await.is_err());
}
