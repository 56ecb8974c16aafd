//! Volumes under a VMID that no machine has: destroying a machine takes every volume of its number along, and PVE lets
//! two running machines write one volume at once without a word.

use agentlab_api::Vmid;
use agentlab_protocol::workspace::SERIAL;
use async_trait::async_trait;

use super::census::held_by;
use super::change::{Change, Read, pair};
use super::machines::absent_is_success;
use super::owner::storage_of;
use super::record::{Record, bytes, volume_owner};
use super::view::Found;
use super::{Fields, Held, Kind, Pve, Refusal, Trouble, Wire, refused};
use crate::{BackendError, Power, Result, Stamp, VolumeList, Volumes};

/// Where a volume is put: at the first of these that its template left free. A guest knows it by its serial number.
const SLOTS: std::ops::RangeInclusive<u8> = 1..=6;

impl<W: Wire> Pve<W> {
    pub(super) fn volume_place(&self) -> Result<(Vmid, &str)> {
        match (self.options.volume_owner, &self.options.storage) {
            (Some(owner), Some(storage)) => Ok((owner, storage)),
            (None, _) => Err(BackendError::Unsupported {
                what: "volumes: no VMID is reserved for them",
            }),
            (_, None) => Err(BackendError::Unsupported {
                what: "volumes: no storage is configured for them",
            }),
        }
    }

    /// The number that owns it; refuses a volume of anybody else. One that was moved is on another storage than new ones.
    fn check_volume(&self, action: &'static str, volume: &str) -> Result<Vmid> {
        let (owner, _) = self.volume_place()?;
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte);
        let is_name =
            volume.bytes().all(is_plain) && !storage_of(volume).is_empty() && !volume.contains("..");
        if is_name && volume_owner(volume) == Some(owner) {
            return Ok(owner);
        }
        let volume = volume.escape_debug();
        let reason = format!("`{volume}` is no volume of ours, which belong to {owner}");
        Err(refused(action, owner, reason))
    }

    /// Whoever has a volume. Our own machines are looked through once; after that it is known who may have it, and he is
    /// asked.
    pub(super) async fn holder(&self, volume: &str) -> std::result::Result<Option<Vmid>, Trouble> {
        match self.holder_of_ours(volume).await? {
            Some(holder) => Ok(Some(holder)),
            None => self.stranger_with(volume).await,
        }
    }

    async fn holder_of_ours(&self, volume: &str) -> std::result::Result<Option<Vmid>, Trouble> {
        let mut holders = self.holders.lock().await;
        let known = match holders.as_mut() {
            Some(known) => known,
            None => holders.insert(self.look_for_holders().await?.into_iter().collect()),
        };
        let Some(holder) = known.get(volume).copied() else {
            return Ok(None);
        };
        let has_it = match self.find("look for volume", holder).await? {
            Found::Here(record) => {
                slot_of(&record, volume).is_some()
                    || self
                        .in_effect(&record)
                        .await?
                        .is_some_and(|now| slot_of(&now, volume).is_some())
            }
            // It may run with it still, whoever may not look at it any more.
            Found::Hidden(refusal) => return Err(refusal.into()),
            Found::Nothing | Found::Container => false,
        };
        if has_it {
            return Ok(Some(holder));
        }
        known.remove(volume);
        Ok(None)
    }

    /// The configuration that a machine runs with: what is changed of it may wait for its next start. `None` when it is
    /// off, or gone.
    async fn in_effect(&self, record: &Record) -> std::result::Result<Option<Record>, Trouble> {
        match self.running_configuration(record).await {
            // To a token of a pool, a machine that is gone is one that it may not see.
            Err(refusal) if matches!(refusal.kind, Kind::NoMachine | Kind::Permission(_)) => {
                match self.find("look for volumes", record.vmid).await? {
                    Found::Nothing | Found::Container => Ok(None),
                    Found::Here(_) | Found::Hidden(_) => Err(refusal.into()),
                }
            }
            answer => Ok(answer?),
        }
    }

    async fn running_configuration(&self, record: &Record) -> std::result::Result<Option<Record>, Refusal> {
        if self.power(record).await? == Power::Stopped {
            return Ok(None);
        }
        let now = Read::config(&record.node, record.vmid).with("current", 1);
        let fields = Fields::of(self.wire.read(&now).await?);
        let fields = fields.ok_or_else(|| Refusal::unknown("the answer holds no configuration"))?;
        Ok(Some(Record::new(&record.node, record.vmid, fields)))
    }

    /// A machine has no volume of ours any more, or not this one.
    pub(super) async fn let_go(&self, vmid: Vmid, volume: Option<&str>) {
        if let Some(known) = self.holders.lock().await.as_mut() {
            known.retain(|held, holder| *holder != vmid || volume.is_some_and(|volume| volume != held));
        }
    }

    /// Volumes of ours in the machines of our range.
    pub(super) async fn look_for_holders(&self) -> std::result::Result<Held, Trouble> {
        let (owner, _) = self.volume_place()?;
        let mut holders = Vec::new();
        for machine in self.list_all().await? {
            let Found::Here(record) = self.find("look for volumes", machine.vmid).await? else {
                continue;
            };
            let mut held: Vec<String> = held_by(&record, owner).collect();
            if machine.power != Power::Stopped
                && let Some(now) = self.in_effect(&record).await?
            {
                held.extend(held_by(&now, owner));
                held.sort();
                held.dedup();
            }
            holders.extend(held.into_iter().map(|volume| (volume, machine.vmid)));
        }
        Ok(holders)
    }

    async fn attach_once(&self, volume: &str, to: Vmid, stamp: &Stamp) -> std::result::Result<(), Trouble> {
        const ACTION: &str = "attach volume";
        let (owner, _) = self.volume_place()?;
        let record = self.ours(ACTION, to, stamp).await?;
        if slot_of(&record, volume).is_some() {
            return Ok(());
        }
        if let Some(other) = self.holder(volume).await? {
            return Err(refused(ACTION, to, format!("{volume} is attached to VM {other}")).into());
        }
        if let Some(there) = held_by(&record, owner).next() {
            return Err(refused(ACTION, to, format!("it has {there} already")).into());
        }
        let slot = free_slot(&record).ok_or_else(|| {
            let reason = format!("scsi{} to scsi{} are all taken", SLOTS.start(), SLOTS.end());
            refused(ACTION, to, reason)
        })?;
        let drive = format!("{volume},serial={SERIAL}");
        // Before the call: whether one without an answer took effect is for the next look.
        if let Some(known) = self.holders.lock().await.as_mut() {
            known.insert(volume.to_owned(), to);
        }
        Ok(self.set(&record, vec![pair(&slot, drive)]).await?)
    }

    async fn detach_once(&self, volume: &str, from: Vmid, stamp: &Stamp) -> std::result::Result<(), Trouble> {
        const ACTION: &str = "detach volume";
        let Some(mut record) = self.ours_or_absent(ACTION, from, stamp).await? else {
            return Ok(());
        };
        let mut answer = Ok(());
        if let Some(slot) = slot_of(&record, volume) {
            if record.is_protected() {
                // PVE keeps the disks of such a machine where they are.
                self.set(&record, vec![pair("protection", 0)]).await?;
                record = self.ours(ACTION, from, stamp).await?;
            }
            answer = self.set(&record, vec![pair("delete", slot)]).await;
        }
        let now = self.in_effect(&record).await?;
        let Some(slot) = now.and_then(|now| slot_of(&now, volume)) else {
            return Ok(());
        };
        match answer {
            // It does not come out of a machine that runs, and PVE, which says so or says yes, has noted that it is to
            // come out before the next start.
            Ok(()) => {}
            Err(refusal) if matches!(refusal.kind, Kind::Invalid(_)) => {
                tracing::debug!(vmid = %from, %refusal, "disk not unplugged");
            }
            Err(refusal) => return Err(refusal.into()),
        }
        let revert = Change::Set {
            vmid: from,
            values: vec![pair("revert", slot)],
        };
        self.change(&record.node, revert).await?;
        let reason = "its guest does not let go of the disk; unmount it there first";
        Err(refused(ACTION, from, reason).into())
    }

    /// PVE grows what is attached to a machine, and nothing else.
    async fn grow_once(
        &self,
        volume: &str,
        at: Vmid,
        stamp: &Stamp,
        size_gb: u32,
    ) -> std::result::Result<(), Trouble> {
        const ACTION: &str = "grow volume";
        let record = self.ours(ACTION, at, stamp).await?;
        let mut disks = record.disks().into_iter();
        let Some(disk) = disks.find(|disk| disk.volume == volume) else {
            return Err(refused(ACTION, at, format!("it has no {volume}")).into());
        };
        if disk.bytes.is_some_and(|bytes| bytes >= u64::from(size_gb) << 30) {
            return Ok(());
        }
        let change = Change::Resize {
            vmid: at,
            disk: disk.slot,
            size: format!("{size_gb}G"),
        };
        Ok(self.change(&record.node, change).await?)
    }

    /// The volume with this file name and its size. What comes before that in its identifier is for its storage to say.
    async fn volume_of(
        &self,
        (owner, storage): (Vmid, &str),
        filename: &str,
    ) -> std::result::Result<Option<(String, Option<u64>)>, Refusal> {
        let node = self.node.get().map(String::as_str).unwrap_or_default();
        let read = Read::new(format!("/nodes/{node}/storage/{storage}/content"))
            .with("content", "images")
            .with("vmid", owner);
        let lines = Fields::list(self.wire.read(&read).await?).unwrap_or_default();
        Ok(lines.iter().find_map(|line| {
            let volume = line.text("volid")?;
            let size = line.number("size").or_else(|| bytes(&line.text("size")?));
            (volume.rsplit(['/', ':']).next() == Some(filename)).then_some((volume, size))
        }))
    }
}

fn slot_of(record: &Record, volume: &str) -> Option<String> {
    let mut disks = record.disks().into_iter();
    disks.find(|disk| disk.volume == volume).map(|disk| disk.slot)
}

fn free_slot(record: &Record) -> Option<String> {
    let mut slots = SLOTS.map(|number| format!("scsi{number}"));
    slots.find(|slot| record.text(slot).is_none())
}

/// File name and format of a volume; a storage of files tells formats by their endings, one of blocks has one only.
fn named(kind: &str, owner: Vmid, name: &str) -> (String, &'static str) {
    match kind {
        "dir" | "nfs" | "cifs" | "cephfs" | "glusterfs" => (format!("vm-{owner}-{name}.qcow2"), "qcow2"),
        "btrfs" => (format!("vm-{owner}-{name}.raw"), "raw"),
        _ => (format!("vm-{owner}-{name}"), "raw"),
    }
}

fn check_name(action: &'static str, owner: Vmid, name: &str) -> Result<()> {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=60).contains(&name.len()) && name.bytes().all(is_plain) {
        return Ok(());
    }
    let reason = "a volume's name is 1 to 60 lower-case letters, digits and `-`";
    Err(refused(action, owner, reason))
}

/// As PVE has them: it becomes part of a line.
fn check_storage(action: &'static str, owner: Vmid, storage: &str) -> Result<()> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let begins = storage
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphabetic());
    if begins && storage.len() <= 100 && storage.bytes().all(is_plain) {
        return Ok(());
    }
    let reason = format!("`{}` is no name of a storage", storage.escape_debug());
    Err(refused(action, owner, reason))
}

#[async_trait]
impl<W: Wire> Volumes for Pve<W> {
    async fn create_volume(&self, name: &str, size_gb: u32) -> Result<String> {
        const ACTION: &str = "create volume";
        let (owner, storage) = self.volume_place()?;
        check_name(ACTION, owner, name)?;
        let _turn = self.turn(owner).await;
        let node = self.node().await?.to_owned();
        let attempt = || async {
            let status = Read::new(format!("/nodes/{node}/storage/{storage}/status"));
            let status = Fields::of(self.wire.read(&status).await?).unwrap_or_default();
            let (filename, format) = named(&status.text("type").unwrap_or_default(), owner, name);
            let change = Change::Allocate {
                storage: storage.to_owned(),
                owner,
                filename: filename.clone(),
                size_gb,
                format: format.to_owned(),
            };
            match self.carry_out(&node, &change, self.options.task_patience).await {
                Ok(serde_json::Value::String(volume)) => Ok(volume),
                Ok(_) => Err(Trouble::from(Refusal::unknown("the answer names no volume"))),
                Err(refusal) if refusal.kind == Kind::VolumeTaken => {
                    match self.volume_of((owner, storage), &filename).await? {
                        Some((volume, Some(size))) if size == u64::from(size_gb) << 30 => Ok(volume),
                        Some(_) | None => Err(refusal.into()),
                    }
                }
                Err(refusal) => Err(refusal.into()),
            }
        };
        self.patiently(ACTION, owner, attempt).await
    }

    async fn attach_volume(&self, volume: &str, to: Vmid, stamp: &Stamp) -> Result<()> {
        let owner = self.check_volume("attach volume", volume)?;
        // One at a time, or two would each find it free.
        let _alone = self.turn(owner).await;
        let _turn = self.turn(to).await;
        self.patiently("attach volume", to, || self.attach_once(volume, to, stamp))
            .await
    }

    async fn detach_volume(&self, volume: &str, from: Vmid, stamp: &Stamp) -> Result<()> {
        let owner = self.check_volume("detach volume", volume)?;
        let _alone = self.turn(owner).await;
        let _turn = self.turn(from).await;
        let done = self
            .patiently("detach volume", from, || self.detach_once(volume, from, stamp))
            .await;
        let done = absent_is_success(done);
        if done.is_ok() {
            self.let_go(from, Some(volume)).await;
        }
        done
    }

    async fn grow_volume(&self, volume: &str, at: Vmid, stamp: &Stamp, size_gb: u32) -> Result<()> {
        let owner = self.check_volume("grow volume", volume)?;
        let _alone = self.turn(owner).await;
        let _turn = self.turn(at).await;
        self.patiently("grow volume", at, || self.grow_once(volume, at, stamp, size_gb))
            .await
    }

    async fn destroy_volume(&self, volume: &str) -> Result<()> {
        const ACTION: &str = "destroy volume";
        let owner = self.check_volume(ACTION, volume)?;
        let _alone = self.turn(owner).await;
        let node = self.node().await?.to_owned();
        let attempt = || async {
            if let Some(holder) = self.holder(volume).await? {
                return Err(refused(ACTION, holder, format!("{volume} is attached to it")).into());
            }
            if self.clear_volume(ACTION, volume).await? {
                return Ok(());
            }
            let change = Change::Free {
                storage: storage_of(volume).to_owned(),
                owner,
                volume: volume.to_owned(),
            };
            self.change(&node, change).await?;
            Ok(())
        };
        self.patiently(ACTION, owner, attempt).await
    }

    async fn take_volume_snapshot(&self, volume: &str, name: &str) -> Result<()> {
        const ACTION: &str = "snapshot volume";
        let owner = self.check_volume(ACTION, volume)?;
        let _alone = self.turn(owner).await;
        self.patiently(ACTION, owner, || self.keep_volume_once(volume, name))
            .await
    }

    async fn roll_back_volume(&self, volume: &str, name: &str) -> Result<()> {
        const ACTION: &str = "rollback of volume";
        let owner = self.check_volume(ACTION, volume)?;
        let _alone = self.turn(owner).await;
        self.patiently(ACTION, owner, || self.restore_volume_once(volume, name))
            .await
    }

    async fn delete_volume_snapshot(&self, volume: &str, name: &str) -> Result<()> {
        const ACTION: &str = "delete snapshot of volume";
        let owner = self.check_volume(ACTION, volume)?;
        let _alone = self.turn(owner).await;
        self.patiently(ACTION, owner, || self.forget_volume_once(volume, name))
            .await
    }

    async fn copy_volume(&self, of: &str, snapshot: Option<&str>, name: &str) -> Result<String> {
        const ACTION: &str = "copy volume";
        let owner = self.check_volume(ACTION, of)?;
        check_name(ACTION, owner, name)?;
        let _alone = self.turn(owner).await;
        self.patiently(ACTION, owner, || self.copy_volume_once(of, snapshot, name))
            .await
    }

    async fn volumes(&self) -> Result<VolumeList> {
        let (owner, _) = self.volume_place()?;
        self.patiently("list volumes", owner, || self.volumes_once())
            .await
    }

    async fn volume_holders(&self) -> Result<Vec<(String, Vmid)>> {
        let (owner, _) = self.volume_place()?;
        self.patiently("look for volumes", owner, || self.holders_now())
            .await
    }

    fn owns_volume(&self, volume: &str) -> bool {
        self.check_volume("look at volume", volume).is_ok()
    }

    async fn settle_volumes(&self) -> Result<()> {
        let (owner, _) = self.volume_place()?;
        let _alone = self.turn(owner).await;
        self.patiently("settle volumes", owner, || self.settle_once())
            .await
    }

    async fn move_volume(&self, volume: &str, name: &str, storage: &str) -> Result<String> {
        const ACTION: &str = "move volume";
        let owner = self.check_volume(ACTION, volume)?;
        check_name(ACTION, owner, name)?;
        check_storage(ACTION, owner, storage)?;
        let _alone = self.turn(owner).await;
        self.patiently(ACTION, owner, || self.move_volume_once(volume, name, storage))
            .await
    }
}
