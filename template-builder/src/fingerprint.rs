//! Hashes: of things that decide what an image is, and of files as they lie on disk.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::{During, Result};

/// Collects labelled values into one SHA-256. Each value carries its length, so that no two lists of values look the
/// same because their borders moved.
#[derive(Debug, Default)]
pub struct Fingerprint(Sha256);

impl Fingerprint {
    /// Starts with a domain, so that two kinds of fingerprint never meet.
    #[must_use]
    pub fn of(domain: &str) -> Self {
        Self::default().with("domain", domain.as_bytes())
    }

    /// Adds a value.
    #[must_use]
    pub fn with(mut self, label: &str, value: &[u8]) -> Self {
        for part in [label.as_bytes(), value] {
            self.0
                .update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            self.0.update(part);
        }
        self
    }

    /// Adds a list, whose length counts.
    #[must_use]
    pub fn with_all<T: AsRef<str>>(self, label: &str, values: &[T]) -> Self {
        let counted = self.with(label, values.len().to_string().as_bytes());
        values.iter().fold(counted, |print, value| {
            print.with(label, value.as_ref().as_bytes())
        })
    }

    /// The hash in hexadecimal.
    #[must_use]
    pub fn finish(self) -> String {
        hex::encode(self.0.finalize())
    }
}

/// SHA-256 of bytes, in hexadecimal: what `sha256sum` prints.
#[must_use]
pub fn of_bytes(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// SHA-256 and length of a file.
///
/// # Errors
/// When it cannot be read.
pub fn of_file(path: &Path) -> Result<(String, u64)> {
    let mut file = File::open(path).during("open", path)?;
    let mut hash = Sha256::new();
    let mut length = 0_u64;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer).during("read", path)?;
        if count == 0 {
            return Ok((hex::encode(hash.finalize()), length));
        }
        hash.update(buffer.get(..count).unwrap_or_default());
        length = length.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moving_a_border_between_two_values_changes_the_print() {
        let one = Fingerprint::of("t").with_all("p", &["ab", "c"]).finish();
        let two = Fingerprint::of("t").with_all("p", &["a", "bc"]).finish();
        let three = Fingerprint::of("t").with_all("p", &["abc"]).finish();
        assert!(one != two && two != three && one != three);
    }

    #[test]
    fn a_file_hashes_to_what_sha256sum_says() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(of_file(&path).unwrap(), (known.to_owned(), 3));
        assert_eq!(of_bytes(b"abc"), known);
    }
}
