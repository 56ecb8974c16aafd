//! What a job can live through, told so that it goes on after any interruption: an operator and a guest who ask again
//! until they are answered, as the command line and the runner do.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use agentlab_api::{ErrorCode, EventKind, JobRequest, JobState, JobView, LogStream, SandboxState};
use agentlab_backend::BackendError;
use agentlab_backend::fake::Call;
use agentlab_protocol::message::ReportStatus;
use agentlab_store::EventFilter;
use tokio::time::{sleep, timeout};

use super::lab::{Lab, request, vmid};
use super::story_guest::{Known, LINES, guest};
use super::workspace;
use crate::IdleRules;
use crate::sandbox::machine::Request;

pub(super) const PACE: Duration = Duration::from_millis(50);
/// Longest story, in its own time.
const PATIENCE: Duration = Duration::from_secs(4 * 3600);

/// How a job goes when nobody disturbs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Story {
    /// The agent does its work.
    Completes,
    /// The agent ends with a status of its own.
    AgentFails,
    /// The hypervisor refuses a step, whenever it is asked.
    StepFails,
    /// The guest never speaks.
    BootFails,
    /// The machine stops under its job.
    MachineDies,
    /// An operator destroys the sandbox under its job.
    Destroyed,
    /// An operator cancels the job.
    Cancelled,
    /// Its lease ends under it.
    LeaseEnds,
    /// The sandbox outlives its job, until an operator destroys it.
    Kept,
    /// The first VMID turns out to be somebody else's.
    Taken,
    /// The machine does not go when it is told to, for a while.
    Stubborn,
    /// There is no place for the job until another one has ended.
    Waits,
    /// The sandbox outlives its job; an operator stops and starts it, pauses it, lets it go on, renews its lease, and
    /// leaves it alone until it is stopped for that.
    Used,
    /// Its work lies on a workspace, which outlives it.
    Lasting,
    /// An operator destroys the sandbox under a job on a workspace.
    Parted,
}

impl Story {
    pub(super) const ALL: [Self; 15] = [
        Self::Completes,
        Self::AgentFails,
        Self::StepFails,
        Self::BootFails,
        Self::MachineDies,
        Self::Destroyed,
        Self::Cancelled,
        Self::LeaseEnds,
        Self::Kept,
        Self::Taken,
        Self::Stubborn,
        Self::Waits,
        Self::Used,
        Self::Lasting,
        Self::Parted,
    ];

    /// What the world must be like for it.
    pub(super) fn prepare(self, lab: &mut Lab) {
        match self {
            // A disk that would have to shrink.
            Self::StepFails => lab.profile["storage"] = serde_json::json!({"root_size_gb": 1}),
            Self::Taken => {
                let conflict = BackendError::Conflict {
                    vmid: vmid(1000),
                    reason: "somebody was quicker".into(),
                };
                lab.backend.fail_next(Call::CloneTemplate, conflict);
            }
            Self::Stubborn => {
                for _ in 0..2 {
                    let unreachable = BackendError::Unreachable {
                        backend: "fake",
                        action: "destroy",
                        reason: "cable cut".into(),
                    };
                    lab.backend.fail_next(Call::Destroy, unreachable);
                }
                lab.backend.hand_out_tasks();
            }
            Self::Waits => lab.settings.max_sandboxes = 1,
            // A hypervisor that goes on with what a killed process has begun.
            Self::Completes => lab.backend.hand_out_tasks(),
            Self::Used => {
                lab.settings.idle = Some(IdleRules {
                    interval: Duration::from_secs(10),
                    window: Duration::from_secs(40),
                    cpu_share: 0.05,
                });
            }
            Self::AgentFails
            | Self::BootFails
            | Self::MachineDies
            | Self::Destroyed
            | Self::Cancelled
            | Self::LeaseEnds
            | Self::Kept
            | Self::Lasting
            | Self::Parted => {}
        }
    }

    /// How the job ends, and where when it did not complete.
    pub(super) fn end(self) -> (JobState, Option<(ErrorCode, &'static str)>) {
        match self {
            Self::Completes
            | Self::Kept
            | Self::Taken
            | Self::Stubborn
            | Self::Waits
            | Self::Used
            | Self::Lasting => (JobState::Completed, None),
            Self::AgentFails => (JobState::Failed, Some((ErrorCode::AgentFailed, "Agent"))),
            Self::StepFails => (JobState::Failed, Some((ErrorCode::BackendFailed, "Configure"))),
            Self::BootFails => (JobState::Failed, Some((ErrorCode::GuestSilent, "AwaitGuest"))),
            Self::MachineDies => (JobState::Failed, Some((ErrorCode::SandboxLost, ""))),
            Self::Destroyed | Self::Cancelled | Self::Parted => {
                (JobState::Cancelled, Some((ErrorCode::Cancelled, "")))
            }
            Self::LeaseEnds => (JobState::Timeout, Some((ErrorCode::AgentTimeout, "Lease"))),
        }
    }

    fn request(self) -> JobRequest {
        JobRequest {
            ttl_minutes: (self == Self::LeaseEnds).then_some(1),
            keepalive: Some(matches!(self, Self::Kept | Self::Used)),
            workspace: self.has_workspace().then(|| workspace::NAME.to_owned()),
            ..request()
        }
    }

    pub(super) fn has_workspace(self) -> bool {
        matches!(self, Self::Lasting | Self::Parted)
    }

    /// Whether the guest has a last word.
    pub(super) fn reports(self) -> Option<(ReportStatus, u8)> {
        match self {
            Self::Completes
            | Self::Kept
            | Self::Taken
            | Self::Stubborn
            | Self::Waits
            | Self::Used
            | Self::Lasting => Some((ReportStatus::Completed, 0)),
            Self::AgentFails => Some((ReportStatus::Failed, 7)),
            Self::Cancelled => Some((ReportStatus::Cancelled, 143)),
            Self::StepFails
            | Self::BootFails
            | Self::MachineDies
            | Self::Destroyed
            | Self::Parted
            | Self::LeaseEnds => None,
        }
    }
}

/// What operator and guest remember. It outlives every daemon.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) job: RefCell<Option<JobView>>,
    /// Errands that are done.
    errands: Cell<usize>,
    pub(super) guest: RefCell<Known>,
}

/// Lives through the story, from wherever it stands, to its end.
pub(super) async fn tell(lab: &Lab, story: Story, memory: &Memory) {
    let whole = async {
        tokio::select! {
            () = operator(lab, story, memory) => {}
            () = guest(lab, story, memory) => {}
        }
    };
    if timeout(PATIENCE, whole).await.is_err() {
        let job = memory.job.borrow().clone().unwrap();
        panic!(
            "{story:?} does not end: {:#?}\n{:#?}\n{:#?}\n{:#?}",
            lab.job(&job.id).await,
            lab.record(&job).await,
            lab.messages(&job).await,
            memory.guest.borrow()
        );
    }
}

async fn operator(lab: &Lab, story: Story, memory: &Memory) {
    if story.has_workspace() && memory.job.borrow().is_none() {
        workspace::make(lab).await;
    }
    let ahead = if story == Story::Waits {
        Some(ask(lab, story, "ahead").await)
    } else {
        None
    };
    let job = ask(lab, story, "key").await;
    memory.job.replace(Some(job.clone()));
    let mut asked = false;
    while !asked && !lab.job(&job.id).await.state.is_final() {
        let works = memory.guest.borrow().next > 4;
        asked = works
            && match story {
                Story::Destroyed | Story::Parted => {
                    let id = job.sandbox.unwrap().to_string();
                    lab.engine().destroy_sandbox(&id, false).await.is_ok()
                }
                Story::Cancelled => lab.engine().cancel_job(&job.id).await.is_ok(),
                Story::MachineDies => {
                    lab.backend.stop(vmid(1000));
                    true
                }
                Story::Taken
                | Story::Stubborn
                | Story::Waits
                | Story::Completes
                | Story::AgentFails
                | Story::StepFails
                | Story::BootFails
                | Story::LeaseEnds
                | Story::Kept
                | Story::Used
                | Story::Lasting => true,
            };
        sleep(PACE).await;
    }
    while !lab.job(&job.id).await.state.is_final() {
        sleep(PACE * 10).await;
    }
    for job in ahead.into_iter().chain([lab.job(&job.id).await]) {
        let job = lab.job(&job.id).await;
        assert!(job.state.is_final(), "{job:#?}");
        if story == Story::Used {
            run_errands(lab, &job, memory).await;
        }
        gone(lab, &job).await;
    }
    if story.has_workspace() {
        workspace::remove(lab).await;
    }
    // Gives reconciliation its turn.
    sleep(lab.settings.reconcile_interval * 4).await;
}

/// The command line repeats a request under the same key.
async fn ask(lab: &Lab, story: Story, key: &str) -> JobView {
    loop {
        match lab.engine().create_job(story.request(), Some(key.into())).await {
            Ok(job) => return job,
            Err(_) => sleep(PACE).await,
        }
    }
}

/// What an operator asks for, and how he sees that it is done.
const ERRANDS: [(Option<Request>, SandboxState); 6] = [
    (Some(Request::Stop), SandboxState::Stopped),
    (Some(Request::Start), SandboxState::Running),
    (Some(Request::Suspend), SandboxState::Suspended),
    (Some(Request::Resume), SandboxState::Running),
    (Some(Request::Renew { minutes: 90 }), SandboxState::Running),
    // He goes, and does not come back.
    (None, SandboxState::Stopped),
];

/// Asks again until it is so.
async fn run_errands(lab: &Lab, job: &JobView, memory: &Memory) {
    let id = job.sandbox.unwrap().to_string();
    while let Some((request, state)) = ERRANDS.get(memory.errands.get()) {
        let asked = match request {
            Some(request) => lab.engine().change_sandbox(&id, request.clone()).await.is_ok(),
            None => true,
        };
        if asked {
            while lab.record(job).await.state != *state {
                sleep(PACE).await;
            }
            memory.errands.set(memory.errands.get() + 1);
        }
        sleep(PACE).await;
    }
}

/// A failed sandbox, and one that is kept, stay until somebody says that they may go.
async fn gone(lab: &Lab, job: &JobView) {
    let id = job.sandbox.unwrap().to_string();
    loop {
        match lab.record(job).await.state {
            SandboxState::Destroyed => return,
            SandboxState::Failed | SandboxState::Ready | SandboxState::Running | SandboxState::Stopped => {
                let at_rest = lab.record(job).await;
                if !at_rest.unwinding || at_rest.cursor.is_empty() {
                    drop(lab.engine().destroy_sandbox(&id, false).await);
                }
            }
            SandboxState::Requested
            | SandboxState::Provisioning
            | SandboxState::Booting
            | SandboxState::Suspended
            | SandboxState::Timeout => {}
        }
        sleep(PACE).await;
    }
}

/// The job ended like this, and nothing is left of it.
pub(super) async fn judge_as(
    lab: &Lab,
    memory: &Memory,
    state: JobState,
    cause: Option<(ErrorCode, &str)>,
) -> JobView {
    let job = memory.job.borrow().clone().unwrap();
    let ended = lab.job(&job.id).await;
    let job = ended.clone();
    let seen = || format!("{ended:#?}\n{:#?}", memory.guest.borrow());
    assert_eq!(ended.state, state, "{}", seen());
    match (&ended.failure, cause) {
        (None, None) => {}
        (Some(failure), Some((code, stage))) => {
            assert_eq!(failure.code, code, "{}", seen());
            assert!(stage.is_empty() || failure.stage == stage, "{}", seen());
            assert!(
                !failure.message.is_empty() && !failure.stage.is_empty(),
                "{}",
                seen()
            );
        }
        _ => panic!("{}", seen()),
    }
    lab.assert_empty().await;
    assert_nothing_unrecorded(lab).await;
    assert_told_once(lab, &job).await;
    job
}

/// The story ended as it should, was told once, and nothing is left of it but what was to be kept.
pub(super) async fn judge(lab: &Lab, story: Story, memory: &Memory) {
    let (state, cause) = story.end();
    let job = judge_as(lab, memory, state, cause).await;
    if state == JobState::Completed || story == Story::AgentFails {
        assert_work_is_whole(lab, &job).await;
    }
    if story == Story::LeaseEnds {
        let warnings = lab.messages(&job).await;
        let warnings = warnings.iter().filter(|told| told.starts_with("lease.expiring"));
        assert_eq!(warnings.count(), 1);
    }
    for other in lab.engine().jobs(None, None).await.unwrap().jobs {
        assert_eq!(other.state, state, "{other:#?}");
    }
}

async fn assert_work_is_whole(lab: &Lab, job: &JobView) {
    let log = lab.store.files().read_log(&job.id, 0, 100).await.unwrap();
    let lines: Vec<(LogStream, &str)> = log
        .iter()
        .map(|record| (record.stream, record.text.as_str()))
        .collect();
    assert_eq!(lines, LINES.map(|line| (LogStream::Stdout, line)));
    for name in ["files/a", "work.bundle"] {
        let (view, _) = lab.engine().open_artifact(&job.id, name).await.unwrap();
        assert_eq!(view.size_bytes, 5);
    }
    assert_eq!(lab.backend.power_ons(vmid(1000)), 0, "its machine is gone");
}

/// Every file on disk has a record.
async fn assert_nothing_unrecorded(lab: &Lab) {
    assert_eq!(lab.store.compare_artifacts().await.unwrap(), 0);
}

/// A job begins once and ends once, however often its daemon began.
async fn assert_told_once(lab: &Lab, job: &JobView) {
    let filter = EventFilter {
        sandbox: None,
        job: Some(job.id.clone()),
    };
    let events = lab.store.events(&filter, 0, 1000).await.unwrap();
    let count = |kind| events.iter().filter(|event| event.kind == kind).count();
    let counts = (count(EventKind::JobQueued), count(EventKind::JobFinished));
    assert_eq!(counts, (1, 1), "{events:#?}");
    assert!(count(EventKind::JobStarted) <= 1, "{events:#?}");
}
