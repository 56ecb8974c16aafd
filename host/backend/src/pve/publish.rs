//! Makes a template on a node out of a disk image, or leaves nothing.
//!
//! ```text
//!   prepare ─► publish: [upload] ─► [destroy our earlier one] ─► create with import-from ─► convert
//!                └ on any failure, and after a crash: take_back, by the build's own mark and by nothing else
//! ```
//!
//! What is ours stands in the description: `agentlab-template: <id>` and `agentlab-build: <mark>`, in the create call
//! itself. A number that is taken is nobody's of ours unless its description carries them.

use std::path::PathBuf;
use std::time::Duration;

use agentlab_api::Vmid;
use async_trait::async_trait;
use tokio::time::{Instant, sleep};

use super::change::{Change, Read, Values, pair};
use super::record::Record;
use super::view::Found;
use super::{Fields, Kind, Pve, Refusal, Wire, refused, with_jitter};
use crate::{BackendError, Result};

/// Line of a description that says of which image a template was made.
const TEMPLATE_LINE: &str = "agentlab-template:";
/// Line of a description that says which run of a builder made it.
const BUILD_LINE: &str = "agentlab-build:";
/// A node copies the whole disk, which may lie on a slow storage.
const IMPORT_PATIENCE: Duration = Duration::from_secs(3600);
/// How long the end of what PVE began is waited for, so that it can be taken back.
const TAKE_BACK_PATIENCE: Duration = Duration::from_secs(600);

/// A template to be.
#[derive(Debug, Clone)]
pub struct NewTemplate {
    /// Its number.
    pub vmid: Vmid,
    /// Its name, a DNS name.
    pub name: String,
    /// The disk, which boots by itself: qcow2 where it is uploaded, else raw.
    pub disk: PathBuf,
    /// SHA-256 of that file.
    pub disk_sha256: String,
    /// Content address of the image it was made from.
    pub image_id: String,
    /// Version of the runner in it, when that is known.
    pub runner_version: Option<String>,
    /// Storage that its disk goes to.
    pub storage: String,
    /// Bridge of its NIC.
    pub bridge: String,
    /// Whether an earlier template of ours with this number may go for it.
    pub replace: bool,
}

/// What a publication will have put on the node, known before it begins, so that it can be taken back after a crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// The number.
    pub vmid: Vmid,
    /// What only this run writes into a description.
    pub mark: String,
    /// Storage and file name of the upload, where there is one.
    pub upload: Option<(String, String)>,
}

/// Publishes templates.
#[async_trait]
pub trait Publisher: Send + Sync {
    /// Whether the disk is uploaded; else the node reads it where it lies.
    fn uploads(&self) -> bool;

    /// Looks whether it can be done, and changes nothing.
    async fn prepare(&self, template: &NewTemplate) -> Result<Publication>;

    /// Does it. After an error [`Publisher::take_back`] must follow.
    async fn publish(&self, template: &NewTemplate, publication: &Publication) -> Result<()>;

    /// Removes what was uploaded; the template does not need it any more.
    async fn tidy(&self, publication: &Publication) -> Result<()>;

    /// Removes whatever the publication left that is not a whole template. Nothing left is success.
    async fn take_back(&self, publication: &Publication) -> Result<()>;
}

/// 16 hexadecimal digits that no other run writes.
fn new_mark() -> std::result::Result<String, String> {
    let mut bytes = [0u8; 8];
    getrandom::fill(&mut bytes).map_err(|error| format!("no random numbers: {error}"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn line_of<'a>(description: &'a str, name: &str) -> Option<&'a str> {
    description
        .lines()
        .find_map(|line| line.trim().strip_prefix(name))
        .map(str::trim)
}

fn description(template: &NewTemplate, mark: &str) -> String {
    let runner = template.runner_version.iter();
    let mut lines: Vec<String> = runner
        .map(|version| format!("agentlab-runner: {version}"))
        .collect();
    lines.push(format!("{TEMPLATE_LINE} {}", template.image_id));
    lines.push(format!("{BUILD_LINE} {mark}"));
    lines.join("\n")
}

/// The machine as PVE is told to make it. What a sandbox needs otherwise is set on its clone.
fn values(template: &NewTemplate, source: &str, mark: &str) -> Values {
    vec![
        pair("name", &template.name),
        pair("description", description(template, mark)),
        pair("ostype", "l26"),
        pair("cores", 2),
        pair("memory", 2048),
        pair("scsihw", "virtio-scsi-single"),
        pair(
            "scsi0",
            format!("{}:0,import-from={source},discard=on", template.storage),
        ),
        pair("boot", "order=scsi0"),
        pair("net0", format!("virtio,bridge={}", template.bridge)),
        pair("serial0", "socket"),
        pair("agent", 1),
    ]
}

/// What may become of a number that is taken.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// A template of ours.
    Earlier,
    /// What a run of ours left.
    Unfinished(String),
    /// Anything else.
    Foreign,
}

fn standing(record: &Record) -> Standing {
    let text = record.description();
    match (line_of(&text, TEMPLATE_LINE), line_of(&text, BUILD_LINE)) {
        (Some(_), Some(_)) if record.is_template() => Standing::Earlier,
        (Some(_), Some(mark)) => Standing::Unfinished(mark.to_owned()),
        _ => Standing::Foreign,
    }
}

/// Where the upload goes: the template's own storage when it takes uploads, else any that does.
fn choose_upload_storage(storages: &[Fields], wanted: &str) -> Option<String> {
    let takes = |fields: &&Fields| {
        let content = fields.text("content").unwrap_or_default();
        let is_off = |key: &str| fields.text(key).is_some() && !fields.flag(key);
        content.split(',').any(|word| word == "import") && !is_off("active") && !is_off("enabled")
    };
    let mut names: Vec<String> = storages
        .iter()
        .filter(takes)
        .filter_map(|fields| fields.text("storage"))
        .collect();
    names.sort();
    let own = names.iter().position(|name| name == wanted);
    (!names.is_empty()).then(|| names.swap_remove(own.unwrap_or(0)))
}

impl<W: Wire> Pve<W> {
    /// The storages of the node that may be looked at.
    async fn storages(&self, vmid: Vmid) -> Result<Vec<Fields>> {
        let action = "publishing";
        let node = self.node().await?;
        let read = Read::new(format!("/nodes/{node}/storage"));
        let answer = self.wire.read(&read).await;
        let answer = answer.map_err(|refusal| refusal.into_error(self.wire.kind(), action, vmid))?;
        Fields::list(answer).ok_or_else(|| refused(action, vmid, "the node's answer is no list of storages"))
    }

    fn check_storage(&self, storages: &[Fields], template: &NewTemplate) -> Result<()> {
        let found = storages
            .iter()
            .find(|fields| fields.text("storage").as_deref() == Some(&template.storage));
        let takes_disks = |fields: &Fields| {
            fields
                .text("content")
                .unwrap_or_default()
                .split(',')
                .any(|word| word == "images")
        };
        let reason = match found {
            Some(fields) if takes_disks(fields) => return Ok(()),
            Some(_) => format!(
                "storage `{}` takes no disks of machines (content `images`)",
                template.storage
            ),
            None => format!("the node shows no storage `{}` to this token", template.storage),
        };
        Err(BackendError::Refused {
            action: "publishing",
            vmid: template.vmid,
            reason,
            hint: Some(
                "`pvesm status` lists the storages of a node, `pvesm set` changes their content".to_owned(),
            ),
        })
    }

    async fn check_number(&self, template: &NewTemplate) -> Result<()> {
        let vmid = template.vmid;
        let taken = |reason: String| Err(BackendError::Conflict { vmid, reason });
        match self.find("publishing", vmid).await? {
            Found::Nothing => Ok(()),
            Found::Container => taken("it is a container".to_owned()),
            Found::Hidden(refusal) => Err(refusal.into_error(self.wire.kind(), "publishing", vmid)),
            Found::Here(record) => match standing(&record) {
                Standing::Earlier if template.replace && record.is_protected() => taken(format!(
                    "`{}` is our earlier template and is protected; `qm set {vmid} --protection 0` allows it to be replaced",
                    record.name()
                )),
                Standing::Earlier if template.replace => self.check_rights_stay(vmid).await,
                Standing::Earlier => taken(format!(
                    "`{}` is our earlier template; say --replace to put the new one in its place",
                    record.name()
                )),
                Standing::Unfinished(mark) => taken(format!(
                    "another run is making a template there, or died doing so on another host (build {mark}); when none is \
                     under way, `qm destroy {vmid} --purge` clears it"
                )),
                Standing::Foreign => taken(format!("`{}` is not a template of ours", record.name())),
            },
        }
    }

    /// Whoever destroys a machine takes away every right that was granted on its number: the next one there could not be
    /// made any more.
    async fn check_rights_stay(&self, vmid: Vmid) -> Result<()> {
        let read = Read::new("/access/permissions").with("path", "/vms");
        let answer = self.wire.read(&read).await;
        let answer = answer.map_err(|refusal| refusal.into_error(self.wire.kind(), "replacing", vmid))?;
        // Whether it is handed down to what lies below is the value.
        let stays = answer.get("/vms").and_then(|rights| rights.get("VM.Allocate"));
        if stays.and_then(super::answer::truth).unwrap_or(false) {
            return Ok(());
        }
        Err(BackendError::Refused {
            action: "replacing",
            vmid,
            reason: format!(
                "the token may make VM {vmid} by a right on /vms/{vmid} alone, and PVE takes that away with the earlier template"
            ),
            hint: Some(
                "grant the role on /vms for the time being, give the template another --vmid, or run it on the node as root \
                 with --through qm"
                    .to_owned(),
            ),
        })
    }

    async fn bring(&self, template: &NewTemplate, publication: &Publication) -> Result<String> {
        let vmid = template.vmid;
        let Some((storage, file)) = &publication.upload else {
            return Ok(template.disk.display().to_string());
        };
        let node = self.node().await?;
        let upload = super::wire::Upload {
            storage: storage.clone(),
            file: file.clone(),
            from: template.disk.clone(),
            sha256: template.disk_sha256.clone(),
        };
        let failed = |refusal: Refusal| refusal.into_error(self.wire.kind(), "disk upload", vmid);
        if let Some(task) = self.wire.upload(node, &upload).await.map_err(failed)? {
            let ended = self.wire.follow(&task, IMPORT_PATIENCE).await.map_err(failed)?;
            ended.map_err(failed)?;
        }
        Ok(format!("{storage}:import/{file}"))
    }

    async fn make_template(&self, template: &NewTemplate, mark: &str, source: &str) -> Result<()> {
        let vmid = template.vmid;
        let node = self.node().await?;
        let failed = |action| move |refusal: Refusal| refusal.into_error(self.wire.kind(), action, vmid);
        if let Found::Here(record) = self.find("publishing", vmid).await?
            && standing(&record) == Standing::Earlier
            && template.replace
        {
            let gone = self.change(&record.node, Change::Destroy { vmid }).await;
            gone.map_err(failed("replacing"))?;
            self.view.forget(vmid);
        }
        let create = Change::Create {
            vmid,
            values: values(template, source, mark),
        };
        let made = self.carry_out(node, &create, IMPORT_PATIENCE).await;
        made.map_err(failed("making"))?;
        // An answer of 200 does not say whose machine it is.
        let record = self.record(node, vmid).await.map_err(failed("making"))?;
        if line_of(&record.description(), BUILD_LINE) != Some(mark) {
            return Err(super::not_ours(
                vmid,
                "somebody else took the number at the same moment",
            ));
        }
        let convert = Change::Convert { vmid };
        let converted = self.carry_out(node, &convert, IMPORT_PATIENCE).await;
        converted.map(drop).map_err(failed("converting"))
    }

    /// Destroys the machine that carries the mark, when PVE is done with it.
    async fn destroy_marked(&self, vmid: Vmid, mark: &str) -> Result<()> {
        let until = Instant::now() + TAKE_BACK_PATIENCE;
        let action = "taking back";
        loop {
            let record = match self.find(action, vmid).await? {
                Found::Here(record) => record,
                // It is nobody's that we may see, so it is not ours.
                Found::Nothing | Found::Container | Found::Hidden(_) => return Ok(()),
            };
            let is_marked = line_of(&record.description(), BUILD_LINE) == Some(mark);
            if !is_marked && !record.is_being_made() {
                return Ok(());
            }
            let refusal = if is_marked && record.lock().is_none() {
                match self.change(&record.node, Change::Destroy { vmid }).await {
                    Ok(()) => {
                        self.view.forget(vmid);
                        return Ok(());
                    }
                    Err(refusal) => refusal,
                }
            } else {
                super::being_made(vmid)
            };
            let again = refusal.is_busy() || refusal.kind == Kind::Unknown;
            if !again || Instant::now() >= until {
                return Err(refusal.into_error(self.wire.kind(), action, vmid));
            }
            sleep(with_jitter(Duration::from_secs(1))).await;
        }
    }
}

#[async_trait]
impl<W: Wire> Publisher for Pve<W> {
    fn uploads(&self) -> bool {
        self.wire.uploads()
    }

    async fn prepare(&self, template: &NewTemplate) -> Result<Publication> {
        let vmid = template.vmid;
        self.check_number(template).await?;
        let storages = self.storages(vmid).await?;
        self.check_storage(&storages, template)?;
        let mark = new_mark().map_err(|reason| refused("publishing", vmid, reason))?;
        let upload = if self.uploads() {
            let Some(storage) = choose_upload_storage(&storages, &template.storage) else {
                return Err(BackendError::Refused {
                    action: "publishing",
                    vmid,
                    reason: "no storage of the node that this token sees takes uploads of disks (content `import`)"
                        .to_owned(),
                    hint: Some(
                        "add `import` to a storage of files (`pvesm set local --content import,...`), or run it on the node \
                         as root with --through qm, which uploads nothing"
                            .to_owned(),
                    ),
                });
            };
            Some((storage, format!("agentlab-{vmid}-{mark}.qcow2")))
        } else {
            None
        };
        Ok(Publication { vmid, mark, upload })
    }

    async fn publish(&self, template: &NewTemplate, publication: &Publication) -> Result<()> {
        let source = self.bring(template, publication).await?;
        self.make_template(template, &publication.mark, &source).await
    }

    async fn tidy(&self, publication: &Publication) -> Result<()> {
        let Some((storage, file)) = &publication.upload else {
            return Ok(());
        };
        let node = self.node().await?;
        let free = Change::Free {
            storage: storage.clone(),
            owner: publication.vmid,
            volume: format!("{storage}:import/{file}"),
        };
        let failed =
            |refusal: Refusal| refusal.into_error(self.wire.kind(), "clearing the upload", publication.vmid);
        self.change(node, free).await.map_err(failed)
    }

    async fn take_back(&self, publication: &Publication) -> Result<()> {
        // Both are tried, whatever becomes of the first.
        let machine = self.destroy_marked(publication.vmid, &publication.mark).await;
        let upload = self.tidy(publication).await;
        machine.and(upload)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(config: serde_json::Value) -> Record {
        Record::new("pve", 9000.try_into().unwrap(), Fields::of(config).unwrap())
    }

    #[test]
    fn only_a_whole_template_with_both_lines_is_an_earlier_one_of_ours() {
        let ours = "agentlab-runner: 0.1.0\nagentlab-template: abc\nagentlab-build: 12";
        for (config, expected) in [
            (json!({"description": ours, "template": 1}), Standing::Earlier),
            (
                json!({"description": ours}),
                Standing::Unfinished("12".to_owned()),
            ),
            (
                json!({"description": "agentlab-runner: 0.1.0", "template": 1}),
                Standing::Foreign,
            ),
            (
                json!({"description": "our agentlab-template: x", "template": 1}),
                Standing::Foreign,
            ),
            (json!({"template": 1}), Standing::Foreign),
        ] {
            assert_eq!(standing(&record(config.clone())), expected, "{config}");
        }
    }

    #[test]
    fn an_upload_goes_to_the_own_storage_when_it_takes_one_and_never_to_one_that_is_off() {
        let storages = |list: serde_json::Value| Fields::list(list).unwrap();
        let both = storages(json!([
            {"storage": "fast", "content": "images,import", "active": 1},
            {"storage": "aaa", "content": "import,iso", "active": 1},
            {"storage": "off", "content": "import", "active": 0},
            {"storage": "zfs", "content": "images,rootdir", "active": 1},
        ]));
        assert_eq!(choose_upload_storage(&both, "fast").as_deref(), Some("fast"));
        assert_eq!(choose_upload_storage(&both, "zfs").as_deref(), Some("aaa"));
        let none = storages(json!([{"storage": "off", "content": "import", "active": 0}]));
        assert_eq!(choose_upload_storage(&none, "off"), None);
    }
}
