//! What the hypervisor holds: nodes, machines, volumes, pools, tasks. Plain data; nothing here waits.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::Version;
use crate::access::{Access, Identity};
use crate::audit::{Audit, Origin, origin_of};
use crate::random::Random;
use crate::schema::{self, Kind};
use crate::storage::{Import, Storage, Volume};
use crate::task::Task;

/// When the stand-in's clock starts, in seconds since 1970.
const EPOCH: u64 = 1_795_196_000;
/// From a look to the call that rests on it: its answer may be 20 s late, and so may those of the calls before which the
/// next one waits for its turn.
const GLIMPSE: Duration = Duration::from_secs(40);
/// From a call to its effect: its worker waits 10 s for a lock at most, and then does its work.
const EFFECT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) online: bool,
    pub(crate) bridges: BTreeSet<String>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Pool {
    pub(crate) comment: Option<String>,
    pub(crate) vms: BTreeSet<u32>,
    pub(crate) storages: BTreeSet<String>,
}

/// Configuration keys and their values as text.
pub(crate) type Config = BTreeMap<String, String>;

#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) config: Config,
    pub(crate) time: u64,
    pub(crate) description: String,
    /// Volume that holds the memory.
    pub(crate) vmstate: Option<String>,
}

/// A running machine.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) since: Duration,
    pub(crate) pid: u32,
    pub(crate) paused: bool,
    pub(crate) executed: BTreeMap<u64, Value>,
}

#[derive(Debug, Clone)]
pub(crate) struct Vm {
    pub(crate) node: String,
    pub(crate) config: Config,
    /// `None` is a deletion that waits.
    pub(crate) pending: BTreeMap<String, Option<String>>,
    pub(crate) snapshots: BTreeMap<String, Snapshot>,
    pub(crate) run: Option<Run>,
    pub(crate) firewall: Config,
    /// Rules of its firewall, the first one first.
    pub(crate) rules: Vec<Config>,
    /// Whether the cluster's HA stack looks after it.
    pub(crate) ha: bool,
    pub(crate) origin: Origin,
}

impl Vm {
    pub(crate) fn new(node: &str, config: Config, origin: Origin) -> Self {
        Self {
            node: node.to_owned(),
            config,
            pending: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            run: None,
            firewall: BTreeMap::new(),
            rules: Vec::new(),
            ha: false,
            origin,
        }
    }

    pub(crate) fn is(&self, key: &str) -> bool {
        self.config.get(key).is_some_and(|value| value == "1")
    }

    pub(crate) fn is_template(&self) -> bool {
        self.is("template")
    }

    pub(crate) fn lock(&self) -> Option<&str> {
        self.config.get("lock").map(String::as_str)
    }

    pub(crate) fn name(&self, vmid: u32) -> String {
        self.config
            .get("name")
            .cloned()
            .unwrap_or_else(|| format!("VM {vmid}"))
    }

    pub(crate) fn number(&self, key: &str, default: u64) -> u64 {
        self.config
            .get(key)
            .and_then(|text| text.parse().ok())
            .unwrap_or(default)
    }

    /// With everything that waits applied.
    pub(crate) fn wanted(&self) -> Config {
        let mut config = self.config.clone();
        for (key, value) in &self.pending {
            match value {
                Some(value) => config.insert(key.clone(), value.clone()),
                None => config.remove(key),
            };
        }
        config
    }

    /// Drives of a configuration, and the volume of each.
    pub(crate) fn drives(config: &Config) -> impl Iterator<Item = (&String, &str)> {
        config
            .iter()
            .filter(|(key, _)| {
                crate::formats::is_drive(key)
                    || key.starts_with("unused")
                    || matches!(key.as_str(), "efidisk0" | "tpmstate0")
            })
            .map(|(key, value)| (key, volume_of(value)))
            .filter(|(_, volid)| volid.contains(':'))
    }

    pub(crate) fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for (key, value) in &self.config {
            hash.update(format!("{key}: {value}\n"));
        }
        for (key, value) in &self.pending {
            hash.update(format!("pending {key}: {value:?}\n"));
        }
        for name in self.snapshots.keys() {
            hash.update(format!("[{name}]\n"));
        }
        let mut digest = hex::encode(hash.finalize());
        digest.truncate(40);
        digest
    }
}

/// The volume of a drive's value.
pub(crate) fn volume_of(value: &str) -> &str {
    let first = value.split(',').next().unwrap_or_default();
    first.strip_prefix("file=").unwrap_or(first)
}

/// A configuration as the API shows it: numbers where the schema has numbers, text elsewhere.
pub(crate) fn shown(config: &Config) -> Value {
    let fields = config.iter().map(|(key, value)| (key.clone(), typed(key, value)));
    Value::Object(fields.collect())
}

pub(crate) fn typed(key: &str, value: &str) -> Value {
    let is_number = schema::key_of(key)
        .is_some_and(|key| matches!(key.parameter.kind, Kind::Integer(..) | Kind::Boolean));
    match value.parse::<i64>() {
        Ok(number) if is_number => json!(number),
        Ok(_) | Err(_) => json!(value),
    }
}

/// What every guest is like.
#[derive(Debug, Clone)]
pub struct Guests {
    /// From power-on until the agent answers.
    pub boot: Duration,
    /// Whether a link-local IPv6 address shows up.
    pub ipv6: bool,
    /// Whether a container bridge with an address of its own shows up.
    pub docker: bool,
}

/// What a node's status daemon told of a machine.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) at: Duration,
    pub(crate) figures: Value,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) version: Version,
    pub(crate) nodes: BTreeMap<String, Node>,
    /// The node whose address the client uses.
    pub(crate) local: String,
    pub(crate) quorate: bool,
    pub(crate) vms: BTreeMap<u32, Vm>,
    pub(crate) storages: BTreeMap<String, Storage>,
    pub(crate) volumes: BTreeMap<String, Volume>,
    pub(crate) snippets: BTreeSet<String>,
    /// Those of `local`, as files.
    pub(crate) snippets_dir: Option<PathBuf>,
    pub(crate) imports: BTreeMap<String, Import>,
    /// What the node gets from addresses on the Internet.
    pub(crate) downloads: BTreeMap<String, Bytes>,
    pub(crate) pools: BTreeMap<String, Pool>,
    pub(crate) access: Access,
    pub(crate) tasks: Vec<Task>,
    pub(crate) groups: BTreeMap<String, Option<String>>,
    pub(crate) options: Config,
    /// Whether the cluster's firewall is on.
    pub(crate) firewall: bool,
    pub(crate) guests: Guests,
    pub(crate) audit: Audit,
    pub(crate) random: Random,
    /// Moves all wall clock times.
    pub(crate) clock_offset: i64,
    /// Time since the stand-in began, kept up to date by whoever locks the world.
    pub(crate) now: Duration,
    pub(crate) next_pid: u32,
    /// When a client last read a machine's configuration, and whose the machine was then.
    pub(crate) seen: BTreeMap<u32, (Duration, Origin)>,
    /// By VMID, whatever machine has it by now.
    pub(crate) told: BTreeMap<u32, Told>,
    /// When the status daemons told last.
    pub(crate) told_at: Option<Duration>,
    /// Until when changes of a machine are excused.
    pub(crate) excused: BTreeMap<u32, Duration>,
}

impl World {
    /// Wall clock, in seconds since 1970.
    pub(crate) fn seconds(&self) -> u64 {
        (EPOCH + self.now.as_secs()).saturating_add_signed(self.clock_offset)
    }

    /// Whether a snippet is there, as a word of an operator's or as a file.
    pub(crate) fn has_snippet(&self, volid: &str) -> bool {
        let file = self
            .snippets_dir
            .as_ref()
            .zip(volid.strip_prefix("local:snippets/"));
        self.snippets.contains(volid) || file.is_some_and(|(dir, name)| dir.join(name).is_file())
    }

    pub(crate) fn pid(&mut self) -> u32 {
        self.next_pid += 1;
        self.next_pid
    }

    pub(crate) fn pool_of(&self, vmid: u32) -> Option<&str> {
        self.pools
            .iter()
            .find(|(_, pool)| pool.vms.contains(&vmid))
            .map(|(name, _)| name.as_str())
    }

    /// The pool a path of an access list is a member of.
    pub(crate) fn pool_of_path(&self, path: &str) -> Option<String> {
        if let Some(vmid) = path.strip_prefix("/vms/") {
            return self.pool_of(vmid.parse().ok()?).map(str::to_owned);
        }
        let storage = path.strip_prefix("/storage/")?;
        self.pools
            .iter()
            .find(|(_, pool)| pool.storages.contains(storage))
            .map(|(name, _)| name.clone())
    }

    pub(crate) fn may(&self, who: &Identity, path: &str, privilege: &str) -> bool {
        let pools = |path: &str| self.pool_of_path(path);
        self.access.held(who, path, &pools).contains_key(privilege)
    }

    pub(crate) fn conf_missing(&self, node: &str, vmid: u32) -> String {
        format!("Configuration file 'nodes/{node}/qemu-server/{vmid}.conf' does not exist")
    }

    /// A machine that stands on this node.
    pub(crate) fn vm(&self, node: &str, vmid: u32) -> Result<&Vm, String> {
        self.vms
            .get(&vmid)
            .filter(|vm| vm.node == node)
            .ok_or_else(|| self.conf_missing(node, vmid))
    }

    pub(crate) fn vm_mut(&mut self, node: &str, vmid: u32) -> Result<&mut Vm, String> {
        let missing = self.conf_missing(node, vmid);
        self.vms
            .get_mut(&vmid)
            .filter(|vm| vm.node == node)
            .ok_or(missing)
    }

    /// A machine that stands here and is not locked by anything.
    pub(crate) fn unlocked(&self, node: &str, vmid: u32) -> Result<&Vm, String> {
        let vm = self.vm(node, vmid)?;
        match vm.lock() {
            Some(lock) => Err(format!("VM is locked ({lock})")),
            None => Ok(vm),
        }
    }

    /// Whether the cluster can write its configuration.
    pub(crate) fn writable(&self) -> Result<(), String> {
        if self.quorate {
            Ok(())
        } else {
            Err("cluster not ready - no quorum?".into())
        }
    }

    /// Notes that a client read a machine's configuration.
    pub(crate) fn reads_vm(&mut self, who: &Identity, vmid: u32) {
        let origin = self.vms.get(&vmid).map(|vm| vm.origin);
        if let (Some(origin), Origin::Client) = (origin, origin_of(who)) {
            self.seen.insert(vmid, (self.now, origin));
        }
    }

    /// Notes that a client asks for a change. If it read a moment ago that the machine is its own, what comes of the call
    /// is excused: between the look and the change no hypervisor lets anybody exclude that somebody takes it over.
    pub(crate) fn asks_for_change(&mut self, vmid: u32) {
        let seen = self.seen.get(&vmid);
        let is_fresh = |at: Duration| self.now.saturating_sub(at) < GLIMPSE;
        if seen.is_some_and(|(at, origin)| *origin == Origin::Client && is_fresh(*at)) {
            self.excused.insert(vmid, self.now + EFFECT);
        }
    }

    fn is_excused(&self, vmid: u32) -> bool {
        self.excused.get(&vmid).is_some_and(|until| self.now < *until)
    }

    /// Notes that somebody changes a machine.
    pub(crate) fn changes_vm(&mut self, who: &Identity, vmid: u32, what: &str) {
        let origin = self.vms.get(&vmid).map(|vm| vm.origin);
        let origin = origin.filter(|_| !self.is_excused(vmid));
        let now = self.now;
        self.audit.change(now, who, &format!("VM {vmid}"), origin, what);
    }

    /// Notes that somebody changes a volume.
    pub(crate) fn changes_volume(&mut self, who: &Identity, volid: &str, what: &str) {
        let volume = self.volumes.get(volid);
        let origin = volume
            .filter(|volume| !self.is_excused(volume.owner))
            .map(|volume| volume.origin);
        let now = self.now;
        self.audit.change(now, who, volid, origin, what);
    }

    /// The machine goes, with everything that hangs on its VMID.
    pub(crate) fn forget_vm(&mut self, vmid: u32) {
        self.vms.remove(&vmid);
        for pool in self.pools.values_mut() {
            pool.vms.remove(&vmid);
        }
        let path = format!("/vms/{vmid}");
        self.access.entries.retain(|(at, _, _), _| *at != path);
    }
}
