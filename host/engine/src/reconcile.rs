//! Compares what we think there is with what there is: at start and then regularly, one list call for everything.
//!
//! A disagreement is only a reason to look: the driver asks again itself, and decides. An answer that did not come
//! concludes nothing. What has no living record and provably was ours is taken away.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use agentlab_api::{SandboxId, Vmid, chain};
use agentlab_backend::{Machine, Stamp};
use agentlab_store::{SandboxRecord, StoreError};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::engine::Engine;
use crate::event;
use crate::journal::Point;
use crate::sandbox::inbox::Message;
use crate::sandbox::machine::State;
use crate::sandbox::perform::{seen, stamp_of};
use crate::sandbox::step::{Seen, Step};
use crate::shared::Shared;

/// How long the hypervisor may take to report what runs.
const ADOPT: Duration = Duration::from_secs(60);
const LIST: Duration = Duration::from_secs(30);
/// How long the bundle of an ended job stays, for a next job with the same code.
const BUNDLE: Duration = Duration::from_secs(600);
const FOREIGN: &str = "A machine carries a stamp of unknown origin";

/// Runs until the engine stops.
pub(crate) async fn run(engine: Weak<Engine>, shared: Arc<Shared>) {
    let mut suspects = HashSet::new();
    let mut swept = false;
    loop {
        match engine.upgrade() {
            None => return,
            Some(engine) if !engine.is_settled() => settle_late(&engine).await,
            Some(_) => {}
        }
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = once(&shared, &mut suspects) => {}
        }
        if !swept {
            let all = tokio::select! {
                () = shared.stop.cancelled() => return,
                all = sweep_all(&shared) => all,
            };
            swept = all.is_ok();
            if let Err(error) = all {
                tracing::warn!(error = %chain(&error), "files not compared with their records yet");
            }
        }
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(shared.settings.reconcile_interval) => {}
        }
    }
}

/// The back end could not be reached at start.
async fn settle_late(engine: &Engine) {
    let taken_up = async {
        match crate::recover::adopt(&engine.shared, ADOPT).await {
            Ok(true) => crate::recover::take_up(&engine.shared)
                .await
                .map_err(|error| chain(&error)),
            Ok(false) => Err("unreachable".to_owned()),
            Err(error) => Err(chain(&error)),
        }
    };
    match taken_up.await {
        Ok(()) => engine.settle(),
        Err(reason) => tracing::warn!(%reason, "still not taken up"),
    }
}

async fn once(shared: &Arc<Shared>, suspects: &mut HashSet<Vmid>) {
    // Lists first, records afterwards: what a list shows was recorded before it was made.
    let (machines, ports) = tokio::join!(
        timeout(LIST, shared.backend.list()),
        timeout(LIST, shared.network.attached()),
    );
    let records = match shared.store.sandboxes(false).await {
        Ok(records) => records,
        Err(error) => {
            tracing::error!(error = %chain(&error), "records cannot be read");
            return;
        }
    };
    match machines {
        Ok(Ok(machines)) => {
            crate::recover::reached(shared).await;
            compare(shared, &machines, &records).await;
            remove_orphans(shared, &machines, &records).await;
        }
        Ok(Err(error)) => unreached(shared, &chain(&error)).await,
        Err(_) => unreached(shared, &format!("no answer within {} s", LIST.as_secs())).await,
    }
    match ports {
        Ok(Ok(ports)) => detach_orphans(shared, &ports, &records, suspects).await,
        Ok(Err(error)) => tracing::warn!(%error, "ports cannot be listed"),
        Err(_) => tracing::warn!("ports were not listed in time"),
    }
    crate::room::keep(shared, &records).await;
    remove_bundles(shared).await;
    sweep(shared).await;
}

async fn unreached(shared: &Shared, reason: &str) {
    if crate::recover::unreached(shared, reason) {
        let text = format!("The back end cannot be reached: {reason}");
        let told = shared.journal.commit(Point::Told, vec![event::host_alarm(text)]);
        if let Err(error) = told.await {
            tracing::error!(error = %chain(&error), "alarm could not be recorded");
        }
    }
}

/// Nudges the drivers whose machine is not what their record says; a record without a living driver gets one.
async fn compare(shared: &Arc<Shared>, machines: &[Machine], records: &[SandboxRecord]) {
    let by_vmid: HashMap<Vmid, &Machine> = machines.iter().map(|machine| (machine.vmid, machine)).collect();
    let mut lost = false;
    for record in records {
        let state = State::of(record);
        if state == State::Destroyed {
            continue;
        }
        let Some(handle) = shared
            .driver(record.id)
            .filter(|handle| !handle.inbox.is_closed())
        else {
            lost = true;
            continue;
        };
        let found = seen(by_vmid.get(&record.vmid).copied(), &stamp_of(record));
        let agrees = match found {
            Seen::Unreadable | Seen::Unknown => true,
            Seen::Running => state != State::Stopped,
            Seen::Stopped => !state.is_up(),
            Seen::Absent => !state.is_up() && state != State::Stopped,
        };
        if !agrees {
            handle.order(Message::Look);
        }
    }
    if lost {
        tracing::warn!("a live sandbox had no driver; it gets one");
        if let Err(error) = crate::recover::take_up(shared).await {
            tracing::error!(error = %chain(&error), "records cannot be read");
        }
    }
}

/// Destroys machines that were ours and no longer have a living record, each call on its own. A stamp we never
/// gave out belongs to another daemon: it is shown, and left alone.
async fn remove_orphans(shared: &Arc<Shared>, machines: &[Machine], records: &[SandboxRecord]) {
    let live: HashMap<SandboxId, &SandboxRecord> = records.iter().map(|record| (record.id, record)).collect();
    let mut removals = JoinSet::new();
    shared.clear(FOREIGN);
    for machine in machines {
        let Some(stamp) = &machine.stamp else { continue };
        let nonce = match live.get(&stamp.sandbox) {
            Some(record) if record.vmid == machine.vmid && State::of(record).holds_something() => continue,
            Some(record) => Some(record.nonce.clone()),
            None => match shared.store.sandbox(stamp.sandbox).await {
                Ok(past) => past.map(|record| record.nonce),
                Err(_) => continue,
            },
        };
        if nonce.as_ref() == Some(&stamp.nonce) {
            removals.spawn(remove(shared.clone(), machine.vmid, stamp.clone()));
        } else {
            shared.raise(&format!(
                "{FOREIGN}: VM {}, {stamp}; it is left alone",
                machine.vmid
            ));
        }
    }
    while removals.join_next().await.is_some() {}
}

async fn remove(shared: Arc<Shared>, vmid: Vmid, stamp: Stamp) {
    tracing::warn!(%vmid, sandbox = %stamp.sandbox, "machine without a living record; destroying it");
    let call = async {
        shared.backend.power_off(vmid, &stamp).await?;
        shared.backend.destroy(vmid, &stamp).await
    };
    match timeout(Step::Clone.undo_deadline(&shared.settings), call).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%vmid, error = %chain(&error), "orphan not destroyed yet"),
        Err(_) => tracing::warn!(%vmid, "orphan not destroyed in time"),
    }
}

/// Detaches ports that belonged to nobody in two rounds running. A port carries no stamp: between list and detach
/// its VMID could have been given to somebody new, who then had no record a whole round earlier.
async fn detach_orphans(
    shared: &Arc<Shared>,
    ports: &[Vmid],
    records: &[SandboxRecord],
    suspects: &mut HashSet<Vmid>,
) {
    let lives = |vmid: &Vmid| {
        records
            .iter()
            .any(|record| record.vmid == *vmid && State::of(record).holds_something())
    };
    let orphans: HashSet<Vmid> = ports.iter().copied().filter(|vmid| !lives(vmid)).collect();
    for vmid in orphans.intersection(suspects) {
        if shared.is_driven(*vmid) {
            continue;
        }
        tracing::warn!(%vmid, "port without a living record; detaching it");
        match timeout(LIST, shared.network.detach(*vmid)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%vmid, %error, "orphaned port not detached yet"),
            Err(_) => tracing::warn!(%vmid, "orphaned port not detached in time"),
        }
    }
    *suspects = orphans;
}

/// Removes what is on disk of jobs that ended without being theirs: files that had arrived in part, or whole and without
/// a record.
async fn sweep(shared: &Shared) {
    for id in shared.take_unswept() {
        let swept = async {
            let job = shared.store.job(&id).await?;
            if job.is_some_and(|job| job.state.is_final()) {
                let files = shared.store.files();
                files
                    .remove_interrupted(&id, Duration::ZERO, shared.now())
                    .await?;
            }
            Ok(())
        };
        if let Err::<(), StoreError>(error) = swept.await {
            tracing::warn!(job = %id, error = %chain(&error), "interrupted uploads not removed yet");
            shared.sweep_again(id);
        }
    }
    shared.remove_unrecorded().await;
}

/// The process before this one may have ended between a file and its record, or between the end of a job and what goes
/// with it.
async fn sweep_all(shared: &Shared) -> Result<(), StoreError> {
    let artifacts = shared.store.compare_artifacts().await?;
    let uploads = crate::retention::interrupted(shared, shared.now()).await?;
    if artifacts > 0 || uploads > 0 {
        tracing::info!(artifacts, uploads, "removed files that were never recorded");
    }
    Ok(())
}

/// Removes bundles of jobs that ended a while ago, unless another job still needs them.
async fn remove_bundles(shared: &Shared) {
    let ripe = shared.take_unneeded(BUNDLE);
    if ripe.is_empty() {
        return;
    }
    let _nobody_begins = shared.bundles.lock().await;
    let Ok(jobs) = shared.store.unfinished_jobs().await else {
        return;
    };
    for sha256 in ripe {
        let needed = jobs.iter().any(|job| {
            matches!(&job.repository, agentlab_api::RepositorySource::Bundle { sha256: used, .. } if *used == sha256)
        });
        if !needed && let Err(error) = shared.store.files().remove_bundle(&sha256).await {
            tracing::warn!(%sha256, error = %chain(&error), "bundle not removed");
        }
    }
}
