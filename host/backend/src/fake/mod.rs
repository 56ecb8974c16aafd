//! A hypervisor in memory, for tests: it keeps every rule of the traits, fails where it is told to, and shows
//! everything it holds, so that a test can assert that nothing is left.
//!
//! ```text
//!   test ── add_template, fail_next, hang_next, vanish, stop, guest_channel ──► Fake ◄── Backend ── engine
//!        ◄── seed, power, console, calls, leftovers ─────────────────────────────┘
//! ```

mod channel;
mod faults;
mod machines;
mod tasks;
mod volumes;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentlab_api::{ChannelKind, Vmid};
use tokio::io::DuplexStream;
use tokio::sync::{Notify, Semaphore, oneshot};

pub use faults::{Call, Hang, Logged};

use crate::{BackendError, Capabilities, Machine, Nic, Power, Shape, Stamp, Template, Usage};
use faults::{Fault, Faults};
use tasks::Begun;

const KIND: &str = "fake";
const CHANNEL_BUFFER: usize = 64 * 1024;
/// What a disk is when nothing grew it.
const TEMPLATE_DISK_GB: u32 = 2;

/// The fake back end. Clones share one world.
#[derive(Debug, Clone, Default)]
pub struct Fake {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    world: Mutex<World>,
    /// Woken at every change of any machine.
    changed: Notify,
    faults: Faults,
}

#[derive(Debug)]
struct World {
    templates: Vec<Template>,
    machines: BTreeMap<Vmid, Entry>,
    volumes: BTreeMap<String, volumes::Content>,
    capabilities: Capabilities,
    channels: Vec<ChannelKind>,
    /// Who waits for a start, and behind how many.
    line: BTreeMap<Vmid, usize>,
    begun: Begun,
}

#[derive(Debug)]
struct Entry {
    machine: Machine,
    template: Option<Vmid>,
    shape: Option<Shape>,
    disk_gb: u32,
    seed: Option<Vec<u8>>,
    /// As the guest read it at power-on.
    booted_with: Option<Vec<u8>>,
    console: Vec<u8>,
    nic: Option<Nic>,
    volume: Option<String>,
    guest_channel: Option<DuplexStream>,
    /// Dropped to cut the host's end of the channel.
    channel_open: Option<oneshot::Sender<()>>,
    power_ons: u32,
    usage: Usage,
}

impl Entry {
    fn new(machine: Machine, template: Option<Vmid>) -> Self {
        Self {
            machine,
            template,
            shape: None,
            disk_gb: TEMPLATE_DISK_GB,
            seed: None,
            booted_with: None,
            console: Vec::new(),
            nic: None,
            volume: None,
            guest_channel: None,
            channel_open: None,
            power_ons: 0,
            usage: Usage {
                cpu_seconds: 0.0,
                memory_bytes: 0,
            },
        }
    }

    /// What a machine holds only while it runs.
    fn lose_power(&mut self) {
        self.machine.power = Power::Stopped;
        self.nic = None;
        self.guest_channel = None;
        self.channel_open = None;
        self.usage = Usage {
            cpu_seconds: 0.0,
            memory_bytes: 0,
        };
    }
}

impl Default for Shared {
    fn default() -> Self {
        let capabilities = Capabilities {
            volumes: true,
            snapshots: false,
            suspend: true,
            takes_tap: true,
        };
        Self {
            world: Mutex::new(World {
                templates: Vec::new(),
                machines: BTreeMap::new(),
                volumes: BTreeMap::new(),
                capabilities,
                channels: vec![ChannelKind::Serial, ChannelKind::Tls],
                line: BTreeMap::new(),
                begun: Begun::default(),
            }),
            changed: Notify::new(),
            faults: Faults::default(),
        }
    }
}

impl Fake {
    /// An empty world: no template, no machine, no fault.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.shared.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // What a test sets up.

    /// Adds a template, or replaces the one of the same VMID.
    pub fn add_template(&self, template: Template) {
        let mut world = self.world();
        world.templates.retain(|known| known.vmid != template.vmid);
        world.templates.push(template);
    }

    /// Takes a template away; clones of it stay.
    pub fn remove_template(&self, vmid: Vmid) {
        self.world().templates.retain(|known| known.vmid != vmid);
    }

    /// Puts a machine there that this back end's user never made: a stranger's VM, or one with a broken stamp.
    pub fn plant(&self, machine: Machine) {
        self.world()
            .machines
            .insert(machine.vmid, Entry::new(machine, None));
    }

    /// What the back end says it can do.
    pub fn set_capabilities(&self, capabilities: Capabilities) {
        self.world().capabilities = capabilities;
    }

    /// Lets a machine wait for its turn behind so many others, or no longer. A call that hangs makes it wait.
    pub fn set_waits_behind(&self, vmid: Vmid, ahead: Option<usize>) {
        let mut world = self.world();
        match ahead {
            Some(ahead) => drop(world.line.insert(vmid, ahead)),
            None => drop(world.line.remove(&vmid)),
        }
    }

    /// Gives machines no serial channel: `open_channel` answers `None`.
    pub fn without_serial(self) -> Self {
        self.world()
            .channels
            .retain(|channel| *channel != ChannelKind::Serial);
        self
    }

    /// What `usage` answers from now on, until the machine loses power.
    pub fn set_usage(&self, vmid: Vmid, usage: Usage) {
        if let Some(entry) = self.world().machines.get_mut(&vmid) {
            entry.usage = usage;
        }
    }

    // What a test makes go wrong.

    /// The next such call fails and has no effect. Several queue up.
    pub fn fail_next(&self, call: Call, error: BackendError) {
        self.shared.faults.push(call, Fault::Before(error));
    }

    /// The next such call takes effect, and its answer is lost: the caller sees the error.
    pub fn lose_answer(&self, call: Call, error: BackendError) {
        self.shared.faults.push(call, Fault::After(error));
    }

    /// The next such call hangs until released (or the [`Hang`] is dropped), then takes effect.
    pub fn hang_next(&self, call: Call) -> Hang {
        let hang = Hang {
            reached: Arc::new(Semaphore::new(0)),
            released: Arc::new(Semaphore::new(0)),
        };
        let fault = Fault::Hang {
            reached: hang.reached.clone(),
            released: hang.released.clone(),
        };
        self.shared.faults.push(call, fault);
        hang
    }

    /// Every call answers `Unreachable` with this reason, until `None`.
    pub fn set_unreachable(&self, reason: Option<&str>) {
        self.shared.faults.set_unreachable(reason.map(str::to_owned));
    }

    /// Makes one call slow, or with `None` every call that has no delay of its own.
    pub fn delay(&self, call: Option<Call>, delay: Duration) {
        self.shared.faults.delay(call, delay);
    }

    /// The machine disappears with everything it holds, as if an operator had removed it behind our back.
    pub fn vanish(&self, vmid: Vmid) {
        self.world().machines.remove(&vmid);
        self.shared.changed.notify_waiters();
    }

    /// The machine stops by itself: its guest died or switched itself off.
    pub fn stop(&self, vmid: Vmid) {
        if let Some(entry) = self.world().machines.get_mut(&vmid) {
            entry.lose_power();
        }
        self.shared.changed.notify_waiters();
    }

    /// Writes to the machine's console.
    pub fn print(&self, vmid: Vmid, bytes: &[u8]) {
        if let Some(entry) = self.world().machines.get_mut(&vmid) {
            entry.console.extend_from_slice(bytes);
        }
    }

    // What a test can see.

    /// The guest's end of the serial channel last opened. Each is handed out once.
    #[must_use]
    pub fn guest_channel(&self, vmid: Vmid) -> Option<DuplexStream> {
        self.world().machines.get_mut(&vmid)?.guest_channel.take()
    }

    /// Waits until the host opens the serial channel, and gives the guest's end of it.
    pub async fn next_guest_channel(&self, vmid: Vmid) -> DuplexStream {
        loop {
            let mut changed = std::pin::pin!(self.shared.changed.notified());
            changed.as_mut().enable();
            if let Some(channel) = self.guest_channel(vmid) {
                return channel;
            }
            changed.await;
        }
    }

    /// The seed stored for a machine.
    #[must_use]
    pub fn seed(&self, vmid: Vmid) -> Option<Vec<u8>> {
        self.world().machines.get(&vmid)?.seed.clone()
    }

    /// The seed that lay there when the machine was powered on: the only one its guest has read.
    #[must_use]
    pub fn booted_with(&self, vmid: Vmid) -> Option<Vec<u8>> {
        self.world().machines.get(&vmid)?.booted_with.clone()
    }

    /// Whether a machine runs; `None` when there is none.
    #[must_use]
    pub fn power(&self, vmid: Vmid) -> Option<Power> {
        self.world().machines.get(&vmid).map(|entry| entry.machine.power)
    }

    /// The stamp a machine carries.
    #[must_use]
    pub fn stamp(&self, vmid: Vmid) -> Option<Stamp> {
        self.world().machines.get(&vmid)?.machine.stamp.clone()
    }

    /// The shape last configured.
    #[must_use]
    pub fn shape(&self, vmid: Vmid) -> Option<Shape> {
        self.world().machines.get(&vmid)?.shape.clone()
    }

    /// Whether the running machine holds a tap's descriptor.
    #[must_use]
    pub fn holds_tap(&self, vmid: Vmid) -> bool {
        let world = self.world();
        world
            .machines
            .get(&vmid)
            .and_then(|entry| entry.nic.as_ref())
            .is_some_and(|nic| nic.tap.is_some())
    }

    /// How often a machine went from off to on.
    #[must_use]
    pub fn power_ons(&self, vmid: Vmid) -> u32 {
        self.world()
            .machines
            .get(&vmid)
            .map_or(0, |entry| entry.power_ons)
    }

    /// Every VMID in use.
    #[must_use]
    pub fn vmids(&self) -> Vec<Vmid> {
        self.world().machines.keys().copied().collect()
    }

    /// What machines still hold, in words; empty when nothing is left.
    #[must_use]
    pub fn leftovers(&self) -> Vec<String> {
        let world = self.world();
        let mut left = Vec::new();
        for (vmid, entry) in &world.machines {
            left.push(format!("machine {vmid}, {:?}", entry.machine.power));
            if entry.seed.is_some() {
                left.push(format!("seed of {vmid}"));
            }
            if entry.nic.is_some() {
                left.push(format!("cable of {vmid}"));
            }
            if let Some(volume) = &entry.volume {
                left.push(format!("volume {volume} at {vmid}"));
            }
        }
        left
    }

    /// Every call so far, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<Logged> {
        self.shared.faults.log()
    }

    /// How often a call came.
    #[must_use]
    pub fn count(&self, call: Call) -> usize {
        self.calls().iter().filter(|logged| logged.call == call).count()
    }

    /// Starts the record of calls anew.
    pub fn forget_calls(&self) {
        self.shared.faults.forget_log();
    }
}
