//! Secrets in the guest: a tmpfs of our own, proven to be one, and nothing else.
//!
//! ```text
//!   /run/agentlab            root 0711, tmpfs, nosuid nodev noexec
//!     environment            agent 0400   the agent's shell reads it after it dropped root
//!     git-credential         agent 0400   one answer of a git credential helper
//!     ssh-key, known_hosts   agent 0400
//!     task                   agent 0400
//! ```
//!
//! The directory belongs to root, so the agent cannot put a link where we write. The disk of a guest is thrown away
//! with it, but a disk is copied, snapshotted and kept by people who do not know what is on it: hence no swap either.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use agentlab_protocol::message::{GitCredentials, RedeemAnswer};
use agentlab_protocol::secret::SecretText;
use rustix::fs::{Gid, Mode, OFlags, Uid};

use crate::sys_mount;

/// A job's secrets are small; a guest must not lose its memory to a mistake.
const TMPFS_BYTES: u64 = 16 * 1024 * 1024;
const DIRECTORY_MODE: u32 = 0o711;

/// Why no secret was written.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// Pages of a tmpfs may reach a disk.
    #[error("Swap is active on {0}: secrets would reach a disk; build the template without swap")]
    Swap(String),
    /// Not what was mounted.
    #[error("{0} is not on a tmpfs of its own: no secret was written")]
    NotTmpfs(PathBuf),
    /// The kernel refused.
    #[error("Secrets could not be kept: {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's words.
        source: io::Error,
    },
    /// The tmpfs is full: no more of a disk would help.
    #[error(
        "Secrets do not fit: {0} cannot be written, the tmpfs that keeps secrets and task in memory holds {size} MiB",
        size = TMPFS_BYTES >> 20
    )]
    Full(PathBuf),
    /// A name that no shell can export.
    #[error("`{0}` cannot be the name of an environment variable: letters, digits and underscores only")]
    Name(String),
    /// A value that cannot be handed over.
    #[error(
        "The value of {0} holds a character that cannot be handed over (NUL, or a line end in a credential)"
    )]
    Value(String),
}

/// The tmpfs, mounted and verified.
#[derive(Debug)]
pub struct SecretDir {
    path: PathBuf,
    directory: OwnedFd,
    uid: u32,
    gid: u32,
}

impl SecretDir {
    /// Mounts a tmpfs on `path` (or takes the one an earlier call mounted there) and verifies it. Files will belong
    /// to `uid` and `gid`.
    ///
    /// # Errors
    /// Swap is active, the mount failed, or the path is not on a tmpfs of its own afterwards.
    pub fn mount(path: &Path, uid: u32, gid: u32) -> Result<Self, SecretsError> {
        Self::mount_beside(path, uid, gid, Path::new("/proc/swaps"))
    }

    fn mount_beside(path: &Path, uid: u32, gid: u32, swaps: &Path) -> Result<Self, SecretsError> {
        let failed = |action| {
            move |source| SecretsError::Io {
                action,
                path: path.to_owned(),
                source,
            }
        };
        let areas = sys_mount::swap_areas(swaps).map_err(failed("looking for swap before"))?;
        if !areas.is_empty() {
            return Err(SecretsError::Swap(areas.join(", ")));
        }
        // A core file is a copy of a process's memory on the disk. Inherited by everything that is started from here.
        let none = rustix::process::Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        rustix::process::setrlimit(rustix::process::Resource::Core, none)
            .map_err(|errno| failed("forbidding core files before")(errno.into()))?;
        std::fs::create_dir_all(path).map_err(failed("creating"))?;
        if !sys_mount::is_mount_point(path).map_err(failed("looking at"))? {
            sys_mount::mount_tmpfs(path, DIRECTORY_MODE, TMPFS_BYTES)
                .map_err(failed("mounting a tmpfs on"))?;
        }
        Self::verified(path, uid, gid)
    }

    fn verified(path: &Path, uid: u32, gid: u32) -> Result<Self, SecretsError> {
        let failed = |action| {
            move |source| SecretsError::Io {
                action,
                path: path.to_owned(),
                source,
            }
        };
        let directory = sys_mount::open_directory(path).map_err(failed("opening"))?;
        let own = sys_mount::is_mount_point(path).map_err(failed("looking at"))?;
        if !own || !sys_mount::is_on_tmpfs(&directory).map_err(failed("asking the file system of"))? {
            return Err(SecretsError::NotTmpfs(path.to_owned()));
        }
        Ok(Self {
            path: path.to_owned(),
            directory,
            uid,
            gid,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one file, 0400 and the agent's, in place of an older one. Returns its path.
    ///
    /// # Errors
    /// The kernel refused, or the new file turned out not to be on a tmpfs.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, SecretsError> {
        let path = self.path.join(name);
        let failed = |source: io::Error| {
            if source.kind() == io::ErrorKind::StorageFull {
                return SecretsError::Full(path.clone());
            }
            SecretsError::Io {
                action: "writing",
                path: path.clone(),
                source,
            }
        };
        match rustix::fs::unlinkat(&self.directory, name, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.directory, name, flags, Mode::RUSR)
            .map_err(|errno| failed(errno.into()))?;
        if !sys_mount::is_on_tmpfs(&file).map_err(failed)? {
            return Err(SecretsError::NotTmpfs(path));
        }
        rustix::fs::fchown(
            &file,
            Some(Uid::from_raw(self.uid)),
            Some(Gid::from_raw(self.gid)),
        )
        .map_err(|errno| failed(errno.into()))?;
        std::fs::File::from(file).write_all(bytes).map_err(failed)?;
        Ok(path)
    }

    /// Reads one file; `None` when there is none.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.directory, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let mut bytes = Vec::new();
        std::fs::File::from(file)
            .take(TMPFS_BYTES)
            .read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// Writes one file as [`SecretDir::write`] does, and puts it in the place of an older one in one step.
    ///
    /// # Errors
    /// As [`SecretDir::write`].
    pub fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), SecretsError> {
        let new = format!(".{name}");
        let path = self.write(&new, bytes)?;
        rustix::fs::renameat(&self.directory, &new, &self.directory, name).map_err(|errno| SecretsError::Io {
            action: "renaming",
            path,
            source: errno.into(),
        })
    }

    /// Writes the environment as a file for `.` of a POSIX shell; nothing when there is none.
    ///
    /// # Errors
    /// A name or value no shell can take, or a failed write.
    pub fn write_environment(
        &self,
        environment: &BTreeMap<String, SecretText>,
    ) -> Result<Option<PathBuf>, SecretsError> {
        if environment.is_empty() {
            return Ok(None);
        }
        let mut script = String::new();
        for (name, value) in environment {
            let plain = name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            if !plain || name.is_empty() || name.starts_with(|first: char| first.is_ascii_digit()) {
                return Err(SecretsError::Name(name.escape_debug().take(80).collect()));
            }
            if value.expose().contains('\0') {
                return Err(SecretsError::Value(name.clone()));
            }
            script.push_str(&format!("export {name}={}\n", shell_quote(value.expose())));
        }
        self.write("environment", script.as_bytes()).map(Some)
    }

    /// Writes the git credentials and says how `git` finds them. A token is offered to the host of `url` alone, and only
    /// over TLS: a repository must not lead git to a host that then asks for it, nor show it to whoever listens.
    ///
    /// # Errors
    /// A value git cannot take, or a failed write.
    pub fn write_git(
        &self,
        credentials: &GitCredentials,
        url: Option<&str>,
    ) -> Result<GitAccess, SecretsError> {
        let mut access = GitAccess::default();
        if let Some(token) = &credentials.token {
            let (user, token) = (&credentials.username, token.expose().trim());
            if [user.as_str(), token]
                .iter()
                .any(|text| text.contains(['\n', '\r', '\0']))
            {
                return Err(SecretsError::Value("the git token or its user name".to_owned()));
            }
            let answer = format!("username={user}\npassword={token}\n");
            let path = self.write("git-credential", answer.as_bytes())?;
            if let Some(scope) = url.and_then(credential_scope) {
                let path = shell_quote(&path.display().to_string());
                // A program could not be run from here: the tmpfs is noexec. git gives `!` lines to a shell.
                let program = format!("!f() {{ test \"$1\" = get && cat {path}; }}; f");
                access
                    .config
                    .push((format!("credential.{scope}.helper"), program));
            }
        }
        if let Some(key) = &credentials.ssh_private_key {
            let text = format!("{}\n", key.expose().trim_end());
            let key = shell_quote(&self.write("ssh-key", text.as_bytes())?.display().to_string());
            let hosts = match &credentials.known_hosts {
                Some(hosts) => {
                    let text = format!("{}\n", hosts.trim_end());
                    let path = self.write("known_hosts", text.as_bytes())?;
                    let path = shell_quote(&path.display().to_string());
                    format!("-o UserKnownHostsFile={path} -o StrictHostKeyChecking=yes")
                }
                None => "-o StrictHostKeyChecking=accept-new".to_owned(),
            };
            let ssh =
                format!("ssh -i {key} -o IdentitiesOnly=yes -o BatchMode=yes -o ConnectTimeout=30 {hosts}");
            access.environment.push(("GIT_SSH_COMMAND".to_owned(), ssh));
        }
        Ok(access)
    }
}

/// Removes every secret below `path`: when a job has ended, and before anything else where a runner was killed. A path that
/// is not on a tmpfs of its own never held one, and is left alone.
///
/// # Errors
/// The kernel refused.
pub fn wipe(path: &Path) -> Result<(), SecretsError> {
    let failed = |source| SecretsError::Io {
        action: "wiping",
        path: path.to_owned(),
        source,
    };
    match SecretDir::verified(path, 0, 0) {
        Ok(_) => {}
        Err(SecretsError::NotTmpfs(_)) => return Ok(()),
        Err(SecretsError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let is_dir = entry.file_type().map_err(failed)?.is_dir();
        let removed = if is_dir {
            std::fs::remove_dir_all(entry.path())
        } else {
            std::fs::remove_file(entry.path())
        };
        removed.map_err(failed)?;
    }
    Ok(())
}

/// How `git` finds its credentials. Holds paths, no secret.
#[derive(Debug, Default, Clone)]
pub struct GitAccess {
    /// Environment variables.
    pub environment: Vec<(String, String)>,
    /// Settings for the agent's own git configuration.
    pub config: Vec<(String, String)>,
}

/// One value that must not be seen in output, and what people call it.
#[derive(Debug, Clone)]
pub struct NamedSecret {
    /// Its name, no secret.
    pub name: String,
    /// Itself.
    pub value: SecretText,
}

/// Everything of an answer that must not be seen in output.
#[must_use]
pub fn named_secrets(answer: &RedeemAnswer) -> Vec<NamedSecret> {
    let named = |name: &str, value: &SecretText| NamedSecret {
        name: name.to_owned(),
        value: value.clone(),
    };
    let git = answer.git.iter().flat_map(|git| {
        let token = git.token.as_ref().map(|token| named("the git token", token));
        let key = git.ssh_private_key.as_ref();
        token
            .into_iter()
            .chain(key.map(|key| named("the git SSH key", key)))
    });
    let tailnet = answer.tailnet.iter();
    answer
        .environment
        .iter()
        .map(|(name, value)| named(name, value))
        .chain(git)
        .chain(tailnet.map(|login| named("the tailnet key", &login.authkey)))
        .chain(settings_secrets(answer))
        .collect()
}

/// What the settings of Claude Code put into its environment: the rest of them are words that people also write.
fn settings_secrets(answer: &RedeemAnswer) -> Vec<NamedSecret> {
    let settings = answer.claude_settings.as_ref();
    let settings = settings.and_then(|text| serde_json::from_str::<serde_json::Value>(text.expose()).ok());
    let variables = settings
        .as_ref()
        .and_then(|settings| settings.get("env")?.as_object());
    let secret = |(name, value): (&String, &serde_json::Value)| {
        Some(NamedSecret {
            name: format!("{name} of the Claude settings"),
            value: SecretText::new(value.as_str()?.to_owned()),
        })
    };
    variables.into_iter().flatten().filter_map(secret).collect()
}

/// `https://host[:port]` of a URL, without user or path; `None` for every other kind.
fn credential_scope(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    if scheme != "https" {
        return None;
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let plain = host
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte));
    (plain && !host.is_empty()).then(|| format!("https://{host}"))
}

fn shell_quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
#[path = "secrets_tests.rs"]
mod tests;
