//! Files whose permissions matter, read and replaced whole.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use zeroize::Zeroizing;

use crate::SecretsError;

/// Keys and bundles are small; what is larger was named by mistake.
const LARGEST: u64 = 4 << 20;
/// Put behind the name of a file that is being written.
const NEW: &str = ".new";

/// What others may do with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Privacy {
    /// Nobody but its owner reads it: it holds a key.
    Owner,
    /// Its group may read it: it is encrypted.
    Group,
}

pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SecretsError {
    let path = path.to_owned();
    move |source| SecretsError::File { action, path, source }
}

/// Reads a regular file whose permissions are as they must be. `None` when there is none.
pub(crate) fn read(path: &Path, privacy: Privacy) -> Result<Option<Zeroizing<Vec<u8>>>, SecretsError> {
    // Opening a pipe would wait for a writer.
    let flags = rustix::fs::OFlags::NONBLOCK.bits();
    let file = match OpenOptions::new()
        .read(true)
        .custom_flags(i32::try_from(flags).unwrap_or(0))
        .open(path)
    {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("Reading", path)(error)),
    };
    let seen = file.metadata().map_err(failed("Looking at", path))?;
    if !seen.is_file() {
        let error = io::Error::new(ErrorKind::InvalidInput, "it is not a regular file");
        return Err(failed("Reading", path)(error));
    }
    let mode = seen.mode() & 0o7777;
    let refuse = |reason| {
        Err(SecretsError::Permissions {
            path: path.to_owned(),
            mode,
            reason,
        })
    };
    if mode & 0o007 != 0 {
        return refuse("other users can use it");
    }
    if mode & 0o030 != 0 {
        return refuse("its group can change it");
    }
    if privacy == Privacy::Owner && mode & 0o040 != 0 {
        return refuse("its group can read it");
    }
    let me = rustix::process::geteuid().as_raw();
    if seen.uid() != me && seen.uid() != 0 {
        return refuse("it belongs to neither root nor this user");
    }
    if seen.len() > LARGEST {
        let error = io::Error::new(
            ErrorKind::FileTooLarge,
            format!("it is larger than {LARGEST} bytes"),
        );
        return Err(failed("Reading", path)(error));
    }
    // With room for all of it, no copy is left behind where the vector grew.
    let room = usize::try_from(seen.len()).unwrap_or(0).saturating_add(1);
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(LARGEST)
        .read_to_end(&mut bytes)
        .map_err(failed("Reading", path))?;
    Ok(Some(bytes))
}

/// Puts these bytes in place of a file, 0600, all of them or none, whenever the power fails.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), SecretsError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(NEW);
    let temporary = Path::new(&temporary);
    match std::fs::remove_file(temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(failed("Removing", temporary)(error));
        }
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temporary)
        .map_err(failed("Making", temporary))?;
    let written = file
        .write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(temporary, path));
    if let Err(error) = written {
        // Encrypted or not, half a file helps nobody.
        let _ = std::fs::remove_file(temporary);
        return Err(failed("Writing", path)(error));
    }
    match path.parent() {
        Some(directory) => sync(directory),
        None => Ok(()),
    }
}

/// Waits until a rename in a directory cannot be lost.
fn sync(directory: &Path) -> Result<(), SecretsError> {
    File::open(directory)
        .and_then(|handle| handle.sync_all())
        .map_err(failed("Writing", directory))
}

/// Makes a directory that only its owner enters, where there is none.
pub(crate) fn make_dir(path: &Path) -> Result<(), SecretsError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed("Making", path))
}
