//! A directory, and daemons on it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use agentlab_config::{Config, load_config};
use anyhow::{Context, Result, ensure};

use crate::live;

const PATIENCE: Duration = Duration::from_secs(60);
const QEMU: &str = "#!/bin/sh\necho 'QEMU emulator version 7.2.22'\n";

pub(crate) struct Lab {
    dir: tempfile::TempDir,
    ready: UnixDatagram,
    network: Network,
}

/// A network namespace that outlives the daemons in it.
struct Network(Child);

impl Network {
    fn new() -> Result<Self> {
        let mut child = Command::new("unshare")
            .args(["--net", "--", "sh", "-c", "echo; exec sleep infinity"])
            .stdout(Stdio::piped())
            .spawn()
            .context("unshare --net")?;
        let mut there = child.stdout.take().context("it has no output")?;
        let network = Self(child);
        there
            .read_exact(&mut [0])
            .context("unshare --net: this needs root")?;
        Ok(network)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // It is a benchmark's, and only sleeps.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a daemon finds.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Policy {
    /// A namespace in which nothing stands yet.
    None,
    /// The policy of a daemon that was there before, or of `agentlab-net seal` at boot.
    Standing,
}

impl Lab {
    pub(crate) fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("profiles"))?;
        fs::write(
            at("profiles/demo.yaml"),
            "name: demo\ntemplate_vmid: 9000\nnetwork:\n  mode: \"off\"\n",
        )?;
        for name in ["qemu-system-x86_64", "qemu-img"] {
            fs::write(at(name), QEMU)?;
            fs::set_permissions(at(name), fs::Permissions::from_mode(0o755))?;
        }
        let text = format!(
            "profiles_dir: {0}/profiles\ndata_dir: {0}/data\nrun_dir: {0}/run\nartifact_disk_floor_bytes: 1\n\
             max_sandboxes: 2000\nqemu:\n  accelerator: tcg\n  binary: {0}/qemu-system-x86_64\n",
            dir.path().display()
        );
        fs::write(at("config.yaml"), text)?;
        fs::set_permissions(at("config.yaml"), fs::Permissions::from_mode(0o600))?;
        let ready = UnixDatagram::bind(at("notify"))?;
        ready.set_read_timeout(Some(PATIENCE))?;
        let network = Network::new()?;
        Ok(Self { dir, ready, network })
    }

    pub(crate) fn config(&self) -> Result<Config> {
        Ok(load_config(&self.dir.path().join("config.yaml"))?.value)
    }

    /// The program itself.
    pub(crate) fn start(&self, policy: Policy) -> Result<Daemon> {
        let mut command = match policy {
            Policy::None => {
                let mut command = Command::new("unshare");
                command.arg("--net");
                command
            }
            Policy::Standing => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/proc/{}/ns/net", self.network.0.id()));
                command
            }
        };
        command
            .args(["--", env!("CARGO_BIN_EXE_agentlabd"), "--config"])
            .arg(self.dir.path().join("config.yaml"));
        self.serving(command)
    }

    /// This program, on a hypervisor in memory.
    pub(crate) fn start_live(&self) -> Result<Daemon> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(live::FLAG).arg(self.dir.path());
        self.serving(command)
    }

    fn serving(&self, mut command: Command) -> Result<Daemon> {
        let log_path = self.dir.path().join("log");
        let log = fs::File::create(&log_path)?;
        let child = command
            .env("NOTIFY_SOCKET", self.dir.path().join("notify"))
            .env("RUST_LOG", "agentlabd=info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("{command:?}"))?;
        let daemon = Daemon {
            child,
            log_path,
            socket: self.dir.path().join("run/agentlabd.sock"),
        };
        let mut message = [0; 512];
        loop {
            let length = self
                .ready
                .recv(&mut message)
                .with_context(|| format!("it does not serve: {}", daemon.log()))?;
            if message.get(..length).unwrap_or_default().starts_with(b"READY=1") {
                return Ok(daemon);
            }
        }
    }

    /// `agentlab`, where it was built.
    pub(crate) fn command(&self) -> Result<Option<PathBuf>> {
        let beside = Path::new(env!("CARGO_BIN_EXE_agentlabd")).with_file_name("agentlab");
        if !beside.exists() {
            crate::say("agentlab is not built: no figures of the whole command");
            return Ok(None);
        }
        Ok(Some(beside))
    }
}

/// Ends when dropped.
pub(crate) struct Daemon {
    child: Child,
    log_path: PathBuf,
    socket: PathBuf,
}

impl Daemon {
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log_path).unwrap_or_default()
    }

    /// From the start of the daemon to its serving, by its own clock.
    pub(crate) fn milliseconds(&self) -> Result<u64> {
        let log = self.log();
        let (_, rest) = log.rsplit_once("milliseconds=").context("it logged no time")?;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Ok(digits.parse()?)
    }

    pub(crate) fn rss_kib(&self) -> Result<u32> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        Ok(line.context("no VmRSS")?.trim().trim_end_matches(" kB").parse()?)
    }

    /// The length of an answer, over a connection of its own as the command makes it.
    pub(crate) fn ask(&self, path: &str) -> Result<usize> {
        let mut stream = UnixStream::connect(&self.socket)?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        ensure!(answer.starts_with(b"HTTP/1.1 "), "{path}: no answer");
        Ok(answer.len())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It is a benchmark's: records may be lost.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
