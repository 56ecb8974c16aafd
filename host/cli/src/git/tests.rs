//! Against real git, in directories of their own.

mod applying;
mod hostile;
mod packing;
mod reviewing;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use agentlab_api::JobId;

use super::apply::{self, Work};

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
        let draft = self.dir.path().join("draft");
        fs::write(&draft, &script).unwrap();
        for hook in [
            "post-checkout",
            "reference-transaction",
            "post-index-change",
            "pre-auto-gc",
            "fsmonitor-watchman",
        ] {
            // By a child: while another test begins a process, that may hold open what this process writes, and what is
            // open for writing cannot be run.
            let installed = std::process::Command::new("install")
                .args([&draft, &hooks.join(hook)])
                .status();
            assert!(installed.unwrap().success());
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

    /// The guest's clone with one more commit, made by `script`, as a bundle. All files count, whatever is ignored.
    fn work_of(&self, script: &str) -> (PathBuf, String) {
        let (bundle, _) = self.guests_work("HEAD");
        let guest = self.dir.path().join("guest");
        let ran = std::process::Command::new("sh")
            .args(["-euc", script])
            .current_dir(&guest)
            .status()
            .unwrap();
        assert!(ran.success(), "{script}");
        git_in(&guest, &["add", "-A", "-f"]);
        git_in(&guest, &["commit", "-q", "-m", "More"]);
        (bundle, self.bundled())
    }

    /// What the guest's clone has and the operator has not, as a bundle.
    fn bundled(&self) -> String {
        let guest = self.dir.path().join("guest");
        let range = format!("{}..HEAD", self.git(&["rev-parse", "HEAD"]));
        let bundle = self.dir.path().join("work.bundle");
        git_in(
            &guest,
            &["bundle", "create", "-q", bundle.to_str().unwrap(), &range],
        );
        git_in(&guest, &["rev-parse", "HEAD"])
    }

    async fn apply(
        &self,
        bundle: &Path,
        expected: Option<&str>,
        branch: Option<&str>,
    ) -> super::Result<apply::Fetched> {
        let job = job();
        let work = Work {
            expected,
            branch,
            ..work(&job, bundle, "")
        };
        apply::fetch(&self.repository(), &work).await
    }
}

fn job() -> JobId {
    "job_000000000000".parse().unwrap()
}

/// The work in a bundle, to be fetched and nothing more.
fn work<'a>(job: &'a JobId, bundle: &'a Path, head: &'a str) -> Work<'a> {
    Work {
        job,
        bundle,
        expected: Some(head),
        branch: None,
        strict: false,
        merge: false,
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
