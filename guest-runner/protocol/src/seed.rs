//! What a VM is born with: who it is, where the host is, and one token that is worthless after its first use.
//!
//! ```text
//!  0      4         6        8      12        28        32       33         34
//!  ├ magic ┼ version ┼ length ┼ vmid ┼ sandbox ┼ address ┼ prefix ┼ channels ┤
//!  34        38          44          50      82     114     122    123
//!  ├ gateway ┼ bootstrap ┼ artifacts ┼ token ┼ spki ┼ clock ┼ name n ┤
//!  123    123+n      123+n+c                    length-4    length
//!  ├ name  ┼ channels ┼ later fields (skipped) ┼ CRC32 ─────┤
//! ```
//! Numbers are big-endian. The exact rules and test vectors stand in docs/protocol.md.

use std::net::{Ipv4Addr, SocketAddrV4};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::secret::Secret32;

/// Largest encoded seed in bytes: base64 of it must fit Proxmox VE's `smbios1`, 512 characters in all.
pub const MAX_SEED_BYTES: usize = 300;

/// First bytes of every seed.
pub const SEED_MAGIC: [u8; 4] = *b"ALsd";
/// The layout this crate writes and reads.
pub const SEED_VERSION: u16 = 1;

/// Bytes before the host name.
const FIXED_BYTES: usize = 123;
const CHECKSUM_BYTES: usize = 4;

/// A way to the host, in the order to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeedChannel {
    /// virtio-serial port `agentlab.channel`.
    Serial,
    /// AF_VSOCK to CID 2.
    Vsock,
    /// TLS over the agent subnet.
    Tls,
}

impl SeedChannel {
    fn code(self) -> u8 {
        match self {
            Self::Serial => 1,
            Self::Vsock => 2,
            Self::Tls => 3,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Serial, Self::Vsock, Self::Tls]
            .into_iter()
            .find(|channel| channel.code() == code)
    }
}

/// Decoded seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// VMID.
    pub vmid: u32,
    /// The sandbox's UUID.
    pub sandbox: [u8; 16],
    /// Host name to take.
    pub hostname: String,
    /// Own address.
    pub address: Ipv4Addr,
    /// Length of the subnet's prefix.
    pub prefix: u8,
    /// Default gateway and DNS server.
    pub gateway: Ipv4Addr,
    /// Bootstrap listener.
    pub bootstrap: SocketAddrV4,
    /// Artifact listener.
    pub artifacts: SocketAddrV4,
    /// Bootstrap token.
    pub token: Secret32,
    /// SHA-256 of the SubjectPublicKeyInfo that the host's TLS certificate must carry.
    pub spki_sha256: [u8; 32],
    /// Ways to the host, in the order to try.
    pub channels: Vec<SeedChannel>,
    /// The host's clock when the seed was written, seconds since the epoch.
    pub clock: u64,
}

/// Why a seed cannot be written or read. No variant carries a byte of the seed's token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeedError {
    /// Fewer bytes than the header, or than the header says.
    #[error("Seed is cut short: {found} bytes of {needed}")]
    Short {
        /// Bytes there are.
        found: usize,
        /// Bytes there must be.
        needed: usize,
    },
    /// Something else lies where the seed should.
    #[error("Not an AgentLab seed: the first bytes are not `ALsd`")]
    Magic,
    /// Written by another generation of the host.
    #[error(
        "Seed has layout version {0}, this runner reads version 1: rebuild the template with this host's runner"
    )]
    Version(u16),
    /// The length field contradicts the fields.
    #[error("Seed says it is {0} bytes long, which its fields contradict")]
    Length(u16),
    /// Damaged on its way.
    #[error("Seed is damaged: its checksum does not match")]
    Checksum,
    /// Not a DNS label.
    #[error("Host name `{0}` is not a DNS label: 1 to 63 letters, digits and inner hyphens")]
    Hostname(String),
    /// No usable subnet.
    #[error("Prefix length {0} leaves no room for a guest and its gateway: expected 1 to 30")]
    Prefix(u8),
    /// No way to the host that this runner knows, or one named twice.
    #[error("Channel list names no channel of version 1, or one twice")]
    Channels,
    /// The text form of a carrier.
    #[error("Seed text is not base64url")]
    Text,
}

impl Seed {
    /// The bytes a carrier holds.
    ///
    /// # Errors
    /// The host name is no DNS label, the prefix no usable one, the channel list empty or repeating.
    pub fn encode(&self) -> Result<Vec<u8>, SeedError> {
        check_hostname(&self.hostname)?;
        check_prefix(self.prefix)?;
        check_channels(&self.channels)?;
        let length = FIXED_BYTES + self.hostname.len() + self.channels.len() + CHECKSUM_BYTES;
        let mut out = Vec::with_capacity(length);
        out.extend_from_slice(&SEED_MAGIC);
        out.extend_from_slice(&SEED_VERSION.to_be_bytes());
        out.extend_from_slice(
            &u16::try_from(length)
                .map_err(|_| SeedError::Channels)?
                .to_be_bytes(),
        );
        out.extend_from_slice(&self.vmid.to_be_bytes());
        out.extend_from_slice(&self.sandbox);
        out.extend_from_slice(&self.address.octets());
        out.push(self.prefix);
        out.push(u8::try_from(self.channels.len()).map_err(|_| SeedError::Channels)?);
        out.extend_from_slice(&self.gateway.octets());
        for listener in [self.bootstrap, self.artifacts] {
            out.extend_from_slice(&listener.ip().octets());
            out.extend_from_slice(&listener.port().to_be_bytes());
        }
        out.extend_from_slice(self.token.expose());
        out.extend_from_slice(&self.spki_sha256);
        out.extend_from_slice(&self.clock.to_be_bytes());
        let name_length =
            u8::try_from(self.hostname.len()).map_err(|_| SeedError::Hostname(self.hostname.clone()))?;
        out.push(name_length);
        out.extend_from_slice(self.hostname.as_bytes());
        out.extend(self.channels.iter().map(|channel| channel.code()));
        out.extend_from_slice(&crc32fast::hash(&out).to_be_bytes());
        Ok(out)
    }

    /// Reads a carrier's bytes. Bytes after the seed's own length are ignored, because carriers pad. Channels of a
    /// later protocol and fields added behind the channel list are skipped.
    ///
    /// # Errors
    /// The bytes are no whole, undamaged seed of version 1, or one that [`Seed::encode`] would refuse.
    pub fn decode(bytes: &[u8]) -> Result<Self, SeedError> {
        let body = checked_body(bytes)?;
        let mut rest = Reader { bytes: body };
        let vmid = u32::from_be_bytes(rest.array()?);
        let sandbox = rest.array()?;
        let address = Ipv4Addr::from(rest.array::<4>()?);
        let [prefix, channel_count] = rest.array()?;
        let gateway = Ipv4Addr::from(rest.array::<4>()?);
        let bootstrap = rest.listener()?;
        let artifacts = rest.listener()?;
        let token = Secret32::new(rest.array()?);
        let spki_sha256 = rest.array()?;
        let clock = u64::from_be_bytes(rest.array()?);
        let [name_length] = rest.array()?;
        let hostname = String::from_utf8_lossy(rest.take(usize::from(name_length))?).into_owned();
        let channels: Vec<SeedChannel> = rest
            .take(usize::from(channel_count))?
            .iter()
            .filter_map(|code| SeedChannel::from_code(*code))
            .collect();
        check_hostname(&hostname)?;
        check_prefix(prefix)?;
        check_channels(&channels)?;
        Ok(Self {
            vmid,
            sandbox,
            hostname,
            address,
            prefix,
            gateway,
            bootstrap,
            artifacts,
            token,
            spki_sha256,
            channels,
            clock,
        })
    }

    /// [`Seed::encode`] as base64url without padding, for carriers that hold text (SMBIOS type 1 serial).
    ///
    /// # Errors
    /// Those of [`Seed::encode`].
    pub fn to_text(&self) -> Result<String, SeedError> {
        Ok(URL_SAFE_NO_PAD.encode(self.encode()?))
    }

    /// Reverse of [`Seed::to_text`]. White space around the text and padding behind it are ignored.
    ///
    /// # Errors
    /// Not base64url, or those of [`Seed::decode`].
    pub fn from_text(text: &str) -> Result<Self, SeedError> {
        let text = text
            .trim_matches(|c: char| c.is_ascii_whitespace() || c == '\0')
            .trim_end_matches('=');
        // Bounded before it is decoded: a carrier is not trusted to be short.
        if text.len() > MAX_SEED_BYTES * 2 {
            return Err(SeedError::Text);
        }
        Self::decode(&URL_SAFE_NO_PAD.decode(text).map_err(|_| SeedError::Text)?)
    }
}

/// Header and checksum; returns what lies between them.
fn checked_body(bytes: &[u8]) -> Result<&[u8], SeedError> {
    let mut header = Reader { bytes };
    if header.array()? != SEED_MAGIC {
        return Err(SeedError::Magic);
    }
    let version = u16::from_be_bytes(header.array()?);
    if version != SEED_VERSION {
        return Err(SeedError::Version(version));
    }
    let length = u16::from_be_bytes(header.array()?);
    let total = usize::from(length);
    if !(FIXED_BYTES + CHECKSUM_BYTES..=MAX_SEED_BYTES).contains(&total) {
        return Err(SeedError::Length(length));
    }
    let whole = bytes.get(..total).ok_or(SeedError::Short {
        found: bytes.len(),
        needed: total,
    })?;
    let (content, checksum) = whole.split_at(total - CHECKSUM_BYTES);
    if crc32fast::hash(content).to_be_bytes() != *checksum {
        return Err(SeedError::Checksum);
    }
    content.get(8..).ok_or(SeedError::Length(length))
}

fn check_hostname(name: &str) -> Result<(), SeedError> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let fits = (1..=63).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-');
    if fits {
        Ok(())
    } else {
        Err(SeedError::Hostname(name.escape_debug().take(80).collect()))
    }
}

fn check_prefix(prefix: u8) -> Result<(), SeedError> {
    if (1..=30).contains(&prefix) {
        Ok(())
    } else {
        Err(SeedError::Prefix(prefix))
    }
}

fn check_channels(channels: &[SeedChannel]) -> Result<(), SeedError> {
    let repeats = channels
        .iter()
        .enumerate()
        .any(|(at, channel)| channels[..at].contains(channel));
    if channels.is_empty() || repeats {
        Err(SeedError::Channels)
    } else {
        Ok(())
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], SeedError> {
        let (head, rest) = self.bytes.split_at_checked(count).ok_or(SeedError::Short {
            found: self.bytes.len(),
            needed: count,
        })?;
        self.bytes = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], SeedError> {
        let found = self.bytes.len();
        let (head, rest) = self
            .bytes
            .split_first_chunk()
            .ok_or(SeedError::Short { found, needed: N })?;
        self.bytes = rest;
        Ok(*head)
    }

    fn listener(&mut self) -> Result<SocketAddrV4, SeedError> {
        let address = Ipv4Addr::from(self.array::<4>()?);
        Ok(SocketAddrV4::new(address, u16::from_be_bytes(self.array()?)))
    }
}

#[cfg(test)]
mod tests;
