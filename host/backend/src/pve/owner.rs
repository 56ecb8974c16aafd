//! The machine that has the number which owns volumes, from the first time on that PVE needs one: it snapshots, copies
//! and moves disks of machines only. It has no NIC and nothing to boot, is protected, and is never started.
//!
//! ```text
//!   at rest    no disk in a slot; what was in one waits as `unusedN`, because it owns it
//!   scsi1      the volume that something is done with
//!   scsi2      a copy, come from the machine that it was made in
//! ```
//!
//! Its description says that it is ours, and what is under way ([`super::owner_notes`]).
//!
//! It is never destroyed, although a day comes when nothing hangs on it: PVE would take away what was granted on its
//! number too, and with that the right to attach a volume.

use agentlab_api::Vmid;

use super::change::{Change, Values, pair};
use super::clone::under_way;
use super::machines::Attempt;
use super::owner_notes::{Notes, UnderWay};
use super::record::Record;
use super::view::Found;
use super::{Fields, Kind, Pve, Read, Refusal, Wire, not_ours, refused};
use crate::BackendError;

/// Where something is done with a volume.
pub(super) const SLOT: &str = "scsi1";
/// Where a copy comes in.
const ARRIVAL: &str = "scsi2";
const NAME: &str = "agentlab-volumes";
/// Name of a machine that a copy is made in.
pub(super) const COPY: &str = "agentlab-copy";

/// The line that stands in the clone call of the machine a copy is made in.
pub(super) fn copy_line(owner: Vmid, name: &str, machine: Vmid) -> String {
    format!("{COPY} name={name} vmid={machine} owner={owner}")
}

/// Whether a copy was made in it, whichever: its description has that line once, of this very number and owner.
pub(super) fn is_copy(record: &Record, owner: Vmid) -> bool {
    let description = record.description();
    let mut lines = description.lines().filter(|line| line.starts_with(COPY));
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return false;
    };
    let name = line
        .split_whitespace()
        .nth(1)
        .and_then(|word| word.strip_prefix("name="));
    name.is_some_and(|name| line == copy_line(owner, name, record.vmid))
}

/// The machine as it was read, with what its description says.
#[derive(Debug, Clone)]
pub(super) struct Owner {
    pub(super) record: Record,
    pub(super) notes: Notes,
}

impl Owner {
    /// The volume in a slot.
    fn at(&self, slot: &str) -> Option<String> {
        let mut disks = self.record.disks().into_iter();
        disks.find(|disk| disk.slot == slot).map(|disk| disk.volume)
    }

    /// Slots with a disk, those aside where one only waits.
    fn slots(&self) -> Vec<String> {
        let disks = self.record.disks().into_iter();
        let in_use = disks.filter(|disk| !disk.slot.starts_with("unused"));
        in_use.map(|disk| disk.slot).collect()
    }
}

impl<W: Wire> Pve<W> {
    /// The machine, if there is one; another one under its number is nobody's of ours.
    pub(super) async fn owner_found(&self, action: &'static str) -> Attempt<Option<Owner>> {
        let (vmid, _) = self.volume_place()?;
        let foreign = |what: &str| {
            let reason = format!("{what} has the number that `proxmox_volume_vmid` reserves for volumes");
            not_ours(vmid, reason)
        };
        let record = match self.find(action, vmid).await? {
            Found::Nothing => return Ok(None),
            Found::Container => return Err(foreign("a container").into()),
            Found::Hidden(refusal) => return Err(refusal.into()),
            Found::Here(record) => *record,
        };
        let node = self.node().await?;
        if record.node != node {
            let reason = format!(
                "it is on node {}, and its volumes are made on {node}",
                record.node
            );
            return Err(BackendError::Refused {
                action,
                vmid,
                reason,
                hint: Some(format!("`qm migrate {vmid} {node}`, there, brings it back")),
            }
            .into());
        }
        match Notes::find(&record.description(), vmid) {
            Some(notes) => Ok(Some(Owner { record, notes })),
            // What it will be is not known before PVE is done with it.
            None if record.is_being_made() => Err(super::being_made(vmid).into()),
            None => Err(foreign("a machine of somebody else's").into()),
        }
    }

    async fn owner_again(&self, action: &'static str) -> Attempt<Owner> {
        let (vmid, _) = self.volume_place()?;
        let found = self.owner_found(action).await?;
        found.ok_or_else(|| refused(action, vmid, "the machine that owns volumes is gone").into())
    }

    /// The machine at rest, made if there is none.
    pub(super) async fn owner(&self, action: &'static str) -> Attempt<Owner> {
        if let Some(owner) = self.owner_found(action).await? {
            let owner = self.settle(action, owner).await?;
            self.sweep_copies(action, &owner).await?;
            return Ok(owner);
        }
        let (vmid, _) = self.volume_place()?;
        let mut values = vec![
            pair("name", NAME),
            pair("description", Notes::default().to_text(vmid)),
            pair("memory", 16),
            pair("protection", 1),
        ];
        values.extend(self.options.pool.as_ref().map(|pool| pair("pool", pool)));
        let node = self.node().await?;
        let answer = self.change(node, Change::Create { vmid, values }).await;
        // As with clones, only its description says whose it is.
        match (self.owner_found(action).await, answer) {
            (Ok(Some(owner)), _) => Ok(owner),
            (Err(trouble), Ok(())) => Err(trouble),
            (_, Err(refusal)) => Err(refusal.into()),
            (Ok(None), Ok(())) => Err(Refusal::unknown("its task ended well, and it is not there").into()),
        }
    }

    /// Writes down what is about to begin.
    pub(super) async fn note_under_way(&self, owner: &Owner, under_way: UnderWay) -> Attempt<()> {
        let mut notes = owner.notes.clone();
        notes.under_way = Some(under_way);
        let text = notes.to_text(owner.record.vmid);
        Ok(self.set(&owner.record, vec![pair("description", text)]).await?)
    }

    /// Puts a volume into its slot.
    pub(super) async fn put_in(&self, action: &'static str, volume: &str) -> Attempt<Owner> {
        let owner = self.owner_again(action).await?;
        self.set(&owner.record, vec![pair(SLOT, volume)]).await?;
        self.owner_again(action).await
    }

    /// Ends whatever was under way, done or not, and takes all disks out of their slots.
    pub(super) async fn settle(&self, action: &'static str, owner: Owner) -> Attempt<Owner> {
        let made = match owner.notes.under_way.clone() {
            None => None,
            Some(UnderWay::Copying { name, machine }) => {
                let copied = self.fetch_copy(action, &owner, &name, machine).await?;
                copied.map(|volume| (name, volume))
            }
            Some(UnderWay::Moving { name, storage }) => {
                let moved = owner.at(SLOT);
                let arrived = moved.filter(|volume| storage_of(volume) == storage);
                arrived.map(|volume| (name, volume))
            }
        };
        let owner = self.owner_again(action).await?;
        if owner.notes.under_way.is_none() && owner.slots().is_empty() {
            return self.shield(action, owner).await;
        }
        let mut notes = owner.notes.clone();
        notes.under_way = None;
        if let Some((name, volume)) = made {
            notes.note(&name, volume);
        }
        let slots = owner.slots();
        self.take_out(action, owner, &slots, &notes).await
    }

    /// Forgets a volume of which only its place as `unusedN` is left, which deletes it. False when it has none.
    pub(super) async fn delete_unused(
        &self,
        action: &'static str,
        owner: Owner,
        volume: &str,
    ) -> Attempt<bool> {
        let disks = owner.record.disks().into_iter();
        let slots: Vec<String> = disks
            .filter(|disk| disk.volume == volume)
            .map(|disk| disk.slot)
            .collect();
        if slots.is_empty() {
            return Ok(false);
        }
        let mut notes = owner.notes.clone();
        notes.forget(volume);
        self.take_out(action, owner, &slots, &notes).await?;
        Ok(true)
    }

    /// Removes drives. PVE removes none of a machine that is protected.
    async fn take_out(
        &self,
        action: &'static str,
        mut owner: Owner,
        slots: &[String],
        notes: &Notes,
    ) -> Attempt<Owner> {
        let mut values: Values = vec![pair("description", notes.to_text(owner.record.vmid))];
        if !slots.is_empty() {
            if owner.record.is_protected() {
                self.set(&owner.record, vec![pair("protection", 0)]).await?;
                owner = self.owner_again(action).await?;
            }
            values.push(pair("delete", slots.join(",")));
        }
        self.set(&owner.record, values).await?;
        let owner = self.owner_again(action).await?;
        self.shield(action, owner).await
    }

    /// Nobody destroys it by mistake, and the volumes it keeps unused along with it.
    async fn shield(&self, action: &'static str, owner: Owner) -> Attempt<Owner> {
        if owner.record.is_protected() {
            return Ok(owner);
        }
        self.set(&owner.record, vec![pair("protection", 1)]).await?;
        self.owner_again(action).await
    }

    /// The volume that came of a copy, fetched from the machine it was made in, which goes. `None` when none was made.
    async fn fetch_copy(
        &self,
        action: &'static str,
        owner: &Owner,
        name: &str,
        machine: Vmid,
    ) -> Attempt<Option<String>> {
        let _turn = self.turn(machine).await;
        let line = copy_line(owner.record.vmid, name, machine);
        let mut record = self.copy_in(action, machine, &line).await?;
        if record.is_none() {
            // Nobody can read it before it is whole.
            if self.is_copied(owner).await? {
                return Err(under_way(machine).into());
            }
            // It may have become so between the two looks.
            record = self.copy_in(action, machine, &line).await?;
        }
        let Some(record) = record else {
            return Ok(owner.at(ARRIVAL));
        };
        if record.is_being_made() {
            return Err(under_way(machine).into());
        }
        let node = record.node.clone();
        if record.is_protected() {
            self.set(&record, vec![pair("protection", 0)]).await?;
        }
        if record.text(SLOT).is_some() && owner.at(ARRIVAL).is_none() {
            let give = Change::GiveDisk {
                vmid: machine,
                disk: SLOT.to_owned(),
                to: owner.record.vmid,
                slot: ARRIVAL.to_owned(),
            };
            self.change(&node, give).await?;
        }
        let arrived = self.owner_again(action).await?.at(ARRIVAL);
        self.change(&node, Change::Destroy { vmid: machine }).await?;
        Ok(arrived)
    }

    /// The machine that a copy was made in, if its description says so.
    async fn copy_in(&self, action: &'static str, machine: Vmid, line: &str) -> Attempt<Option<Record>> {
        let says_so = |record: &Record| record.description().lines().any(|found| found == line);
        Ok(match self.find(action, machine).await? {
            Found::Here(record) if says_so(&record) => Some(*record),
            Found::Here(_) | Found::Nothing | Found::Container | Found::Hidden(_) => None,
        })
    }

    /// Whether PVE is at work on a copy of one of its disks.
    async fn is_copied(&self, owner: &Owner) -> Attempt<bool> {
        let tasks = Read::new(format!("/nodes/{}/tasks", owner.record.node))
            .with("source", "active")
            .with("typefilter", "qmclone");
        let lines = Fields::list(self.wire.read(&tasks).await?).unwrap_or_default();
        let of_owner = format!(":qmclone:{}:", owner.record.vmid);
        let mut running = lines.iter().filter(|line| line.text("endtime").is_none());
        Ok(running.any(|line| line.text("upid").is_some_and(|upid| upid.contains(&of_owner))))
    }

    /// A number for the machine that a copy is made in: the last one of our range that nobody has. Sandboxes take them
    /// from its other end.
    pub(super) async fn free_number(&self, action: &'static str) -> Attempt<Vmid> {
        const MOST_ASKED: usize = 64;
        let (first, last) = self.options.vmids;
        let numbers = (u32::from(first)..=u32::from(last)).rev().take(MOST_ASKED);
        for vmid in numbers.filter_map(|raw| Vmid::try_from(raw).ok()) {
            match self.wire.read(&Read::is_free(vmid)).await {
                Ok(_) => return Ok(vmid),
                Err(refusal) if refusal.kind == Kind::Taken => {}
                Err(refusal) => return Err(refusal.into()),
            }
        }
        let reason = format!("none of the last {MOST_ASKED} numbers up to {last} is free");
        Err(refused(action, last, reason).into())
    }
}

/// The storage in a volume's identifier.
pub(super) fn storage_of(volume: &str) -> &str {
    volume.split_once(':').map_or("", |(storage, _)| storage)
}
