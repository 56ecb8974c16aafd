//! Seeds, in `smbios1`.

use agentlab_api::Vmid;
use async_trait::async_trait;

use super::change::pair;
use super::record::Record;
use super::view::Found;
use super::{Kind, Pve, Refusal, Trouble, Wire};
use crate::{BackendError, Result, Seeds, Stamp};

impl<W: Wire> Pve<W> {
    async fn set_smbios(
        &self,
        action: &'static str,
        record: &Record,
        value: String,
    ) -> std::result::Result<(), Trouble> {
        let values = if value.is_empty() {
            vec![pair("delete", "smbios1")]
        } else {
            vec![pair("smbios1", value)]
        };
        let refusal = match self.set(record, values).await {
            Ok(()) => return Ok(()),
            Err(refusal) => refusal,
        };
        let lacks =
            matches!(&refusal.kind, Kind::Permission(Some((_, needs))) if needs.contains("VM.Config.HWType"));
        if !lacks {
            return Err(refusal.into());
        }
        Err(BackendError::Refused {
            action,
            vmid: record.vmid,
            reason: refusal.words,
            hint: Some(
                "a seed is handed to its guest by SMBIOS, for which the token's role needs VM.Config.HWType: \
                 `pveum role modify <role> --append 1 --privs VM.Config.HWType`"
                    .to_owned(),
            ),
        }
        .into())
    }

    async fn place_once(&self, vmid: Vmid, stamp: &Stamp, seed: &[u8]) -> std::result::Result<(), Trouble> {
        const ACTION: &str = "place seed";
        let record = self.ours(ACTION, vmid, stamp).await?;
        let value = record.smbios().with_seed(seed).map_err(|long| {
            let reason = format!(
                "its seed needs {} characters of `smbios1`, and 512 are allowed",
                long.0
            );
            super::refused(ACTION, vmid, reason)
        })?;
        if record.text("smbios1").as_ref() == Some(&value) {
            return Ok(());
        }
        self.set_smbios(ACTION, &record, value).await
    }

    async fn remove_once(&self, vmid: Vmid, stamp: &Stamp) -> std::result::Result<(), Trouble> {
        const ACTION: &str = "remove seed";
        let Some(record) = self.ours_or_absent(ACTION, vmid, stamp).await? else {
            return Ok(());
        };
        let smbios = record.smbios();
        if !smbios.has_serial() {
            return Ok(());
        }
        self.set_smbios(ACTION, &record, smbios.without_seed()).await
    }
}

#[async_trait]
impl<W: Wire> Seeds for Pve<W> {
    async fn place_seed(&self, vmid: Vmid, stamp: &Stamp, seed: &[u8]) -> Result<()> {
        let _turn = self.turn(vmid).await;
        self.patiently("place seed", vmid, || self.place_once(vmid, stamp, seed))
            .await
    }

    async fn remove_seed(&self, vmid: Vmid, stamp: &Stamp) -> Result<()> {
        let _turn = self.turn(vmid).await;
        let done = self
            .patiently("remove seed", vmid, || self.remove_once(vmid, stamp))
            .await;
        match done {
            Err(BackendError::NoSuchMachine { .. }) => Ok(()),
            other => other,
        }
    }

    async fn has_seed(&self, vmid: Vmid) -> Result<bool> {
        match self.find("look for seed", vmid).await? {
            Found::Nothing | Found::Container => Ok(false),
            Found::Hidden(refusal) => Err(refused_look(self.wire.kind(), refusal, vmid)),
            Found::Here(record) => Ok(record.smbios().has_serial()),
        }
    }
}

fn refused_look(backend: &'static str, refusal: Refusal, vmid: Vmid) -> BackendError {
    refusal.into_error(backend, "look for seed", vmid)
}
