//! A daemon of the test's own, and the CLI beside it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use agentlab_api::JobView;
use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::internet::UPLINK;
use crate::{Internet, Namespace, leftovers, template};

/// What a command line program did.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// Exit code; absent when a signal ended it.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

/// A daemon, with the QEMU back end unless told otherwise, in a directory and a network namespace of its own. Dropping it ends everything.
#[derive(Debug)]
pub struct Lab {
    dir: TempDir,
    namespace: Namespace,
    daemon: Option<Child>,
    environment: Vec<(String, String)>,
    binaries: PathBuf,
}

impl Lab {
    /// Starts one with these profiles (YAML documents), each of them on the `demo` template.
    ///
    /// # Errors
    /// The template could not be built, or the daemon does not answer within 60 s; its log is in the error.
    pub fn start(profiles: &str) -> Result<Self> {
        Self::start_with(profiles, "")
    }

    /// The same with more lines in its configuration.
    ///
    /// # Errors
    /// As [`Lab::start`].
    pub fn start_with(profiles: &str, configuration: &str) -> Result<Self> {
        let mut lab = Self::prepare(profiles, configuration)?;
        lab.start_daemon()?;
        Ok(lab)
    }

    /// The same with an uplink, and these public addresses behind it.
    ///
    /// # Errors
    /// As [`Lab::start`].
    pub fn start_online(profiles: &str, configuration: &str, addresses: &[&str]) -> Result<(Self, Internet)> {
        let mut lab = Self::prepare(profiles, &format!("uplink: {UPLINK}\n{configuration}"))?;
        let internet = Internet::behind(&lab.namespace, addresses)?;
        lab.start_daemon()?;
        Ok((lab, internet))
    }

    fn prepare(profiles: &str, configuration: &str) -> Result<Self> {
        let store = template::template_store()?;
        let dir = tempfile::Builder::new().prefix("agentlab-lab-").tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711))?;
        let profiles_dir = dir.path().join("profiles");
        fs::create_dir(&profiles_dir)?;
        fs::write(profiles_dir.join("lab.yaml"), profiles)?;
        let at = |name: &str| dir.path().join(name).display().to_string();
        let backend = if configuration.contains("backend:") {
            ""
        } else {
            "backend: qemu\n"
        };
        let config = format!(
            "profiles_dir: {}\ndata_dir: {}\nrun_dir: {}\ntemplate_dir: {}\n{backend}{configuration}",
            at("profiles"),
            at("data"),
            at("run"),
            store.display()
        );
        let mut file = fs::File::create(dir.path().join("config.yaml"))?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(config.as_bytes())?;
        Ok(Self {
            dir,
            namespace: Namespace::create()?,
            daemon: None,
            environment: Vec::new(),
            binaries: template::binaries_dir(),
        })
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its network namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    fn socket(&self) -> PathBuf {
        self.dir().join("run/agentlabd.sock")
    }

    /// Adds a variable to the environment of daemons that are started from now on.
    pub fn set_daemon_variable(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// A daemon on this lab's configuration, not waited for.
    ///
    /// # Errors
    /// It could not be started.
    pub fn spawn_daemon(&self) -> Result<Child> {
        self.spawn_program("agentlabd", &[])
    }

    fn spawn_program(&self, program: &str, arguments: &[&str]) -> Result<Child> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir().join("agentlabd.log"))?;
        self.namespace
            .command(self.binaries.join(program))
            .arg("--config")
            .arg(self.dir().join("config.yaml"))
            .args(arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{program}: cargo build --workspace --bins makes it"))
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Errors
    /// It ended, or does not answer within 60 s.
    pub fn start_daemon(&mut self) -> Result<()> {
        let child = self.spawn_daemon()?;
        self.wait_for_daemon(child)
    }

    /// Starts a daemon that kills itself at a journal point, or some milliseconds after it, and waits until it answers.
    /// `moment` is a point's name with `before` or `after` in front of it.
    ///
    /// # Errors
    /// As [`Lab::start_daemon`].
    pub fn start_halting_daemon(&mut self, moment: &str, later: Duration) -> Result<()> {
        let later = later.as_millis().to_string();
        let child = self.spawn_program("agentlabd-halting", &["--halt-at", moment, "--later", &later])?;
        self.wait_for_daemon(child)
    }

    /// Waits until the daemon has killed itself.
    ///
    /// # Errors
    /// It has not within the time, or has ended otherwise.
    pub fn wait_for_halt(&mut self, within: Duration) -> Result<()> {
        let mut daemon = self.daemon.take().context("no daemon is running")?;
        let mut status = None;
        let ended = wait_for(within, || {
            status = daemon.try_wait()?;
            Ok(status.is_some())
        })?;
        if !ended {
            self.daemon = Some(daemon);
            bail!("the daemon did not get there:\n{}", self.daemon_log());
        }
        let signal = status.and_then(|status| std::os::unix::process::ExitStatusExt::signal(&status));
        ensure!(
            signal == Some(rustix::process::Signal::KILL.as_raw()),
            "the daemon ended otherwise: {status:?}\n{}",
            self.daemon_log()
        );
        Ok(())
    }

    fn wait_for_daemon(&mut self, mut child: Child) -> Result<()> {
        let answers = wait_for(Duration::from_secs(60), || {
            if let Some(status) = child.try_wait()? {
                bail!("agentlabd ended with {status}:\n{}", self.daemon_log());
            }
            Ok(self.agentlab(&["status"])?.status.success())
        });
        self.daemon = Some(child);
        ensure!(answers?, "agentlabd does not answer:\n{}", self.daemon_log());
        Ok(())
    }

    /// SIGKILL, as a power cut would.
    ///
    /// # Errors
    /// There is no daemon.
    pub fn kill_daemon(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("no daemon is running")?;
        daemon.kill()?;
        daemon.wait()?;
        Ok(())
    }

    /// SIGTERM, and how long it took to end.
    ///
    /// # Errors
    /// It did not end within 60 s.
    pub fn stop_daemon(&mut self) -> Result<Duration> {
        let mut daemon = self.daemon.take().context("no daemon is running")?;
        let begun = Instant::now();
        let pid = i32::try_from(daemon.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .context("pid")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        ensure!(
            wait_for(Duration::from_secs(60), || Ok(daemon.try_wait()?.is_some()))?,
            "agentlabd did not end"
        );
        Ok(begun.elapsed())
    }

    /// Resident memory of the daemon, in KiB.
    ///
    /// # Errors
    /// There is no daemon.
    pub fn daemon_rss_kib(&self) -> Result<u32> {
        let pid = self.daemon.as_ref().context("no daemon is running")?.id();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// Everything the daemon has logged.
    #[must_use]
    pub fn daemon_log(&self) -> String {
        fs::read_to_string(self.dir().join("agentlabd.log")).unwrap_or_default()
    }

    /// The CLI, ready to be run against this lab's daemon.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.binaries.join("agentlab"));
        command
            .args(arguments)
            .env("AGENTLAB_SOCKET", self.socket())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    /// Runs the CLI to its end.
    ///
    /// # Errors
    /// It could not be run.
    #[expect(
        clippy::disallowed_methods,
        reason = "a test waits for the command it is about"
    )]
    pub fn agentlab(&self, arguments: &[&str]) -> Result<Ran> {
        let output = self
            .command(arguments)
            .output()
            .context("agentlab: cargo build --workspace --bins makes it")?;
        Ok(Ran {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs the CLI with `--json` and parses what it printed.
    ///
    /// # Errors
    /// It failed, or printed something else.
    pub fn json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let ran = self.agentlab(&[&["--json"], arguments].concat())?;
        ensure!(
            ran.status.success(),
            "agentlab {arguments:?}: {}{}",
            ran.stdout,
            ran.stderr
        );
        serde_json::from_str(&ran.stdout)
            .with_context(|| format!("agentlab {arguments:?} printed {}", ran.stdout))
    }

    /// What the daemon answers to a GET.
    ///
    /// # Errors
    /// It does not answer, or not with JSON.
    pub fn get(&self, path: &str) -> Result<serde_json::Value> {
        use std::io::Read as _;
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: lab\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        serde_json::from_str(body).with_context(|| format!("GET {path} answered {answer}"))
    }

    /// One job.
    ///
    /// # Errors
    /// No such job.
    pub fn job(&self, id: &str) -> Result<JobView> {
        Ok(serde_json::from_value(self.json(&["job", "show", id])?)?)
    }

    /// The newest job.
    ///
    /// # Errors
    /// There is none.
    pub fn newest_job(&self) -> Result<JobView> {
        let list = self.json(&["job", "list"])?;
        let newest = list["jobs"].get(0).context("no job is listed")?;
        Ok(serde_json::from_value(newest.clone())?)
    }

    /// Waits until a job satisfies a condition, and gives it.
    ///
    /// # Errors
    /// It does not within the time; the job and the daemon's log are in the error.
    pub fn wait_for_job(
        &self,
        id: &str,
        within: Duration,
        condition: impl Fn(&JobView) -> bool,
    ) -> Result<JobView> {
        let fits = wait_for(within, || Ok(condition(&self.job(id)?)))?;
        let job = self.job(id)?;
        ensure!(fits, "job did not get there: {job:#?}\n{}", self.daemon_log());
        Ok(job)
    }

    /// Waits until a job's log holds a text.
    ///
    /// # Errors
    /// It does not within the time; the daemon's log is in the error.
    pub fn wait_for_log(&self, id: &str, within: Duration, text: &str) -> Result<()> {
        let heard = wait_for(within, || {
            Ok(self.agentlab(&["job", "logs", id])?.stdout.contains(text))
        })?;
        ensure!(heard, "`{text}` was not heard:\n{}", self.daemon_log());
        Ok(())
    }

    /// QEMU processes of this lab.
    #[must_use]
    pub fn qemu_processes(&self) -> Vec<u32> {
        leftovers::qemu_processes(self.dir())
    }

    /// A failed sandbox stays on the list with its cause until it is destroyed, but nothing of it may be left.
    fn only_failures_are_listed(&self) -> Result<bool> {
        let list = self.json(&["sandbox", "list"])?;
        let sandboxes = list["sandboxes"].as_array().context("no list")?;
        Ok(sandboxes
            .iter()
            .all(|one| one["state"] == "FAILED" && one.get("left_behind").is_none()))
    }

    /// Waits until nothing of any sandbox is left: no process, tap, rule, overlay, seed, live token.
    ///
    /// # Errors
    /// Something is after 180 s; it is named.
    pub fn nothing_is_left(&self) -> Result<()> {
        let clean = wait_for(Duration::from_secs(180), || {
            Ok(leftovers::find(&self.namespace, self.dir())?.is_empty()
                && self.json(&["status"])?["live_tokens"] == 0
                && self.only_failures_are_listed()?)
        })?;
        let left = leftovers::find(&self.namespace, self.dir())?;
        ensure!(
            clean,
            "left behind: {left:#?}\nsandboxes: {}\nstatus: {}\n{}",
            self.json(&["sandbox", "list"])?,
            self.json(&["status"])?,
            self.daemon_log()
        );
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // The lab goes away whether or not the daemon was still there.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        for pid in self.qemu_processes() {
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

/// Asks every 100 ms until the answer is yes, an error, or the time is over.
#[expect(
    clippy::disallowed_methods,
    reason = "a test thread may sleep between two looks"
)]
pub(crate) fn wait_for(within: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<bool> {
    let end = Instant::now() + within;
    loop {
        if condition()? {
            return Ok(true);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
