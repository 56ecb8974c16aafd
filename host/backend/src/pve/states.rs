//! Volumes kept as they are, gone back to, copied and moved, by way of the machine that owns them.
//!
//! ```text
//!   snapshot   volume into scsi1 ─► snapshot of the machine ─► out again
//!   rollback   of the machine, whose disk that volume is then ─► out again
//!   copy       volume into scsi1 ─► full clone (of the snapshot) ─► its disk to scsi2 ─► clone destroyed ─► out again
//!   move       volume into scsi1 ─► move_disk ─► out again
//! ```
//!
//! A process may die anywhere in it. Each begins by settling what an earlier one began, and what that came to is found by
//! its name.

use agentlab_api::Vmid;
use sha2::{Digest, Sha256};

use super::change::{Change, Read, pair};
use super::machines::Attempt;
use super::owner::{COPY, Owner, copy_line, storage_of};
use super::owner_notes::UnderWay;
use super::view::Found;
use super::{Fields, Kind, Pve, Trouble, Wire, refused};
use crate::{BackendError, Power};

/// What PVE calls a snapshot: one machine's names are for all volumes, and have 40 letters.
fn key(volume: &str, name: &str) -> String {
    let hash = Sha256::digest(format!("{volume}\n{name}"));
    let mut key = String::from("s");
    for byte in hash.iter().take(16) {
        key.push_str(&format!("{byte:02x}"));
    }
    key
}

fn no_snapshot(action: &'static str, owner: Vmid, volume: &str, name: &str) -> BackendError {
    refused(
        action,
        owner,
        format!("{volume} has no snapshot `{}`", name.escape_debug()),
    )
}

impl<W: Wire> Pve<W> {
    /// Refuses while a machine that is not off has the volume.
    async fn volume_at_rest(&self, action: &'static str, volume: &str) -> Attempt<()> {
        let Some(holder) = self.holder(volume).await? else {
            return Ok(());
        };
        if let Found::Here(record) = self.find(action, holder).await?
            && self.power(&record).await? != Power::Stopped
        {
            return Err(refused(action, holder, format!("it has {volume}, and it is not off")).into());
        }
        Ok(())
    }

    /// Keys of all snapshots of a volume.
    async fn keys_of(&self, owner: &Owner, volume: &str) -> Attempt<Vec<String>> {
        let path = format!("/nodes/{}/qemu/{}/snapshot", owner.record.node, owner.record.vmid);
        let answer = self.wire.read(&Read::new(path)).await?;
        let lines = Fields::list(answer).unwrap_or_default();
        let of_volume = lines.iter().filter(|line| {
            let description = line.text("description").unwrap_or_default();
            description.split_whitespace().next() == Some(volume)
        });
        Ok(of_volume.filter_map(|line| line.text("name")).collect())
    }

    async fn has_key(&self, owner: &Owner, key: &str) -> Attempt<bool> {
        let names = self.names(&owner.record).await?;
        Ok(names.iter().any(|found| found == key))
    }

    pub(super) async fn keep_volume_once(&self, volume: &str, name: &str) -> Attempt<()> {
        const ACTION: &str = "snapshot volume";
        let key = key(volume, name);
        let owner = self.owner(ACTION).await?;
        if self.has_key(&owner, &key).await? {
            return Ok(());
        }
        self.volume_at_rest(ACTION, volume).await?;
        let owner = self.put_in(ACTION, volume).await?;
        let take = Change::TakeSnapshot {
            vmid: owner.record.vmid,
            name: key,
            memory: false,
            description: format!("{volume} {name}"),
        };
        let taken = self.change(&owner.record.node, take).await;
        self.settle(ACTION, owner).await?;
        Ok(taken?)
    }

    pub(super) async fn restore_volume_once(&self, volume: &str, name: &str) -> Attempt<()> {
        const ACTION: &str = "rollback of volume";
        let key = key(volume, name);
        let owner = self.owner(ACTION).await?;
        if !self.has_key(&owner, &key).await? {
            return Err(no_snapshot(ACTION, owner.record.vmid, volume, name).into());
        }
        self.volume_at_rest(ACTION, volume).await?;
        let back = Change::RollBack {
            vmid: owner.record.vmid,
            name: key,
        };
        let gone_back = self.change(&owner.record.node, back).await;
        self.settle(ACTION, owner).await?;
        Ok(gone_back?)
    }

    pub(super) async fn forget_volume_once(&self, volume: &str, name: &str) -> Attempt<()> {
        const ACTION: &str = "delete snapshot of volume";
        match self.owner_found(ACTION).await? {
            None => Ok(()),
            Some(owner) => {
                let owner = self.settle(ACTION, owner).await?;
                self.delete_key(&owner, key(volume, name)).await
            }
        }
    }

    async fn delete_key(&self, owner: &Owner, key: String) -> Attempt<()> {
        if !self.has_key(owner, &key).await? {
            return Ok(());
        }
        let vmid = owner.record.vmid;
        let delete = Change::DeleteSnapshot { vmid, name: key };
        match self.change(&owner.record.node, delete).await {
            Err(refusal) if refusal.kind == Kind::NoSnapshot => Ok(()),
            done => Ok(done?),
        }
    }

    /// What is left of a volume on the machine that owns it: its snapshots, and its place there. True when that has
    /// deleted it.
    pub(super) async fn clear_volume(&self, action: &'static str, volume: &str) -> Attempt<bool> {
        let Some(owner) = self.owner_found(action).await? else {
            return Ok(false);
        };
        let owner = self.settle(action, owner).await?;
        for key in self.keys_of(&owner, volume).await? {
            self.delete_key(&owner, key).await?;
        }
        let owner = self.owner(action).await?;
        self.delete_unused(action, owner, volume).await
    }

    pub(super) async fn copy_volume_once(
        &self,
        of: &str,
        snapshot: Option<&str>,
        name: &str,
    ) -> Attempt<String> {
        const ACTION: &str = "copy volume";
        let owner = self.owner(ACTION).await?;
        if let Some(made) = owner.notes.made(name) {
            return Ok(made.to_owned());
        }
        let key = snapshot.map(|snapshot| key(of, snapshot));
        if let (Some(key), Some(snapshot)) = (&key, snapshot)
            && !self.has_key(&owner, key).await?
        {
            return Err(no_snapshot(ACTION, owner.record.vmid, of, snapshot).into());
        }
        self.volume_at_rest(ACTION, of).await?;
        let machine = self.free_number(ACTION).await?;
        let under_way = UnderWay::Copying {
            name: name.to_owned(),
            machine,
        };
        self.note_under_way(&owner, under_way).await?;
        if key.is_none() {
            self.put_in(ACTION, of).await?;
        }
        let copied = self.clone_owner(&owner, of, key, name, machine).await;
        let owner = self.owner(ACTION).await?;
        match (owner.notes.made(name), copied) {
            (Some(made), _) => Ok(made.to_owned()),
            (None, Err(refusal)) => Err(refusal.into()),
            (None, Ok(())) => {
                Err(super::Refusal::unknown("its task ended well, and no copy is there").into())
            }
        }
    }

    /// A machine with a copy of the volume in its slot.
    async fn clone_owner(
        &self,
        owner: &Owner,
        of: &str,
        key: Option<String>,
        name: &str,
        machine: Vmid,
    ) -> std::result::Result<(), super::Refusal> {
        let vmid = owner.record.vmid;
        let mut values = vec![
            pair("name", COPY),
            pair("description", copy_line(vmid, name, machine)),
            pair("full", 1),
        ];
        values.extend(key.map(|key| pair("snapname", key)));
        values.extend(self.options.pool.as_ref().map(|pool| pair("pool", pool)));
        let clone = Change::Clone {
            template: vmid,
            to: machine,
            values,
        };
        let turns = self.storage_turns(storage_of(of));
        let _turn = turns.take(machine).await;
        let patience = self.options.clone_patience;
        self.carry_out(&owner.record.node, &clone, patience)
            .await
            .map(drop)
    }

    pub(super) async fn move_volume_once(&self, volume: &str, name: &str, storage: &str) -> Attempt<String> {
        const ACTION: &str = "move volume";
        let owner = self.owner(ACTION).await?;
        let vmid = owner.record.vmid;
        let made = owner.notes.made(name).filter(|made| storage_of(made) == storage);
        if let Some(already) = made.or_else(|| Some(volume).filter(|volume| storage_of(volume) == storage)) {
            return Ok(already.to_owned());
        }
        if let Some(holder) = self.holder(volume).await? {
            return Err(refused(ACTION, holder, format!("{volume} is attached to it")).into());
        }
        if !self.keys_of(&owner, volume).await?.is_empty() {
            return Err(Trouble::Ours(BackendError::Refused {
                action: ACTION,
                vmid,
                reason: format!("{volume} has snapshots, and none of them would go along"),
                hint: Some("delete its snapshots first, or fork it".to_owned()),
            }));
        }
        let under_way = UnderWay::Moving {
            name: name.to_owned(),
            storage: storage.to_owned(),
        };
        self.note_under_way(&owner, under_way).await?;
        let owner = self.put_in(ACTION, volume).await?;
        let relocate = Change::MoveDisk {
            vmid,
            disk: super::owner::SLOT.to_owned(),
            storage: storage.to_owned(),
        };
        let patience = self.options.clone_patience;
        let moved = self.carry_out(&owner.record.node, &relocate, patience).await;
        let owner = self.owner(ACTION).await?;
        match (owner.notes.made(name), moved) {
            (Some(made), _) if storage_of(made) == storage => Ok(made.to_owned()),
            (_, Err(refusal)) => Err(refusal.into()),
            (_, Ok(_)) => {
                Err(super::Refusal::unknown("its task ended well, and the volume is not there").into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::key;

    #[test]
    fn each_volume_has_its_own_snapshots_whatever_they_are_called() {
        let long = "a".repeat(40);
        let keys = [
            key("local:a", "one"),
            key("local:b", "one"),
            key("local:a", &long),
        ];
        for key in &keys {
            assert!(
                key.len() <= 40 && key.bytes().all(|byte| byte.is_ascii_alphanumeric()),
                "{key}"
            );
        }
        assert!(keys[0] != keys[1] && keys[0] != keys[2]);
        assert_eq!(keys[0], key("local:a", "one"));
    }
}
