//! Which volumes of ours there are, who has them, and what a copy has left behind.

use std::collections::HashMap;
use std::time::Duration;

use agentlab_api::Vmid;
use tokio::time::Instant;

use super::change::{Change, Read, pair};
use super::machines::Attempt;
use super::owner::{COPY, Owner, is_copy};
use super::record::{Record, bytes, volume_owner};
use super::view::Found;
use super::{Fields, Held, Kind, Pve, Refusal, Trouble, Wire};
use crate::{BackendError, Power, Volume, VolumeList};

/// How long it is believed of machines that are not ours that they have no volume of ours: reading them is a call each.
const BELIEVED: Duration = Duration::from_secs(30);

/// The name that a volume was made under. PVE names copies and what was moved itself: of those the owner's notes tell.
fn name_in(owner: Vmid, volume: &str) -> Option<String> {
    let file = volume.rsplit(['/', ':']).next()?;
    let name = file.strip_prefix(&format!("vm-{owner}-"))?;
    let name = name.split_once('.').map_or(name, |(name, _)| name);
    (!name.starts_with("disk-") && !name.starts_with("state-")).then(|| name.to_owned())
}

impl<W: Wire> Pve<W> {
    pub(super) async fn volumes_once(&self) -> Attempt<VolumeList> {
        const ACTION: &str = "list volumes";
        let (vmid, _) = self.volume_place()?;
        let owner = match self.owner_found(ACTION).await {
            Ok(owner) => owner,
            // Volumes are what they are, whoever has taken their number.
            Err(Trouble::Ours(BackendError::NotOurs { .. })) => None,
            Err(trouble) => return Err(trouble),
        };
        let mut snapshots = match &owner {
            Some(owner) => self.kept_by(owner).await?,
            None => HashMap::new(),
        };
        let mut list = VolumeList::default();
        for (id, bytes) in self.owned(vmid, &mut list.unread).await? {
            let noted = owner.as_ref().and_then(|owner| owner.notes.name_of(&id));
            list.volumes.push(Volume {
                name: noted.map(str::to_owned).or_else(|| name_in(vmid, &id)),
                bytes,
                snapshots: snapshots.remove(&id).unwrap_or_default(),
                id,
            });
        }
        list.volumes.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(list)
    }

    /// Volumes of the owner's number, on every storage that we may look at.
    async fn owned(&self, owner: Vmid, unread: &mut Vec<String>) -> Attempt<Vec<(String, u64)>> {
        let node = self.node().await?;
        let storages = Read::new(format!("/nodes/{node}/storage"))
            .with("content", "images")
            .with("enabled", 1);
        let storages = Fields::list(self.wire.read(&storages).await?);
        let storages = storages.ok_or_else(|| Refusal::unknown("the answer is no list of storages"))?;
        let mut owned = Vec::new();
        for storage in storages {
            let name = storage.text("storage").unwrap_or_default();
            if !storage.flag("active") {
                unread.push(format!("storage {name} is not active"));
                continue;
            }
            let content = Read::new(format!("/nodes/{node}/storage/{name}/content"))
                .with("content", "images")
                .with("vmid", owner);
            match self.wire.read(&content).await.map(Fields::list) {
                Ok(Some(lines)) => owned.extend(lines.iter().filter_map(|line| {
                    let id = line.text("volid")?;
                    let size = line.number("size").or_else(|| bytes(&line.text("size")?))?;
                    (volume_owner(&id) == Some(owner)).then_some((id, size))
                })),
                Ok(None) => unread.push(format!("storage {name}: its answer is no list")),
                Err(refusal) => unread.push(format!("storage {name}: {}", refusal.words)),
            }
        }
        Ok(owned)
    }

    /// Names of snapshots by volume, as their descriptions have them.
    async fn kept_by(&self, owner: &Owner) -> Attempt<HashMap<String, Vec<String>>> {
        let path = format!("/nodes/{}/qemu/{}/snapshot", owner.record.node, owner.record.vmid);
        let lines = Fields::list(self.wire.read(&Read::new(path)).await?).unwrap_or_default();
        let mut kept = Vec::new();
        for line in lines {
            let description = line.text("description").unwrap_or_default();
            let mut words = description.split_whitespace();
            if let (Some(volume), Some(name)) = (words.next(), words.next()) {
                kept.push((line.number("snaptime"), volume.to_owned(), name.to_owned()));
            }
        }
        kept.sort();
        let mut by_volume: HashMap<String, Vec<String>> = HashMap::new();
        for (_, volume, name) in kept {
            by_volume.entry(volume).or_default().push(name);
        }
        Ok(by_volume)
    }

    /// Everybody who has a volume of ours at this moment.
    pub(super) async fn holders_now(&self) -> Attempt<Held> {
        let mut holders = self.look_for_holders().await?;
        holders.extend(self.look_for_strangers().await?);
        Ok(holders)
    }

    /// Whoever has a volume of ours without being ours: somebody attached it by hand.
    pub(super) async fn stranger_with(&self, volume: &str) -> Attempt<Option<Vmid>> {
        let mut seen = self.strangers.lock().await;
        let known = match seen.as_ref() {
            Some((at, known)) if at.elapsed() < BELIEVED => known,
            Some(_) | None => {
                let found = self.look_for_strangers().await?;
                &seen.insert((Instant::now(), found)).1
            }
        };
        let mut known = known.iter();
        Ok(known.find(|(held, _)| held == volume).map(|(_, vmid)| *vmid))
    }

    /// Volumes of ours in machines outside of our range, templates and other people's alike. What we may not see, or is
    /// on a node that is away, is passed over: nobody would get a workspace for as long as that lasts.
    async fn look_for_strangers(&self) -> Attempt<Held> {
        let (owner, _) = self.volume_place()?;
        let (first, last) = self.options.vmids;
        let node = self.node().await?;
        let mut held = Vec::new();
        for (vmid, place) in self.places().await? {
            if vmid == owner || (first..=last).contains(&vmid) {
                continue;
            }
            let record = match self.record(&place, vmid).await {
                Ok(record) => record,
                Err(refusal) if matches!(refusal.kind, Kind::NoMachine | Kind::Permission(_)) => continue,
                Err(_) if place != node => continue,
                Err(refusal) => return Err(refusal.into()),
            };
            held.extend(held_by(&record, owner).map(|volume| (volume, vmid)));
        }
        Ok(held)
    }

    /// Destroys machines in which a copy was made that nobody fetched: PVE began it after its daemon had died, and after
    /// the next one had looked. One that cannot go now goes with a later look, and holds up nothing else.
    pub(super) async fn sweep_copies(&self, action: &'static str, owner: &Owner) -> Attempt<()> {
        for vmid in self.named(COPY).await? {
            let _turn = self.turn(vmid).await;
            match self.sweep_copy(action, owner, vmid).await {
                Ok(()) => {}
                Err(Trouble::Refused(refusal)) => {
                    tracing::warn!(%vmid, %refusal, "copy that nobody fetched not destroyed yet");
                }
                Err(Trouble::Ours(error)) => {
                    tracing::warn!(%vmid, %error, "copy that nobody fetched not destroyed yet");
                }
            }
        }
        Ok(())
    }

    /// Its line, whole, proves what it is; one that is being made or runs is left alone.
    async fn sweep_copy(&self, action: &'static str, owner: &Owner, vmid: Vmid) -> Attempt<()> {
        let Found::Here(record) = self.find(action, vmid).await? else {
            return Ok(());
        };
        let is_left = is_copy(&record, owner.record.vmid)
            && !record.is_being_made()
            && self.power(&record).await? == Power::Stopped;
        if !is_left {
            return Ok(());
        }
        tracing::warn!(%vmid, "a copy of a volume that nobody fetched; destroying its machine");
        if record.is_protected() {
            self.set(&record, vec![pair("protection", 0)]).await?;
        }
        Ok(self.change(&record.node, Change::Destroy { vmid }).await?)
    }

    /// As every volume operation begins, with none to follow.
    pub(super) async fn settle_once(&self) -> Attempt<()> {
        const ACTION: &str = "settle volumes";
        match self.owner_found(ACTION).await? {
            Some(_) => self.owner(ACTION).await.map(drop),
            None => Ok(()),
        }
    }
}

/// Volumes of the owner's in the slots of another machine.
pub(super) fn held_by(record: &Record, owner: Vmid) -> impl Iterator<Item = String> {
    let disks = record.disks().into_iter();
    disks
        .filter(move |disk| disk.owner() == Some(owner))
        .map(|disk| disk.volume)
}

#[cfg(test)]
mod tests {
    use super::name_in;

    #[test]
    fn a_volume_tells_its_name_unless_pve_named_it() {
        let owner = 777.try_into().unwrap();
        for (volume, name) in [
            ("local:777/vm-777-ws-1.qcow2", Some("ws-1")),
            ("zfs:vm-777-ws-1", Some("ws-1")),
            ("zfs:vm-777-disk-0", None),
            ("local:777/vm-777-disk-0.qcow2", None),
            ("local:7770/vm-7770-ws-1.qcow2", None),
        ] {
            assert_eq!(name_in(owner, volume).as_deref(), name, "{volume}");
        }
    }
}
