//! One writer at a time for each network namespace.
//!
//! ```text
//!   /run/agentlab-net/<namespace>.lock   held (flock) by whoever writes the policy: pid, a daemon's control socket, and
//!                                        the bridge that the policy was last made for
//!   /var/lib/agentlab-net/ports.json     what operators bound; written by the holder of the lock only
//! ```
//! The lock is given back by the kernel however its holder ends. The bridge outlives it, so that one whose policy somebody
//! flushed is known to be ours although nothing in the kernel says so any more. It goes with a reboot, as bridges do.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::{GuestPort, IfName};

/// Where locks are, where nobody says otherwise.
pub const LOCK_DIRECTORY: &str = "/run/agentlab-net";
/// Where operators' bindings are kept, where nobody says otherwise.
pub const STATE_DIRECTORY: &str = "/var/lib/agentlab-net";
/// A holder's own words are short.
const LONGEST: u64 = 4096;

/// A bridge as the kernel knows it: one that is made anew under the same name is another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeLink {
    /// What it is called.
    pub name: IfName,
    /// Its index among the links of its network namespace.
    pub index: u32,
}

impl BridgeLink {
    fn parse(line: &str) -> Option<Self> {
        let (name, index) = line.split_once(' ')?;
        Some(Self {
            name: name.parse().ok()?,
            index: index.parse().ok()?,
        })
    }
}

/// The right to write.
#[derive(Debug)]
pub struct WriterLock {
    file: File,
    socket: String,
    bridge: Option<BridgeLink>,
}

impl Drop for WriterLock {
    fn drop(&mut self) {
        // A child that is just being begun still has the descriptor, and closing ours alone would leave it locked. Where
        // this fails, the kernel gives it back a moment later.
        let _ = self.file.unlock();
    }
}

/// Who has it instead.
#[derive(Debug, thiserror::Error)]
pub enum NotTheWriter {
    /// Another process.
    #[error(
        "Process {pid} writes the packet policy of this network namespace{}",
        .socket.as_ref().map_or_else(String::new, |socket| format!(", and answers at {}", socket.display()))
    )]
    Taken {
        /// Its id.
        pid: String,
        /// A daemon's control socket.
        socket: Option<PathBuf>,
    },
    /// The file could not be used.
    #[error("The lock of the packet policy, {path}, cannot be used")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl WriterLock {
    /// Takes the lock of the network namespace that this thread is in, or says who has it. `socket` is where a daemon
    /// can be asked while it holds the lock.
    pub fn take(directory: &Path, socket: Option<&Path>) -> Result<Self, NotTheWriter> {
        let mut path = directory.to_owned();
        let mut open = || {
            let namespace = std::fs::metadata("/proc/thread-self/ns/net")?.ino();
            path.push(format!("{namespace}.lock"));
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(directory)?;
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .open(&path)
        };
        let opened = open();
        let failed = |source| NotTheWriter::File {
            path: path.clone(),
            source,
        };
        let file = opened.map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                file.take(LONGEST).read_to_string(&mut text).map_err(failed)?;
                let mut lines = text.lines();
                return Err(NotTheWriter::Taken {
                    pid: lines.next().unwrap_or("?").to_owned(),
                    socket: lines.next().filter(|line| !line.is_empty()).map(PathBuf::from),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let mut text = Vec::new();
        (&file).take(LONGEST).read_to_end(&mut text).map_err(failed)?;
        let text = String::from_utf8_lossy(&text);
        let mut lock = Self {
            socket: socket.map(|path| path.display().to_string()).unwrap_or_default(),
            bridge: text.lines().nth(2).and_then(BridgeLink::parse),
            file,
        };
        lock.write().map_err(failed)?;
        Ok(lock)
    }

    /// The bridge that the policy was last made for. It may be gone, or another may be called the same.
    #[must_use]
    pub fn bridge(&self) -> Option<&BridgeLink> {
        self.bridge.as_ref()
    }

    /// Notes for which bridge the policy was made, where that is news.
    ///
    /// # Errors
    /// The file of the lock cannot be written.
    pub fn note_bridge(&mut self, bridge: BridgeLink) -> io::Result<()> {
        if self.bridge.as_ref() == Some(&bridge) {
            return Ok(());
        }
        self.bridge = Some(bridge);
        self.write()
    }

    fn write(&mut self) -> io::Result<()> {
        let mut text = format!("{}\n{}\n", std::process::id(), self.socket);
        if let Some(BridgeLink { name, index }) = &self.bridge {
            text.push_str(&format!("{name} {index}\n"));
        }
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(text.as_bytes())
    }
}

/// What operators bound by themselves. A daemon's sandboxes are not among them: their records are the daemon's.
#[derive(Debug)]
pub struct StoredPorts {
    path: PathBuf,
}

impl StoredPorts {
    /// Those kept in a directory.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self {
            path: directory.join("ports.json"),
        }
    }

    /// All of them; none where nothing was ever kept.
    ///
    /// # Errors
    /// The file cannot be read, or is none of ours.
    pub fn read(&self) -> io::Result<Vec<GuestPort>> {
        match std::fs::read(&self.path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Keeps exactly these, whole or not at all.
    ///
    /// # Errors
    /// The directory or the file cannot be written.
    pub fn write(&self, ports: &[GuestPort]) -> io::Result<()> {
        if let Some(directory) = self.path.parent() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)?;
        }
        let next = self.path.with_extension("next");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&next)?;
        serde_json::to_writer_pretty(&mut file, ports).map_err(io::Error::other)?;
        file.sync_all()?;
        std::fs::rename(next, &self.path)
    }

    /// Keeps one more, or one instead of another of its name.
    ///
    /// # Errors
    /// As for reading and writing.
    pub fn keep(&self, port: &GuestPort) -> io::Result<()> {
        let mut ports = self.read()?;
        ports.retain(|kept| kept.name != port.name);
        ports.push(port.clone());
        self.write(&ports)
    }

    /// Keeps one less. Absent is success.
    ///
    /// # Errors
    /// As for reading and writing.
    pub fn forget(&self, name: &crate::IfName) -> io::Result<()> {
        let mut ports = self.read()?;
        let before = ports.len();
        ports.retain(|kept| kept.name != *name);
        if ports.len() == before {
            return Ok(());
        }
        self.write(&ports)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Trust;

    fn directory(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("agentlab-writer-{name}-{}", std::process::id()))
    }

    #[test]
    fn there_is_one_writer_that_says_where_it_can_be_asked_and_its_bridge_outlives_it() {
        let directory = directory("lock");
        let first = WriterLock::take(&directory, Some(Path::new("/run/a.sock"))).unwrap();
        let Err(NotTheWriter::Taken { pid, socket }) = WriterLock::take(&directory, None) else {
            panic!("there are two writers");
        };
        assert_eq!(pid, std::process::id().to_string());
        assert_eq!(socket, Some(PathBuf::from("/run/a.sock")));
        drop(first);
        let mut second = WriterLock::take(&directory, None).unwrap();
        assert_eq!(second.bridge(), None);
        let bridge = BridgeLink {
            name: "vmbr1".parse().unwrap(),
            index: 7,
        };
        second.note_bridge(bridge.clone()).unwrap();
        drop(second);
        let third = WriterLock::take(&directory, Some(Path::new("/run/b.sock"))).unwrap();
        assert_eq!(third.bridge(), Some(&bridge));
        let Err(NotTheWriter::Taken { socket, .. }) = WriterLock::take(&directory, None) else {
            panic!("there are two writers");
        };
        assert_eq!(socket, Some(PathBuf::from("/run/b.sock")));
        drop(third);
        assert_eq!(
            WriterLock::take(&directory, None).unwrap().bridge(),
            Some(&bridge)
        );
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn what_is_kept_is_read_back_and_a_broken_file_is_no_empty_one() {
        let directory = directory("ports");
        let stored = StoredPorts::new(&directory);
        assert_eq!(stored.read().unwrap(), []);
        let port = |number: u8| GuestPort {
            name: format!("tap100{number}i0").parse().unwrap(),
            mac: [2, 0, 0, 0, 0, number],
            address: std::net::Ipv4Addr::new(10, 77, 0, number),
            trust: Trust::Off,
        };
        stored.keep(&port(1)).unwrap();
        stored.keep(&port(2)).unwrap();
        stored.keep(&port(1)).unwrap();
        assert_eq!(stored.read().unwrap(), [port(2), port(1)]);
        stored.forget(&port(2).name).unwrap();
        stored.forget(&port(2).name).unwrap();
        assert_eq!(stored.read().unwrap(), [port(1)]);
        std::fs::write(directory.join("ports.json"), "[{").unwrap();
        assert!(stored.read().is_err());
        std::fs::remove_dir_all(directory).unwrap();
    }
}
