//! A network namespace that lives as long as its value.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace with only loopback up, held by a process that does nothing else.
#[derive(Debug)]
pub struct Namespace {
    holder: Child,
}

impl Namespace {
    /// Makes one.
    ///
    /// # Errors
    /// Not root, or no `unshare`.
    pub fn create() -> Result<Self> {
        let mut holder = Command::new("unshare")
            .args([
                "--net",
                "--",
                "sh",
                "-c",
                "ip link set lo up && echo ready && exec sleep infinity",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("unshare --net")?;
        let stdout = holder.stdout.take().context("no stdout")?;
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line)?;
        ensure!(line == "ready\n", "the namespace did not come up");
        Ok(Self { holder })
    }

    /// Joins it to another one by a cable: the ends have these names and addresses (`10.0.0.1/24`).
    ///
    /// # Errors
    /// A name is taken there, or an address is none.
    pub fn cable(
        &self,
        (here, address): (&str, &str),
        far: &Self,
        (there, other): (&str, &str),
    ) -> Result<()> {
        let ip = |of: &Self, words: String| of.output("ip", &words.split(' ').collect::<Vec<_>>()).map(drop);
        let pid = far.holder.id();
        ip(
            self,
            format!("link add {here} type veth peer name {there} netns {pid}"),
        )?;
        for (of, link, address) in [(self, here, address), (far, there, other)] {
            ip(of, format!("addr add {address} dev {link}"))?;
            ip(of, format!("link set {link} up"))?;
        }
        Ok(())
    }

    /// A socket of this process that listens inside it.
    ///
    /// # Errors
    /// Somebody listens there already, or nobody may.
    pub fn listen(&self, address: SocketAddr) -> Result<TcpListener> {
        let namespace = File::open(self.path())?;
        let bound = std::thread::scope(|threads| {
            // Only this thread goes there, and its end is the end of that.
            let binding = threads.spawn(|| {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                TcpListener::bind(address)
            });
            binding.join()
        });
        let bound = bound.map_err(|_| anyhow!("the thread that binds {address} panicked"))?;
        bound.with_context(|| format!("binding {address}"))
    }

    /// Its file, for `nsenter --net=`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.holder.id()))
    }

    /// A command that runs inside it.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg("--")
            .arg(program);
        command
    }

    /// What a command inside it prints.
    ///
    /// # Errors
    /// It could not be run, or ended with another status than 0.
    #[expect(clippy::disallowed_methods, reason = "a test waits for a short command")]
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self
            .command(program)
            .args(arguments)
            .output()
            .with_context(|| program.to_owned())?;
        ensure!(
            output.status.success(),
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Nothing can be done about a process that is gone already.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
