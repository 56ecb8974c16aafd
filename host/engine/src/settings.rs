//! What an operator may tune, as plain data, and the world an engine is put into.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use agentlab_api::{Profile, Vmid};
use agentlab_backend::Backend;
use agentlab_protocol::secret::Secret32;
use agentlab_store::Store;
use jiff::Timestamp;

use crate::port::{GuestDoor, Network};
use crate::secrets::Secrets;

/// Plain data from the daemon's configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Lowest VMID given to sandboxes.
    pub vmid_first: Vmid,
    /// Highest VMID given to sandboxes.
    pub vmid_last: Vmid,
    /// The agent subnet and the length of its prefix.
    pub subnet: (Ipv4Addr, u8),
    /// The bridge's own address: gateway, DNS and guest services.
    pub gateway: Ipv4Addr,
    /// Bootstrap listener as a guest dials it.
    pub bootstrap: SocketAddrV4,
    /// Artifact listener as a guest dials it.
    pub artifacts: SocketAddrV4,
    /// SHA-256 of the SubjectPublicKeyInfo both listeners show.
    pub spki_sha256: [u8; 32],
    /// Bound on one try of a step that makes a VM; power-on counts from its turn.
    pub provisioning_timeout: Duration,
    /// From power-on to the guest's first word.
    pub boot_timeout: Duration,
    /// How long an agent may neither print nor compute before people are told.
    pub agent_stuck_after: Duration,
    /// How long a bootstrap token is good for, counted from power-on.
    pub token_ttl: Duration,
    /// How often a guest is told to give a sign of life.
    pub heartbeat_interval: Duration,
    /// How long a guest with a job may be silent.
    pub heartbeat_silence: Duration,
    /// From TERM to KILL of an agent.
    pub kill_grace: Duration,
    /// What the host waits on top of an agent's deadline for fetching, collecting and reporting.
    pub host_deadline_slack: Duration,
    /// Time between two looks at what the hypervisor has.
    pub reconcile_interval: Duration,
    /// When sandboxes that nobody uses are stopped; never when absent.
    pub idle: Option<IdleRules>,
    /// First wait before a failed teardown is tried again.
    pub teardown_retry_first: Duration,
    /// Longest wait between two tries.
    pub teardown_retry_max: Duration,
    /// How many sandboxes may hold something at once.
    pub max_sandboxes: usize,
    /// How many jobs may wait for a place among them.
    pub max_queued_jobs: usize,
    /// How long records and files are kept after the end of what they are about.
    pub retention: Duration,
    /// All log text of one job.
    pub max_log_bytes: u64,
    /// Public keys that every sandbox lets in.
    pub operator_keys: Vec<String>,
    /// One uploaded repository.
    pub max_bundle_bytes: u64,
    /// Nothing is received while less than this is free.
    pub artifact_disk_floor: u64,
    /// The runner that templates must carry: major and minor version must match.
    pub runner_version: String,
    /// Shown in the status.
    pub daemon_version: String,
}

impl Default for Settings {
    fn default() -> Self {
        let gateway = Ipv4Addr::new(10, 77, 0, 1);
        Self {
            vmid_first: Vmid::MIN,
            vmid_last: Vmid::MAX,
            subnet: (Ipv4Addr::new(10, 77, 0, 0), 16),
            gateway,
            bootstrap: SocketAddrV4::new(gateway, 8844),
            artifacts: SocketAddrV4::new(gateway, 8846),
            spki_sha256: [0; 32],
            provisioning_timeout: Duration::from_secs(600),
            boot_timeout: Duration::from_secs(180),
            agent_stuck_after: Duration::from_secs(600),
            token_ttl: Duration::from_secs(600),
            heartbeat_interval: Duration::from_secs(10),
            heartbeat_silence: Duration::from_secs(90),
            kill_grace: Duration::from_secs(10),
            host_deadline_slack: Duration::from_secs(600),
            reconcile_interval: Duration::from_secs(30),
            idle: None,
            teardown_retry_first: Duration::from_secs(2),
            teardown_retry_max: Duration::from_secs(60),
            max_sandboxes: 64,
            max_queued_jobs: 100,
            retention: Duration::from_secs(30 * 24 * 3600),
            max_log_bytes: 64 << 20,
            operator_keys: Vec::new(),
            max_bundle_bytes: 1 << 30,
            artifact_disk_floor: 1 << 30,
            runner_version: env!("CARGO_PKG_VERSION").to_owned(),
            daemon_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// When a sandbox counts as unused, and how long it may be.
#[derive(Debug, Clone, PartialEq)]
pub struct IdleRules {
    /// Time between two looks.
    pub interval: Duration,
    /// How long one may be unused whose profile does not say; zero for as long as it likes.
    pub window: Duration,
    /// Computing of a larger share of its processors than this is use.
    pub cpu_share: f64,
}

/// What may change while an engine runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunable {
    /// Profiles, names unique. A sandbox keeps the one it was asked for with.
    pub profiles: Vec<Profile>,
    /// As in [`Settings`]; fewer than there are ends none.
    pub max_sandboxes: usize,
    /// As in [`Settings`]; fewer than wait refuses only new ones.
    pub max_queued_jobs: usize,
    /// As in [`Settings`].
    pub retention: Duration,
}

/// The world an engine is put into. Only the daemon's `wire.rs` picks the real ones.
pub struct Parts {
    /// The hypervisor.
    pub backend: Arc<dyn Backend>,
    /// The packet policy.
    pub network: Arc<dyn Network>,
    /// Speaks to guests over channels that are not the network.
    pub door: Arc<dyn GuestDoor>,
    /// Bundles of secrets.
    pub secrets: Arc<dyn Secrets>,
    /// Records and files.
    pub store: Store,
    /// Profiles, names unique.
    pub profiles: Vec<Profile>,
    /// Key that sessions are derived from; the same across restarts.
    pub host_key: Secret32,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts")
            .field("profiles", &self.profiles.len())
            .finish_non_exhaustive()
    }
}

/// Wall clock, for what is stored and shown. What is waited for goes by tokio's clock, which no one sets back.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Timestamp;
}

/// The system's own.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}
