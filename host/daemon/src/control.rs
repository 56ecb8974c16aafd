//! The control socket: one daemon behind it, and only who may open its file in front of it.
//!
//! ```text
//!   <socket>.lock  held (flock) by the one daemon; holds its pid
//!   <socket>       0660, group agentlab where that group exists
//! ```

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::connection::{self, Http, Stop};
use crate::error::StartError;
use crate::http::Caller;
use crate::lock::Lock;

const GROUP: &str = "agentlab";
const PROBE: Duration = Duration::from_secs(2);

/// The bound socket. Dropping it removes the file, unless somebody else has made it.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    listener: UnixListener,
    /// The file that is ours to remove.
    made: Option<PathBuf>,
    _lock: Lock,
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // The lock is still held: this is our own file.
        if let Some(path) = &self.made {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The socket's place, ours and free. Taken before anything of the host is touched: a second daemon must not get as
/// far as the bridge that the first one guards.
#[derive(Debug)]
pub(crate) struct Claim {
    path: PathBuf,
    group: Option<u32>,
    lock: Lock,
}

impl Claim {
    /// Takes the lock. Removes the socket of a daemon that died, unless a service manager has bound ours there.
    pub(crate) async fn take(path: &Path, inherited: bool) -> Result<Self, StartError> {
        let group = group();
        if let Some(directory) = path.parent() {
            make_directory(directory, group).map_err(failed("Making the directory of", path))?;
        }
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock = Lock::take(Path::new(&lock_path), path)?;
        if !inherited {
            remove_stale(path).await?;
        }
        Ok(Self {
            path: path.to_owned(),
            group,
            lock,
        })
    }

    /// Takes the socket that a service manager has bound. Without one: binds, and opens it to the group.
    pub(crate) fn open(
        self,
        inherited: Option<std::os::unix::net::UnixListener>,
    ) -> Result<ControlSocket, StartError> {
        let Self { path, group, lock } = self;
        if let Some(inherited) = inherited {
            warn_of_another_place(&inherited, &path);
            return Ok(ControlSocket {
                listener: UnixListener::from_std(inherited).map_err(failed("Listening at", &path))?,
                made: None,
                _lock: lock,
            });
        }
        let listener = UnixListener::bind(&path).map_err(failed("Binding", &path))?;
        // The umask kept it closed so far.
        std::os::unix::fs::chown(&path, None, group)
            .or_else(|error| {
                if error.kind() == io::ErrorKind::PermissionDenied {
                    Ok(())
                } else {
                    Err(error)
                }
            })
            .map_err(failed("Giving to its group", &path))?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o660))
            .map_err(failed("Opening to its group", &path))?;
        Ok(ControlSocket {
            listener,
            made: Some(path),
            _lock: lock,
        })
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::File {
        action,
        path: path.to_owned(),
        source,
    }
}

impl ControlSocket {
    /// Answers until stopped; then lets requests in flight end.
    pub(crate) async fn serve(self, router: Router, stopping: CancellationToken) {
        let graceful = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = stopping.cancelled() => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let (router, stop) = (router.clone(), Stop::With(graceful.watcher()));
                        connections.spawn(async move {
                            if let Some(caller) = caller(&stream) {
                                connection::serve(stream, Http::Either, router, caller, stop).await;
                            }
                        });
                    }
                    Err(error) => {
                        tracing::error!(%error, "The control socket accepts nothing for a moment");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "A control connection ended badly");
                    }
                }
            }
        }
        graceful.shutdown().await;
    }
}

/// Clients look where the configuration says.
fn warn_of_another_place(inherited: &std::os::unix::net::UnixListener, path: &Path) {
    let Ok(address) = inherited.local_addr() else {
        return;
    };
    if address.as_pathname() != Some(path) {
        tracing::warn!(
            inherited = ?address,
            configured = %path.display(),
            "The service manager's socket is not where socket_path says"
        );
    }
}

/// The kernel's word on who connected; the file's mode decided whether he could.
fn caller(stream: &UnixStream) -> Option<Caller> {
    match stream.peer_cred() {
        Ok(credentials) => Some(Caller {
            uid: credentials.uid(),
        }),
        Err(error) => {
            tracing::warn!(%error, "A caller on the control socket has no credentials");
            None
        }
    }
}

/// From the file itself: asking through the name service could ask a network, and costs a MiB for its plug-ins.
fn group() -> Option<u32> {
    group_in(&std::fs::read_to_string("/etc/group").ok()?)
}

fn group_in(groups: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let named = fields.next() == Some(GROUP);
        named.then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

/// Made as systemd's RuntimeDirectory would; one that exists is the operator's.
fn make_directory(directory: &Path, group: Option<u32>) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(directory)?;
    std::fs::set_permissions(directory, Permissions::from_mode(0o750))?;
    std::os::unix::fs::chown(directory, None, group).or_else(|error| {
        if error.kind() == io::ErrorKind::PermissionDenied {
            Ok(())
        } else {
            Err(error)
        }
    })
}

/// A socket that nobody answers on is removed; anything else in its place is left alone.
async fn remove_stale(path: &Path) -> Result<(), StartError> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(StartError::File {
                action: "Looking at",
                path: path.to_owned(),
                source,
            });
        }
    };
    if !metadata.file_type().is_socket() {
        return Err(StartError::SocketTaken {
            path: path.to_owned(),
            reason: "a file that is no socket",
        });
    }
    if let Ok(Ok(_)) = tokio::time::timeout(PROBE, UnixStream::connect(path)).await {
        return Err(StartError::SocketTaken {
            path: path.to_owned(),
            reason: "a program that is no agentlabd",
        });
    }
    std::fs::remove_file(path).map_err(|source| StartError::File {
        action: "Removing",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_found_by_its_whole_name() {
        let groups = "root:x:0:\nagentlab-dns:x:990:\nagentlab:x:991:alice,bob\n";
        assert_eq!(group_in(groups), Some(991));
        assert_eq!(
            group_in("agentlab-dns:x:990:\n# agentlab:x:1:\nagentlab:x::\n"),
            None
        );
    }
}
