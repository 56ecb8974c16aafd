//! A template that people and servers of git are met with: what the recipe `debian-13` has for SSH, and little else.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{Identity, Namespace, template_image};

/// The VMID that profiles name for it.
pub const LOGIN_VMID: u32 = 9021;
/// Where git servers of tests are, as its guests trust one: a public address of no rule's.
pub const ORIGIN_ADDRESS: &str = "45.76.0.1";

/// Stands where Tailscale would: says in `/run/tailscale` what it was begun with, and joins nothing.
const TAILSCALE: &str = r#"#!/bin/sh
mkdir -m 700 /run/tailscale && cd /run/tailscale || exit 1
tr '\0' '\n' < /proc/$$/environ > environment
printf '%s\n' "$@" > arguments
for one in "$@"; do case "$one" in --auth-key=file:*) stat -c '%a %U' "${one#*file:}" > owner; cat "${one#*file:}" > key;; esac; done
"#;

/// Builds the image, if no earlier run has. Its git trusts `identity` alone.
///
/// # Errors
/// The build failed.
pub fn login_image(identity: &Identity) -> Result<PathBuf> {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/recipes/debian-13.toml");
    let shipped = std::fs::read_to_string(&shipped).with_context(|| shipped.display().to_string())?;
    let rest = shipped
        .split_once("kept_units = ")
        .context("debian-13 keeps units")?
        .1;
    let recipe = format!(
        "name = \"login\"\nvmid = {LOGIN_VMID}\nsuite = \"trixie\"\nsize_mb = 2048\n\
         packages = [\"bubblewrap\", \"ca-certificates\", \"git\", \"openssh-server\", \"sudo\"]\n\
         kept_units = {rest}\n\
         [[files]]\npath = \"/usr/local/bin/tailscale\"\nmode = \"0755\"\ncontent = \'\'\'{TAILSCALE}\'\'\'\n\
         [[files]]\npath = \"/etc/ssl/certs/ca-certificates.crt\"\ncontent = \"\"\"\n{}\"\"\"\n",
        identity.certificate
    );
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("login.toml");
    std::fs::write(&path, recipe)?;
    template_image(&path.display().to_string(), &[])
}

/// The SSH server of that image, with git behind it, on this host: in a root directory of its own.
#[derive(Debug)]
pub struct SshServer {
    root: PathBuf,
    daemon: Child,
    host_key: String,
}

/// Who logs in there, and owns the repositories.
const ACCOUNT: u32 = 1000;

impl SshServer {
    /// Serves on port 22 of every address of a namespace to the holder of a key. `root` must not exist.
    ///
    /// # Errors
    /// The image cannot be unpacked, or the server does not start.
    pub fn start(image: &Path, root: &Path, namespace: &Namespace, authorized: &str) -> Result<Self> {
        std::fs::create_dir(root)?;
        let disk = image.join("root.ext4").display().to_string();
        run(Command::new("debugfs").args(["-R", &format!("rdump / {}", root.display()), &disk]))?;
        let at = |name: &str| root.join(name);
        // What a dump leaves out, and what a running system would have made.
        let made = "cd \"$1\"; mkdir -p dev run/sshd srv; mknod -m 666 dev/null c 1 3; mknod -m 666 dev/urandom c 1 9; \
                    chmod 755 .; ssh-keygen -q -t ed25519 -N '' -f host-key";
        run(Command::new("sh").args(["-euc", made, "sh"]).arg(root))?;
        std::fs::write(at("authorized"), authorized)?;
        let daemon = namespace
            .command("chroot")
            .arg(root)
            .args(["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-h", "/host-key"])
            .args(["-o", "AuthorizedKeysFile=/authorized", "-o", "PidFile=none"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(at("log"))?)
            .spawn()?;
        let host_key = std::fs::read_to_string(at("host-key.pub"))?;
        let server = Self {
            root: root.to_owned(),
            daemon,
            host_key,
        };
        server.wait()?;
        Ok(server)
    }

    /// A line of `known_hosts` for one of its addresses.
    #[must_use]
    pub fn known_as(&self, address: &str) -> String {
        format!("{address} {}", self.host_key)
    }

    /// What it said so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.root.join("log")).unwrap_or_default()
    }

    /// A bare clone of a repository at `path` there, for whoever logs in.
    ///
    /// # Errors
    /// git failed.
    pub fn take(&self, repository: &Path, path: &str) -> Result<PathBuf> {
        let there = self.root.join(path.trim_start_matches('/'));
        run(Command::new("git")
            .args(["clone", "-q", "--bare"])
            .arg(repository)
            .arg(&there))?;
        run(Command::new("chown")
            .args(["-R", &ACCOUNT.to_string()])
            .arg(&there))?;
        Ok(there)
    }

    fn wait(&self) -> Result<()> {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !self.log().contains("Server listening") {
            ensure!(
                std::time::Instant::now() < end,
                "sshd does not listen: {}",
                self.log()
            );
            pause();
        }
        Ok(())
    }
}

impl Drop for SshServer {
    fn drop(&mut self) {
        // Its root goes with the test's directory.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

#[expect(clippy::disallowed_methods, reason = "a test waits for a short command")]
fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "a test thread may sleep between two looks"
)]
fn pause() {
    std::thread::sleep(std::time::Duration::from_millis(50));
}
