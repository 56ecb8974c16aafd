//! Files that a guest can make grow: its console, and QEMU's complaints. QEMU appends, we cut the front off. While
//! no daemon runs nobody cuts; then the limit on QEMU's file sizes ends a flood, with QEMU.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Cut when longer than this …
const MAX_BYTES: u64 = 1024 * 1024;
/// … down to this.
const KEPT_BYTES: u64 = 256 * 1024;

/// Opens a log for a writer that only ever appends: after a cut it goes on at the new end.
pub(super) fn open_for_append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

/// The last bytes of a log; nothing when there is none.
pub(super) fn tail(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(max_bytes)))?;
    let mut bytes = Vec::new();
    file.take(max_bytes).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Cuts a log that has grown too long. What is written during the cut may be lost; nothing else is.
pub(super) fn cut(path: &Path) -> io::Result<()> {
    let length = match std::fs::metadata(path) {
        Ok(found) => found.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if length <= MAX_BYTES {
        return Ok(());
    }
    let kept = tail(path, KEPT_BYTES)?;
    let mut file = OpenOptions::new().append(true).open(path)?;
    file.set_len(0)?;
    file.write_all(&kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flooded_log_keeps_its_end_and_its_writer_goes_on_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut writer = open_for_append(&path).unwrap();
        for _ in 0..3 {
            writer.write_all(&vec![b'.'; 512 * 1024]).unwrap();
        }
        writer.write_all(b"last words").unwrap();
        cut(&path).unwrap();
        writer.write_all(b", and more").unwrap();
        let left = std::fs::metadata(&path).unwrap().len();
        assert_eq!(left, KEPT_BYTES + 10);
        assert_eq!(tail(&path, 20).unwrap(), b"last words, and more");
        assert_eq!(tail(&dir.path().join("absent"), 20).unwrap(), b"");
    }
}
