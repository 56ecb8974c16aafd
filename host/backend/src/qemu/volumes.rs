//! Volumes of machines that come and go. Which machine has one stands in the machine's own record, so that it is free
//! once the machine is gone; the files are in [`super::volume_store`].

use agentlab_api::Vmid;
use async_trait::async_trait;

use super::machines::refused;
use super::record::Found;
use super::volume_store::{VolumeStore, check_name};
use super::{Qemu, blocking};
use crate::{Result, Stamp, VolumeList, Volumes};

impl Qemu {
    /// Which machine has a volume, running or not.
    async fn holder(&self, volume: &str) -> Result<Option<Vmid>> {
        let holders = self.volume_holders().await?;
        let mut holders = holders.into_iter();
        Ok(holders.find(|(held, _)| held == volume).map(|(_, vmid)| vmid))
    }

    /// Refuses while a running machine has it.
    async fn at_rest(&self, action: &'static str, volume: &str) -> Result<()> {
        if let Some(vmid) = self.holder(volume).await?
            && self.find_process(&self.readable(vmid).await?).await?.is_some()
        {
            return Err(refused(
                action,
                vmid,
                format!("it has {volume}, and it is running"),
            ));
        }
        Ok(())
    }

    /// Blocking work on the volumes, with their lock held by the caller.
    async fn on_volumes<T: Send + 'static>(
        &self,
        work: impl FnOnce(VolumeStore) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let store = self.volumes.clone();
        blocking(move || work(store)).await
    }
}

#[async_trait]
impl Volumes for Qemu {
    async fn create_volume(&self, name: &str, size_gb: u32) -> Result<String> {
        let _alone = self.volume_turn.lock().await;
        let name = name.to_owned();
        self.on_volumes(move |store| store.create(&name, size_gb)).await
    }

    /// The machine must be off: its board takes no disk while it runs.
    async fn attach_volume(&self, volume: &str, to: Vmid, stamp: &Stamp) -> Result<()> {
        const ACTION: &str = "attach_volume";
        let _alone = self.volume_turn.lock().await;
        let vm = self.vm(to);
        let _turn = vm.operation.lock().await;
        let mut machine = self.ours(to, stamp).await?;
        match machine.record.volume.as_deref() {
            Some(has) if has == volume => return Ok(()),
            Some(has) => return Err(refused(ACTION, to, format!("it has {has} already"))),
            None => {}
        }
        if let Some(other) = self.holder(volume).await? {
            return Err(refused(ACTION, to, format!("{volume} is attached to VM {other}")));
        }
        if self.find_process(&machine).await?.is_some() {
            return Err(refused(ACTION, to, "it is running"));
        }
        let name = volume.to_owned();
        self.on_volumes(move |store| {
            store.open_disk(&name)?;
            machine.set_volume(Some(name))
        })
        .await
    }

    async fn detach_volume(&self, volume: &str, from: Vmid, stamp: &Stamp) -> Result<()> {
        let _alone = self.volume_turn.lock().await;
        let vm = self.vm(from);
        let _turn = vm.operation.lock().await;
        let Some(mut machine) = self.ours_or_absent(from, stamp).await? else {
            return Ok(());
        };
        if machine.record.volume.as_deref() != Some(volume) {
            return Ok(());
        }
        if self.find_process(&machine).await?.is_some() {
            return Err(refused("detach_volume", from, "it is running"));
        }
        blocking(move || machine.set_volume(None)).await
    }

    async fn grow_volume(&self, volume: &str, at: Vmid, stamp: &Stamp, size_gb: u32) -> Result<()> {
        const ACTION: &str = "grow_volume";
        let _alone = self.volume_turn.lock().await;
        let machine = self.ours(at, stamp).await?;
        if machine.record.volume.as_deref() != Some(volume) {
            return Err(refused(ACTION, at, format!("it has no {volume}")));
        }
        self.at_rest(ACTION, volume).await?;
        let name = volume.to_owned();
        self.on_volumes(move |store| store.grow(&name, size_gb)).await
    }

    async fn destroy_volume(&self, volume: &str) -> Result<()> {
        let _alone = self.volume_turn.lock().await;
        if let Some(holder) = self.holder(volume).await? {
            let reason = format!("{volume} is attached to it");
            return Err(refused("destroy_volume", holder, reason));
        }
        let name = volume.to_owned();
        self.on_volumes(move |store| store.remove(&name)).await
    }

    async fn take_volume_snapshot(&self, volume: &str, name: &str) -> Result<()> {
        let _alone = self.volume_turn.lock().await;
        self.at_rest("take_volume_snapshot", volume).await?;
        let (volume, name) = (volume.to_owned(), name.to_owned());
        self.on_volumes(move |store| store.take_snapshot(&volume, &name))
            .await
    }

    async fn roll_back_volume(&self, volume: &str, name: &str) -> Result<()> {
        let _alone = self.volume_turn.lock().await;
        self.at_rest("roll_back_volume", volume).await?;
        let (volume, name) = (volume.to_owned(), name.to_owned());
        self.on_volumes(move |store| store.roll_back(&volume, &name))
            .await
    }

    async fn delete_volume_snapshot(&self, volume: &str, name: &str) -> Result<()> {
        let _alone = self.volume_turn.lock().await;
        let (volume, name) = (volume.to_owned(), name.to_owned());
        self.on_volumes(move |store| store.delete_snapshot(&volume, &name))
            .await
    }

    async fn volumes(&self) -> Result<VolumeList> {
        let _alone = self.volume_turn.lock().await;
        self.on_volumes(|store| store.list()).await
    }

    async fn volume_holders(&self) -> Result<Vec<(String, Vmid)>> {
        let machines = self.machines.clone();
        blocking(move || {
            let mut holders = Vec::new();
            for vmid in machines.vmids()? {
                if let Found::Ours(machine) = machines.find(vmid)?
                    && let Some(volume) = &machine.record.volume
                {
                    holders.push((volume.clone(), vmid));
                }
            }
            Ok(holders)
        })
        .await
    }

    fn owns_volume(&self, volume: &str) -> bool {
        check_name(volume).is_ok()
    }

    async fn copy_volume(&self, of: &str, snapshot: Option<&str>, name: &str) -> Result<String> {
        let _alone = self.volume_turn.lock().await;
        if snapshot.is_none() {
            self.at_rest("copy_volume", of).await?;
        }
        let (of, snapshot, name) = (of.to_owned(), snapshot.map(str::to_owned), name.to_owned());
        self.on_volumes(move |store| store.copy(&of, snapshot.as_deref(), &name))
            .await
    }
}
