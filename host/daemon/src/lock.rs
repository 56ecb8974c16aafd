//! One daemon per socket and per directory of records.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::StartError;

/// The lock of a daemon that was killed goes with its last child still on its way to exec.
const PATIENCE: Duration = Duration::from_secs(5);

/// A file locked by this process (flock): given back by the kernel however the process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A child that is just being begun still has the descriptor, and closing ours alone would leave it locked. Where
        // this fails, the kernel gives it back a moment later.
        let _ = self.file.unlock();
    }
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
        let until = Instant::now() + PATIENCE;
        while let Err(refused) = file.try_lock() {
            if let TryLockError::Error(source) = refused {
                return Err(failed(source));
            }
            let pid = holder(&mut file);
            if Instant::now() >= until || Path::new("/proc").join(&pid).exists() {
                return Err(StartError::AnotherDaemon {
                    guarded: guarded.to_owned(),
                    pid,
                });
            }
            pause();
        }
        file.set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| writeln!(file, "{}", std::process::id()))
            .map_err(failed)?;
        Ok(Self { file })
    }
}

/// Process id of whoever has it; empty until that has written it.
fn holder(file: &mut File) -> String {
    let mut pid = String::new();
    // What cannot be read is told as nobody's.
    let _ = file.seek(SeekFrom::Start(0));
    let _ = file.take(20).read_to_string(&mut pid);
    pid.trim().to_owned()
}

#[expect(clippy::disallowed_methods, reason = "a daemon that begins serves nobody yet")]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
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

    #[test]
    fn the_last_child_of_a_holder_that_was_killed_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        // No process has an id as large as this.
        std::fs::write(&path, "99999999\n").unwrap();
        let child = File::open(&path).unwrap();
        child.lock().unwrap();
        std::thread::scope(|scope| {
            let next = scope.spawn(|| Lock::take(&path, Path::new("/the/socket")).map(drop));
            // Long enough for the next one to find it locked.
            (0..5).for_each(|_| pause());
            child.unlock().unwrap();
            next.join().unwrap().unwrap();
        });
    }
}
