//! Snapshots. PVE's take every disk of a machine, also one that is not its own, and a rollback would undo what
//! somebody saved there: a machine with such a disk has none taken and is not rolled back.

use agentlab_api::Vmid;
use async_trait::async_trait;

use super::change::{Change, Read};
use super::record::Record;
use super::view::Found;
use super::{Fields, Kind, Pve, Refusal, Trouble, Wire, refused};
use crate::{BackendError, Power, Result, SnapshotHolds, Snapshots, Stamp};

/// PVE's own name for what is not a snapshot.
const CURRENT: &str = "current";

fn check_name(action: &'static str, vmid: Vmid, name: &str) -> Result<()> {
    let mut bytes = name.bytes();
    let fits = (2..=40).contains(&name.len())
        && bytes.next().is_some_and(|first| first.is_ascii_alphabetic())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        && name != CURRENT;
    if fits {
        return Ok(());
    }
    let name = name.escape_debug();
    let reason =
        format!("`{name}` is no name for a snapshot: 2 to 40 letters, digits, `-`, `_`, a letter first");
    Err(refused(action, vmid, reason))
}

fn check_disks(action: &'static str, record: &Record) -> Result<()> {
    let vmid = record.vmid;
    let foreign = record.disks().into_iter().find(|disk| disk.owner() != Some(vmid));
    match foreign {
        None => Ok(()),
        Some(disk) => Err(BackendError::Refused {
            action,
            vmid,
            reason: format!(
                "{} is attached at {}, and a snapshot would take it along",
                disk.volume, disk.slot
            ),
            hint: Some("detach the volume first".to_owned()),
        }),
    }
}

impl<W: Wire> Pve<W> {
    async fn take_once(
        &self,
        of: Vmid,
        stamp: &Stamp,
        name: &str,
        holds: SnapshotHolds,
    ) -> std::result::Result<(), Trouble> {
        const ACTION: &str = "snapshot";
        let (record, power) = self.ours_with_power(ACTION, of, stamp).await?;
        check_disks(ACTION, &record)?;
        let change = Change::TakeSnapshot {
            vmid: of,
            name: name.to_owned(),
            memory: holds == SnapshotHolds::Memory && power != Power::Stopped,
            description: String::new(),
        };
        match self.change(&record.node, change).await {
            Err(refusal) if refusal.kind == Kind::SnapshotTaken => {
                // On another machine's disk, perhaps.
                if self.names(&record).await?.iter().any(|found| found == name) {
                    Ok(())
                } else {
                    Err(refusal.into())
                }
            }
            done => Ok(done?),
        }
    }

    async fn roll_back_once(&self, of: Vmid, stamp: &Stamp, name: &str) -> std::result::Result<(), Trouble> {
        const ACTION: &str = "rollback";
        let record = self.ours(ACTION, of, stamp).await?;
        check_disks(ACTION, &record)?;
        let change = Change::RollBack {
            vmid: of,
            name: name.to_owned(),
        };
        Ok(self.change(&record.node, change).await?)
    }

    async fn delete_once(&self, of: Vmid, stamp: &Stamp, name: &str) -> std::result::Result<(), Trouble> {
        let Some(record) = self.ours_or_absent("delete snapshot", of, stamp).await? else {
            return Ok(());
        };
        let change = Change::DeleteSnapshot {
            vmid: of,
            name: name.to_owned(),
        };
        match self.change(&record.node, change).await {
            Err(refusal) if refusal.kind == Kind::NoSnapshot => Ok(()),
            done => Ok(done?),
        }
    }

    pub(super) async fn names(&self, record: &Record) -> std::result::Result<Vec<String>, Refusal> {
        let path = format!("/nodes/{}/qemu/{}/snapshot", record.node, record.vmid);
        let answer = self.wire.read(&Read::new(path)).await?;
        let mut found: Vec<(u64, String)> = Fields::list(answer)
            .unwrap_or_default()
            .iter()
            .filter_map(|line| Some((line.number("snaptime").unwrap_or(0), line.text("name")?)))
            .filter(|(_, name)| name != CURRENT)
            .collect();
        found.sort();
        Ok(found.into_iter().map(|(_, name)| name).collect())
    }
}

#[async_trait]
impl<W: Wire> Snapshots for Pve<W> {
    async fn take_snapshot(&self, of: Vmid, stamp: &Stamp, name: &str, holds: SnapshotHolds) -> Result<()> {
        check_name("snapshot", of, name)?;
        let _turn = self.turn(of).await;
        let attempt = || self.take_once(of, stamp, name, holds);
        self.patiently("snapshot", of, attempt).await
    }

    async fn roll_back(&self, of: Vmid, stamp: &Stamp, name: &str) -> Result<()> {
        check_name("rollback", of, name)?;
        let _turn = self.turn(of).await;
        self.patiently("rollback", of, || self.roll_back_once(of, stamp, name))
            .await
    }

    async fn delete_snapshot(&self, of: Vmid, stamp: &Stamp, name: &str) -> Result<()> {
        check_name("delete snapshot", of, name)?;
        let _turn = self.turn(of).await;
        self.patiently("delete snapshot", of, || self.delete_once(of, stamp, name))
            .await
    }

    async fn snapshots(&self, of: Vmid) -> Result<Vec<String>> {
        const ACTION: &str = "list snapshots";
        let failed = |refusal: Refusal| refusal.into_error(self.wire.kind(), ACTION, of);
        match self.find(ACTION, of).await? {
            Found::Nothing | Found::Container => Err(BackendError::NoSuchMachine { vmid: of }),
            Found::Hidden(refusal) => Err(failed(refusal)),
            Found::Here(record) => self.names(&record).await.map_err(failed),
        }
    }
}
