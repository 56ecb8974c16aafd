//! Programs of the node, run by argv and never through a shell.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use super::step::typed;

/// Where root's programs are when PATH does not say so.
const USUAL: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// A cluster without quorum lets changes wait for a minute.
const PATIENCE: Duration = Duration::from_secs(90);

/// Finds and runs programs.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    search: Vec<PathBuf>,
}

/// A program's whole output. It may hold a secret, so it is never shown as a whole.
pub(crate) struct Output {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    stderr: String,
}

/// Why a program gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    #[error("`{0}` is neither in PATH nor in /usr/sbin or /usr/bin")]
    Absent(String),
    #[error("`{command}` did not run: {source}")]
    Unrun {
        command: String,
        #[source]
        source: std::io::Error,
    },
    #[error("`{command}` did not end within {} s", PATIENCE.as_secs())]
    Slow { command: String },
    /// With its own words, in one line.
    #[error("`{command}` ended with {code}: {words}")]
    Failed {
        command: String,
        code: String,
        words: String,
    },
    #[error("`{command}` answered something else than JSON: {source}")]
    Unreadable {
        command: String,
        #[source]
        source: serde_json::Error,
    },
}

impl Programs {
    /// Beside this executable, in PATH, and where Debian keeps programs for root.
    pub(crate) fn of_system() -> Self {
        let beside = std::env::current_exe().ok();
        let beside = beside.as_deref().and_then(Path::parent).map(Path::to_owned);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let search = beside
            .into_iter()
            .chain(std::env::split_paths(&path))
            .chain(USUAL.into_iter().map(PathBuf::from))
            // A program of the directory that one happens to stand in is nobody's.
            .filter(|dir| dir.is_absolute())
            .collect();
        Self { search }
    }

    pub(crate) fn find(&self, program: &str) -> Option<PathBuf> {
        self.search
            .iter()
            .map(|dir| dir.join(program))
            .find(|path| path.is_file())
    }

    /// Runs it to its end with `input`, whatever its exit status.
    pub(crate) async fn run(&self, argv: &[String], input: &[u8]) -> Result<Output, ProgramError> {
        let (name, rest) = argv
            .split_first()
            .ok_or_else(|| ProgramError::Absent(String::new()))?;
        let path = self
            .find(name)
            .ok_or_else(|| ProgramError::Absent(name.clone()))?;
        let command = || typed(argv);
        let unrun = |source| ProgramError::Unrun {
            command: command(),
            source,
        };
        let mut child = Command::new(path)
            .args(rest)
            // Their messages are compared and shown.
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(unrun)?;
        let mut stdin = child.stdin.take();
        let whole = async {
            if let Some(stdin) = &mut stdin {
                // A program that does not read says so by its answer.
                let _ = tokio::io::AsyncWriteExt::write_all(stdin, input).await;
            }
            drop(stdin.take());
            child.wait_with_output().await
        };
        let output = timeout(PATIENCE, whole)
            .await
            .map_err(|_| ProgramError::Slow { command: command() })?
            .map_err(unrun)?;
        Ok(Output {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs it, and takes anything but exit status 0 for a failure.
    pub(crate) async fn done(&self, argv: &[String]) -> Result<String, ProgramError> {
        let output = self.run(argv, b"").await?;
        if output.code == Some(0) {
            return Ok(output.stdout);
        }
        Err(ProgramError::Failed {
            command: typed(argv),
            code: output
                .code
                .map_or_else(|| "a signal".to_owned(), |code| format!("exit status {code}")),
            words: output.words(),
        })
    }

    /// `pvesh get PATH`, as JSON.
    pub(crate) async fn ask(&self, path: &str, more: &[&str]) -> Result<Value, ProgramError> {
        self.json(&[&["pvesh", "get", path], more].concat()).await
    }

    /// Runs it with `--output-format json`.
    pub(crate) async fn json(&self, argv: &[&str]) -> Result<Value, ProgramError> {
        let argv: Vec<String> = argv
            .iter()
            .chain(&["--output-format", "json"])
            .map(|word| (*word).to_owned())
            .collect();
        let text = self.done(&argv).await?;
        serde_json::from_str(&text).map_err(|source| ProgramError::Unreadable {
            command: typed(&argv),
            source,
        })
    }
}

impl Output {
    /// What it complained about, in one line, without Perl's own complaints and the usage.
    pub(crate) fn words(&self) -> String {
        let lines: Vec<&str> = self
            .stderr
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .filter(|line| {
                !line.starts_with("Use of uninitialized value") && !line.starts_with("perl: warning")
            })
            .filter(|line| !(line.starts_with("pve") && line.ends_with("[OPTIONS]")))
            .collect();
        lines.join(" ").chars().take(400).collect()
    }
}
