//! A stand-in as a test finds it: one node, a template, a pool, and a token that may do what ours may.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::Version;
use crate::access::{Access, Token};
use crate::audit::{Audit, Origin};
use crate::boot::{Boot, NoBoot};
use crate::core::Core;
use crate::fault::{Faults, Rates};
use crate::operator::Operator;
use crate::random::Random;
use crate::server::Server;
use crate::storage::{Plugin, Storage, Volume};
use crate::timeline::lock;
use crate::wire::{Request, Response};
use crate::world::{Config, Guests, Node, Pool, Vm, World};

/// Where the template stands.
const TEMPLATE: u32 = 9000;
/// What the client's user and token are called, and the token's secret.
const USER: &str = "agentlab@pve";
const TOKEN: &str = "lp";
const SECRET: &str = "11111111-2222-3333-4444-555555555555";
/// The operator's token, for tests that look at what the client may not see.
const ROOT: &str = "root@pam";
const ROOT_TOKEN: &str = "root";
const ROOT_SECRET: &str = "99999999-8888-7777-6666-555555555555";

/// How fast the stand-in's time goes: 1.0 as on a genuine node, 0.0 at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale(pub f64);

/// What a stand-in starts with. Change what a test cares about.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The release.
    pub version: Version,
    /// Its time.
    pub scale: Scale,
    /// Of addresses and identifiers.
    pub seed: u64,
    /// Nodes; the first is the one that is talked to and that holds the template.
    pub nodes: Vec<String>,
    /// Storages by name, what they are, and whether all nodes see them.
    pub storages: Vec<(String, Plugin, bool)>,
    /// The storage of the template's disk.
    pub template_storage: String,
    /// The template's configuration; its disk is added.
    pub template: BTreeMap<String, String>,
    /// Volumes that were there before: identifier, owner, bytes.
    pub volumes: Vec<(String, u32, u64)>,
    /// Where the snippets of `local` lie as files; absent: there are those that an operator adds.
    pub snippets_dir: Option<PathBuf>,
    /// What the node gets from addresses on the Internet, should it be told to fetch something.
    pub downloads: BTreeMap<String, Bytes>,
    /// The pool of the client's machines, with its comment.
    pub pool: (String, Option<String>),
    /// Privileges of the client on that pool.
    pub privileges: Vec<String>,
    /// The VMID that owns the client's volumes.
    pub volume_owner: u32,
    /// Whether the client may delete volumes.
    pub may_delete_volumes: bool,
    /// More of what the client was granted: path and role.
    pub grants: Vec<(String, String)>,
    /// Bridges the client may use. Every node has `vmbr0` and `vmbr1`.
    pub bridges: Vec<String>,
    /// Security groups.
    pub groups: Vec<(String, Option<String>)>,
    /// What every guest is like.
    pub guests: Guests,
}

impl Setup {
    /// A node as `agentlab init` leaves it.
    #[must_use]
    pub fn lab(version: Version, scale: Scale) -> Self {
        let agent: &[&str] = match version {
            Version::V8 => &["VM.Monitor"],
            Version::V9 => &["VM.GuestAgent.Audit", "VM.GuestAgent.Unrestricted"],
        };
        let common = [
            "VM.Allocate",
            "VM.Clone",
            "VM.Audit",
            "VM.PowerMgmt",
            "VM.Config.Disk",
            "VM.Config.CPU",
            "VM.Config.Memory",
            "VM.Config.Network",
            "VM.Config.Options",
            "VM.Config.Cloudinit",
            "VM.Config.HWType",
            "VM.Snapshot",
            "VM.Snapshot.Rollback",
            "Pool.Audit",
        ];
        let template = [
            ("name", "tmpl"),
            (
                "description",
                concat!("agentlab-runner: ", env!("CARGO_PKG_VERSION")),
            ),
            ("agent", "1"),
            ("boot", "order=scsi0"),
            ("cores", "1"),
            ("memory", "384"),
            ("kvm", "0"),
            ("meta", "creation-qemu=10.0.13,ctime=1795192427"),
            ("net0", "virtio=BC:24:11:EB:96:55,bridge=vmbr0,firewall=1"),
            ("ostype", "l26"),
            ("protection", "1"),
            ("scsihw", "virtio-scsi-pci"),
            ("serial0", "socket"),
            ("smbios1", "uuid=7044d74f-1b98-4cfc-9c6c-f23016492a02"),
            ("tags", "agentlab;tmpl"),
            ("template", "1"),
            ("vmgenid", "c3a66830-2fe2-4f0a-9f24-badcade7a957"),
        ];
        Self {
            version,
            scale,
            seed: 1,
            nodes: vec![version.node().to_owned()],
            storages: vec![
                ("local".to_owned(), Plugin::Dir, false),
                ("labdir".to_owned(), Plugin::Dir, false),
            ],
            template_storage: "local".into(),
            template: template
                .iter()
                .map(|&(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
            volumes: Vec::new(),
            snippets_dir: None,
            downloads: BTreeMap::new(),
            pool: ("agentlab".into(), None),
            privileges: common.iter().chain(agent).map(|&name| name.to_owned()).collect(),
            volume_owner: 777,
            may_delete_volumes: true,
            grants: Vec::new(),
            bridges: vec!["vmbr0".into(), "vmbr1".into()],
            groups: Vec::new(),
            guests: Guests {
                boot: Duration::from_secs(6).mul_f64(scale.0),
                ipv6: false,
                docker: false,
            },
        }
    }

    fn world(&self) -> World {
        let mut world = World {
            version: self.version,
            nodes: BTreeMap::new(),
            local: self.nodes.first().cloned().unwrap_or_default(),
            quorate: true,
            vms: BTreeMap::new(),
            storages: BTreeMap::new(),
            volumes: BTreeMap::new(),
            snippets: BTreeSet::new(),
            snippets_dir: self.snippets_dir.clone(),
            imports: BTreeMap::new(),
            downloads: self.downloads.clone(),
            pools: BTreeMap::new(),
            access: Access::new(self.version),
            tasks: Vec::new(),
            groups: self.groups.iter().cloned().collect(),
            options: BTreeMap::new(),
            firewall: false,
            guests: self.guests.clone(),
            audit: Audit::default(),
            random: Random::new(self.seed),
            clock_offset: 0,
            now: Duration::ZERO,
            next_pid: 5170,
            seen: BTreeMap::new(),
            told: BTreeMap::new(),
            told_at: None,
            excused: BTreeMap::new(),
        };
        for name in &self.nodes {
            let node = Node {
                online: true,
                bridges: ["vmbr0", "vmbr1"].map(str::to_owned).into(),
            };
            world.nodes.insert(name.clone(), node);
        }
        for (name, plugin, shared) in &self.storages {
            world
                .storages
                .insert(name.clone(), self.storage(name, *plugin, *shared));
        }
        for (volid, owner, size) in &self.volumes {
            let volume = self.volume(volid, *owner, *size, &world);
            world.volumes.insert(volid.clone(), volume);
        }
        self.add_template(&mut world);
        let pool = Pool {
            comment: self.pool.1.clone(),
            ..Pool::default()
        };
        world.pools.insert(self.pool.0.clone(), pool);
        self.add_access(&mut world.access);
        world
    }

    fn storage(&self, name: &str, plugin: Plugin, shared: bool) -> Storage {
        let content: &[&str] = match (plugin, name) {
            (Plugin::Dir, "local") => &["images", "snippets", "iso", "import", "backup", "vztmpl"],
            (Plugin::Dir, _) => &["images", "snippets", "iso", "import", "rootdir"],
            (Plugin::Zfs | Plugin::LvmThin | Plugin::Lvm | Plugin::Rbd, _) => &["images", "rootdir"],
        };
        Storage {
            plugin,
            shared,
            content: content.iter().map(|&kind| kind.to_owned()).collect(),
            path: if name == "local" {
                "/var/lib/vz".into()
            } else {
                format!("/{name}")
            },
            total: 270_553_174_016,
            used: 34_009_001_984,
        }
    }

    fn volume(&self, volid: &str, owner: u32, size: u64, world: &World) -> Volume {
        Volume {
            storage: volid.split(':').next().unwrap_or_default().to_owned(),
            node: world.local.clone(),
            owner,
            format: volid
                .rsplit_once('.')
                .map_or("raw", |(_, format)| format)
                .to_owned(),
            size,
            created: world.seconds(),
            parent: None,
            snapshots: Vec::new(),
            origin: Origin::Foreign,
        }
    }

    fn add_template(&self, world: &mut World) {
        let plugin = world
            .storages
            .get(&self.template_storage)
            .map_or(Plugin::Dir, |storage| storage.plugin);
        let disk = format!("base-{TEMPLATE}-disk-0");
        let volid = crate::storage::volid(&self.template_storage, plugin, TEMPLATE, &disk, "qcow2");
        let volume = self.volume(&volid, TEMPLATE, 200 << 20, world);
        world.volumes.insert(volid.clone(), volume);
        let mut config: Config = self.template.clone();
        config.insert("scsi0".into(), format!("{volid},size=200M"));
        world
            .vms
            .insert(TEMPLATE, Vm::new(&world.local.clone(), config, Origin::Foreign));
    }

    fn add_access(&self, access: &mut Access) {
        let token = |secret: &str, privsep| Token {
            secret: secret.to_owned(),
            privsep,
            expire: 0,
            comment: None,
        };
        access
            .add_user(ROOT)
            .tokens
            .insert(ROOT_TOKEN.into(), token(ROOT_SECRET, false));
        access
            .add_user(USER)
            .tokens
            .insert(TOKEN.into(), token(SECRET, true));
        let set = |names: &[&str]| {
            names
                .iter()
                .map(|&name| name.to_owned())
                .collect::<BTreeSet<String>>()
        };
        access
            .roles
            .insert("AgentLab".into(), self.privileges.iter().cloned().collect());
        let mut storage = set(&["Datastore.AllocateSpace", "Datastore.Audit"]);
        if self.may_delete_volumes {
            storage.insert("Datastore.Allocate".into());
        }
        access.roles.insert("AgentLabStorage".into(), storage);
        access
            .roles
            .insert("AgentLabVolumes".into(), set(&["VM.Config.Disk", "VM.Audit"]));
        access.roles.insert("AgentLabNet".into(), set(&["SDN.Use"]));
        let entries = [
            (format!("/pool/{}", self.pool.0), "AgentLab"),
            (format!("/vms/{TEMPLATE}"), "PVETemplateUser"),
            (format!("/vms/{}", self.volume_owner), "AgentLabVolumes"),
            (format!("/storage/{}", self.template_storage), "AgentLabStorage"),
        ];
        let bridges = self.bridges.iter();
        let bridges = bridges.map(|bridge| (format!("/sdn/zones/localnetwork/{bridge}"), "AgentLabNet"));
        let grants = self.grants.iter();
        let grants = grants.map(|(path, role)| (path.clone(), role.as_str()));
        for (path, role) in entries.into_iter().chain(bridges).chain(grants) {
            for who in [USER.to_owned(), format!("{USER}!{TOKEN}")] {
                access.entries.insert((path.clone(), who, role.to_owned()), true);
            }
        }
    }

    /// The stand-in in process, without a socket. It needs a runtime only while it is asked.
    #[must_use]
    pub fn in_process(self) -> PveSim {
        self.boot_with(Arc::new(NoBoot))
    }

    /// The same, with something that follows the power of its machines.
    #[must_use]
    pub fn boot_with(self, boot: Arc<dyn Boot>) -> PveSim {
        let core = Core::new(self.world(), self.scale.0, boot);
        PveSim {
            core,
            node: self.nodes.first().cloned().unwrap_or_default(),
            server: None,
        }
    }
}

/// A running stand-in. Clones are the same one; the last one dropped closes its socket.
#[derive(Clone)]
pub struct PveSim {
    core: Arc<Core>,
    node: String,
    server: Option<Arc<Server>>,
}

impl std::fmt::Debug for PveSim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PveSim")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl PveSim {
    /// A lab node behind TLS on a port of its own.
    ///
    /// # Errors
    /// When no socket or certificate can be made.
    pub async fn start(version: Version, scale: Scale) -> anyhow::Result<Self> {
        Setup::lab(version, scale)
            .in_process()
            .listen("127.0.0.1:0")
            .await
    }

    /// Puts a stand-in behind TLS.
    ///
    /// # Errors
    /// When no socket or certificate can be made.
    pub async fn listen(self, address: &str) -> anyhow::Result<Self> {
        let server = Server::start(Arc::clone(&self.core), address).await?;
        Ok(Self {
            server: Some(Arc::new(server)),
            ..self
        })
    }

    /// `https://127.0.0.1:<port>`; empty without a socket.
    #[must_use]
    pub fn url(&self) -> String {
        self.server
            .as_ref()
            .map(|server| server.url.clone())
            .unwrap_or_default()
    }

    /// SHA-256 of its certificate, `AA:BB:…`; empty without a socket.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.server
            .as_ref()
            .map(|server| server.fingerprint.clone())
            .unwrap_or_default()
    }

    /// Its certificate as PEM; empty without a socket.
    #[must_use]
    pub fn certificate(&self) -> String {
        self.server
            .as_ref()
            .map(|server| server.certificate.clone())
            .unwrap_or_default()
    }

    /// The client's token, `user@realm!name=secret`.
    #[must_use]
    pub fn token(&self) -> String {
        format!("{USER}!{TOKEN}={SECRET}")
    }

    /// A token of root's, which may look at everything. It is the operator's: the audit does not mind it.
    #[must_use]
    pub fn root_token(&self) -> String {
        format!("{ROOT}!{ROOT_TOKEN}={ROOT_SECRET}")
    }

    /// The node that holds the template.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Time since it began.
    #[must_use]
    pub fn elapsed(&self) -> std::time::Duration {
        self.core.timeline.now()
    }

    /// Answers one request in process.
    pub async fn answer(&self, request: Request) -> Response {
        self.core.answer(request).await
    }

    /// From now on calls of clients fail as the seed says.
    pub fn plan_faults(&self, seed: u64, rates: Rates) {
        *lock(&self.core.faults) = Faults::new(seed, rates);
    }

    /// The operator's own hand, past token and lock.
    #[must_use]
    pub fn operator(&self) -> Operator {
        Operator::new(Arc::clone(&self.core))
    }

    /// Who changed what so far.
    #[must_use]
    pub fn audit(&self) -> Audit {
        self.core.world().audit.clone()
    }

    /// Whatever exists because of a client: machines, volumes, snippets, images, in words.
    #[must_use]
    pub fn left(&self) -> Vec<String> {
        let world = self.core.world();
        let vms = world
            .vms
            .iter()
            .filter(|(_, vm)| vm.origin == Origin::Client)
            .map(|(vmid, vm)| format!("VM {vmid} ({})", vm.lock().unwrap_or("no lock")));
        let volumes = world
            .volumes
            .iter()
            .filter(|(_, volume)| volume.origin == Origin::Client)
            .map(|(volid, _)| format!("volume {volid}"));
        let snippets = world.snippets.iter().map(|volid| format!("snippet {volid}"));
        let imports = world
            .imports
            .iter()
            .filter(|(_, import)| import.origin == Origin::Client)
            .map(|(volid, _)| format!("image {volid}"));
        vms.chain(volumes).chain(snippets).chain(imports).collect()
    }
}
