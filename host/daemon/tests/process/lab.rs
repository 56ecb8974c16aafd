//! A directory, a socket that hears what the service manager would, and the program.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// For what takes milliseconds on a machine that has nothing else to do.
const PATIENCE: Duration = Duration::from_secs(60);
const QEMU: &str = "#!/bin/sh\necho 'QEMU emulator version 7.2.22'\n";

/// Dropping it ends the daemon.
pub(crate) struct Lab {
    dir: tempfile::TempDir,
    manager: UnixDatagram,
    daemon: Option<Child>,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let manager = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        manager.set_read_timeout(Some(PATIENCE)).unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        // Installed by a child: while another test begins a process, that may hold open what this process writes, and
        // what is open for writing cannot be run.
        let draft = dir.path().join("draft");
        fs::write(&draft, QEMU).unwrap();
        for name in ["qemu-system-x86_64", "qemu-img"] {
            let program = dir.path().join("bin").join(name);
            let installed = Command::new("install").args([&draft, &program]).status();
            assert!(installed.unwrap().success());
        }
        fs::create_dir(dir.path().join("profiles")).unwrap();
        let lab = Self {
            dir,
            manager,
            daemon: None,
        };
        lab.profile("demo");
        lab.configure("");
        lab
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn profile(&self, name: &str) {
        let text = format!("name: {name}\ntemplate_vmid: 9000\nnetwork:\n  mode: \"off\"\n");
        fs::write(self.path("profiles").join(format!("{name}.yaml")), text).unwrap();
    }

    /// Writes the configuration anew, with more lines at its end.
    pub(crate) fn configure(&self, more: &str) {
        let text = format!(
            "profiles_dir: {0}/profiles\ndata_dir: {0}/data\nrun_dir: {0}/run\nartifact_disk_floor_bytes: 1\n\
             qemu:\n  accelerator: tcg\n  binary: {0}/bin/qemu-system-x86_64\n{more}",
            self.dir.path().display()
        );
        let path = self.path("config.yaml");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Starts it, with these variables in its environment, and returns when it says that it serves.
    pub(crate) fn start(&mut self, environment: &[(&str, &str)]) {
        self.spawn(environment, None);
        self.until("READY=1");
    }

    /// Starts it, with a socket as descriptor 3 if there is one.
    pub(crate) fn spawn(&mut self, environment: &[(&str, &str)], socket: Option<&UnixListener>) {
        // The shell becomes the program, so that LISTEN_PID is its process id, as a service manager makes it. The socket
        // comes as its standard input: no other test's process inherits it, and its number is one that every shell reads.
        let (hand_over, input) = match socket {
            Some(socket) => (
                "exec 3<&0 </dev/null; export LISTEN_PID=$$;",
                Stdio::from(OwnedFd::from(socket.try_clone().unwrap())),
            ),
            None => ("", Stdio::null()),
        };
        let script = format!("{hand_over} exec \"$0\" --config \"$1\"");
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        command
            .args([
                "--net",
                "--",
                "sh",
                "-c",
                &script,
                env!("CARGO_BIN_EXE_agentlabd"),
            ])
            .arg(self.path("config.yaml"))
            .env_remove("RUST_LOG")
            .env("NOTIFY_SOCKET", self.path("notify"))
            .envs(environment.iter().copied())
            .stdin(input)
            .stdout(Stdio::null())
            .stderr(log);
        self.daemon = Some(command.spawn().unwrap());
    }

    /// The next thing the service manager is told.
    pub(crate) fn told(&self) -> String {
        self.told_within(PATIENCE)
            .unwrap_or_else(|| panic!("the service manager hears nothing:\n{}", self.log()))
    }

    pub(crate) fn told_within(&self, time: Duration) -> Option<String> {
        self.manager.set_read_timeout(Some(time)).unwrap();
        let mut message = [0; 1024];
        let length = self.manager.recv(&mut message).ok()?;
        Some(String::from_utf8_lossy(&message[..length]).into_owned())
    }

    /// Waits until the service manager is told this, and returns the whole message.
    pub(crate) fn until(&self, line: &str) -> String {
        loop {
            let message = self.told();
            if message.lines().any(|told| told.starts_with(line)) {
                return message;
            }
        }
    }

    /// Waits until the daemon has logged this.
    pub(crate) fn until_logged(&self, words: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.log().contains(words) {
            assert!(Instant::now() < end, "`{words}` was not logged:\n{}", self.log());
            std::thread::yield_now();
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.daemon.as_ref().unwrap().id();
        let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// How it ended.
    pub(crate) fn end(&mut self) -> ExitStatus {
        self.daemon.take().unwrap().wait().unwrap()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("run/agentlabd.sock")
    }

    /// The body of an answer.
    pub(crate) fn get(&self, path: &str) -> Value {
        ask(connect(&self.socket()), path)
    }

    pub(crate) fn alarms(&self) -> Vec<String> {
        let status = self.get("/v1/status");
        let alarms = status["alarms"].as_array().unwrap();
        alarms
            .iter()
            .map(|alarm| alarm.as_str().unwrap().to_owned())
            .collect()
    }

    pub(crate) fn profiles(&self) -> Vec<String> {
        let list = self.get("/v1/profiles");
        let profiles = list["profiles"].as_array().unwrap();
        profiles
            .iter()
            .map(|profile| profile["name"].as_str().unwrap().to_owned())
            .collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

pub(crate) fn connect(socket: &Path) -> UnixStream {
    UnixStream::connect(socket).unwrap()
}

/// The least HTTP that gets an answer.
pub(crate) fn ask(mut stream: UnixStream, path: &str) -> Value {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    serde_json::from_str(body).unwrap()
}

/// How often a message comes within a time.
pub(crate) fn count(lab: &Lab, line: &str, time: Duration) -> usize {
    let end = Instant::now() + time;
    let mut count = 0;
    while let Some(left) = end
        .checked_duration_since(Instant::now())
        .filter(|left| !left.is_zero())
    {
        if let Some(message) = lab.told_within(left)
            && message.contains(line)
        {
            count += 1;
        }
    }
    count
}
