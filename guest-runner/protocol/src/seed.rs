//! What a VM is born with: who it is, where the host is, and one token that is worthless after its first use.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::secret::Secret32;

/// Largest encoded seed in bytes: base64 of it must fit Proxmox VE's `smbios1`, 512 characters in all.
pub const MAX_SEED_BYTES: usize = 300;

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
