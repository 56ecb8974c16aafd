//! The traits, kept to the letter, over the world in memory.

use std::collections::BTreeMap;

use agentlab_api::{ChannelKind, Vmid};
use async_trait::async_trait;

use super::{CHANNEL_BUFFER, Call, Entry, Fake, KIND};
use crate::{
    Agents, Backend, BackendError, BackendInfo, ByteStream, Channels, CloneSpec, Load, Machine, Machines,
    Power, PowerOn, Result, Seeds, Shape, Snapshots, Stamp, Template, Usage,
};

pub(super) fn refused(action: &'static str, vmid: Vmid, reason: &str) -> BackendError {
    BackendError::Refused {
        action,
        vmid,
        reason: reason.to_owned(),
        hint: None,
    }
}

pub(super) fn compare(vmid: Vmid, entry: &Entry, stamp: &Stamp) -> Result<()> {
    match &entry.machine.stamp {
        Some(found) if found == stamp => Ok(()),
        Some(found) => Err(BackendError::NotOurs {
            vmid,
            reason: format!("its stamp is {found}"),
        }),
        None => Err(BackendError::NotOurs {
            vmid,
            reason: "it has no stamp".to_owned(),
        }),
    }
}

impl Fake {
    /// One call: its faults, then its effect, then a lost answer.
    pub(super) async fn perform<T>(
        &self,
        call: Call,
        vmid: Option<Vmid>,
        effect: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        let lost = self.shared.faults.enter(call, vmid).await?;
        let answer = effect()?;
        self.shared.changed.notify_waiters();
        if let Some(vmid) = vmid {
            self.tell_task(call, vmid).await;
        }
        match lost {
            Some(error) => Err(error),
            None => Ok(answer),
        }
    }

    /// Runs `change` on a machine after comparing its stamp.
    pub(super) fn change<T>(
        &self,
        vmid: Vmid,
        stamp: &Stamp,
        change: impl FnOnce(&mut Entry) -> Result<T>,
    ) -> Result<T> {
        let mut world = self.world();
        let entry = world
            .machines
            .get_mut(&vmid)
            .ok_or(BackendError::NoSuchMachine { vmid })?;
        compare(vmid, entry, stamp)?;
        change(entry)
    }

    fn insert_clone(&self, spec: &CloneSpec) -> Result<Machine> {
        let mut world = self.world();
        if let Some(entry) = world.machines.get(&spec.vmid) {
            let same = entry.machine.stamp.as_ref() == Some(&spec.stamp)
                && entry.template == Some(spec.template)
                && entry.machine.name == spec.name;
            if same {
                return Ok(entry.machine.clone());
            }
            let reason = match &entry.machine.stamp {
                Some(stamp) => format!("a machine with the stamp {stamp} has it"),
                None => "a machine without a stamp has it".to_owned(),
            };
            return Err(BackendError::Conflict {
                vmid: spec.vmid,
                reason,
            });
        }
        if !world
            .templates
            .iter()
            .any(|template| template.vmid == spec.template)
        {
            return Err(BackendError::Template {
                template: spec.template.to_string(),
                reason: "there is none".to_owned(),
                hint: Some("add it with `add_template`".to_owned()),
            });
        }
        let machine = Machine {
            vmid: spec.vmid,
            name: spec.name.clone(),
            power: Power::Stopped,
            stamp: Some(spec.stamp.clone()),
        };
        world
            .machines
            .insert(spec.vmid, Entry::new(machine.clone(), Some(spec.template)));
        Ok(machine)
    }
}

#[async_trait]
impl Machines for Fake {
    async fn templates(&self) -> Result<Vec<Template>> {
        self.perform(Call::Templates, None, || Ok(self.world().templates.clone()))
            .await
    }

    async fn clone_template(&self, spec: &CloneSpec) -> Result<Machine> {
        self.perform(Call::CloneTemplate, Some(spec.vmid), || self.insert_clone(spec))
            .await
    }

    async fn configure(&self, vmid: Vmid, stamp: &Stamp, shape: &Shape) -> Result<()> {
        self.perform(Call::Configure, Some(vmid), || {
            self.change(vmid, stamp, |entry| {
                if entry.shape.as_ref() == Some(shape) {
                    return Ok(());
                }
                if entry.machine.power != Power::Stopped {
                    return Err(refused("configure", vmid, "it is running"));
                }
                let disk_gb = shape.root_size_gb.unwrap_or(entry.disk_gb);
                if disk_gb < entry.disk_gb {
                    return Err(refused("configure", vmid, "a disk cannot shrink"));
                }
                entry.disk_gb = disk_gb;
                entry.shape = Some(shape.clone());
                Ok(())
            })
        })
        .await
    }

    async fn power_on(&self, vmid: Vmid, stamp: &Stamp, with: PowerOn) -> Result<()> {
        self.perform(Call::PowerOn, Some(vmid), || {
            self.change(vmid, stamp, |entry| match entry.machine.power {
                Power::Running => Ok(()),
                Power::Suspended => Err(refused("power_on", vmid, "it is suspended")),
                Power::Stopped if entry.shape.is_none() => {
                    Err(refused("power_on", vmid, "it was never configured"))
                }
                Power::Stopped => {
                    entry.machine.power = Power::Running;
                    entry.nic = with.nic;
                    entry.power_ons += 1;
                    entry.booted_with.clone_from(&entry.seed);
                    Ok(())
                }
            })
        })
        .await
    }

    fn waits_behind(&self, vmid: Vmid) -> Option<usize> {
        self.world().line.get(&vmid).copied()
    }

    async fn power_off(&self, vmid: Vmid, stamp: &Stamp) -> Result<()> {
        self.perform(Call::PowerOff, Some(vmid), || {
            let done = self.change(vmid, stamp, |entry| {
                entry.lose_power();
                Ok(())
            });
            absent_is_success(done)
        })
        .await
    }

    async fn suspend(&self, vmid: Vmid, stamp: &Stamp) -> Result<()> {
        self.perform(Call::Suspend, Some(vmid), || {
            self.change(vmid, stamp, |entry| match entry.machine.power {
                Power::Stopped => Err(refused("suspend", vmid, "it is not running")),
                Power::Running | Power::Suspended => {
                    entry.machine.power = Power::Suspended;
                    Ok(())
                }
            })
        })
        .await
    }

    async fn resume(&self, vmid: Vmid, stamp: &Stamp) -> Result<()> {
        self.perform(Call::Resume, Some(vmid), || {
            self.change(vmid, stamp, |entry| match entry.machine.power {
                Power::Stopped => Err(refused("resume", vmid, "it is not running")),
                Power::Running | Power::Suspended => {
                    entry.machine.power = Power::Running;
                    Ok(())
                }
            })
        })
        .await
    }

    async fn inspect(&self, vmid: Vmid) -> Result<Option<Machine>> {
        let look = || {
            Ok(self
                .world()
                .machines
                .get(&vmid)
                .map(|entry| entry.machine.clone()))
        };
        self.perform(Call::Inspect, Some(vmid), look).await
    }

    async fn list(&self) -> Result<Vec<Machine>> {
        let look = || {
            Ok(self
                .world()
                .machines
                .values()
                .map(|entry| entry.machine.clone())
                .collect())
        };
        self.perform(Call::List, None, look).await
    }

    async fn destroy(&self, vmid: Vmid, stamp: &Stamp) -> Result<()> {
        self.perform(Call::Destroy, Some(vmid), || {
            let mut world = self.world();
            let Some(entry) = world.machines.get(&vmid) else {
                return Ok(());
            };
            compare(vmid, entry, stamp)?;
            world.machines.remove(&vmid);
            Ok(())
        })
        .await
    }

    async fn stopped(&self, vmid: Vmid) -> Result<()> {
        self.perform(Call::Stopped, Some(vmid), || Ok(())).await?;
        loop {
            let mut changed = std::pin::pin!(self.shared.changed.notified());
            changed.as_mut().enable();
            if matches!(self.power(vmid), None | Some(Power::Stopped)) {
                return Ok(());
            }
            changed.await;
        }
    }

    async fn loads(&self) -> Result<BTreeMap<Vmid, Load>> {
        self.perform(Call::Loads, None, || {
            let world = self.world();
            let running = world
                .machines
                .iter()
                .filter(|(_, entry)| entry.machine.power == Power::Running);
            Ok(running
                .map(|(vmid, entry)| (*vmid, Load::Worked(entry.usage.cpu_seconds)))
                .collect())
        })
        .await
    }

    async fn usage(&self, vmid: Vmid) -> Result<Usage> {
        self.perform(Call::Usage, Some(vmid), || {
            let world = self.world();
            world
                .machines
                .get(&vmid)
                .map(|entry| entry.usage)
                .ok_or(BackendError::NoSuchMachine { vmid })
        })
        .await
    }
}

fn absent_is_success(done: Result<()>) -> Result<()> {
    match done {
        Err(BackendError::NoSuchMachine { .. }) => Ok(()),
        other => other,
    }
}

#[async_trait]
impl Seeds for Fake {
    async fn place_seed(&self, vmid: Vmid, stamp: &Stamp, seed: &[u8]) -> Result<()> {
        self.perform(Call::PlaceSeed, Some(vmid), || {
            self.change(vmid, stamp, |entry| {
                entry.seed = Some(seed.to_vec());
                Ok(())
            })
        })
        .await
    }

    async fn remove_seed(&self, vmid: Vmid, stamp: &Stamp) -> Result<()> {
        self.perform(Call::RemoveSeed, Some(vmid), || {
            let done = self.change(vmid, stamp, |entry| {
                entry.seed = None;
                Ok(())
            });
            absent_is_success(done)
        })
        .await
    }

    async fn has_seed(&self, vmid: Vmid) -> Result<bool> {
        self.perform(Call::HasSeed, Some(vmid), || Ok(self.seed(vmid).is_some()))
            .await
    }
}

#[async_trait]
impl Channels for Fake {
    fn channels(&self) -> &[ChannelKind] {
        const BOTH: &[ChannelKind] = &[ChannelKind::Serial, ChannelKind::Tls];
        const TLS: &[ChannelKind] = &[ChannelKind::Tls];
        if self.world().channels.contains(&ChannelKind::Serial) {
            BOTH
        } else {
            TLS
        }
    }

    async fn open_channel(&self, vmid: Vmid) -> Result<Option<Box<dyn ByteStream>>> {
        self.perform(Call::OpenChannel, Some(vmid), || {
            let mut world = self.world();
            if !world.channels.contains(&ChannelKind::Serial) {
                return Ok(None);
            }
            let entry = world
                .machines
                .get_mut(&vmid)
                .ok_or(BackendError::NoSuchMachine { vmid })?;
            if entry.machine.power == Power::Stopped {
                return Err(refused("open_channel", vmid, "it is not running"));
            }
            let (host, guest, keep) = super::channel::open(CHANNEL_BUFFER);
            entry.guest_channel = Some(guest);
            entry.channel_open = Some(keep);
            let stream: Box<dyn ByteStream> = Box::new(host);
            Ok(Some(stream))
        })
        .await
    }

    async fn console(&self, vmid: Vmid, max_bytes: usize) -> Result<Vec<u8>> {
        self.perform(Call::Console, Some(vmid), || {
            let world = self.world();
            let entry = world
                .machines
                .get(&vmid)
                .ok_or(BackendError::NoSuchMachine { vmid })?;
            let from = entry.console.len().saturating_sub(max_bytes);
            Ok(entry.console.get(from..).unwrap_or_default().to_vec())
        })
        .await
    }
}

impl Snapshots for Fake {}
impl Agents for Fake {}
#[async_trait]
impl Backend for Fake {
    async fn info(&self) -> Result<BackendInfo> {
        self.perform(Call::Info, None, || {
            Ok(BackendInfo {
                kind: KIND,
                version: "1".to_owned(),
                accelerator: None,
                accelerator_reason: None,
                capabilities: self.world().capabilities,
                concurrent_starts: 4,
            })
        })
        .await
    }

    async fn adopt(&self) -> Result<Vec<Machine>> {
        self.perform(Call::Adopt, None, || {
            Ok(self
                .world()
                .machines
                .values()
                .map(|entry| entry.machine.clone())
                .collect())
        })
        .await
    }
}
