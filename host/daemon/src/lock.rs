//! One daemon per socket and per directory of records.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::error::StartError;

/// A file locked by this process (flock): given back by the kernel however the process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// `guarded` is what the lock stands for, in the error when another daemon has it.
    pub(crate) fn take(path: &Path, guarded: &Path) -> Result<Self, StartError> {
        let failed = |source| StartError::File {
            action: "Locking",
            path: path.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o640)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = file.take(20).read_to_string(&mut pid);
                let pid = pid.trim().to_owned();
                return Err(StartError::AnotherDaemon {
                    guarded: guarded.to_owned(),
                    pid,
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        file.set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| writeln!(file, "{}", std::process::id()))
            .map_err(failed)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_told_who_the_first_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let first = Lock::take(&path, Path::new("/the/socket")).unwrap();
        let words = Lock::take(&path, Path::new("/the/socket"))
            .unwrap_err()
            .to_string();
        assert!(
            words.contains(&std::process::id().to_string()) && words.contains("/the/socket"),
            "{words}"
        );
        drop(first);
        Lock::take(&path, Path::new("/the/socket")).unwrap();
    }
}
