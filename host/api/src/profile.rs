//! Profiles: what a sandbox is made of and what it may do. The YAML reader is `agentlab-config`.

use serde::{Deserialize, Serialize};

use crate::{AllowEntry, SecretName, Vmid};

/// One profile, defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Unique name: lower-case letters, digits, `-` and `_`, at most 63.
    pub name: String,
    /// The template to clone. A local template carries the VMID it stands for.
    pub template_vmid: Vmid,
    /// Which agent runs tasks, one of [`AGENTS`], unless `behavior.agent` names it.
    #[serde(default = "default_agent")]
    pub agent: String,
    /// Packets.
    #[serde(default)]
    pub network: Network,
    /// Processor and memory.
    #[serde(default)]
    pub resources: Resources,
    /// Disks.
    #[serde(default)]
    pub storage: Storage,
    /// Leases, deadlines and the inner sandbox.
    #[serde(default)]
    pub behavior: Behavior,
    /// What sandboxes are given of the bundle, and nothing else of it. Nothing when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretName>,
    /// The bundle; the daemon's `secrets_bundle` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets_bundle: Option<String>,
    /// What may come back.
    #[serde(default)]
    pub artifacts: ArtifactRules,
}

/// Agents there are: `shell` runs the task text as a script, `command` the profile's `behavior.agent_command`,
/// `repository` the repository's `.agentlab/run.sh`.
pub const AGENTS: &[&str] = &["claude", "codex", "opencode", "shell", "command", "repository"];

impl Profile {
    /// The agent that runs tasks of this profile.
    #[must_use]
    pub fn agent(&self) -> &str {
        self.behavior.agent.as_deref().unwrap_or(&self.agent)
    }
}

fn default_agent() -> String {
    "shell".to_owned()
}

/// What packets of the guest may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// The host's guest services only.
    Off,
    /// The Internet through the uplink; no private or special range.
    #[default]
    Nat,
    /// Named destinations only.
    Allowlist,
}

impl std::fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Off => "off",
            Self::Nat => "nat",
            Self::Allowlist => "allowlist",
        })
    }
}

/// A way between guest and host. The runner tries those of its seed in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChannelKind {
    /// A virtio-serial port.
    Serial,
    /// AF_VSOCK.
    Vsock,
    /// TLS over the agent subnet.
    Tls,
}

/// `network:` of a profile.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// What packets may reach.
    pub mode: NetworkMode,
    /// Where a sandbox in `allowlist` may go; given with that mode, and with no other.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<AllowEntry>,
    /// Bridge the VM's port is on; the daemon's own when absent, and no other is accepted.
    pub bridge: Option<String>,
    /// NIC model; only `virtio` is supported.
    pub model: Option<String>,
    /// Whether the hypervisor's own firewall stands before the NIC too, besides the daemon's policy. Proxmox VE alone has
    /// one; as `firewall_group` says when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firewall: Option<bool>,
    /// Security group of Proxmox VE, the only rule of that firewall.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firewall_group: Option<String>,
    /// Ways between guest and host, in order; all that the back end has, but for vsock, when absent.
    pub channels: Option<Vec<ChannelKind>>,
}

impl Network {
    /// Whether the hypervisor's own firewall is asked for.
    #[must_use]
    pub fn wants_firewall(&self) -> bool {
        self.firewall.unwrap_or(self.firewall_group.is_some())
    }
}

/// `resources:` of a profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Resources {
    /// Virtual processors, 1 to 128.
    pub cores: u16,
    /// Memory in MiB, at least 256.
    pub memory_mb: u32,
    /// Processor time, in hundredths of a processor of the host; all that `cores` can use when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_limit_percent: Option<u32>,
    /// Processors of the host that it runs on, such as `0-3,8`; any when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpulist: Option<String>,
    /// Memory in MiB that it keeps when its host runs short and takes the rest back; all of it when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balloon: Option<u32>,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            cores: 2,
            memory_mb: 2048,
            cpu_limit_percent: None,
            cpulist: None,
            balloon: None,
        }
    }
}

/// `storage:` of a profile.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Storage {
    /// Grow the root disk to this many GiB; the template's own size when absent. Never shrinks.
    pub root_size_gb: Option<u32>,
    /// Whether its sandboxes have a workspace; whoever asks for one says so when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace: Option<WorkspaceUse>,
}

/// `storage.workspace:` of a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkspaceUse {
    /// Never.
    None,
    /// Always: nobody is to work on a disk that goes with the machine.
    Attach,
}

/// Whether the agent runs inside a sandbox of its own within the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InnerSandbox {
    /// bubblewrap.
    #[default]
    #[serde(alias = "bwrap", alias = "true", alias = "yes", alias = "1")]
    Bubblewrap,
    /// bubblewrap, and of the disk only the agent's own work and what programs need.
    Hardened,
    /// Straight in the guest, as the agent user.
    #[serde(alias = "off", alias = "false", alias = "disabled", alias = "0", alias = "")]
    None,
}

/// What an agent may do without asking. Nobody is there to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentMode {
    /// Everything: the machine around it is the sandbox.
    #[default]
    Dangerous,
    /// What the agent's own rules allow; the rest is denied.
    Safe,
}

/// `behavior:` of a profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behavior {
    /// Which agent runs tasks, one of [`AGENTS`]; the profile's `agent` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// What it may do without asking.
    pub mode: AgentMode,
    /// Program and arguments of the agent `command`. The task comes on standard input and in `AGENTLAB_TASK_FILE`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub agent_command: Vec<String>,
    /// Further arguments of `claude`, `codex` and `opencode`, such as which model.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub agent_args: Vec<String>,
    /// Keep the sandbox after its job.
    pub keepalive_default: bool,
    /// Lease in minutes.
    pub ttl_minutes_default: u32,
    /// How many minutes a sandbox may stand unused before it is stopped, its disk kept; 0 for ever, and as the daemon is
    /// told when absent. One with a job is never stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_stop_minutes_default: Option<u32>,
    /// How long an agent may run, in seconds.
    pub deadline_seconds_default: u32,
    /// Bring in the repository's submodules too, and theirs.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub submodules: bool,
    /// Inner sandbox.
    pub inner_sandbox: InnerSandbox,
    /// Appended to the bubblewrap command line, one item per argument.
    pub inner_sandbox_args: Vec<String>,
    /// Branches of a repository's origin that jobs may have pushed: names, and prefixes that end in `*`. None when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub push: Vec<String>,
}

impl Default for Behavior {
    fn default() -> Self {
        Self {
            agent: None,
            mode: AgentMode::Dangerous,
            agent_command: Vec::new(),
            agent_args: Vec::new(),
            keepalive_default: false,
            ttl_minutes_default: 180,
            idle_stop_minutes_default: None,
            deadline_seconds_default: 7200,
            submodules: false,
            inner_sandbox: InnerSandbox::Bubblewrap,
            inner_sandbox_args: Vec::new(),
            push: Vec::new(),
        }
    }
}

/// `artifacts:` of a profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ArtifactRules {
    /// Largest single file, in bytes.
    pub max_file_bytes: u64,
    /// All files of a job together, in bytes.
    pub max_total_bytes: u64,
    /// Number of files.
    pub max_files: u32,
    /// How long a job's record, output and files are kept after its end, in days; for ever when 0, and as long as the
    /// daemon's `retention_days` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention_days: Option<u32>,
}

impl Default for ArtifactRules {
    fn default() -> Self {
        Self {
            max_file_bytes: 256 << 20,
            max_total_bytes: 1 << 30,
            max_files: 1000,
            retention_days: None,
        }
    }
}

/// Profiles, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileList {
    /// All of them.
    pub profiles: Vec<Profile>,
}
