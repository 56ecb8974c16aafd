//! The stand-in's machines as real VMs: what is started over REST is booted by the QEMU back end, on a tap that is
//! named and plugged in as a node names and plugs it.
//!
//! ```text
//!   world ──power──► QemuBoot ──orders, in order──► run() ──► Qemu: clone, shape, seed, tap, power
//!     ▲                                               │
//!     └───────────── a guest that powered itself off ─┘
//! ```

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agentlab_api::{SandboxId, Vmid};
use agentlab_backend::qemu::{Qemu, QemuOptions};
use agentlab_backend::{
    Backend, CloneSpec, Limits, MacAddress, Machines as _, Nic, PowerOn, Seeds as _, Shape, Stamp,
    Volumes as _,
};
use agentlab_netpolicy::{IfName, create_tap};
use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::boot::{Boot, Powered};
use crate::operator::Operator;

/// The template every machine is a clone of, as the local store knows it.
const TEMPLATE: u32 = 9000;
/// How many user ids VMs may use.
const UIDS: u32 = 4095;

#[derive(Debug)]
enum Order {
    On(Powered),
    Off(u32),
    Paused(u32, bool),
    Destroyed(u32),
}

/// Takes orders while a machine is being started.
#[derive(Debug)]
pub struct QemuBoot(mpsc::UnboundedSender<Order>);

impl QemuBoot {
    fn order(&self, order: Order) {
        // Nobody boots machines any more when the program ends.
        let _ = self.0.send(order);
    }
}

impl Boot for QemuBoot {
    fn power_on(&self, machine: Powered) {
        self.order(Order::On(machine));
    }

    fn power_off(&self, vmid: u32) {
        self.order(Order::Off(vmid));
    }

    fn paused(&self, vmid: u32, paused: bool) {
        self.order(Order::Paused(vmid, paused));
    }

    fn destroyed(&self, vmid: u32) {
        self.order(Order::Destroyed(vmid));
    }
}

/// Who carries the orders out.
#[derive(Debug)]
pub struct Booter {
    orders: mpsc::UnboundedReceiver<Order>,
    qemu: Arc<Qemu>,
    bridge: String,
    stamps: HashMap<u32, Stamp>,
    /// The volume each machine was last started with.
    volumes: HashMap<u32, String>,
}

/// What VMs are made of, and where.
#[derive(Debug, Clone)]
pub struct BootOptions {
    /// Where `agentlab-template` stores its templates.
    pub templates: PathBuf,
    /// Where the VMs' state is kept.
    pub run_dir: PathBuf,
    /// What their cables are plugged into.
    pub bridge: String,
    /// First of the user ids they run under.
    pub uid_first: u32,
}

/// Real VMs from local templates.
///
/// # Errors
/// As [`Qemu::open`].
pub async fn boot_with_qemu(options: BootOptions) -> Result<(Arc<dyn Boot>, Booter)> {
    let mut qemu = QemuOptions::new(options.run_dir, options.templates);
    qemu.uid_range = (options.uid_first, options.uid_first.saturating_add(UIDS));
    let bridge = options.bridge;
    let qemu = Arc::new(Qemu::open(qemu).await?);
    qemu.adopt().await?;
    let (sender, orders) = mpsc::unbounded_channel();
    let booter = Booter {
        orders,
        qemu,
        bridge,
        stamps: HashMap::new(),
        volumes: HashMap::new(),
    };
    Ok((Arc::new(QemuBoot(sender)), booter))
}

impl Booter {
    /// Carries orders out, one after the other, until nobody gives any. What fails is told and passed over, as a start
    /// that fails is on a node.
    pub async fn run(mut self, operator: Operator) {
        let operator = Arc::new(operator);
        let mut watchers = JoinSet::new();
        while let Some(order) = self.orders.recv().await {
            match order {
                Order::On(machine) => match self.start(&machine).await {
                    Ok(()) => {
                        watchers.spawn(watch(Arc::clone(&self.qemu), machine.vmid, Arc::clone(&operator)));
                    }
                    Err(error) => {
                        complain(&format!("VM {} does not start: {error:#}", machine.vmid));
                        operator.stop(machine.vmid);
                    }
                },
                Order::Off(vmid) => self.told(vmid, self.power_off(vmid).await),
                Order::Paused(vmid, paused) => self.told(vmid, self.pause(vmid, paused).await),
                Order::Destroyed(vmid) => {
                    let done = self.destroy(vmid).await;
                    self.told(vmid, done);
                }
            }
        }
    }

    fn told(&self, vmid: u32, done: Result<()>) {
        if let Err(error) = done {
            complain(&format!("VM {vmid}: {error:#}"));
        }
    }

    async fn start(&mut self, machine: &Powered) -> Result<()> {
        let vmid = Vmid::try_from(machine.vmid).map_err(anyhow::Error::msg)?;
        let fresh = || Stamp {
            sandbox: SandboxId::generate(),
            nonce: "0".repeat(32),
        };
        let stamp = self.stamps.entry(machine.vmid).or_insert_with(fresh).clone();
        let spec = CloneSpec {
            vmid,
            template: Vmid::try_from(TEMPLATE).map_err(anyhow::Error::msg)?,
            name: machine.value("name").unwrap_or("vm").to_owned(),
            stamp: stamp.clone(),
        };
        self.qemu.clone_template(&spec).await?;
        let number = |key: &str, default: u32| {
            machine
                .value(key)
                .and_then(|text| text.parse().ok())
                .unwrap_or(default)
        };
        let shape = Shape {
            cores: u16::try_from(number("cores", 1))?,
            memory_mb: number("memory", 512),
            root_size_gb: None,
            mac: mac(machine.mac().context("It has no NIC")?)?,
            limits: Limits::default(),
            place: None,
        };
        self.qemu.configure(vmid, &stamp, &shape).await?;
        match machine
            .serial()
            .and_then(|serial| URL_SAFE_NO_PAD.decode(serial).ok())
        {
            Some(seed) => self.qemu.place_seed(vmid, &stamp, &seed).await?,
            None => self.qemu.remove_seed(vmid, &stamp).await?,
        }
        self.plug_volume(machine, &stamp).await?;
        let name = format!("tap{}i0", machine.vmid);
        let tap = create_tap(
            &name
                .parse::<IfName>()
                .map_err(|error| anyhow::anyhow!("{error}"))?,
        )?;
        let plugged = Command::new("ip")
            .args(["link", "set", "dev", &name, "master", &self.bridge, "up"])
            .status()
            .await?;
        ensure!(plugged.success(), "{name} cannot be plugged into {}", self.bridge);
        let nic = Some(Nic { tap: Some(tap) });
        self.qemu.power_on(vmid, &stamp, PowerOn { nic }).await?;
        Ok(())
    }

    /// The second disk, where it is one that belongs to no machine: its bytes are a volume of the same name here.
    async fn plug_volume(&mut self, machine: &Powered, stamp: &Stamp) -> Result<()> {
        let vmid = Vmid::try_from(machine.vmid).map_err(anyhow::Error::msg)?;
        let wanted = machine.value("scsi1").and_then(foreign_volume);
        if let Some(had) = self.volumes.remove(&machine.vmid) {
            self.qemu.detach_volume(&had, vmid, stamp).await?;
        }
        let Some((name, size_gb)) = wanted else {
            return Ok(());
        };
        let volume = self.qemu.create_volume(&name, size_gb).await?;
        self.qemu.attach_volume(&volume, vmid, stamp).await?;
        self.qemu.grow_volume(&volume, vmid, stamp, size_gb).await?;
        self.volumes.insert(machine.vmid, volume);
        Ok(())
    }

    async fn power_off(&self, vmid: u32) -> Result<()> {
        let Some(stamp) = self.stamps.get(&vmid) else {
            return Ok(());
        };
        let vmid = Vmid::try_from(vmid).map_err(anyhow::Error::msg)?;
        Ok(self.qemu.power_off(vmid, stamp).await?)
    }

    async fn pause(&self, vmid: u32, paused: bool) -> Result<()> {
        let Some(stamp) = self.stamps.get(&vmid) else {
            return Ok(());
        };
        let vmid = Vmid::try_from(vmid).map_err(anyhow::Error::msg)?;
        if paused {
            self.qemu.suspend(vmid, stamp).await?;
        } else {
            self.qemu.resume(vmid, stamp).await?;
        }
        Ok(())
    }

    async fn destroy(&mut self, vmid: u32) -> Result<()> {
        let Some(stamp) = self.stamps.remove(&vmid) else {
            return Ok(());
        };
        let vmid = Vmid::try_from(vmid).map_err(anyhow::Error::msg)?;
        Ok(self.qemu.destroy(vmid, &stamp).await?)
    }
}

/// A guest that powers itself off stops its machine in the stand-in too.
async fn watch(qemu: Arc<Qemu>, vmid: u32, operator: Arc<Operator>) {
    let Ok(of) = Vmid::try_from(vmid) else {
        return;
    };
    while qemu.stopped(of).await.is_err() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    operator.stop(vmid);
}

/// Name and size of the volume in `local:9999/vm-9999-<name>.qcow2,serial=…,size=2G`.
fn foreign_volume(drive: &str) -> Option<(String, u32)> {
    let (volume, options) = drive.split_once(',')?;
    let file = volume.rsplit(['/', ':']).next()?;
    let name = file.strip_prefix("vm-")?.split_once('-')?.1;
    let name = name.split('.').next()?.to_owned();
    let size = options
        .split(',')
        .find_map(|option| option.strip_prefix("size="))?;
    Some((name, size.strip_suffix('G')?.parse().ok()?))
}

fn mac(text: &str) -> Result<MacAddress> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16))
        .collect::<Result<_, _>>()
        .with_context(|| format!("`{text}` is no address"))?;
    let bytes: [u8; 6] = bytes
        .try_into()
        .map_err(|_| anyhow::anyhow!("`{text}` is no address"))?;
    Ok(MacAddress(bytes))
}

#[expect(
    clippy::print_stderr,
    reason = "a command line tool that tells a person what failed"
)]
fn complain(what: &str) {
    eprintln!("pve-sim: {what}");
}
