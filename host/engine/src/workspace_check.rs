//! Holds the records of workspaces against what the hypervisor has. Nothing is changed by it: what is on a volume may be
//! all that is left of somebody's work, so one without a record is shown until a person says what becomes of it.
//!
//! ```text
//!   start, then now and then ─► settle what an earlier process began ─► volumes without a workspace ─► alarm
//!   workspace check          ─► records against volumes and who has them, twice where they differ ─► findings
//!   workspace adopt          ─► a record for a volume that has none
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use agentlab_api::{
    ErrorCode, Problem, Vmid, WorkspaceAdopt, WorkspaceCheck, WorkspaceFinding, WorkspaceFindingKind,
    WorkspaceId, WorkspaceView,
};
use agentlab_backend::{BackendError, Volume, VolumeList};
use agentlab_store::{SandboxRecord, WorkspaceRecord, WorkspaceSnapshot, WorkspaceTask};
use tokio::time::{sleep, timeout};

use crate::engine::{Engine, store_problem};
use crate::event;
use crate::journal::Point;
use crate::sandbox::machine::State;
use crate::sandbox::perform::{backend_failure, chain};
use crate::shared::Shared;
use crate::workspace::{check_name, fresh, holder, select, view_of};
use crate::workspace_free::at_rest;
use crate::workspace_task::{id_in, volume_name};

/// Between two looks at volumes that nobody asked for.
const LOOK: Duration = Duration::from_secs(600);
/// Until the back end has answered for the first time.
const SETTLING: Duration = Duration::from_secs(2);
/// How long the hypervisor may take to say what there is.
const PATIENCE: Duration = Duration::from_secs(30);
const ORPHANS: &str = "Volumes without a workspace";
/// Of these, how many an alarm names.
const NAMED: usize = 5;
/// The selector of all.
const ALL: &str = "-";
const GIB: u64 = 1 << 30;

/// What the hypervisor has.
struct Found {
    list: VolumeList,
    holders: Vec<(String, Vmid)>,
}

/// Runs until the engine stops.
pub(crate) async fn run(engine: Weak<Engine>, shared: Arc<Shared>) {
    loop {
        let pause = match engine.upgrade().map(|engine| engine.is_settled()) {
            None => return,
            Some(false) => SETTLING,
            Some(true) => {
                tokio::select! {
                    () = shared.stop.cancelled() => return,
                    goes_on = look(&shared) => if !goes_on { return },
                }
                LOOK
            }
        };
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = sleep(pause) => {}
        }
    }
}

/// False where there are no volumes.
async fn look(shared: &Shared) -> bool {
    match shared.backend.settle_volumes().await {
        Ok(()) => {}
        Err(BackendError::Unsupported { .. }) => return false,
        Err(error) => tracing::warn!(error = %chain(&error), "volumes not settled yet"),
    }
    match orphans(shared).await {
        Ok(orphans) => tell(shared, &orphans).await,
        Err(problem) => tracing::warn!(reason = problem.detail, "volumes not looked at"),
    }
    true
}

/// Volumes that have no workspace now and had none a moment ago: one that is being removed is for a moment longer there
/// than its record.
async fn orphans(shared: &Shared) -> Result<Vec<Volume>, Problem> {
    let once = async || -> Result<Vec<Volume>, Problem> {
        // What a list shows was recorded before it was made.
        let list = volumes(shared).await?;
        let recorded = shared.store.workspaces().await;
        let recorded = recorded.map_err(|error| store_problem(&error))?;
        Ok(without_workspace(&recorded, &list).cloned().collect())
    };
    let mut orphans = once().await?;
    if !orphans.is_empty() {
        let still = once().await?;
        orphans.retain(|orphan| still.contains(orphan));
    }
    Ok(orphans)
}

async fn tell(shared: &Shared, orphans: &[Volume]) {
    let alarm = (!orphans.is_empty()).then(|| {
        let names: Vec<&str> = orphans.iter().take(NAMED).map(|one| one.id.as_str()).collect();
        let more = orphans.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!(
            "{ORPHANS}: {}{more}; each is left alone until you say what becomes of it, and `agentlab workspace check` \
             says how",
            names.join(", ")
        )
    });
    if alarm
        .as_ref()
        .is_some_and(|alarm| shared.alarms().contains(alarm))
    {
        return;
    }
    shared.clear(ORPHANS);
    let Some(alarm) = alarm else { return };
    tracing::warn!(alarm, "volumes without a workspace");
    shared.raise(&alarm);
    let told = shared.journal.commit(Point::Told, vec![event::host_alarm(alarm)]);
    if let Err(error) = told.await {
        tracing::error!(error = %chain(&error), "alarm could not be recorded");
    }
}

fn unanswered(error: &BackendError) -> Problem {
    let failure = backend_failure("Workspace", error);
    let mut problem = Problem::new(failure.code, failure.message).with_stage(failure.stage);
    problem.hint = failure.hint;
    problem
}

async fn answer<T>(asked: impl Future<Output = agentlab_backend::Result<T>>) -> Result<T, Problem> {
    match timeout(PATIENCE, asked).await {
        Ok(answer) => answer.map_err(|error| unanswered(&error)),
        Err(_) => Err(Problem::new(
            ErrorCode::BackendUnreachable,
            format!(
                "The back end did not say within {} s what volumes there are",
                PATIENCE.as_secs()
            ),
        )),
    }
}

async fn volumes(shared: &Shared) -> Result<VolumeList, Problem> {
    answer(shared.backend.volumes()).await
}

async fn found(shared: &Shared) -> Result<Found, Problem> {
    let list = volumes(shared).await?;
    let holders = answer(shared.backend.volume_holders()).await?;
    Ok(Found { list, holders })
}

/// Volumes in a list that no workspace has, or is about to have.
fn without_workspace<'a>(
    recorded: &'a [WorkspaceRecord],
    list: &'a VolumeList,
) -> impl Iterator<Item = &'a Volume> {
    let by_id: HashMap<WorkspaceId, &WorkspaceRecord> =
        recorded.iter().map(|record| (record.id, record)).collect();
    // PVE names a copy, and what it moves, itself, and our note of that comes after.
    let is_naming = recorded.iter().any(|record| {
        matches!(
            record.task,
            Some(WorkspaceTask::Copy { .. } | WorkspaceTask::Move { .. })
        )
    });
    list.volumes.iter().filter(move |volume| {
        if recorded
            .iter()
            .any(|record| record.volume.as_ref() == Some(&volume.id))
        {
            return false;
        }
        let Some(name) = volume.name.as_deref() else {
            return !is_naming;
        };
        let its = id_in(name).and_then(|id| by_id.get(&id));
        its.is_none_or(|record| record.task.is_none())
    })
}

/// Compares the workspaces that were asked for.
fn compare(
    selected: &[WorkspaceRecord],
    live: &[SandboxRecord],
    found: &Found,
    owns: impl Fn(&str) -> bool,
) -> Vec<WorkspaceFinding> {
    let mut findings = Vec::new();
    for record in selected {
        // What is being worked on is not as it is recorded.
        if let (Some(volume), None, None) = (&record.volume, &record.task, &record.rebind) {
            let about = About { record, volume };
            if owns(volume) {
                findings.extend(about.place(found));
                findings.extend(about.holders(live, found));
            } else {
                findings.push(about.foreign());
            }
        }
    }
    findings
}

/// A workspace with its volume.
struct About<'a> {
    record: &'a WorkspaceRecord,
    volume: &'a str,
}

impl About<'_> {
    fn finding(&self, kind: WorkspaceFindingKind, detail: String, hint: String) -> WorkspaceFinding {
        WorkspaceFinding {
            kind,
            wrong: true,
            workspace: Some(self.record.name.clone()),
            volume: self.volume.to_owned(),
            detail,
            hint,
        }
    }

    fn foreign(&self) -> WorkspaceFinding {
        let detail =
            "its volume is not one that this daemon keeps, and is neither attached nor removed".to_owned();
        let hint = "on Proxmox VE: is `proxmox_volume_vmid` another one than when it was made?".to_owned();
        self.finding(WorkspaceFindingKind::Foreign, detail, hint)
    }

    /// Whether the volume is there, and as large as it should be.
    fn place(&self, found: &Found) -> Option<WorkspaceFinding> {
        let Some(volume) = found.list.volumes.iter().find(|one| one.id == self.volume) else {
            return Some(self.missing(found));
        };
        let wanted = u64::from(self.record.size_gb) * GIB;
        let has = volume.bytes.div_ceil(GIB);
        let name = &self.record.name;
        match volume.bytes.cmp(&wanted) {
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Less => Some(WorkspaceFinding {
                wrong: false,
                ..self.finding(
                    WorkspaceFindingKind::SizeDiffers,
                    format!("it has {has} GiB, and {} were asked for", self.record.size_gb),
                    "it grows when a sandbox has it next".to_owned(),
                )
            }),
            std::cmp::Ordering::Greater => Some(self.finding(
                WorkspaceFindingKind::SizeDiffers,
                format!("it has {has} GiB, and {} were recorded", self.record.size_gb),
                format!("`agentlab workspace resize {name} {has}G` records what it has"),
            )),
        }
    }

    fn missing(&self, found: &Found) -> WorkspaceFinding {
        let name = &self.record.name;
        if !found.list.unread.is_empty() {
            let detail = "its volume was not found, and not everything could be looked at".to_owned();
            let hint = "ask again when all storages answer; until then nothing follows from it".to_owned();
            return self.finding(WorkspaceFindingKind::VolumeUnread, detail, hint);
        }
        let own_name = volume_name(self.record.id);
        let mut there = found.list.volumes.iter();
        let moved = there.find(|one| one.name.as_deref() == Some(&own_name));
        let hint = match moved {
            Some(moved) => format!(
                "{} was made for it: `agentlab workspace adopt {name} {}` gives it back",
                moved.id, moved.id
            ),
            None => format!(
                "bring the volume back, as from a backup of its storage; or forget the workspace: \
                 `agentlab workspace delete {name} --yes`"
            ),
        };
        let detail = "the hypervisor has no such volume".to_owned();
        self.finding(WorkspaceFindingKind::VolumeMissing, detail, hint)
    }

    fn holders(&self, live: &[SandboxRecord], found: &Found) -> Vec<WorkspaceFinding> {
        let by_record = holder(live, self.record.id);
        let has_it = |vmid: Vmid| by_record.is_some_and(|sandbox| sandbox.vmid == vmid);
        let holding = || {
            let holders = found.holders.iter();
            holders
                .filter(|(held, _)| held == self.volume)
                .map(|(_, vmid)| *vmid)
        };
        let elsewhere = holding().filter(|vmid| !has_it(*vmid)).map(|vmid| {
            self.finding(
                WorkspaceFindingKind::AttachedElsewhere,
                format!("VM {vmid} has its volume, which no record says"),
                format!(
                    "two machines that write one volume destroy what is on it: look at VM {vmid}, and detach it there"
                ),
            )
        });
        let mut findings: Vec<WorkspaceFinding> = elsewhere.collect();
        if let Some(sandbox) = by_record
            && State::of(sandbox).is_up()
            && !holding().any(has_it)
        {
            findings.push(self.finding(
                WorkspaceFindingKind::NotAttached,
                format!("sandbox {} runs and should have it, and does not", sandbox.vmid),
                format!(
                    "what is written to /work there is lost with the sandbox: `agentlab sandbox stop {0}`, then \
                     `agentlab sandbox start {0}`",
                    sandbox.vmid
                ),
            ));
        }
        findings
    }
}

fn orphaned(volume: &Volume, holders: &[(String, Vmid)]) -> WorkspaceFinding {
    let gib = volume.bytes.div_ceil(GIB);
    let made_for = match volume.name.as_deref().and_then(id_in) {
        Some(id) => format!("it was made for workspace {id}"),
        None => "nothing tells which workspace it was made for".to_owned(),
    };
    let held = holders.iter().find(|(held, _)| *held == volume.id);
    let hint = match held {
        Some((_, vmid)) => format!("VM {vmid} has it: detach it there, then adopt it"),
        None => format!(
            "`agentlab workspace adopt NAME {}` makes a workspace of it; what is not wanted then goes with \
             `agentlab workspace delete NAME --yes`",
            volume.id
        ),
    };
    WorkspaceFinding {
        kind: WorkspaceFindingKind::Orphan,
        wrong: true,
        workspace: None,
        volume: volume.id.clone(),
        detail: format!("a volume of {gib} GiB that belongs to no workspace; {made_for}"),
        hint,
    }
}

impl Engine {
    /// Compares one workspace, or with `-` all and what belongs to none, with what the hypervisor has. Nothing is changed.
    ///
    /// # Errors
    /// There is none, or the hypervisor does not answer.
    pub async fn check_workspaces(&self, selector: &str) -> Result<WorkspaceCheck, Problem> {
        self.accepting()?;
        let mut checked = self.compared(selector).await?;
        if !checked.findings.is_empty() {
            // A sandbox may have begun or ended between the questions.
            let again = self.compared(selector).await?;
            checked
                .findings
                .retain(|finding| again.findings.contains(finding));
        }
        Ok(checked)
    }

    async fn compared(&self, selector: &str) -> Result<WorkspaceCheck, Problem> {
        let shared = &self.shared;
        let found = found(shared).await?;
        let unread = |error| store_problem(&error);
        let recorded = shared.store.workspaces().await.map_err(unread)?;
        let live = shared.store.sandboxes(false).await.map_err(unread)?;
        let owns = |volume: &str| shared.backend.owns_volume(volume);
        let (compared, findings) = if selector == ALL {
            let mut findings = compare(&recorded, &live, &found, owns);
            let orphans = without_workspace(&recorded, &found.list);
            findings.extend(orphans.map(|volume| orphaned(volume, &found.holders)));
            (recorded.len(), findings)
        } else {
            let one = [select(shared, selector).await?];
            (1, compare(&one, &live, &found, owns))
        };
        Ok(WorkspaceCheck {
            compared,
            unread: found.list.unread,
            findings,
        })
    }

    /// Makes a workspace of a volume that belongs to none, or gives one back its volume; asked again, says what the file
    /// system on it is. No file system is ever made on it.
    ///
    /// # Errors
    /// There is no such volume, it belongs to another workspace, or a machine has it.
    pub async fn adopt_workspace(
        &self,
        name: &str,
        request: WorkspaceAdopt,
    ) -> Result<WorkspaceView, Problem> {
        self.accepting()?;
        check_name(name)?;
        let alone = self.shared.workspaces.alone().await;
        let found = found(&self.shared).await?;
        let volume = adoptable(&found, &request.volume)?;
        let recorded = self.shared.store.workspaces().await;
        let recorded = recorded.map_err(|error| store_problem(&error))?;
        let record = match recorded.iter().find(|record| record.name == name) {
            Some(record) => {
                at_rest(&self.shared, record).await?;
                given_back(record, volume, &found.list)?
            }
            None => self.adopted(name, volume, &recorded)?,
        };
        let record = WorkspaceRecord {
            file_system: request.file_system.unwrap_or(record.file_system),
            ..record
        };
        self.record_workspace(&record, "is adopted").await?;
        drop(alone);
        tracing::info!(workspace = %record.id, name, volume = volume.id, "volume adopted");
        look_again(&self.shared).await;
        view_of(&self.shared, record).await
    }

    fn adopted(
        &self,
        name: &str,
        volume: &Volume,
        recorded: &[WorkspaceRecord],
    ) -> Result<WorkspaceRecord, Problem> {
        if let Some(other) = owner(recorded, volume) {
            return Err(taken(volume, other));
        }
        let size_gb = u32::try_from(volume.bytes.div_ceil(GIB)).unwrap_or(u32::MAX);
        let fresh = fresh(&self.shared, name, size_gb, WorkspaceTask::Create);
        let made_for = volume.name.as_deref().and_then(id_in);
        let lost = made_for.filter(|id| recorded.iter().all(|record| record.id != *id));
        let now = self.shared.now();
        let snapshots = volume.snapshots.iter().map(|name| WorkspaceSnapshot {
            name: name.clone(),
            formatted: true,
            created_at: now,
        });
        Ok(WorkspaceRecord {
            id: lost.unwrap_or(fresh.id),
            volume: Some(volume.id.clone()),
            file_system: made_for.unwrap_or(fresh.file_system),
            // Whatever is on it stays: at worst its first guest says that there is nothing.
            formatted: true,
            snapshots: snapshots.collect(),
            task: None,
            ..fresh
        })
    }
}

/// The alarm says what is left, without the next look.
pub(crate) async fn look_again(shared: &Shared) {
    if let Ok(orphans) = orphans(shared).await {
        tell(shared, &orphans).await;
    }
}

fn owner<'a>(recorded: &'a [WorkspaceRecord], volume: &Volume) -> Option<&'a WorkspaceRecord> {
    recorded
        .iter()
        .find(|record| record.volume.as_ref() == Some(&volume.id))
}

fn taken(volume: &Volume, by: &WorkspaceRecord) -> Problem {
    let text = format!("{} is the volume of workspace `{}`", volume.id, by.name);
    Problem::new(ErrorCode::StateConflict, text)
        .with_hint("`agentlab workspace check` names those that belong to none")
}

fn adoptable<'a>(found: &'a Found, id: &str) -> Result<&'a Volume, Problem> {
    let shown: String = id.escape_debug().take(120).collect();
    let volume = found.list.volumes.iter().find(|volume| volume.id == id);
    let Some(volume) = volume else {
        let unread = &found.list.unread;
        let why = if unread.is_empty() {
            String::new()
        } else {
            format!(" ({})", unread.join("; "))
        };
        let text = format!("There is no volume `{shown}` of ours{why}");
        return Err(Problem::new(ErrorCode::NotFound, text)
            .with_hint("`agentlab workspace check` names those that belong to none"));
    };
    match found.holders.iter().find(|(held, _)| held == id) {
        Some((_, vmid)) => Err(
            Problem::new(ErrorCode::StateConflict, format!("VM {vmid} has {shown}"))
                .with_hint("detach it there first: one machine at a time has a volume"),
        ),
        None => Ok(volume),
    }
}

/// A workspace that is there already: its own volume, or the one that was made for it where its own is gone.
fn given_back(
    record: &WorkspaceRecord,
    volume: &Volume,
    list: &VolumeList,
) -> Result<WorkspaceRecord, Problem> {
    if record.volume.as_ref() == Some(&volume.id) {
        return Ok(record.clone());
    }
    let is_its = volume.name.as_deref().and_then(id_in) == Some(record.id);
    let has_one = list
        .volumes
        .iter()
        .any(|one| record.volume.as_ref() == Some(&one.id));
    if is_its && !has_one && list.unread.is_empty() {
        return Ok(WorkspaceRecord {
            volume: Some(volume.id.clone()),
            ..record.clone()
        });
    }
    let text = format!(
        "There is a workspace `{}` already, with another volume",
        record.name
    );
    Err(Problem::new(ErrorCode::StateConflict, text).with_hint("choose another name"))
}
