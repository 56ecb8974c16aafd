//! Reading files whose permissions matter.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::ConfigError;

/// No configuration of ours is near this; what is larger was named by mistake.
const LARGEST: u64 = 4 << 20;

/// Reads a regular file that holds secrets: refused when others can read it or the group can change it, warned about
/// when the group can read it.
pub(crate) fn read_private(path: &Path, what: &'static str) -> Result<(String, Vec<String>), ConfigError> {
    let (text, mode) = read(path, what)?;
    let refuse = |reason| ConfigError::Permissions {
        path: path.to_owned(),
        mode,
        reason,
    };
    if mode & 0o007 != 0 {
        return Err(refuse("other users can use it"));
    }
    if mode & 0o030 != 0 {
        return Err(refuse("its group can write or execute it"));
    }
    let warnings = if mode & 0o040 == 0 {
        Vec::new()
    } else {
        vec![format!(
            "{} has mode {mode:04o}: its group can read it; 0600 is recommended",
            path.display()
        )]
    };
    Ok((text, warnings))
}

/// Reads a regular file and says its permission bits.
pub(crate) fn read(path: &Path, what: &'static str) -> Result<(String, u32), ConfigError> {
    let unreadable = |source: std::io::Error| {
        if source.kind() == std::io::ErrorKind::NotFound {
            ConfigError::Missing {
                what,
                path: path.to_owned(),
            }
        } else {
            ConfigError::Unreadable {
                path: path.to_owned(),
                source,
            }
        }
    };
    // Looked at before it is opened, because opening a pipe would wait for a writer.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(ConfigError::NotAFile {
            path: path.to_owned(),
        });
    }
    let file = File::open(path).map_err(unreadable)?;
    let opened = file.metadata().map_err(unreadable)?;
    if !opened.is_file() {
        return Err(ConfigError::NotAFile {
            path: path.to_owned(),
        });
    }
    if opened.len() > LARGEST {
        let source = std::io::Error::new(
            std::io::ErrorKind::FileTooLarge,
            format!("larger than {LARGEST} bytes"),
        );
        return Err(unreadable(source));
    }
    let mut text = String::new();
    file.take(LARGEST).read_to_string(&mut text).map_err(unreadable)?;
    Ok((text, opened.permissions().mode() & 0o7777))
}
