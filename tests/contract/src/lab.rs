//! A daemon with its directory, and the command beside it.

use std::cell::OnceCell;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use agentlab_testkit::{Ran, Repository, binaries_dir, job_run};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::Visitors;

/// How long anything may take that takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);
const PROFILE: &str = "name: demo\ntemplate_vmid: 9000\nnetwork:\n  mode: \"off\"\n";

/// Dropping it ends everything.
#[derive(Debug)]
pub struct Lab {
    dir: TempDir,
    daemon: Option<Child>,
    ready: UnixDatagram,
    flags: Vec<String>,
    repository: OnceCell<Repository>,
}

impl Lab {
    /// A lab whose daemon serves, with one profile, `demo`.
    ///
    /// # Errors
    /// The daemon does not start; its log is in the error.
    pub fn started() -> Result<Self> {
        let mut lab = Self::prepare()?;
        lab.start()?;
        Ok(lab)
    }

    /// Everything but the daemon.
    ///
    /// # Errors
    /// A file could not be written.
    pub fn prepare() -> Result<Self> {
        let dir = TempDir::with_prefix("agentlab-contract-")?;
        let ready = UnixDatagram::bind(dir.path().join("notify"))?;
        ready.set_read_timeout(Some(PATIENCE))?;
        let lab = Self {
            dir,
            daemon: None,
            ready,
            flags: Vec::new(),
            repository: OnceCell::new(),
        };
        fs::create_dir(lab.path("profiles"))?;
        lab.profile("demo.yaml", PROFILE)?;
        let at = |name| lab.path(name).display().to_string();
        let config = format!(
            "profiles_dir: {}\ndata_dir: {}\nrun_dir: {}\nartifact_disk_floor_bytes: 1\n",
            at("profiles"),
            at("data"),
            at("run"),
        );
        lab.write_config(&config)?;
        Ok(lab)
    }

    /// Something in its directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Its directory as text.
    #[must_use]
    pub fn dir(&self) -> String {
        self.dir.path().display().to_string()
    }

    /// Adds lines to the configuration file.
    ///
    /// # Errors
    /// It could not be written.
    pub fn configure(&self, lines: &str) -> Result<()> {
        let config = fs::read_to_string(self.path("config.yaml"))?;
        self.write_config(&format!("{config}{lines}"))
    }

    fn write_config(&self, text: &str) -> Result<()> {
        let path = self.path("config.yaml");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        Ok(file.write_all(text.as_bytes())?)
    }

    /// Gives the configuration file other permissions.
    ///
    /// # Errors
    /// They could not be set.
    pub fn config_mode(&self, mode: u32) -> Result<()> {
        Ok(fs::set_permissions(
            self.path("config.yaml"),
            Permissions::from_mode(mode),
        )?)
    }

    /// Writes a file of profiles.
    ///
    /// # Errors
    /// It could not be written.
    pub fn profile(&self, file: &str, text: &str) -> Result<()> {
        Ok(fs::write(self.path("profiles").join(file), text)?)
    }

    /// Adds flags for `agentlabd-fake`.
    pub fn flags(&mut self, flags: &[&str]) {
        self.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
    }

    /// Lets the test play all guests; before the start, and within a tokio runtime.
    ///
    /// # Errors
    /// The socket cannot be bound.
    pub fn visitors(&mut self) -> Result<Visitors> {
        let socket = self.path("guests");
        self.flags(&["--guests", &socket.display().to_string()]);
        Visitors::listen(&socket)
    }

    /// Starts the daemon and returns when it says that it serves.
    ///
    /// # Errors
    /// It says no such thing; its log is in the error.
    pub fn start(&mut self) -> Result<()> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("log"))?;
        let child = self
            .daemon("agentlabd-fake")
            .args(&self.flags)
            .env("NOTIFY_SOCKET", self.path("notify"))
            .env("TMPDIR", self.dir.path())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("agentlabd-fake")?;
        self.daemon = Some(child);
        self.wait_until_ready()
    }

    fn wait_until_ready(&self) -> Result<()> {
        let mut message = [0; 512];
        loop {
            let length = self
                .ready
                .recv(&mut message)
                .with_context(|| format!("the daemon does not serve:\n{}", self.log()))?;
            let text = String::from_utf8_lossy(message.get(..length).unwrap_or_default());
            if text.lines().any(|line| line == "READY=1") {
                return Ok(());
            }
        }
    }

    /// `agentlabd` or `agentlabd-fake` on this lab's configuration.
    #[must_use]
    pub fn daemon(&self, program: &str) -> Command {
        let mut command = Command::new(binaries_dir().join(program));
        command
            .arg("--config")
            .arg(self.path("config.yaml"))
            .env_remove("NOTIFY_SOCKET")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let daemon = self.daemon.as_ref().context("no daemon is running")?;
        Ok(kill_process(pid(daemon)?, signal)?)
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// There is no daemon.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let mut daemon = self.daemon.take().context("no daemon is running")?;
        Ok(daemon.wait()?)
    }

    /// Stops the daemon and starts it anew while its machines go on running.
    ///
    /// # Errors
    /// It does not serve again; its log is in the error.
    pub fn restart_beside_its_machines(&self) -> Result<()> {
        self.signal(Signal::USR1)?;
        self.wait_until_ready()
    }

    /// Ends the daemon as a SIGKILL would, and starts it anew while its machines go on running.
    ///
    /// # Errors
    /// It does not serve again; its log is in the error.
    pub fn kill_beside_its_machines(&self) -> Result<()> {
        self.signal(Signal::USR2)?;
        self.wait_until_ready()
    }

    /// Where the bytes of an artifact lie, recorded or not.
    #[must_use]
    pub fn stored(&self, sha256: &str) -> PathBuf {
        let (shard, _) = sha256.split_at_checked(2).unwrap_or_default();
        self.path("data/artifacts").join(shard).join(sha256)
    }

    /// What the daemon logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// The command, ready to be run in this lab's directory.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binaries_dir().join("agentlab"));
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .env("AGENTLAB_SOCKET", self.path("run/agentlabd.sock"))
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    /// Runs the command to its end.
    ///
    /// # Errors
    /// It could not be run.
    pub fn agentlab(&self, arguments: &[&str]) -> Result<Ran> {
        run(self.command(arguments))
    }

    /// Runs the command with `--json` and parses its one document, whatever its exit code.
    ///
    /// # Errors
    /// It printed something else.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let ran = self.agentlab(&[&["--json"], arguments].concat())?;
        serde_json::from_str(&ran.stdout).with_context(|| format!("{arguments:?} printed {ran:?}"))
    }

    /// Begins the command, to be read from while it runs.
    ///
    /// # Errors
    /// It could not be run.
    pub fn begin(&self, arguments: &[&str]) -> Result<Running> {
        let stderr = tempfile::tempfile()?;
        let mut child = self
            .command(arguments)
            .stdout(Stdio::piped())
            .stderr(stderr.try_clone()?)
            .spawn()?;
        let stdout = BufReader::new(child.stdout.take().context("stdout")?);
        Ok(Running {
            child,
            stdout,
            stderr,
            shown: String::new(),
        })
    }

    /// A repository with one commit, made at the first call.
    ///
    /// # Errors
    /// git failed.
    pub fn repository(&self) -> Result<&Repository> {
        if self.repository.get().is_none() {
            let made = Repository::with_failing_test(&self.path("repository"))?;
            return Ok(self.repository.get_or_init(|| made));
        }
        self.repository.get().context("made before")
    }

    /// The words of `agentlab job run` on the repository, which the first call makes.
    ///
    /// # Errors
    /// git failed.
    pub fn job<'a>(&self, task: &'a str, more: &[&'a str]) -> Result<Vec<&'a str>> {
        self.repository()?;
        Ok(job_run("repository", "demo", task, more))
    }

    /// Begins a job on a URL, which no scripted guest clones, and gives its id.
    ///
    /// # Errors
    /// It was refused.
    pub fn detached(&self, task: &str) -> Result<String> {
        let ran = self.agentlab(&job_run(URL, "demo", task, &["--detach"]))?;
        ensure!(ran.code() == Some(0), "{ran:?}\n{}", self.log());
        Ok(ran.stdout.trim().to_owned())
    }

    /// Waits for the end of a job and gives it.
    ///
    /// # Errors
    /// There is no such job.
    pub fn finished(&self, job: &str) -> Result<Value> {
        self.agentlab(&["job", "logs", "-f", job])?;
        self.json(&["job", "show", job])
    }
}

/// A repository that does not exist.
const URL: &str = "https://example.invalid/r.git";

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // The lab goes away whether or not the daemon was still there.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// A command that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: File,
    shown: String,
}

impl Running {
    /// Reads until a line holds these words.
    ///
    /// # Errors
    /// The output ends before.
    pub fn wait_for(&mut self, words: &str) -> Result<()> {
        loop {
            let mut line = String::new();
            if self.stdout.read_line(&mut line)? == 0 {
                bail!("`{words}` was not shown:\n{}", self.shown);
            }
            self.shown.push_str(&line);
            if line.contains(words) {
                return Ok(());
            }
        }
    }

    /// Waits until it says these words beside its output.
    ///
    /// # Errors
    /// It ends before.
    #[expect(
        clippy::disallowed_methods,
        reason = "nobody tells when a file has grown, and no executor runs here"
    )]
    pub fn wait_for_note(&mut self, words: &str) -> Result<()> {
        loop {
            let ended = self.child.try_wait()?.is_some();
            let mut said = vec![0; 64 << 10];
            let length = self.stderr.read_at(&mut said, 0)?;
            let said = String::from_utf8_lossy(said.get(..length).unwrap_or_default()).into_owned();
            if said.contains(words) {
                return Ok(());
            }
            ensure!(!ended, "`{words}` was not said:\n{said}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ctrl-C.
    ///
    /// # Errors
    /// It has ended.
    pub fn interrupt(&self) -> Result<()> {
        Ok(kill_process(pid(&self.child)?, Signal::INT)?)
    }

    /// Waits for its end; the output begins with its first line.
    ///
    /// # Errors
    /// Its output cannot be read.
    pub fn finish(mut self) -> Result<Ran> {
        self.stdout.read_to_string(&mut self.shown)?;
        let status = self.child.wait()?;
        let mut stderr = String::new();
        std::io::Seek::rewind(&mut self.stderr)?;
        self.stderr.read_to_string(&mut stderr)?;
        Ok(Ran {
            status,
            stdout: self.shown,
            stderr,
        })
    }
}

/// Runs a program to its end.
///
/// # Errors
/// It could not be run.
#[expect(
    clippy::disallowed_methods,
    reason = "a test waits for the program it is about"
)]
pub fn run(mut command: Command) -> Result<Ran> {
    let program = Path::new(command.get_program()).to_owned();
    let output = command
        .output()
        .with_context(|| format!("{}: cargo build --workspace --bins makes it", program.display()))?;
    Ok(Ran {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn pid(child: &Child) -> Result<Pid> {
    let raw = i32::try_from(child.id())?;
    Pid::from_raw(raw).context("a process has an id")
}
