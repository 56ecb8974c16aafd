//! Volumes in memory. Each holds a number in place of bytes: what a guest wrote last.

use std::collections::BTreeMap;

use agentlab_api::Vmid;
use async_trait::async_trait;

use super::machines::{compare, refused};
use super::{Call, Fake};
use crate::{BackendError, Power, Result, Stamp, Volume, VolumeList, Volumes};

/// One volume.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    size_gb: u32,
    content: u64,
    snapshots: BTreeMap<String, (u32, u64)>,
}

fn absent(volume: &str) -> BackendError {
    BackendError::Storage {
        action: "looking for a volume",
        path: volume.to_owned(),
        source: std::io::ErrorKind::NotFound.into(),
    }
}

/// As the real ones take them.
fn check_name(name: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !name.is_empty() && name.bytes().all(plain) {
        return Ok(());
    }
    Err(BackendError::Storage {
        action: "naming a volume",
        path: name.escape_debug().to_string(),
        source: std::io::ErrorKind::InvalidInput.into(),
    })
}

impl Fake {
    /// What a guest wrote to a volume.
    pub fn write_volume(&self, volume: &str, content: u64) {
        if let Some(volume) = self.world().volumes.get_mut(volume) {
            volume.content = content;
        }
    }

    /// Size and content of a volume.
    #[must_use]
    pub fn volume(&self, volume: &str) -> Option<(u32, u64)> {
        let world = self.world();
        let found = world.volumes.get(volume)?;
        Some((found.size_gb, found.content))
    }

    /// Every volume there is.
    #[must_use]
    pub fn volumes(&self) -> Vec<String> {
        self.world().volumes.keys().cloned().collect()
    }

    /// Which machine has a volume.
    #[must_use]
    pub fn holder(&self, volume: &str) -> Option<Vmid> {
        let world = self.world();
        let mut machines = world.machines.iter();
        machines
            .find(|(_, entry)| entry.volume.as_deref() == Some(volume))
            .map(|(vmid, _)| *vmid)
    }

    /// Puts a volume there, or takes it away, as a person does who asks nobody.
    pub fn put_volume(&self, volume: &str, size_gb: Option<u32>) {
        let volumes = &mut self.world().volumes;
        match size_gb {
            None => drop(volumes.remove(volume)),
            Some(size_gb) => volumes.entry(volume.to_owned()).or_default().size_gb = size_gb,
        }
    }

    /// Gives a volume to a machine, whoever else has it.
    pub fn give_volume(&self, volume: Option<&str>, to: Vmid) {
        if let Some(entry) = self.world().machines.get_mut(&to) {
            entry.volume = volume.map(str::to_owned);
        }
    }

    /// Runs `change` on a volume that no running machine has.
    fn at_rest<T>(
        &self,
        action: &'static str,
        name: &str,
        change: impl FnOnce(&mut Content) -> Result<T>,
    ) -> Result<T> {
        if let Some(vmid) = self.holder(name)
            && self.power(vmid) != Some(Power::Stopped)
        {
            return Err(refused(action, vmid, "it has the volume, and it is on"));
        }
        let mut world = self.world();
        change(world.volumes.get_mut(name).ok_or_else(|| absent(name))?)
    }
}

#[async_trait]
impl Volumes for Fake {
    async fn create_volume(&self, name: &str, size_gb: u32) -> Result<String> {
        self.perform(Call::CreateVolume, None, || {
            check_name(name)?;
            let mut world = self.world();
            let made = world.volumes.entry(name.to_owned());
            made.or_insert_with(|| Content {
                size_gb,
                ..Content::default()
            });
            Ok(name.to_owned())
        })
        .await
    }

    async fn attach_volume(&self, volume: &str, to: Vmid, stamp: &Stamp) -> Result<()> {
        self.perform(Call::AttachVolume, Some(to), || {
            self.change(to, stamp, |_| Ok(()))?;
            match self.holder(volume) {
                Some(holder) if holder != to => {
                    return Err(refused("attach_volume", holder, "it has the volume"));
                }
                Some(_) | None => {}
            }
            if self.volume(volume).is_none() {
                return Err(absent(volume));
            }
            self.change(to, stamp, |entry| match &entry.volume {
                Some(other) if other != volume => Err(refused("attach_volume", to, "it has another volume")),
                Some(_) | None => {
                    entry.volume = Some(volume.to_owned());
                    Ok(())
                }
            })
        })
        .await
    }

    async fn detach_volume(&self, volume: &str, from: Vmid, stamp: &Stamp) -> Result<()> {
        self.perform(Call::DetachVolume, Some(from), || {
            let mut world = self.world();
            let Some(entry) = world.machines.get_mut(&from) else {
                return Ok(());
            };
            compare(from, entry, stamp)?;
            if entry.volume.as_deref() == Some(volume) {
                if entry.machine.power != Power::Stopped {
                    return Err(refused("detach_volume", from, "it is on"));
                }
                entry.volume = None;
            }
            Ok(())
        })
        .await
    }

    async fn grow_volume(&self, volume: &str, at: Vmid, stamp: &Stamp, size_gb: u32) -> Result<()> {
        self.perform(Call::GrowVolume, Some(at), || {
            self.change(at, stamp, |_| Ok(()))?;
            if self.holder(volume) != Some(at) {
                return Err(refused("grow_volume", at, "it has no such volume"));
            }
            self.at_rest("grow_volume", volume, |volume| {
                volume.size_gb = volume.size_gb.max(size_gb);
                Ok(())
            })
        })
        .await
    }

    async fn destroy_volume(&self, volume: &str) -> Result<()> {
        self.perform(Call::DestroyVolume, None, || {
            check_name(volume)?;
            match self.holder(volume) {
                Some(holder) => Err(refused("destroy_volume", holder, "it has the volume")),
                None => {
                    self.world().volumes.remove(volume);
                    Ok(())
                }
            }
        })
        .await
    }

    async fn take_volume_snapshot(&self, volume: &str, name: &str) -> Result<()> {
        self.perform(Call::TakeVolumeSnapshot, None, || {
            self.at_rest("take_volume_snapshot", volume, |volume| {
                let now = (volume.size_gb, volume.content);
                volume.snapshots.entry(name.to_owned()).or_insert(now);
                Ok(())
            })
        })
        .await
    }

    async fn roll_back_volume(&self, volume: &str, name: &str) -> Result<()> {
        self.perform(Call::RollBackVolume, None, || {
            self.at_rest("roll_back_volume", volume, |found| {
                let then = found.snapshots.get(name).copied();
                (found.size_gb, found.content) = then.ok_or_else(|| absent(volume))?;
                Ok(())
            })
        })
        .await
    }

    async fn delete_volume_snapshot(&self, volume: &str, name: &str) -> Result<()> {
        self.perform(Call::DeleteVolumeSnapshot, None, || {
            self.at_rest("delete_volume_snapshot", volume, |volume| {
                volume.snapshots.remove(name);
                Ok(())
            })
        })
        .await
    }

    async fn move_volume(&self, volume: &str, name: &str, storage: &str) -> Result<String> {
        self.perform(Call::MoveVolume, None, || {
            if let Some(holder) = self.holder(volume) {
                return Err(refused("move_volume", holder, "it has the volume"));
            }
            let moved = format!("{name}-on-{storage}");
            check_name(&moved)?;
            let mut world = self.world();
            if !world.volumes.contains_key(&moved) {
                let content = world.volumes.remove(volume).ok_or_else(|| absent(volume))?;
                world.volumes.insert(moved.clone(), content);
            }
            Ok(moved)
        })
        .await
    }

    async fn volumes(&self) -> Result<VolumeList> {
        let world = self.world();
        let volumes = world.volumes.iter().map(|(id, volume)| Volume {
            id: id.clone(),
            // One that was moved is called after the place as well.
            name: id.split("-on-").next().map(str::to_owned),
            bytes: u64::from(volume.size_gb) << 30,
            snapshots: volume.snapshots.keys().cloned().collect(),
        });
        Ok(VolumeList {
            volumes: volumes.collect(),
            unread: Vec::new(),
        })
    }

    async fn volume_holders(&self) -> Result<Vec<(String, Vmid)>> {
        let world = self.world();
        let machines = world.machines.iter();
        let holders = machines.filter_map(|(vmid, entry)| Some((entry.volume.clone()?, *vmid)));
        Ok(holders.collect())
    }

    fn owns_volume(&self, volume: &str) -> bool {
        check_name(volume).is_ok()
    }

    async fn copy_volume(&self, of: &str, snapshot: Option<&str>, name: &str) -> Result<String> {
        self.perform(Call::CopyVolume, None, || {
            let (size_gb, content) = self.at_rest("copy_volume", of, |found| match snapshot {
                None => Ok((found.size_gb, found.content)),
                Some(snapshot) => found
                    .snapshots
                    .get(snapshot)
                    .copied()
                    .ok_or_else(|| absent(snapshot)),
            })?;
            let made = Content {
                size_gb,
                content,
                snapshots: BTreeMap::new(),
            };
            self.world().volumes.entry(name.to_owned()).or_insert(made);
            Ok(name.to_owned())
        })
        .await
    }
}
