//! Seeds: in `smbios1`, or in a snippet of cloud-init where the template says that it wants one, or the token may not set
//! SMBIOS.

use agentlab_api::Vmid;
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::change::{Values, pair};
use super::machines::absent_is_success;
use super::record::Record;
use super::snippets::{SnippetStore, cicustom};
use super::view::Found;
use super::{Kind, Pve, Read, Refusal, Trouble, Wire};
use crate::{BackendError, Machine, Result, Seeds, Stamp};

const PLACE: &str = "place seed";
const REMOVE: &str = "remove seed";
/// A line of a template's description.
const WANTS_CLOUD_INIT: &str = "agentlab-seed: cloud-init";

impl<W: Wire> Pve<W> {
    /// Whether the machine takes its seed from cloud-init: its template says so by a line of its description.
    async fn wants_snippet(&self, record: &Record) -> std::result::Result<bool, Trouble> {
        if self.options.snippets.is_none() || !record.has_cloud_init() {
            return Ok(false);
        }
        let template = record.label().map(|label| label.template);
        let Some(template) = template else {
            return Ok(false);
        };
        let template = self.template(template).await?;
        Ok(template
            .description()
            .lines()
            .any(|line| line.trim() == WANTS_CLOUD_INIT))
    }

    async fn place_once(&self, vmid: Vmid, stamp: &Stamp, seed: &[u8]) -> std::result::Result<(), Trouble> {
        let record = self.ours(PLACE, vmid, stamp).await?;
        if self.wants_snippet(&record).await? {
            return self.place_snippet(&record, stamp, seed).await;
        }
        match self.place_smbios(&record, seed).await {
            Err(Trouble::Refused(refusal)) if lacks_hardware(&refusal) => {
                if self.options.snippets.is_some() && record.has_cloud_init() {
                    tracing::debug!(%vmid, %refusal, "seed goes by cloud-init");
                    return self.place_snippet(&record, stamp, seed).await;
                }
                Err(without_hardware(vmid, refusal).into())
            }
            done => done,
        }
    }

    async fn place_smbios(&self, record: &Record, seed: &[u8]) -> std::result::Result<(), Trouble> {
        let value = record.smbios().with_seed(seed).map_err(|long| {
            let reason = format!(
                "its seed needs {} characters of `smbios1`, and 512 are allowed",
                long.0
            );
            super::refused(PLACE, record.vmid, reason)
        })?;
        if record.text("smbios1").as_ref() == Some(&value) {
            return Ok(());
        }
        Ok(self.set(record, vec![pair("smbios1", value)]).await?)
    }

    /// What the call that configures a machine says of the snippet that its seeds will come in, which is there from then
    /// on and holds none yet. `None` for a template that wants no such seeds.
    pub(super) async fn reserve_snippet(
        &self,
        action: &'static str,
        record: &Record,
        stamp: &Stamp,
    ) -> std::result::Result<Option<String>, Trouble> {
        let Some(snippets) = &self.options.snippets else {
            return Ok(None);
        };
        if !self.wants_snippet(record).await? {
            return Ok(None);
        }
        let value = named(action, snippets, record, stamp)?;
        snippets.reserve(record.vmid, stamp).await?;
        Ok(Some(value))
    }

    /// The file first: a configuration never names one that is not there. It names this one since it was made, unless an
    /// earlier seed was redeemed.
    async fn place_snippet(
        &self,
        record: &Record,
        stamp: &Stamp,
        seed: &[u8],
    ) -> std::result::Result<(), Trouble> {
        let Some(snippets) = &self.options.snippets else {
            return Ok(());
        };
        let value = named(PLACE, snippets, record, stamp)?;
        snippets
            .write(record.vmid, stamp, &URL_SAFE_NO_PAD.encode(seed))
            .await?;
        if record.text("cicustom").as_ref() != Some(&value) {
            self.set(record, vec![pair("cicustom", value)]).await?;
        }
        Ok(())
    }

    async fn remove_once(&self, vmid: Vmid, stamp: &Stamp) -> std::result::Result<(), Trouble> {
        let found = self.ours_or_absent(REMOVE, vmid, stamp).await?;
        if let Some(record) = &found {
            let values = without_seed(record, self.options.snippets.as_ref(), stamp);
            if !values.is_empty() {
                match self.set(record, values).await {
                    Err(refusal) if lacks_hardware(&refusal) => {
                        return Err(without_hardware(vmid, refusal).into());
                    }
                    done => done?,
                }
            }
        }
        Ok(())
    }

    /// Removes snippets whose machines are gone. One whose machine we do not see may be another daemon's, on a storage
    /// that both have: it stays as long as anything has its number.
    pub(super) async fn sweep_snippets(&self, machines: &[Machine]) -> Result<()> {
        let Some(snippets) = &self.options.snippets else {
            return Ok(());
        };
        for (name, vmid) in snippets.unclaimed(machines).await? {
            let is_seen = machines
                .iter()
                .any(|machine| machine.vmid == vmid && machine.stamp.is_some());
            if is_seen || self.wire.read(&Read::is_free(vmid)).await.is_ok() {
                snippets.remove_unclaimed(&name).await?;
                tracing::warn!(%name, "snippet of a machine that is gone, removed");
            }
        }
        Ok(())
    }

    /// What was to be done with a machine is done, or that is gone, or somebody else's by now: nobody will read the seed in
    /// its file, which is ours by its name. A machine that still names the file could not start without it.
    pub(super) async fn and_forget_snippet(&self, vmid: Vmid, stamp: &Stamp, done: Result<()>) -> Result<()> {
        let done = absent_is_success(done);
        let Some(snippets) = &self.options.snippets else {
            return done;
        };
        match &done {
            Ok(()) => snippets.remove(vmid, stamp).await?,
            Err(BackendError::NotOurs { .. }) => match self.find(REMOVE, vmid).await? {
                Found::Here(record) if names(&record, &snippets.volume(vmid, stamp)) => {
                    snippets.empty(vmid, stamp).await?;
                }
                Found::Here(_) | Found::Nothing | Found::Container | Found::Hidden(_) => {
                    snippets.remove(vmid, stamp).await?;
                }
            },
            Err(_) => {}
        }
        done
    }
}

fn names(record: &Record, volume: &str) -> bool {
    let found = record.text("cicustom").unwrap_or_default();
    found.contains(volume)
}

/// `cicustom` with a snippet of ours, besides whatever else the template has there.
fn named(action: &'static str, snippets: &SnippetStore, record: &Record, stamp: &Stamp) -> Result<String> {
    let found = record.text("cicustom").unwrap_or_default();
    cicustom(&found, &snippets.volume(record.vmid, stamp), true).map_err(|other| {
        let reason = format!("its template has a snippet of its own, `{other}`, in the place of the seed's");
        super::refused(action, record.vmid, reason)
    })
}

/// What takes every seed of ours out of a configuration.
fn without_seed(record: &Record, snippets: Option<&SnippetStore>, stamp: &Stamp) -> Values {
    let mut values = Vec::new();
    let mut emptied = Vec::new();
    let mut put = |key: &'static str, value: String| {
        if value.is_empty() {
            emptied.push(key);
        } else {
            values.push(pair(key, value));
        }
    };
    let smbios = record.smbios();
    if smbios.has_serial() {
        put("smbios1", smbios.without_seed());
    }
    let found = record.text("cicustom").unwrap_or_default();
    let ours = snippets.map(|snippets| snippets.volume(record.vmid, stamp));
    if let Some(Ok(rest)) = ours.map(|ours| cicustom(&found, &ours, false))
        && rest != found
    {
        put("cicustom", rest);
    }
    if !emptied.is_empty() {
        values.push(pair("delete", emptied.join(",")));
    }
    values
}

fn lacks_hardware(refusal: &Refusal) -> bool {
    matches!(&refusal.kind, Kind::Permission(Some((_, needs))) if needs.contains("VM.Config.HWType"))
}

fn without_hardware(vmid: Vmid, refusal: Refusal) -> BackendError {
    BackendError::Refused {
        action: PLACE,
        vmid,
        reason: refusal.words,
        hint: Some(
            "a seed is handed to its guest by SMBIOS, for which the token's role needs VM.Config.HWType: \
             `pveum role modify <role> --append 1 --privs VM.Config.HWType`; or by cloud-init, for which \
             `snippet_storage` must be set and the template must have a cloud-init drive"
                .to_owned(),
        ),
    }
}

#[async_trait]
impl<W: Wire> Seeds for Pve<W> {
    async fn place_seed(&self, vmid: Vmid, stamp: &Stamp, seed: &[u8]) -> Result<()> {
        let _turn = self.turn(vmid).await;
        self.patiently(PLACE, vmid, || self.place_once(vmid, stamp, seed))
            .await
    }

    async fn remove_seed(&self, vmid: Vmid, stamp: &Stamp) -> Result<()> {
        let _turn = self.turn(vmid).await;
        let done = self
            .patiently(REMOVE, vmid, || self.remove_once(vmid, stamp))
            .await;
        self.and_forget_snippet(vmid, stamp, done).await
    }

    async fn has_seed(&self, vmid: Vmid) -> Result<bool> {
        match self.find("look for seed", vmid).await? {
            Found::Nothing | Found::Container => Ok(false),
            Found::Hidden(refusal) => Err(refused_look(self.wire.kind(), refusal, vmid)),
            Found::Here(record) => {
                let stamp = record.label().map(|label| label.stamp);
                if let (Some(snippets), Some(stamp)) = (&self.options.snippets, stamp)
                    && snippets.has_seed(vmid, &stamp).await?
                {
                    return Ok(true);
                }
                Ok(record.smbios().has_serial())
            }
        }
    }
}

fn refused_look(backend: &'static str, refusal: Refusal, vmid: Vmid) -> BackendError {
    refusal.into_error(backend, "look for seed", vmid)
}
