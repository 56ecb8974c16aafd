//! Network namespaces without names: they are gone when the last descriptor and the last socket in them are closed.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns, unshare};

/// How long what must happen may take, on a machine that is busy with other things or stands still for a while.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long nothing must happen before it is taken for refused. Only a leak may be missed by a machine that is slower.
pub const SILENCE: Duration = Duration::from_millis(350);

/// Looks again until it is so, and gives up after [`PATIENCE`].
pub fn until(mut is_so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        if Instant::now() >= end {
            return false;
        }
        pause();
    }
    true
}

#[expect(
    clippy::disallowed_methods,
    reason = "a test's own thread, which has nothing else to do between two looks"
)]
fn pause() {
    thread::sleep(Duration::from_millis(5));
}

/// One namespace, held by its descriptor.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// An empty namespace with its loopback up.
    pub fn new() -> Result<Self> {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
            File::open("/proc/thread-self/ns/net").context("opening it")
        });
        let namespace = Self {
            file: made
                .join()
                .map_err(|_| anyhow!("the thread that makes namespaces died"))??,
        };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Runs `work` on a thread that lives in the namespace. Sockets it opens stay there wherever they go.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).context("entering a network namespace")?;
                Ok(work())
            });
            inside
                .join()
                .map_err(|_| anyhow!("work in a namespace panicked"))?
        })
    }

    /// Runs lines of `ip` in the namespace, all or with an error.
    pub fn ip(&self, script: &str) -> Result<()> {
        self.run("ip", &["-batch", "-"], script).map(drop)
    }

    /// Runs a program in the namespace and returns what it printed. It must succeed.
    pub fn run(&self, program: &str, arguments: &[&str], input: &str) -> Result<String> {
        self.enter(|| {
            let mut child = Command::new(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .with_context(|| format!("starting {program}"))?;
            child
                .stdin
                .take()
                .context("its input is a pipe")?
                .write_all(input.as_bytes())?;
            let output = child.wait_with_output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(
                output.status.success(),
                "{program} {} failed: {said}",
                arguments.join(" ")
            );
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        })?
    }

    /// Whether a connection comes about, with all the time that it needs.
    pub fn opens(&self, to: &str) -> Result<bool> {
        let to: SocketAddr = to.parse()?;
        self.enter(|| {
            let mut opened = false;
            // A neighbour that a busy machine did not find in time is looked for again.
            until(|| match TcpStream::connect_timeout(&to, PATIENCE) {
                Err(error) if error.kind() == ErrorKind::HostUnreachable => false,
                tried => {
                    opened = tried.is_ok();
                    true
                }
            });
            opened
        })
    }

    /// Whether no connection comes about for as long as [`SILENCE`].
    pub fn is_closed(&self, to: &str) -> Result<bool> {
        let to: SocketAddr = to.parse()?;
        self.enter(|| TcpStream::connect_timeout(&to, SILENCE).is_err())
    }

    /// Whether a link goes away. A tap does so with its last descriptor, and a child that another test is just beginning
    /// may still have one.
    pub fn loses(&self, link: &str) -> bool {
        until(|| self.run("ip", &["link", "show", "dev", link], "").is_err())
    }

    /// Writes a kernel setting below `/proc/sys/net`.
    pub fn set(&self, setting: &str, value: &str) -> Result<()> {
        self.enter(|| std::fs::write(format!("/proc/sys/net/{setting}"), value))?
            .with_context(|| format!("setting {setting} to {value}"))
    }

    /// A path that `ip link set … netns` takes.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }
}
