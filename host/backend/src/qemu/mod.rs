//! QEMU itself, driven over QMP, on a host without any other hypervisor.
//!
//! ```text
//!   Qemu ─┬─ template   what can be cloned (read only)
//!         ├─ record     a directory per machine: stamp, overlay, seed, sockets
//!         ├─ start      turn -> command + launch (own uid, descriptors only, seccomp) -> QMP `cont`
//!         ├─ machines   the trait's calls, each compared with the stamp first
//!         ├─ guest      seed, channels, console
//!         ├─ vsock      the channel that is a device: who has one, and who is speaking over it
//!         ├─ volumes    disks that outlive the machines they are attached to
//!         └─ watch      one task per running machine: reaps it, cuts its logs, gives its turn back
//! ```
//!
//! Nothing about a machine lives in this process alone: all of it is in the machine's directory and in the kernel's
//! process table, so a daemon that was killed finds every machine again ([`crate::Backend::adopt`]). A QEMU belongs
//! to a machine by process id, start time and boot, or by running under the machine's own uid.
//!
//! It must run as root: each QEMU gets a user of its own.

mod accelerator;
mod clone;
mod command;
mod guest;
mod launch;
mod log;
mod machines;
mod monitor;
mod probe;
mod process;
mod qmp;
mod record;
mod sockets;
mod start;
mod template;
mod volume_store;
mod volumes;
mod vsock;
mod watch;

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentlab_api::{ChannelKind, Vmid};
use async_trait::async_trait;
use rustix::fs::FlockOperation;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::turns::{Turn, Turns};
use crate::{
    Agents, Backend, BackendError, BackendInfo, Capabilities, Machine, Result, Snapshots, Storage, Tasks,
};
use accelerator::{Accelerator, Programs};
use monitor::Monitor;
use probe::{Prober, Verdict};
#[doc(hidden)]
pub use qmp::converse;
use record::{MachineDir, storage};
use sockets::Line;
use template::{StoredTemplate, TemplateStore};
use volume_store::VolumeStore;
use vsock::Vsock;

const KIND: &str = "qemu";
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// Which accelerator to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AcceleratorChoice {
    /// KVM where a guest really ran under it, else TCG.
    #[default]
    Auto,
    /// KVM, unproven.
    Kvm,
    /// TCG.
    Tcg,
}

/// What the back end works with.
#[derive(Debug, Clone)]
pub struct QemuOptions {
    /// Machines live in `<run_dir>/vm/<vmid>/`. One process at a time uses it.
    pub run_dir: PathBuf,
    /// Where `agentlab-template` stores its templates.
    pub template_dir: PathBuf,
    /// `qemu-system-x86_64`; searched in the usual places when absent.
    pub qemu_binary: Option<PathBuf>,
    /// First and last user id that machines run under, one each. Nothing else on the host may use them. The last one
    /// is the accelerator probe's.
    pub uid_range: (u32, u32),
    /// KVM, TCG, or whichever works.
    pub accelerator: AcceleratorChoice,
    /// How many machines may be booting at once; by default one per core under TCG, two under KVM.
    pub concurrent_starts: Option<usize>,
    /// TCG's translation cache per machine, the largest part of an idle machine's memory.
    pub tb_size_mb: u32,
    /// Whether machines get a NIC on the tap they are powered on with. Without, they have none.
    pub tap: bool,
    /// Nothing is cloned while the file system of `run_dir` has less than this free.
    pub disk_floor_mb: u64,
    /// Where vhost-user vsock devices listen, as `<vmid>.sock`; their connections come in beside them. Without, the
    /// kernel's vhost-vsock is used, on a host that has it.
    pub vsock_dir: Option<PathBuf>,
    /// The port guests dial over vsock; 0 offers them no such channel.
    pub vsock_port: u16,
}

impl QemuOptions {
    /// The defaults for two directories.
    #[must_use]
    pub fn new(run_dir: impl Into<PathBuf>, template_dir: impl Into<PathBuf>) -> Self {
        Self {
            run_dir: run_dir.into(),
            template_dir: template_dir.into(),
            qemu_binary: None,
            uid_range: (2_000_000, 2_065_535),
            accelerator: AcceleratorChoice::Auto,
            concurrent_starts: None,
            tb_size_mb: 64,
            tap: true,
            disk_floor_mb: 1024,
            vsock_dir: None,
            vsock_port: 0,
        }
    }
}

/// What this process holds of a machine besides its directory.
#[derive(Debug)]
struct Vm {
    /// Held by whoever changes the machine.
    operation: tokio::sync::Mutex<()>,
    monitor: Monitor,
    channel: Line,
}

/// The QEMU back end. Dropping it leaves every machine running.
#[derive(Debug)]
pub struct Qemu {
    options: QemuOptions,
    programs: Programs,
    templates: TemplateStore,
    machines: record::Machines,
    prober: Prober,
    verdict: Mutex<Verdict>,
    /// Held while a guest is run to find out about the accelerator.
    probing: tokio::sync::Mutex<()>,
    /// First come, first started.
    starts: Turns,
    concurrent_starts: usize,
    vms: Mutex<HashMap<Vmid, Arc<Vm>>>,
    /// Held while a uid is chosen and recorded.
    allocation: tokio::sync::Mutex<()>,
    watchers: Mutex<JoinSet<()>>,
    vsock: Arc<Vsock>,
    /// Ways into a guest, in the order to try.
    channels: Vec<ChannelKind>,
    volumes: VolumeStore,
    /// Held while a volume is made, given, taken or copied.
    volume_turn: tokio::sync::Mutex<()>,
    /// Locked for as long as this process uses `run_dir`.
    _lock: File,
}

/// Runs blocking work beside the executor.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(unreachable("blocking work", error.to_string())),
    }
}

fn unreachable(action: &'static str, reason: String) -> BackendError {
    BackendError::Unreachable {
        backend: KIND,
        action,
        reason,
    }
}

fn make_run_dir(run_dir: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(run_dir)
        .map_err(storage("making", run_dir))
}

/// Two daemons on one directory would each adopt and destroy the other's machines. The lock of a daemon that was
/// killed goes with its last child still on its way to exec, hence the patience.
async fn lock(run_dir: &Path) -> Result<File> {
    let path = run_dir.join("lock");
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    let file = options.open(&path).map_err(storage("opening", &path))?;
    let until = Instant::now() + LOCK_PATIENCE;
    while rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() >= until {
            let reason = format!("{} is used by another process", run_dir.display());
            return Err(unreachable("opening its directory", reason));
        }
        tokio::time::sleep(LOCK_PATIENCE / 20).await;
    }
    Ok(file)
}

impl Qemu {
    /// Opens the directories, finds QEMU and settles on an accelerator. The first time on a host the last may take
    /// some seconds; the verdict is kept.
    ///
    /// # Errors
    /// Not root; no QEMU; `run_dir` cannot be made or is in use by another process.
    pub async fn open(options: QemuOptions) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            let reason = "it must run as root, because each QEMU gets a user of its own".to_owned();
            return Err(unreachable("starting", reason));
        }
        let (first_uid, last_uid) = options.uid_range;
        if first_uid == 0 || first_uid >= last_uid {
            return Err(unreachable(
                "starting",
                format!("uid range {first_uid}-{last_uid} is unusable"),
            ));
        }
        make_run_dir(&options.run_dir)?;
        let lock = lock(&options.run_dir).await?;
        let kept_version = options.run_dir.join("qemu-version.json");
        let programs = Programs::find(options.qemu_binary.as_deref(), &kept_version).await?;
        let machines = record::Machines::open(&options.run_dir)?;
        let volumes = VolumeStore::open(&options.run_dir, options.disk_floor_mb.saturating_mul(1 << 20))?;
        let templates = TemplateStore::new(&options.template_dir);
        let kept_path = options.run_dir.join("accelerator.json");
        let prober = Prober {
            programs: programs.clone(),
            uid: last_uid,
            kept_path,
            tried: Accelerator::Kvm,
        };
        let configured = |kvm| Verdict {
            kvm,
            reason: "set in the configuration".to_owned(),
            with_kernel: true,
        };
        let verdict = match options.accelerator {
            AcceleratorChoice::Kvm => configured(true),
            AcceleratorChoice::Tcg => configured(false),
            AcceleratorChoice::Auto => prober.verdict(templates.any().as_ref()).await,
        };
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let concurrent_starts = options
            .concurrent_starts
            .unwrap_or(if verdict.kvm { 2 * cores } else { cores })
            .max(1);
        let vsock = Vsock::open(options.vsock_dir.clone(), options.vsock_port);
        let channels = [
            (ChannelKind::Serial, true),
            (ChannelKind::Vsock, vsock.is_offered()),
            (ChannelKind::Tls, options.tap),
        ];
        let channels = channels.into_iter().filter_map(|(kind, has)| has.then_some(kind));
        Ok(Self {
            channels: channels.collect(),
            vsock,
            options,
            programs,
            templates,
            machines,
            prober,
            verdict: Mutex::new(verdict),
            probing: tokio::sync::Mutex::default(),
            starts: Turns::new(concurrent_starts),
            concurrent_starts,
            vms: Mutex::default(),
            allocation: tokio::sync::Mutex::default(),
            watchers: Mutex::default(),
            volumes,
            volume_turn: tokio::sync::Mutex::default(),
            _lock: lock,
        })
    }

    fn vms(&self) -> MutexGuard<'_, HashMap<Vmid, Arc<Vm>>> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn vm(&self, vmid: Vmid) -> Arc<Vm> {
        let new = || {
            Arc::new(Vm {
                operation: tokio::sync::Mutex::default(),
                monitor: Monitor::default(),
                channel: Line::default(),
            })
        };
        self.vms().entry(vmid).or_insert_with(new).clone()
    }

    /// The accelerator for a machine of this template. A verdict for KVM that no kernel confirmed yet is confirmed
    /// with the template's.
    async fn accelerator(&self, template: &StoredTemplate) -> Accelerator {
        let is_open = |verdict: &Verdict| verdict.kvm && !verdict.with_kernel;
        if is_open(&self.verdict()) {
            let _alone = self.probing.lock().await;
            if is_open(&self.verdict()) {
                let found = self.prober.verdict(Some(template)).await;
                *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) = found;
            }
        }
        self.verdict().accelerator()
    }

    fn verdict(&self) -> Verdict {
        self.verdict
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Looks after a running machine until it ends.
    fn watch(&self, machine: &MachineDir, process: process::Process, turn: Option<Turn>) {
        let vsock = self.vsock.door(machine).unwrap_or_else(|error| {
            tracing::warn!(vmid = %machine.record.vmid, %error, "Its vsock device has nobody to speak to");
            None
        });
        let watched = watch::Watched {
            vm: self.vm(machine.record.vmid),
            machine: machine.clone(),
            process,
            turn,
            vsock,
        };
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        while watchers.try_join_next().is_some() {}
        watchers.spawn(watched.run());
    }
}

impl Snapshots for Qemu {}
impl Agents for Qemu {}
impl Tasks for Qemu {}

#[async_trait]
impl Backend for Qemu {
    async fn info(&self) -> Result<BackendInfo> {
        let verdict = self.verdict();
        Ok(BackendInfo {
            kind: KIND,
            version: format!("QEMU {}", self.programs.version.text),
            accelerator: Some(verdict.accelerator().as_str().to_owned()),
            accelerator_reason: Some(verdict.reason),
            capabilities: Capabilities {
                volumes: true,
                snapshots: false,
                suspend: true,
                takes_tap: self.options.tap,
            },
            concurrent_starts: self.concurrent_starts,
        })
    }

    async fn storage(&self) -> Result<Option<Storage>> {
        let (machines, run_dir) = (self.machines.clone(), self.options.run_dir.clone());
        let floor_bytes = self.options.disk_floor_mb.saturating_mul(1 << 20);
        blocking(move || {
            let mut written = Vec::new();
            for vmid in machines.vmids()? {
                if let record::Found::Ours(machine) = machines.find(vmid)?
                    && let Ok(overlay) = fs::symlink_metadata(machine.overlay_path())
                {
                    written.push((vmid, overlay.blocks().saturating_mul(512)));
                }
            }
            Ok(Some(Storage {
                free_bytes: free_bytes(&run_dir)?,
                floor_bytes,
                written,
            }))
        })
        .await
    }

    async fn adopt(&self) -> Result<Vec<Machine>> {
        let machines = self.machines.clone();
        let found = blocking(move || {
            let mut found = Vec::new();
            for vmid in machines.vmids()? {
                match machines.find(vmid)? {
                    record::Found::Ours(machine) => found.push(machine),
                    record::Found::Unreadable(reason) => {
                        tracing::warn!(%vmid, reason, "not ours, left alone")
                    }
                    record::Found::Nothing => {}
                }
            }
            Ok(found)
        })
        .await?;
        for machine in found {
            let vmid = machine.record.vmid;
            match self.find_process(&machine).await? {
                Some(process) => {
                    tracing::info!(%vmid, pid = process.identity.pid, "running machine adopted");
                    self.watch(&machine, process, None);
                }
                None => blocking(move || machine.clear_runtime()).await?,
            }
        }
        crate::Machines::list(self).await
    }
}

/// Free bytes where machines are stored.
fn free_bytes(dir: &Path) -> Result<u64> {
    let found = rustix::fs::statvfs(dir).map_err(|error| storage("looking at", dir)(error.into()))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// A path of ours that must be there, for messages.
fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}
