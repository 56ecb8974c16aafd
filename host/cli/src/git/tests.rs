//! Against real git, in directories of their own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use agentlab_api::JobId;

use super::apply::{self, Work};
use super::bundle;

/// A repository and, beside it, a file that nothing but an executed hook or filter would make.
struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let lab = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(lab.repository()).unwrap();
        lab.git(&["init", "-q", "-b", "main"]);
        lab
    }

    fn with_commit() -> Self {
        let lab = Self::new();
        lab.commit("a.txt", "one\n");
        lab
    }

    fn repository(&self) -> PathBuf {
        self.dir.path().join("repository")
    }

    fn canary(&self) -> PathBuf {
        self.dir.path().join("canary")
    }

    fn git(&self, arguments: &[&str]) -> String {
        git_in(&self.repository(), arguments)
    }

    fn commit(&self, name: &str, text: &str) -> String {
        fs::write(self.repository().join(name), text).unwrap();
        self.git(&["add", "."]);
        self.git(&["commit", "-q", "-m", &format!("Write {name}")]);
        self.git(&["rev-parse", "HEAD"])
    }

    /// Makes git read a file again: it looks as if it could have changed.
    fn touch(&self, name: &str) {
        let file = fs::File::options()
            .write(true)
            .open(self.repository().join(name))
            .unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    }

    /// Makes everything in the repository that git could be made to run leave a trace.
    fn set_traps(&self) {
        let script = format!("#!/bin/sh\ntouch {}\ncat\n", self.canary().display());
        let hooks = self.repository().join(".git/hooks");
        fs::create_dir_all(&hooks).unwrap();
        for hook in [
            "post-checkout",
            "reference-transaction",
            "post-index-change",
            "pre-auto-gc",
            "fsmonitor-watchman",
        ] {
            let path = hooks.join(hook);
            fs::write(&path, &script).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let trap = hooks.join("post-checkout").display().to_string();
        for key in [
            "core.fsmonitor",
            "core.sshCommand",
            "core.alternateRefsCommand",
            "core.pager",
            "filter.evil.name.clean",
            "filter.evil.name.smudge",
            "filter.evil.name.process",
            "filter.a=b.clean",
            "filter.a=b.smudge",
            "uploadpack.packObjectsHook",
            "diff.external",
            "gpg.program",
        ] {
            self.git(&["config", key, &trap]);
        }
        self.git(&["config", "filter.evil.name.required", "true"]);
        self.git(&["config", "log.showSignature", "true"]);
        self.git(&["config", "protocol.ext.allow", "always"]);
        fs::write(
            self.repository().join(".git/info/attributes"),
            "*.txt filter=evil.name\n*.md filter=a=b\n",
        )
        .unwrap();
        let _ = fs::remove_file(self.canary());
    }

    /// What a guest would send back: a clone with commits on top, as a bundle of those commits only.
    fn guests_work(&self, reference: &str) -> (PathBuf, String) {
        let guest = self.dir.path().join("guest");
        git_in(self.dir.path(), &["clone", "-q", "repository", "guest"]);
        let base = git_in(&guest, &["rev-parse", "HEAD"]);
        fs::write(guest.join("b.txt"), "two\n").unwrap();
        git_in(&guest, &["add", "."]);
        git_in(&guest, &["commit", "-q", "-m", "Fix it"]);
        if reference != "HEAD" {
            git_in(&guest, &["update-ref", reference, "HEAD"]);
        }
        let bundle = self.dir.path().join("work.bundle");
        let range = format!("{base}..{reference}");
        git_in(
            &guest,
            &["bundle", "create", "-q", bundle.to_str().unwrap(), &range],
        );
        (bundle, git_in(&guest, &["rev-parse", "HEAD"]))
    }

    async fn apply(
        &self,
        bundle: &Path,
        expected: Option<&str>,
        branch: Option<&str>,
    ) -> super::Result<apply::Fetched> {
        let job: JobId = "job_000000000000".parse().unwrap();
        apply::fetch(
            &self.repository(),
            &Work {
                job: &job,
                bundle,
                expected,
                branch,
                strict: false,
                merge: false,
            },
        )
        .await
    }
}

fn git_in(dir: &Path, arguments: &[&str]) -> String {
    let output = dir.parent().unwrap().join("output");
    let status = std::process::Command::new("git")
        .current_dir(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .args([
            "-c",
            "user.name=T",
            "-c",
            "user.email=t@example.invalid",
            "-c",
            "core.fsmonitor=false",
            "-c",
            "init.defaultBranch=main",
        ])
        .args(arguments)
        .stdout(fs::File::create(&output).unwrap())
        .status()
        .unwrap();
    assert!(status.success(), "git {arguments:?}");
    fs::read_to_string(&output).unwrap().trim().to_owned()
}

fn cloned(lab: &Lab, bundle: &Path) -> PathBuf {
    let copy = lab.dir.path().join("copy");
    git_in(
        lab.dir.path(),
        &["clone", "-q", bundle.to_str().unwrap(), copy.to_str().unwrap()],
    );
    copy
}

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
        let ran = super::Ran {
            success: false,
            stdout: String::new(),
            stderr: "fatal: detected dubious ownership in repository".to_owned(),
        };
        let error = super::Git::in_dir(&lab.repository()).unusable(&ran, "");
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

/// The guest's clone with one more commit, made by `script`, as a bundle.
fn work_of(lab: &Lab, script: &str) -> (PathBuf, String) {
    let (bundle, _) = lab.guests_work("HEAD");
    let guest = lab.dir.path().join("guest");
    let ran = std::process::Command::new("sh")
        .args(["-euc", script])
        .current_dir(&guest)
        .status()
        .unwrap();
    assert!(ran.success(), "{script}");
    git_in(&guest, &["add", "-A"]);
    git_in(&guest, &["commit", "-q", "-m", "More"]);
    let base = lab.git(&["rev-parse", "HEAD"]);
    let range = format!("{base}..HEAD");
    git_in(
        &guest,
        &["bundle", "create", "-q", bundle.to_str().unwrap(), &range],
    );
    (bundle, git_in(&guest, &["rev-parse", "HEAD"]))
}

#[tokio::test]
async fn a_review_shows_what_would_run_here_and_strict_takes_it_out() {
    let lab = Lab::with_commit();
    lab.commit("Makefile", "all:\n");
    lab.set_traps();
    let script = "mkdir -p .husky .github/workflows sub; echo evil > .husky/pre-commit; echo evil: >> Makefile\n\
                  echo 'a.txt filter=evil.name' > .gitattributes; ln -s ../../outside sub/link; ln -s ../a.txt sub/fine\n\
                  echo good > b.txt; echo UP > A.txt; echo bytes | tr b '\\000' > binary; git rm -q a.txt";
    let (bundle, head) = work_of(&lab, script);
    let job: JobId = "job_000000000000".parse().unwrap();
    let mut work = Work {
        job: &job,
        bundle: &bundle,
        expected: Some(&head),
        branch: None,
        strict: false,
        merge: false,
    };
    let before = lab.git(&["for-each-ref"]);
    let seen = super::review::review(&lab.repository(), &work).await.unwrap();
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
    let (bundle, head) = work_of(&lab, "echo evil > build.rs");
    let guest = lab.dir.path().join("guest");
    // History that shares nothing with the operator's: everything in it is new.
    git_in(&guest, &["checkout", "-q", "--orphan", "other"]);
    git_in(&guest, &["commit", "-q", "-m", "All"]);
    let orphan = git_in(&guest, &["rev-parse", "HEAD"]);
    let job: JobId = "job_000000000000".parse().unwrap();
    let other = lab.dir.path().join("other.bundle");
    git_in(
        &guest,
        &["bundle", "create", "-q", other.to_str().unwrap(), "HEAD"],
    );
    for (bundle, commit, files) in [(&bundle, &head, 2), (&other, &orphan, 3)] {
        let work = Work {
            job: &job,
            bundle,
            expected: Some(commit),
            branch: None,
            strict: false,
            merge: false,
        };
        let seen = super::review::review(&lab.repository(), &work).await.unwrap();
        assert_eq!(seen.files.len(), files, "{:?}", seen.files);
        assert!(seen.risks.iter().any(|risk| risk.path == "build.rs"));
    }
}

#[tokio::test]
async fn work_comes_into_a_clean_checkout_only_and_only_forward() {
    let lab = Lab::with_commit();
    lab.set_traps();
    let (bundle, head) = work_of(
        &lab,
        "mkdir sub; echo two > sub/c.txt; printf '#!/bin/sh' > run; chmod +x run; rm a.txt",
    );
    let job: JobId = "job_000000000000".parse().unwrap();
    let work = Work {
        job: &job,
        bundle: &bundle,
        expected: Some(&head),
        branch: None,
        strict: false,
        merge: true,
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
    let (bundle, head) = work_of(&lab, "echo evil > .envrc");
    let job: JobId = "job_000000000000".parse().unwrap();
    let mut work = Work {
        job: &job,
        bundle: &bundle,
        expected: Some(&head),
        branch: None,
        strict: false,
        merge: true,
    };
    let refused = apply::fetch(&lab.repository(), &work).await.unwrap_err();
    assert!(refused.to_string().contains("`.envrc`"), "{refused}");
    work.strict = true;
    apply::fetch(&lab.repository(), &work).await.unwrap();
    let there = |name: &str| lab.repository().join(name).exists();
    assert!(there("b.txt") && !there(".envrc"));
}
