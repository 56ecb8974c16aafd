//! Proxmox VE, whichever way a node is spoken to.
//!
//! ```text
//!   Backend ◄── machines, clone, seeds, volumes, snapshots     what is asked for, and what proves that a machine is ours
//!                  │        record, smbios, refusal     what PVE keeps and says, read
//!                  ▼
//!                Wire ──┬── proxmox/   REST over TLS with a token       feature `proxmox`
//!                       └── shell/     qm, pvesh, pvesm as root         feature `shell`
//! ```
//!
//! A change follows one pattern: take the machine's turn, read its configuration, compare the stamp, change it with the
//! digest that was read. Somebody else's lock is waited for, and then all of it is done again, because meanwhile the
//! machine may have become somebody else's.
//!
//! PVE's own list of machines shows only what the asker may see, so that a machine is gone is believed only of
//! `nextid`, which tells every asker what number is free in the whole cluster.

mod agent;
mod answer;
mod census;
mod change;
mod clone;
mod firewall;
mod machines;
mod node;
mod options;
mod owner;
mod owner_notes;
mod placement;
mod publish;
mod record;
mod refusal;
mod remedy;
mod seeds;
mod shape;
mod smbios;
mod snapshots;
mod snippets;
mod states;
mod template;
mod told;
mod view;
mod volumes;
mod wire;

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agentlab_api::{ChannelKind, Vmid};
use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep};

use crate::turns::Turns;
use crate::{
    Backend, BackendError, BackendInfo, BegunTask, ByteStream, Capabilities, Channels, Machine, Power,
    Result, Stamp, TaskEnd, TaskId, TaskLedger, Tasks,
};

pub(crate) use answer::Fields;
#[cfg(feature = "proxmox")]
pub(crate) use answer::{number, truth};
#[cfg(test)]
pub(crate) use change::PowerWord;
pub(crate) use change::{Change, FirewallEdit, Read, Values, pair};
use node::Version;
pub use options::{CloneMode, PveOptions};
pub use publish::{NewTemplate, Publication, Publisher};
use record::Record;
pub(crate) use refusal::{Kind, Refusal};
pub use snippets::SnippetStore;
#[cfg(feature = "proxmox")]
pub(crate) use told::without_seed;
use view::View;
pub(crate) use wire::{Begun, Ended, Upload, Wire};

/// How long it is believed that a machine is still ours, where the change itself cannot carry a digest: others may take it
/// over, and a node that is slow answers other questions late.
const BELIEVED: Duration = Duration::from_secs(1);

/// A node, over one way or the other.
#[derive(Debug)]
pub(crate) struct Pve<W> {
    wire: W,
    options: PveOptions,
    node: OnceCell<String>,
    version: OnceCell<Version>,
    /// Held by whoever changes the machine.
    turns: Mutex<HashMap<Vmid, Arc<tokio::sync::Mutex<()>>>>,
    storages: Mutex<HashMap<String, Arc<Turns>>>,
    /// Clones that were asked for and of which nobody knows. A machine joins its pool when it is whole, and until then we
    /// may not see it.
    begun: Mutex<HashSet<Vmid>>,
    /// Clones of this process that are under way.
    clones: Mutex<HashSet<TaskId>>,
    /// Who may have a volume of ours; `None` until somebody asks.
    holders: tokio::sync::Mutex<Option<HashMap<String, Vmid>>>,
    /// Which machines that are not ours have one, and when that was looked up.
    strangers: tokio::sync::Mutex<Option<(Instant, Held)>>,
    /// Where tasks are written down.
    ledger: Mutex<Option<Arc<dyn TaskLedger>>>,
    view: View,
}

/// Volumes of ours, each with a machine that has it.
type Held = Vec<(String, Vmid)>;

/// Why an attempt ended.
enum Trouble {
    /// PVE said no; perhaps only because somebody else was at it.
    Refused(Refusal),
    /// We say no.
    Ours(BackendError),
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<BackendError> for Trouble {
    fn from(error: BackendError) -> Self {
        Self::Ours(error)
    }
}

impl<W: Wire> Pve<W> {
    pub(crate) fn new(wire: W, options: PveOptions) -> Self {
        Self {
            wire,
            node: OnceCell::new(),
            version: OnceCell::new(),
            turns: Mutex::default(),
            storages: Mutex::default(),
            begun: Mutex::default(),
            clones: Mutex::default(),
            holders: tokio::sync::Mutex::default(),
            strangers: tokio::sync::Mutex::default(),
            ledger: Mutex::default(),
            view: View::default(),
            options,
        }
    }

    /// The machine's turn: one change at a time.
    async fn turn(&self, vmid: Vmid) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns.entry(vmid).or_default().clone()
        };
        turn.lock_owned().await
    }

    fn begun(&self) -> std::sync::MutexGuard<'_, HashSet<Vmid>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clones(&self) -> std::sync::MutexGuard<'_, HashSet<TaskId>> {
        self.clones.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all_storage_turns(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Turns>>> {
        self.storages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn storage_turns(&self, storage: &str) -> Arc<Turns> {
        let mut storages = self.all_storage_turns();
        let turns = storages.entry(storage.to_owned());
        turns
            .or_insert_with(|| Arc::new(Turns::new(self.options.clones_per_storage)))
            .clone()
    }

    /// Tries until it is done, refused, or others have held it up for too long.
    async fn patiently<T, F>(&self, action: &'static str, vmid: Vmid, attempt: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, Trouble>>,
    {
        // From the first refusal on: the attempt itself may have waited long for its turn.
        let mut held_up: Option<Instant> = None;
        let patience = |refusal: &Refusal| match refusal.kind == Kind::BeingMade {
            true => self.options.clone_patience,
            false => self.options.lock_patience,
        };
        let mut wait = Duration::from_millis(200);
        loop {
            match attempt().await {
                Ok(done) => return Ok(done),
                Err(Trouble::Refused(refusal))
                    if refusal.is_busy()
                        && held_up.get_or_insert_with(Instant::now).elapsed() < patience(&refusal) =>
                {
                    tracing::debug!(%vmid, action, %refusal, "waiting for others");
                    sleep(with_jitter(wait)).await;
                    wait = wait.saturating_mul(2).min(Duration::from_secs(3));
                }
                Err(Trouble::Refused(refusal)) => {
                    return Err(refusal.into_error(self.wire.kind(), action, vmid));
                }
                Err(Trouble::Ours(error)) => return Err(error),
            }
        }
    }

    /// Makes a change on a node and waits until it is done. What PVE goes on with is in the ledger before it is waited for.
    /// The `data` of the answer where there was no task.
    async fn carry_out(
        &self,
        node: &str,
        change: &Change,
        patience: Duration,
    ) -> std::result::Result<Value, Refusal> {
        let task = match self.wire.begin(node, change, patience).await? {
            Begun::Done(data) => return Ok(data),
            Begun::Task(task) => task,
        };
        self.write_down(change, &task).await;
        let is_clone = matches!(change, Change::Clone { .. });
        if is_clone {
            self.clones().insert(task.clone());
        }
        let followed = self.wire.follow(&task, patience).await;
        if is_clone {
            self.clones().remove(&task);
        }
        followed?.map(|()| Value::Null)
    }

    async fn write_down(&self, change: &Change, task: &TaskId) {
        let ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(ledger) = ledger {
            let begun = BegunTask {
                vmid: change.vmid(),
                action: change.action(),
                id: task.clone(),
            };
            ledger.begun(begun).await;
        }
    }

    /// The same for what takes no longer than most tasks, on the node where the machine is.
    async fn change(&self, node: &str, change: Change) -> std::result::Result<(), Refusal> {
        let patience = self.options.task_patience;
        self.carry_out(node, &change, patience).await.map(drop)
    }

    /// Changes keys of a configuration that is still the one that was read.
    async fn set(&self, record: &Record, mut values: Values) -> std::result::Result<(), Refusal> {
        values.extend(record.digest().map(|digest| pair("digest", digest)));
        let vmid = record.vmid;
        self.change(&record.node, Change::Set { vmid, values }).await
    }

    /// The machine, if its stamp is this one.
    async fn ours_or_absent(
        &self,
        action: &'static str,
        vmid: Vmid,
        stamp: &Stamp,
    ) -> std::result::Result<Option<Record>, Trouble> {
        match self.find(action, vmid).await? {
            view::Found::Nothing => Ok(None),
            view::Found::Hidden(refusal) => Err(refusal.into_error(self.wire.kind(), action, vmid).into()),
            view::Found::Container => Err(not_ours(vmid, "it is a container").into()),
            view::Found::Here(record) => match record.label() {
                Some(label) if label.stamp == *stamp => Ok(Some(*record)),
                Some(label) => {
                    self.view.forget(vmid);
                    Err(not_ours(vmid, format!("its stamp is {}", label.stamp)).into())
                }
                // What it will be is not known before PVE is done with it.
                None if record.is_being_made() => Err(being_made(vmid).into()),
                None => {
                    self.view.forget(vmid);
                    Err(not_ours(vmid, "its description has no stamp, or one of another machine").into())
                }
            },
        }
    }

    /// The machine, if its stamp is this one, and whether it runs. Both are asked at once: a node takes its time to answer.
    async fn ours_with_power(
        &self,
        action: &'static str,
        vmid: Vmid,
        stamp: &Stamp,
    ) -> std::result::Result<(Record, Power), Trouble> {
        let node = self.node().await?;
        let status = Read::status(node, vmid);
        let read = Instant::now();
        let (record, status) = tokio::join!(self.ours(action, vmid, stamp), self.wire.read(&status));
        let record = record?;
        let power = if record.node == node {
            view::power_in(status?)?
        } else {
            self.power(&record).await?
        };
        Ok((self.still_ours(action, stamp, record, read).await?, power))
    }

    /// The machine as it was `read` then; read anew when that is long ago.
    async fn still_ours(
        &self,
        action: &'static str,
        stamp: &Stamp,
        record: Record,
        read: Instant,
    ) -> std::result::Result<Record, Trouble> {
        if read.elapsed() < BELIEVED {
            return Ok(record);
        }
        self.ours(action, record.vmid, stamp).await
    }

    async fn ours(
        &self,
        action: &'static str,
        vmid: Vmid,
        stamp: &Stamp,
    ) -> std::result::Result<Record, Trouble> {
        let found = self.ours_or_absent(action, vmid, stamp).await?;
        found.ok_or_else(|| BackendError::NoSuchMachine { vmid }.into())
    }
}

fn being_made(vmid: Vmid) -> Refusal {
    let words = format!("VM is locked (clone): PVE is making VM {vmid}");
    Refusal::new(Kind::Locked("clone".to_owned()), words)
}

fn not_ours(vmid: Vmid, reason: impl Into<String>) -> BackendError {
    BackendError::NotOurs {
        vmid,
        reason: reason.into(),
    }
}

fn refused(action: &'static str, vmid: Vmid, reason: impl Into<String>) -> BackendError {
    BackendError::Refused {
        action,
        vmid,
        reason: reason.into(),
        hint: None,
    }
}

/// Half as long to as long again: callers that failed together must not come back together.
pub(crate) fn with_jitter(wait: Duration) -> Duration {
    #[cfg_attr(feature = "in-process", expect(unused_mut, reason = "nothing else fills it"))]
    let mut byte = [128u8];
    // Without randomness there is still a wait. A test that plays a schedule again rolls no dice.
    #[cfg(not(feature = "in-process"))]
    let _ = getrandom::fill(&mut byte);
    wait.mul_f64(0.5 + f64::from(byte[0]) / 255.0)
}

#[async_trait]
impl<W: Wire> Channels for Pve<W> {
    fn channels(&self) -> &[ChannelKind] {
        &[ChannelKind::Tls]
    }

    async fn open_channel(&self, vmid: Vmid) -> Result<Option<Box<dyn ByteStream>>> {
        match self.find("open channel", vmid).await? {
            view::Found::Nothing => Err(BackendError::NoSuchMachine { vmid }),
            view::Found::Here(_) | view::Found::Container | view::Found::Hidden(_) => Ok(None),
        }
    }

    async fn console(&self, vmid: Vmid, _max_bytes: usize) -> Result<Vec<u8>> {
        match self.find("console", vmid).await? {
            view::Found::Nothing => Err(BackendError::NoSuchMachine { vmid }),
            view::Found::Here(_) | view::Found::Container | view::Found::Hidden(_) => {
                Err(BackendError::Unsupported {
                    what: "record of what a console showed",
                })
            }
        }
    }
}

#[async_trait]
impl<W: Wire> Tasks for Pve<W> {
    fn keep_ledger(&self, ledger: Arc<dyn TaskLedger>) {
        *self.ledger.lock().unwrap_or_else(PoisonError::into_inner) = Some(ledger);
    }

    async fn await_task(&self, task: &TaskId, patience: Duration) -> Result<Option<TaskEnd>> {
        match self.wire.follow(task, patience).await {
            Ok(Ok(())) => Ok(Some(TaskEnd::Done)),
            Ok(Err(refusal)) => Ok(Some(TaskEnd::Failed {
                reason: refusal.words,
            })),
            Err(refusal) if matches!(refusal.kind, Kind::Unfinished(_)) => Ok(None),
            Err(refusal) if refusal.kind == Kind::NoTask => Ok(Some(TaskEnd::Forgotten)),
            Err(refusal) => Err(refusal.into_unreachable(self.wire.kind(), "awaiting a task")),
        }
    }
}

#[async_trait]
impl<W: Wire> Backend for Pve<W> {
    async fn info(&self) -> Result<BackendInfo> {
        let version = self.version().await?;
        Ok(BackendInfo {
            kind: self.wire.kind(),
            version: format!("Proxmox VE {}", version.text),
            accelerator: None,
            accelerator_reason: None,
            capabilities: Capabilities {
                volumes: self.volume_place().is_ok(),
                snapshots: true,
                suspend: true,
                takes_tap: false,
            },
            concurrent_starts: 8,
        })
    }

    async fn adopt(&self) -> Result<Vec<Machine>> {
        self.version().await?;
        let machines = crate::Machines::list(self).await?;
        // No reason to serve nobody: a seed that has to go there says it again.
        if let Err(error) = self.sweep_snippets(&machines).await {
            tracing::warn!(%error, "snippets could not be looked through");
        }
        Ok(machines)
    }
}
