//! Small git repositories for jobs.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A git repository in a directory of the test's.
#[derive(Debug, Clone)]
pub struct Repository {
    path: String,
}

/// The words of `agentlab job run`. `repository` is a path or a URL; `more` comes last.
#[must_use]
pub fn job_run<'a>(repository: &'a str, profile: &'a str, task: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let words = [
        "job",
        "run",
        "--repo",
        repository,
        "--profile",
        profile,
        "--task",
        task,
    ];
    [&words, more].concat()
}

impl Repository {
    /// Makes one with a single commit: `sum.sh` that subtracts and `test.sh` that notices.
    ///
    /// # Errors
    /// git failed.
    pub fn with_failing_test(path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path)?;
        std::fs::write(path.join("sum.sh"), "#!/bin/sh\necho $(($1 - $2))\n")?;
        std::fs::write(path.join("test.sh"), "#!/bin/sh\n[ \"$(./sum.sh 2 3)\" = 5 ]\n")?;
        for name in ["sum.sh", "test.sh"] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(path.join(name), mode)?;
        }
        let repository = Self {
            path: path.display().to_string(),
        };
        repository.git(&["init", "-q", "-b", "main"])?;
        repository.git(&["add", "."])?;
        repository.git(&["commit", "-q", "-m", "Sum two numbers"])?;
        Ok(repository)
    }

    /// A fresh clone of it.
    ///
    /// # Errors
    /// git failed.
    pub fn clone_to(&self, path: &Path) -> Result<Self> {
        self.git(&["clone", "-q", ".", &path.display().to_string()])?;
        Ok(Self {
            path: path.display().to_string(),
        })
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        Path::new(&self.path)
    }

    /// The words of `agentlab job run` on it.
    #[must_use]
    pub fn job<'a>(&'a self, profile: &'a str, task: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        job_run(&self.path, profile, task, more)
    }

    /// Runs git in it and gives what it printed.
    ///
    /// # Errors
    /// git failed; its words are in the error.
    #[expect(clippy::disallowed_methods, reason = "a test waits for a short command")]
    pub fn git(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new("git")
            .args([
                "-c",
                "user.name=Test",
                "-c",
                "user.email=test@example.invalid",
                "-c",
                "commit.gpgsign=false",
            ])
            .args(arguments)
            .current_dir(&self.path)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output()
            .context("git")?;
        ensure!(
            output.status.success(),
            "git {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
