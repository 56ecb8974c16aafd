//! Publishing: an image that boots by itself becomes a template on a Proxmox VE node, or nothing of it stays there.
//!
//! ```text
//!   image ─► [qcow2, where it is uploaded] ─► journal ─► publish ─► journal gone
//!                                                └ failed, interrupted, or found by the next run: taken back
//! ```
//!
//! The journal is a file in the store, written before the node is asked for anything, because a process that is killed
//! cannot tidy up: whoever publishes next does it for it.

mod settings;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agentlab_api::Vmid;
use agentlab_backend::{NewTemplate, Publication, Publisher};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::error::{During, Result, TemplateError};
use crate::fingerprint;
use crate::progress::{Progress, Step};
use crate::store::{BUILDING, StoreLock, Template, TemplateStore, read_dir};
use crate::tool::{Call, Toolbox, Workshop};

pub use settings::{Node, Way};

/// Start of a journal's name.
const JOURNAL: &str = ".publishing-";

/// What to make on the node.
#[derive(Debug)]
pub struct Order<'a> {
    /// The image.
    pub template: &'a Template,
    /// The number it gets.
    pub vmid: Vmid,
    /// Storage of its disk.
    pub storage: &'a str,
    /// Bridge of its NIC.
    pub bridge: &'a str,
    /// Whether our earlier template of that number may go for it.
    pub replace: bool,
    /// Programs to use.
    pub tools: &'a Toolbox,
}

/// A journal, as it lies in the store.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Noted {
    vmid: Vmid,
    mark: String,
    upload: Option<(String, String)>,
}

/// Publishes, and says under which number the template is there now.
///
/// # Errors
/// When the node refuses or cannot be reached, or it is interrupted. Nothing of it is on the node then, unless the error
/// says what.
pub fn publish(
    store: &TemplateStore,
    publisher: &Arc<dyn Publisher>,
    order: &Order<'_>,
    progress: &mut Progress,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .during("start a runtime for", store.dir())?;
    let lock = store.lock()?;
    for journal in journals(store)? {
        progress.say(&format!("  taking back what {} tells of", journal.display()));
        let noted = read(&journal)?;
        runtime.block_on(publisher.take_back(&noted.publication()))?;
        fs::remove_file(&journal).during("remove", &journal)?;
    }
    let mut wanted = new_template(order);
    // Before the disk is packed, which takes a while.
    let publication = runtime.block_on(publisher.prepare(&wanted))?;
    let scratch = tempfile::Builder::new().prefix(BUILDING).tempdir_in(store.dir());
    let scratch = scratch.during("make a work directory in", store.dir())?;
    if publisher.uploads() {
        wanted.disk = progress.step(Step::Pack, "", || pack(order, scratch.path(), &lock))?;
        wanted.disk_sha256 = fingerprint::of_file(&wanted.disk)?.0;
    }
    let journal = note(store, &publication)?;
    let detail = format!("VM {} on storage {}", order.vmid, order.storage);
    progress.step(Step::Send, &detail, || {
        let ended = runtime.block_on(uninterrupted(publisher.publish(&wanted, &publication)));
        match ended {
            Ok(()) => Ok(()),
            Err(error) => Err(taken_back(&runtime, publisher, (&publication, &journal), error)),
        }
    })?;
    if let Err(error) = runtime.block_on(publisher.tidy(&publication)) {
        let (storage, file) = publication.upload.clone().unwrap_or_default();
        progress.say(&format!(
            "warning: {storage}:import/{file} is not needed any more and stays: {error}"
        ));
    }
    fs::remove_file(&journal).during("remove", &journal)
}

fn new_template(order: &Order<'_>) -> NewTemplate {
    let manifest = &order.template.manifest;
    NewTemplate {
        vmid: order.vmid,
        name: manifest.name.replace('.', "-"),
        disk: order.template.dir.join(&manifest.disk.file),
        disk_sha256: String::new(),
        image_id: manifest.id.clone(),
        runner_version: manifest.runner.version.clone(),
        storage: order.storage.to_owned(),
        bridge: order.bridge.to_owned(),
        replace: order.replace,
    }
}

/// Sparse in a format of its own: a fifth of the bytes to send.
fn pack(order: &Order<'_>, scratch: &Path, lock: &StoreLock) -> Result<PathBuf> {
    let packed = scratch.join("disk.qcow2");
    let raw = order.template.dir.join(&order.template.manifest.disk.file);
    let arguments = ["convert", "-f", "raw", "-O", "qcow2", "-c"].map(str::to_owned);
    let files = [raw.display().to_string(), packed.display().to_string()];
    Call {
        program: &order.tools.qemu_img,
        package: "qemu-utils",
        arguments: arguments.into_iter().chain(files).collect(),
        environment: Vec::new(),
    }
    .run(&Workshop {
        tools: order.tools,
        scratch,
        lock,
    })?;
    Ok(packed)
}

/// Ends early when somebody wants us to end, so that there is time to take everything back.
async fn uninterrupted(work: impl Future<Output = agentlab_backend::Result<()>>) -> Result<()> {
    let signals = Path::new("signals");
    let mut terminate = signal(SignalKind::terminate()).during("wait for", signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).during("wait for", signals)?;
    tokio::select! {
        ended = work => Ok(ended?),
        _ = terminate.recv() => Err(TemplateError::Interrupted),
        _ = interrupt.recv() => Err(TemplateError::Interrupted),
    }
}

/// The error to show, after everything was taken back; or the two of them, and then the journal stays.
fn taken_back(
    runtime: &Runtime,
    publisher: &Arc<dyn Publisher>,
    (publication, journal): (&Publication, &Path),
    error: TemplateError,
) -> TemplateError {
    match runtime.block_on(publisher.take_back(publication)) {
        Ok(()) => match fs::remove_file(journal).during("remove", journal) {
            Ok(()) => error,
            Err(other) => other,
        },
        Err(left) => TemplateError::LeftBehind {
            vmid: publication.vmid.to_string(),
            mark: publication.mark.clone(),
            error: Box::new(error),
            reason: left.to_string(),
        },
    }
}

impl Noted {
    fn publication(self) -> Publication {
        Publication {
            vmid: self.vmid,
            mark: self.mark,
            upload: self.upload,
        }
    }
}

fn journals(store: &TemplateStore) -> Result<Vec<PathBuf>> {
    let names = read_dir(store.dir())?;
    let ours = names.iter().filter(|name| name.starts_with(JOURNAL));
    Ok(ours.map(|name| store.dir().join(name)).collect())
}

fn read(journal: &Path) -> Result<Noted> {
    let bytes = fs::read(journal).during("read", journal)?;
    serde_json::from_slice(&bytes)
        .map_err(std::io::Error::from)
        .during("understand", journal)
}

/// Whole or not at all, and on the disk before the node is asked.
fn note(store: &TemplateStore, publication: &Publication) -> Result<PathBuf> {
    let path = store.dir().join(format!("{JOURNAL}{}", publication.mark));
    let noted = Noted {
        vmid: publication.vmid,
        mark: publication.mark.clone(),
        upload: publication.upload.clone(),
    };
    let mut file = tempfile::NamedTempFile::with_prefix_in(BUILDING, store.dir())
        .during("make a file in", store.dir())?;
    let bytes = crate::manifest::to_json(&noted)?;
    file.write_all(&bytes)
        .and_then(|()| file.as_file().sync_all())
        .during("write", &path)?;
    file.persist(&path)
        .map_err(|refused| refused.error)
        .during("write", &path)?;
    File::open(store.dir())
        .and_then(|opened| opened.sync_all())
        .during("flush", store.dir())?;
    Ok(path)
}

#[cfg(test)]
mod tests;
