//! Finds the seed among its carriers (docs/protocol.md, section 1).
//!
//! ```text
//!   fw_cfg item ─► SMBIOS serial number ─► virtio-serial port ─► file of cloud-init
//!   └──────── there before the first process ───────┘            └ written some time during boot: waited for
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentlab_protocol::seed::{MAX_SEED_BYTES, Seed, SeedError};
use rustix::fs::{Mode, OFlags};
use tokio::time::Instant;

use crate::console::say;
use crate::link::serial::find_port;

/// fw_cfg: the item's bytes.
const FW_CFG_PATH: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/agentlab/seed/raw";
/// SMBIOS type 1 serial number: text.
const SMBIOS_PATH: &str = "/sys/class/dmi/id/product_serial";
/// virtio-serial: a port whose host writes the seed's bytes to whoever opens it.
const SEED_PORT: &str = "agentlab.seed";
/// cloud-init: what `write_files` of its user data writes, text.
const CLOUD_INIT_PATH: &str = "/run/agentlab/seed";
/// Where cloud-init is, if it is.
const CLOUD_INIT: &str = "/usr/bin/cloud-init";
/// How long a port's host may take to write.
const PORT_PATIENCE: Duration = Duration::from_secs(2);
const PORT_INTERVAL: Duration = Duration::from_millis(10);
/// How long cloud-init may take on a slow machine, and how often to look.
const CLOUD_INIT_PATIENCE: Duration = Duration::from_secs(300);
const CLOUD_INIT_INTERVAL: Duration = Duration::from_millis(250);

/// Why there is no seed.
#[derive(Debug, thiserror::Error)]
pub enum SeedSearchError {
    /// No carrier holds one.
    #[error(
        "No seed found: {0}. The host must pass one as fw_cfg item opt/agentlab/seed, as SMBIOS serial number, over a \
         virtio-serial port agentlab.seed, or by cloud-init as /run/agentlab/seed"
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

/// A seed, and what is to be done about its carrier.
#[derive(Debug)]
pub struct Found {
    /// What the machine was born with.
    pub seed: Seed,
    /// A file that only carries the seed.
    file: Option<PathBuf>,
}

impl Found {
    /// One that an earlier runner found.
    #[must_use]
    pub fn before(seed: Seed) -> Self {
        Self { seed, file: None }
    }

    /// Removes a file that carried the seed: for when its token is redeemed. The other carriers are the host's.
    pub fn forget(&self) {
        if let Some(path) = &self.file
            && let Err(error) = std::fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            say(format_args!("could not remove {}: {error}", path.display()));
        }
    }
}

/// From a file that somebody named, bytes or text. It stays where it is.
///
/// # Errors
/// It cannot be read or holds no seed.
pub fn from_file(path: &Path) -> Result<Found, SeedSearchError> {
    let bytes = read(path).map_err(|source| SeedSearchError::Unreadable {
        path: path.to_path_buf(),
        source,
    })?;
    let seed = decode(&bytes).map_err(|source| SeedSearchError::Unusable {
        path: path.to_path_buf(),
        source,
    })?;
    Ok(Found { seed, file: None })
}

/// From the first carrier of this machine that holds one. On a machine with cloud-init its file is waited for.
///
/// # Errors
/// None holds one, or the first that does holds one that cannot be used.
pub async fn from_carriers() -> Result<Found, SeedSearchError> {
    let port = find_port(SEED_PORT).ok();
    let began = Instant::now();
    loop {
        let carriers = Carriers {
            fixed: &[Path::new(FW_CFG_PATH), Path::new(SMBIOS_PATH)],
            port: port.as_deref(),
            file: Path::new(CLOUD_INIT_PATH),
        };
        match carriers.search().await {
            Err(SeedSearchError::Absent(_))
                if Path::new(CLOUD_INIT).exists() && began.elapsed() < CLOUD_INIT_PATIENCE =>
            {
                tokio::time::sleep(CLOUD_INIT_INTERVAL).await;
            }
            done => return done,
        }
    }
}

/// In the order to look.
struct Carriers<'a> {
    /// Files of the kernel's.
    fixed: &'a [&'a Path],
    port: Option<&'a Path>,
    /// A file that is removed once it is of no use.
    file: &'a Path,
}

impl Carriers<'_> {
    async fn search(&self) -> Result<Found, SeedSearchError> {
        let mut missing = Vec::new();
        for path in self.fixed {
            if let Some(seed) = judge(path, read(path), &mut missing)? {
                return Ok(Found { seed, file: None });
            }
        }
        if let Some(path) = self.port
            && let Some(seed) = judge(path, read_port(path, PORT_PATIENCE).await, &mut missing)?
        {
            return Ok(Found { seed, file: None });
        }
        if let Some(seed) = judge(self.file, read(self.file), &mut missing)? {
            let file = Some(self.file.to_owned());
            return Ok(Found { seed, file });
        }
        Err(SeedSearchError::Absent(missing.join("; ")))
    }
}

/// The seed in what a carrier holds. `None`, with a word about why, where it holds something else.
fn judge(
    path: &Path,
    held: io::Result<Vec<u8>>,
    missing: &mut Vec<String>,
) -> Result<Option<Seed>, SeedSearchError> {
    let reason = match held
        .map_err(|error| error.to_string())
        .map(|bytes| decode(&bytes))
    {
        Ok(Ok(seed)) => return Ok(Some(seed)),
        // A real machine has a serial number of its own: that is no seed, and no error either.
        Ok(Err(error @ (SeedError::Magic | SeedError::Text))) => error.to_string(),
        Ok(Err(SeedError::Short { found, .. })) if found < 8 => "empty".to_owned(),
        Ok(Err(source)) => {
            return Err(SeedSearchError::Unusable {
                path: path.to_path_buf(),
                source,
            });
        }
        Err(error) => error,
    };
    missing.push(format!("{}: {reason}", path.display()));
    Ok(None)
}

/// Bounded: sysfs files claim 4096 bytes or none, and a named file may be anything.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_SEED_BYTES * 4).unwrap_or(u64::MAX);
    io::Read::read_to_end(&mut io::Read::take(std::fs::File::open(path)?, limit), &mut bytes)?;
    Ok(bytes)
}

/// What a port's host writes, until it is a seed or as much as one can be. A port has no end: zero bytes mean that the host
/// is not there yet.
async fn read_port(path: &Path, patience: Duration) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let port = rustix::fs::open(path, flags, Mode::empty())?;
    let began = Instant::now();
    let mut bytes = Vec::new();
    let mut piece = [0u8; MAX_SEED_BYTES];
    while bytes.len() < MAX_SEED_BYTES && began.elapsed() < patience {
        match rustix::io::read(&port, &mut piece) {
            Ok(0) | Err(rustix::io::Errno::AGAIN) => tokio::time::sleep(PORT_INTERVAL).await,
            Ok(count) => bytes.extend(piece.iter().take(count)),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if decode(&bytes).is_ok() {
            break;
        }
    }
    Ok(bytes)
}

/// Bytes as they are, or their text form.
fn decode(bytes: &[u8]) -> Result<Seed, SeedError> {
    match (Seed::decode(bytes), std::str::from_utf8(bytes)) {
        (Err(SeedError::Magic), Ok(text)) => Seed::from_text(text),
        (decoded, _) => decoded,
    }
}

/// A seed of a machine with this number.
#[cfg(test)]
pub(crate) fn example(vmid: u32) -> Seed {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use agentlab_protocol::secret::Secret32;
    use agentlab_protocol::seed::SeedChannel;

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

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// The carriers of a machine, as files of a directory.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
            let path = self.0.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        }

        async fn search(&self) -> Result<Found, SeedSearchError> {
            let at = |name: &str| self.0.path().join(name);
            let port = at("port");
            Carriers {
                fixed: &[&at("fw_cfg"), &at("smbios")],
                port: port.exists().then_some(port.as_path()),
                file: &at("cloud-init"),
            }
            .search()
            .await
        }
    }

    #[tokio::test]
    async fn each_carrier_gives_its_seed_and_the_first_one_counts() {
        let machine = Machine::new();
        let text = |vmid| format!("{}\n", example(vmid).to_text().unwrap());
        let file = machine.put("cloud-init", text(4).as_bytes());
        let found = machine.search().await.unwrap();
        assert_eq!(found.seed.vmid, 4);
        machine.put("port", &example(3).encode().unwrap());
        assert_eq!(machine.search().await.unwrap().seed.vmid, 3);
        machine.put("smbios", text(2).as_bytes());
        assert_eq!(machine.search().await.unwrap().seed.vmid, 2);
        machine.put("fw_cfg", &example(1).encode().unwrap());
        let first = machine.search().await.unwrap();
        assert_eq!(first.seed.vmid, 1);

        // Only a file of cloud-init's is ours to remove, and removing it twice is fine.
        first.forget();
        assert!(file.exists() && machine.0.path().join("fw_cfg").exists());
        found.forget();
        found.forget();
        assert!(!file.exists());
    }

    #[tokio::test]
    async fn a_serial_number_of_a_real_machine_is_passed_over_and_a_damaged_seed_is_not() {
        let machine = Machine::new();
        machine.put("smbios", b"Not Specified\n");
        machine.put("fw_cfg", b"\n");
        machine.put("cloud-init", &example(7).encode().unwrap());
        assert_eq!(machine.search().await.unwrap().seed.vmid, 7);
        let mut broken = example(9).encode().unwrap();
        broken[60] ^= 1;
        machine.put("smbios", &broken);
        assert!(matches!(
            machine.search().await,
            Err(SeedSearchError::Unusable { .. })
        ));
        machine.put("smbios", b"Not Specified\n");
        std::fs::remove_file(machine.0.path().join("cloud-init")).unwrap();
        let error = machine.search().await.unwrap_err().to_string();
        for word in ["smbios", "fw_cfg", "cloud-init", "SMBIOS serial number"] {
            assert!(error.contains(word), "{error}");
        }
    }

    #[tokio::test]
    async fn a_port_is_read_until_its_seed_is_whole_and_a_silent_one_is_given_up() {
        let machine = Machine::new();
        let path = machine.0.path().join("port");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert_eq!(read_port(&path, Duration::from_millis(50)).await.unwrap(), b"");
        let bytes = example(5).encode().unwrap();
        // Both ends, so that the host need not wait for its guest.
        let mut host = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let (first, rest) = bytes.split_at(70);
        let write = async {
            host.write_all(first).unwrap();
            tokio::time::sleep(Duration::from_millis(30)).await;
            host.write_all(rest).unwrap();
        };
        // Long enough for any machine; it ends with the last byte.
        let (read, ()) = tokio::join!(read_port(&path, Duration::from_secs(60)), write);
        assert_eq!(read.unwrap(), bytes);
    }
}
