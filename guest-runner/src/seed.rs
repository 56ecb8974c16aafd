//! Finds the seed among its carriers (docs/protocol.md, section 1).

use std::io;
use std::path::{Path, PathBuf};

use agentlab_protocol::seed::{MAX_SEED_BYTES, Seed, SeedError};

/// fw_cfg: the item's bytes.
const FW_CFG_PATH: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/agentlab/seed/raw";
/// SMBIOS type 1 serial number: text.
const SMBIOS_PATH: &str = "/sys/class/dmi/id/product_serial";

/// Why there is no seed.
#[derive(Debug, thiserror::Error)]
pub enum SeedSearchError {
    /// No carrier holds one.
    #[error(
        "No seed found: {0}. The host must pass one as fw_cfg item opt/agentlab/seed or as SMBIOS serial number"
    )]
    Absent(String),
    /// A carrier holds one that cannot be used.
    #[error("Seed in {path} cannot be used")]
    Unusable {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: SeedError,
    },
    /// The file named on the command line cannot be read.
    #[error("Seed file {path} cannot be read")]
    Unreadable {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// From a file that somebody named, bytes or text.
///
/// # Errors
/// It cannot be read or holds no seed.
pub fn from_file(path: &Path) -> Result<Seed, SeedSearchError> {
    let bytes = read(path).map_err(|source| SeedSearchError::Unreadable {
        path: path.to_path_buf(),
        source,
    })?;
    decode(&bytes).map_err(|source| SeedSearchError::Unusable {
        path: path.to_path_buf(),
        source,
    })
}

/// From the first carrier of this machine that holds one.
///
/// # Errors
/// None holds one, or the first that does holds one that cannot be used.
pub fn from_carriers() -> Result<Seed, SeedSearchError> {
    search(&[Path::new(FW_CFG_PATH), Path::new(SMBIOS_PATH)])
}

fn search(carriers: &[&Path]) -> Result<Seed, SeedSearchError> {
    let mut missing = Vec::new();
    for path in carriers {
        match read(path)
            .map_err(|error| error.to_string())
            .map(|bytes| decode(&bytes))
        {
            Ok(Ok(seed)) => return Ok(seed),
            // A real machine has a serial number of its own: that is no seed, and no error either.
            Ok(Err(error @ (SeedError::Magic | SeedError::Text))) => {
                missing.push(format!("{}: {error}", path.display()));
            }
            Ok(Err(SeedError::Short { found, .. })) if found < 8 => {
                missing.push(format!("{}: empty", path.display()));
            }
            Ok(Err(source)) => {
                return Err(SeedSearchError::Unusable {
                    path: path.to_path_buf(),
                    source,
                });
            }
            Err(error) => missing.push(format!("{}: {error}", path.display())),
        }
    }
    Err(SeedSearchError::Absent(missing.join("; ")))
}

/// Bounded: sysfs files claim 4096 bytes or none, and a named file may be anything.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_SEED_BYTES * 4).unwrap_or(u64::MAX);
    io::Read::read_to_end(&mut io::Read::take(std::fs::File::open(path)?, limit), &mut bytes)?;
    Ok(bytes)
}

/// Bytes as they are, or their text form.
fn decode(bytes: &[u8]) -> Result<Seed, SeedError> {
    match (Seed::decode(bytes), std::str::from_utf8(bytes)) {
        (Err(SeedError::Magic), Ok(text)) => Seed::from_text(text),
        (decoded, _) => decoded,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use agentlab_protocol::secret::Secret32;
    use agentlab_protocol::seed::SeedChannel;

    use super::*;

    fn seed(vmid: u32) -> Seed {
        let host = Ipv4Addr::new(10, 77, 0, 1);
        Seed {
            vmid,
            sandbox: [1; 16],
            hostname: "a".to_owned(),
            address: Ipv4Addr::new(10, 77, 0, 2),
            prefix: 16,
            gateway: host,
            bootstrap: SocketAddrV4::new(host, 8844),
            artifacts: SocketAddrV4::new(host, 8846),
            token: Secret32::new([3; 32]),
            spki_sha256: [4; 32],
            channels: vec![SeedChannel::Tls],
            clock: 5,
        }
    }

    #[test]
    fn a_serial_number_of_a_real_machine_is_passed_over_and_a_damaged_seed_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let vendor = file("vendor", b"Not Specified\n");
        let empty = file("empty", b"\n");
        let text = file("text", format!("{}\n", seed(7).to_text().unwrap()).as_bytes());
        let bytes = file("bytes", &seed(8).encode().unwrap());
        let mut broken = seed(9).encode().unwrap();
        broken[60] ^= 1;
        let broken = file("broken", &broken);
        let absent = dir.path().join("absent");

        assert_eq!(
            search(&[&absent, &vendor, &empty, &text, &bytes]).unwrap().vmid,
            7
        );
        assert_eq!(search(&[&bytes, &text]).unwrap().vmid, 8);
        assert!(matches!(
            search(&[&broken, &text]),
            Err(SeedSearchError::Unusable { .. })
        ));
        let error = search(&[&absent, &vendor, &empty]).unwrap_err().to_string();
        assert!(
            error.contains("absent") && error.contains("vendor") && error.contains("fw_cfg"),
            "{error}"
        );
    }
}
