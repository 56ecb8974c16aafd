//! What every part of the engine holds together: the world, and the living drivers.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use agentlab_api::{ChannelKind, JobId, Profile, RepositorySource, SandboxId, Vmid, chain};
use agentlab_backend::Backend;
use agentlab_protocol::secret::Secret32;
use agentlab_store::{JobRecord, SandboxRecord, Store};
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::condition::Condition;
use crate::glimpse::Glimpses;
use crate::idle::Use;
use crate::journal::Journal;
use crate::port::{GuestDoor, Network, Trust};
use crate::queue::Queue;
use crate::sandbox::inbox::Message;
use crate::sandbox::machine::State;
use crate::secrets::Secrets;
use crate::settings::{Clock, Settings, Tunable};
use crate::upload::Uploads;
use crate::workspace::Workspaces;

/// How long a caller waits for a driver's answer. A driver never waits for a back end before it answers, only for
/// the store and once for the packet policy.
const ANSWER: Duration = Duration::from_secs(20);
/// How long an operator waits for it. What he asked for is done all the same, as soon as the driver gets to it.
const ORDER: Duration = Duration::from_secs(2);

/// The world and the living drivers.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) door: Arc<dyn GuestDoor>,
    pub(crate) secrets: Arc<dyn Secrets>,
    pub(crate) store: Store,
    /// Everything that is recorded goes through it.
    pub(crate) journal: Journal,
    pub(crate) host_key: Secret32,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) started_at: Timestamp,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
    tunable: RwLock<Arc<Tunable>>,
    drivers: Mutex<Drivers>,
    /// How many people work in a sandbox.
    occupied: Mutex<HashMap<SandboxId, usize>>,
    pub(crate) glimpses: Glimpses,
    alarms: Mutex<BTreeSet<String>>,
    pub(crate) condition: Condition,
    /// Bundles of ended jobs, and since when.
    unneeded: Mutex<HashMap<String, Instant>>,
    /// Ended jobs whose files have not been compared with their records since.
    unswept: Mutex<BTreeSet<JobId>>,
    /// Held from the check that a bundle is there until its job is recorded, and while bundles are removed.
    pub(crate) bundles: tokio::sync::Mutex<()>,
    /// Jobs that wait for a sandbox.
    pub(crate) queue: Queue,
    pub(crate) workspaces: Workspaces,
}

#[derive(Default)]
struct Drivers {
    by_id: HashMap<SandboxId, Handle>,
    by_address: HashMap<Ipv4Addr, SandboxId>,
}

/// The way to one driver.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    /// Boxed: a channel keeps room for many messages from its first moment, and there may be a thousand drivers.
    pub(crate) inbox: mpsc::Sender<Box<Message>>,
    /// The record as last committed.
    pub(crate) known: watch::Receiver<Arc<SandboxRecord>>,
    /// What its guest is sending.
    pub(crate) uploads: Uploads,
    /// What operators and the host itself want; never behind a guest that talks without end.
    orders: mpsc::Sender<Box<Message>>,
}

/// The driver did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// It has ended; the question is lost.
    Gone,
    /// It is busy; the question waits for it.
    Late,
}

impl Handle {
    pub(crate) fn new(
        inbox: mpsc::Sender<Box<Message>>,
        orders: mpsc::Sender<Box<Message>>,
        known: watch::Receiver<Arc<SandboxRecord>>,
    ) -> Self {
        Self {
            inbox,
            known,
            uploads: Uploads::default(),
            orders,
        }
    }

    /// Says something that needs no answer. A driver that cannot take it now is told again in the next round.
    pub(crate) fn order(&self, message: Message) {
        drop(self.line_of(&message).try_send(Box::new(message)));
    }

    /// Where a message waits.
    fn line_of(&self, message: &Message) -> &mpsc::Sender<Box<Message>> {
        match message {
            Message::Request { .. }
            | Message::Cancel { .. }
            | Message::Workspace { .. }
            | Message::Look
            | Message::Used { .. }
            | Message::TakeAway { .. } => &self.orders,
            Message::Redeem { .. }
            | Message::Acknowledge { .. }
            | Message::Heartbeat { .. }
            | Message::Heard
            | Message::Logs { .. }
            | Message::Stored { .. }
            | Message::Report { .. } => &self.inbox,
        }
    }

    /// Puts a question into the inbox and waits for its answer.
    pub(crate) async fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<T>) -> Message + Send,
    ) -> Result<T, NoAnswer> {
        let (reply, answer) = oneshot::channel();
        let message = question(reply);
        let line = self.line_of(&message);
        let patience = if std::ptr::eq(line, &self.orders) {
            ORDER
        } else {
            ANSWER
        };
        let talk = async {
            line.send(Box::new(message)).await.map_err(|_| NoAnswer::Gone)?;
            answer.await.map_err(|_| NoAnswer::Gone)
        };
        timeout(patience, talk).await.unwrap_or(Err(NoAnswer::Late))
    }

    pub(crate) fn record(&self) -> Arc<SandboxRecord> {
        self.known.borrow().clone()
    }
}

/// A lock that is only ever held for a few instructions; what it guards is whole at every point.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(settings: Settings, parts: crate::settings::Parts) -> Self {
        let tunable = Tunable {
            profiles: parts.profiles,
            max_sandboxes: settings.max_sandboxes,
            max_queued_jobs: settings.max_queued_jobs,
            retention: settings.retention,
        };
        Self {
            settings,
            backend: parts.backend,
            network: parts.network,
            door: parts.door,
            journal: Journal::new(parts.store.clone()),
            secrets: parts.secrets,
            store: parts.store,
            host_key: parts.host_key,
            started_at: parts.clock.now(),
            clock: parts.clock,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            tunable: RwLock::new(Arc::new(tunable)),
            drivers: Mutex::default(),
            occupied: Mutex::default(),
            glimpses: Glimpses::default(),
            alarms: Mutex::default(),
            condition: Condition::default(),
            unneeded: Mutex::default(),
            unswept: Mutex::default(),
            bundles: tokio::sync::Mutex::new(()),
            queue: Queue::default(),
            workspaces: Workspaces::default(),
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// What holds at the moment of asking.
    pub(crate) fn tunable(&self) -> Arc<Tunable> {
        self.tunable
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn tune(&self, tunable: Tunable) {
        *self.tunable.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(tunable);
    }

    pub(crate) fn driver(&self, id: SandboxId) -> Option<Handle> {
        lock(&self.drivers).by_id.get(&id).cloned()
    }

    pub(crate) fn driver_at(&self, address: Ipv4Addr) -> Option<Handle> {
        let drivers = lock(&self.drivers);
        drivers
            .by_address
            .get(&address)
            .and_then(|id| drivers.by_id.get(id))
            .cloned()
    }

    /// Adds a driver; false when a living one is there already.
    pub(crate) fn register(&self, record: &SandboxRecord, handle: Handle) -> bool {
        let mut drivers = lock(&self.drivers);
        if drivers
            .by_id
            .get(&record.id)
            .is_some_and(|known| !known.inbox.is_closed())
        {
            return false;
        }
        drivers.by_address.insert(record.address, record.id);
        drivers.by_id.insert(record.id, handle);
        true
    }

    pub(crate) fn unregister(&self, record: &SandboxRecord) {
        let mut drivers = lock(&self.drivers);
        drivers.by_id.remove(&record.id);
        // The address may have a new owner already.
        if drivers.by_address.get(&record.address) == Some(&record.id) {
            drivers.by_address.remove(&record.address);
        }
    }

    pub(crate) fn has_living_driver(&self, id: SandboxId) -> bool {
        lock(&self.drivers)
            .by_id
            .get(&id)
            .is_some_and(|handle| !handle.inbox.is_closed())
    }

    /// The sandbox that has this VMID at the moment, with something behind it.
    pub(crate) fn sandbox_of(&self, vmid: Vmid) -> Option<SandboxId> {
        let records = self.records();
        let mut holding = records
            .iter()
            .filter(|record| State::of(record).holds_something());
        holding.find(|record| record.vmid == vmid).map(|record| record.id)
    }

    /// Whether a living driver has this VMID at the moment, with something behind it.
    pub(crate) fn is_driven(&self, vmid: Vmid) -> bool {
        self.sandbox_of(vmid).is_some()
    }

    /// The records of all living drivers.
    pub(crate) fn records(&self) -> Vec<Arc<SandboxRecord>> {
        lock(&self.drivers).by_id.values().map(Handle::record).collect()
    }

    pub(crate) fn is_occupied(&self, sandbox: SandboxId) -> bool {
        lock(&self.occupied).contains_key(&sandbox)
    }

    pub(crate) fn occupy(&self, sandbox: SandboxId) {
        *lock(&self.occupied).entry(sandbox).or_default() += 1;
    }

    pub(crate) fn vacate(&self, sandbox: SandboxId) {
        let mut occupied = lock(&self.occupied);
        if let Some(count) = occupied.get_mut(&sandbox) {
            *count -= 1;
            if *count == 0 {
                occupied.remove(&sandbox);
            }
        }
    }

    /// Somebody does something in a sandbox at this moment.
    pub(crate) fn used(&self, sandbox: SandboxId) {
        if let Some(handle) = self.driver(sandbox) {
            handle.order(Message::Used { seen: Use::InUse });
        }
    }

    /// Sandboxes of which something may exist outside the records.
    pub(crate) fn holding(&self) -> usize {
        let drivers = lock(&self.drivers);
        let records = drivers.by_id.values().map(Handle::record);
        records
            .filter(|record| State::of(record).holds_something())
            .count()
    }

    /// What teardowns could not remove yet, one sentence per sandbox.
    pub(crate) fn left_behind(&self) -> Vec<String> {
        let drivers = lock(&self.drivers);
        let records = drivers.by_id.values().map(Handle::record);
        records
            .filter(|record| !record.left_behind.is_empty())
            .map(|record| {
                format!(
                    "Sandbox {} left behind: {}",
                    record.vmid,
                    record.left_behind.join("; ")
                )
            })
            .collect()
    }

    /// Whether the alarm is new.
    pub(crate) fn raise(&self, alarm: &str) -> bool {
        lock(&self.alarms).insert(alarm.to_owned())
    }

    /// Takes back every alarm that begins so.
    pub(crate) fn clear(&self, beginning: &str) {
        lock(&self.alarms).retain(|alarm| !alarm.starts_with(beginning));
    }

    pub(crate) fn alarms(&self) -> Vec<String> {
        let standing = lock(&self.alarms);
        self.journal
            .trouble()
            .into_iter()
            .chain(self.condition.alarms())
            .chain(standing.iter().cloned())
            .collect()
    }

    /// A job has ended: its bundle may be removed once nobody is about to use it again, and what broke off of its
    /// uploads at once.
    pub(crate) fn job_ended(&self, job: &JobRecord) {
        lock(&self.unswept).insert(job.id.clone());
        if let RepositorySource::Bundle { sha256, .. } = &job.repository {
            lock(&self.unneeded).insert(sha256.clone(), Instant::now());
        }
    }

    /// Takes out the jobs that ended.
    pub(crate) fn take_unswept(&self) -> BTreeSet<JobId> {
        std::mem::take(&mut lock(&self.unswept))
    }

    pub(crate) fn sweep_again(&self, job: JobId) {
        lock(&self.unswept).insert(job);
    }

    /// Removes the bytes of artifacts that no record names any more. Where that fails, it is tried again.
    pub(crate) async fn remove_unrecorded(&self) {
        if let Err(error) = self.store.remove_unrecorded().await {
            tracing::warn!(error = %chain(&error), "artifacts without a record not removed yet");
        }
    }

    /// Takes out the bundles that were released at least so long ago.
    pub(crate) fn take_unneeded(&self, age: Duration) -> Vec<String> {
        let mut unneeded = lock(&self.unneeded);
        let ripe: Vec<String> = unneeded
            .iter()
            .filter(|(_, since)| since.elapsed() >= age)
            .map(|(sha256, _)| sha256.clone())
            .collect();
        unneeded.retain(|sha256, _| !ripe.contains(sha256));
        ripe
    }

    /// Whether a guest of this profile has anything to say over its network.
    pub(crate) fn speaks_tls(&self, profile: &Profile) -> bool {
        self.channels_of(profile).contains(&ChannelKind::Tls)
    }

    /// How far the network is to trust a sandbox: not even to the host's own ports where it does not use them.
    pub(crate) fn deserved(&self, trust: Trust, profile: &Profile) -> Trust {
        match trust {
            Trust::BootstrapOnly | Trust::Off if !self.speaks_tls(profile) => Trust::Sealed,
            Trust::Sealed | Trust::BootstrapOnly | Trust::Off | Trust::Allowlist | Trust::Nat => trust,
        }
    }

    /// Ways between host and guest that a sandbox of this profile has, in the order to try.
    pub(crate) fn channels_of(&self, profile: &Profile) -> Vec<ChannelKind> {
        let has = |kind: &ChannelKind| *kind == ChannelKind::Tls || self.backend.channels().contains(kind);
        let mut channels = match &profile.network.channels {
            Some(wanted) => wanted.clone(),
            None => {
                let mut all = self.backend.channels().to_vec();
                // A vsock device reaches every listener at the host, past the packet policy: only who asks has one.
                all.retain(|kind| *kind != ChannelKind::Vsock);
                all.push(ChannelKind::Tls);
                all
            }
        };
        channels.retain(has);
        let mut seen = Vec::new();
        channels.retain(|kind| {
            let fresh = !seen.contains(kind);
            seen.push(*kind);
            fresh
        });
        channels
    }
}
