//! What a review shows of a job's work, and how that comes into a checkout.

use super::*;
use crate::git::review;

#[tokio::test]
async fn a_review_shows_what_would_run_here_and_strict_takes_it_out() {
    let lab = Lab::with_commit();
    lab.commit("Makefile", "all:\n");
    lab.set_traps();
    let script = "mkdir -p .husky .github/workflows sub; echo evil > .husky/pre-commit; echo evil: >> Makefile\n\
                  echo 'a.txt filter=evil.name' > .gitattributes; ln -s ../../outside sub/link; ln -s ../a.txt sub/fine\n\
                  echo good > b.txt; echo UP > A.txt; echo bytes | tr b '\\000' > binary; git rm -q a.txt";
    let (bundle, head) = lab.work_of(script);
    let job = job();
    let mut work = work(&job, &bundle, &head);
    let before = lab.git(&["for-each-ref"]);
    let seen = review::review(&lab.repository(), &work).await.unwrap();
    assert_eq!(lab.git(&["for-each-ref"]), before, "a review writes nothing");
    let risky: Vec<&str> = seen.risks.iter().map(|risk| risk.path.as_str()).collect();
    assert_eq!(
        risky,
        [
            ".husky/pre-commit",
            ".gitattributes",
            ".gitattributes",
            "sub/link",
            "Makefile"
        ],
        "{:?}",
        seen.risks
    );
    assert_eq!(
        seen.base.as_deref(),
        Some(lab.git(&["rev-parse", "HEAD"]).as_str())
    );
    let change = |path: &str| seen.files.iter().find(|file| file.path == path).unwrap();
    assert_eq!(
        (
            change("a.txt").change,
            change("b.txt").added,
            change("binary").added
        ),
        ("deleted", Some(1), None)
    );
    assert!(seen.patch.contains("+evil:"), "{}", seen.patch);

    work.strict = true;
    let fetched = apply::fetch(&lab.repository(), &work).await.unwrap();
    assert_eq!(fetched.risks, seen.risks);
    let show = |path: &str| lab.git(&["show", &format!("{}:{path}", fetched.reference)]);
    assert_eq!(
        (show("Makefile"), show("b.txt")),
        ("all:".to_owned(), "good".to_owned())
    );
    let tree = lab.git(&["ls-tree", "-r", "--name-only", &fetched.reference]);
    assert_eq!(tree, "A.txt\nMakefile\nb.txt\nbinary\nsub/fine");
    assert_eq!(lab.git(&["rev-parse", &format!("{}^", fetched.reference)]), head);
    assert!(!lab.canary().exists(), "something of either repository was run");
}

#[tokio::test]
async fn a_guest_cannot_hide_a_change_by_what_it_says_it_began_with() {
    let lab = Lab::with_commit();
    let (bundle, head) = lab.work_of("echo evil > build.rs");
    let guest = lab.dir.path().join("guest");
    // History that shares nothing with the operator's: everything in it is new.
    git_in(&guest, &["checkout", "-q", "--orphan", "other"]);
    git_in(&guest, &["commit", "-q", "-m", "All"]);
    let orphan = git_in(&guest, &["rev-parse", "HEAD"]);
    let job = job();
    let other = lab.dir.path().join("other.bundle");
    git_in(
        &guest,
        &["bundle", "create", "-q", other.to_str().unwrap(), "HEAD"],
    );
    for (bundle, commit, files) in [(&bundle, &head, 2), (&other, &orphan, 3)] {
        let seen = review::review(&lab.repository(), &work(&job, bundle, commit))
            .await
            .unwrap();
        assert_eq!(seen.files.len(), files, "{:?}", seen.files);
        assert!(seen.risks.iter().any(|risk| risk.path == "build.rs"));
    }
}

#[tokio::test]
async fn work_comes_into_a_clean_checkout_only_and_only_forward() {
    let lab = Lab::with_commit();
    lab.set_traps();
    let (bundle, head) =
        lab.work_of("mkdir sub; echo two > sub/c.txt; printf '#!/bin/sh' > run; chmod +x run; rm a.txt");
    let job = job();
    let work = Work {
        merge: true,
        ..work(&job, &bundle, &head)
    };
    let before = lab.git(&["rev-parse", "HEAD"]);
    let at = |name: &str| lab.repository().join(name);

    fs::write(at("a.txt"), "mine\n").unwrap();
    let refused = apply::fetch(&lab.repository(), &work).await.unwrap_err();
    assert!(
        refused.to_string().contains("not committed, such as a.txt"),
        "{refused}"
    );
    fs::write(at("a.txt"), "one\n").unwrap();
    fs::write(at("b.txt"), "mine and in nobody's index\n").unwrap();
    let refused = apply::fetch(&lab.repository(), &work).await.unwrap_err();
    assert!(refused.to_string().contains("b.txt"), "{refused}");
    assert_eq!(lab.git(&["rev-parse", "HEAD"]), before);
    assert!(at("a.txt").exists() && !at("run").exists(), "half of it arrived");
    fs::remove_file(at("b.txt")).unwrap();

    apply::fetch(&lab.repository(), &work).await.unwrap();
    assert_eq!(lab.git(&["symbolic-ref", "HEAD"]), "refs/heads/main");
    assert_eq!(lab.git(&["rev-parse", "HEAD"]), head);
    assert_eq!(fs::read_to_string(at("sub/c.txt")).unwrap(), "two\n");
    assert_eq!(
        fs::metadata(at("run")).unwrap().permissions().mode() & 0o111,
        0o111
    );
    assert!(!at("a.txt").exists());
    assert!(!lab.canary().exists(), "something was run");
    fs::write(at(".git/info/attributes"), "").unwrap();
    fs::remove_dir_all(at(".git/hooks")).unwrap();
    lab.git(&["config", "--unset", "core.fsmonitor"]);
    assert_eq!(lab.git(&["status", "--porcelain"]), "");

    lab.git(&["reset", "-q", "--hard", &before]);
    lab.commit("other.txt", "further on\n");
    let refused = apply::fetch(&lab.repository(), &work).await.unwrap_err();
    assert!(refused.to_string().contains("does not continue"), "{refused}");
}

#[tokio::test]
async fn work_that_would_run_something_is_not_merged_unless_that_is_taken_out() {
    let lab = Lab::with_commit();
    let (bundle, head) = lab.work_of("echo evil > .envrc");
    let job = job();
    let mut work = Work {
        merge: true,
        ..work(&job, &bundle, &head)
    };
    let refused = apply::fetch(&lab.repository(), &work).await.unwrap_err();
    assert!(refused.to_string().contains("`.envrc`"), "{refused}");
    work.strict = true;
    apply::fetch(&lab.repository(), &work).await.unwrap();
    let there = |name: &str| lab.repository().join(name).exists();
    assert!(there("b.txt") && !there(".envrc"));
}
