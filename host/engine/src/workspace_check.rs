//! Holds the records of workspaces against what the hypervisor has. Nothing is changed by it: what is on a volume may be
//! all that is left of somebody's work, so one without a record is shown until a person says what becomes of it.
//!
//! ```text
//!   start, then now and then ─► settle what an earlier process began ─► volumes without a workspace ─► alarm
//!   workspace check          ─► records against volumes and who has them, twice where they differ ─► findings
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use agentlab_api::{
    ErrorCode, Problem, Vmid, WorkspaceCheck, WorkspaceFinding, WorkspaceFindingKind, WorkspaceId, chain,
};
use agentlab_backend::{BackendError, Volume, VolumeList};
use agentlab_store::{SandboxRecord, WorkspaceRecord, WorkspaceTask};
use tokio::time::{sleep, timeout};

use crate::engine::{Engine, store_problem};
use crate::event;
use crate::journal::Point;
use crate::sandbox::machine::State;
use crate::sandbox::perform::backend_failure;
use crate::shared::Shared;
use crate::workspace::{holder, select};
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
pub(crate) const GIB: u64 = 1 << 30;

/// What the hypervisor has.
pub(crate) struct Found {
    pub(crate) list: VolumeList,
    pub(crate) holders: Vec<(String, Vmid)>,
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

pub(crate) async fn found(shared: &Shared) -> Result<Found, Problem> {
    let list = volumes(shared).await?;
    let holders = answer(shared.backend.volume_holders()).await?;
    Ok(Found { list, holders })
}

/// Volumes in a list that no workspace has, or is about to have.
pub(crate) fn without_workspace<'a>(
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
}

/// The alarm says what is left, without the next look.
pub(crate) async fn look_again(shared: &Shared) {
    if let Ok(orphans) = orphans(shared).await {
        tell(shared, &orphans).await;
    }
}
