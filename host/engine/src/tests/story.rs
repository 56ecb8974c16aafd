//! What a job can live through, told so that it goes on after any interruption: an operator and a guest who ask again
//! until they are answered, as the command line and the runner do.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use agentlab_api::{ErrorCode, EventKind, JobRequest, JobState, JobView, LogStream, SandboxState};
use agentlab_backend::fake::{Call, Fake};
use agentlab_backend::{BackendError, Power, Stamp};
use agentlab_protocol::message::{LogBatch, LogPiece, Order, Phase, ReportStatus, Stream};
use agentlab_protocol::secret::Secret32;
use agentlab_protocol::seed::Seed;
use agentlab_store::{EventFilter, JobRecord};
use tokio::time::{sleep, timeout};

use super::lab::{Guest, Lab, request, vmid};
use super::workspace;
use crate::sandbox::machine::Request;
use crate::{GuestOrigin, GuestRefusal, IdleRules};

const PACE: Duration = Duration::from_millis(50);
/// Between two signs of life of a guest that works on.
const WORKING: Duration = Duration::from_secs(5);
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
    fn reports(self) -> Option<(ReportStatus, u8)> {
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
    job: RefCell<Option<JobView>>,
    /// Errands that are done.
    errands: Cell<usize>,
    guest: RefCell<Known>,
}

/// What one guest knows; another power-on makes another guest.
#[derive(Debug, Default)]
struct Known {
    /// Which power-on of which machine it came with, and the seed it read then.
    power_on: Option<(Stamp, u32)>,
    seed: Option<Seed>,
    /// What it is to work on.
    order: Option<String>,
    session: Option<Secret32>,
    /// Its next word.
    next: usize,
    /// Why it has given up.
    gave_up: Option<GuestRefusal>,
}

/// What a guest says, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Redeem,
    Acknowledge,
    Beat(Phase),
    FirstLog,
    SecondLog,
    Upload(&'static str),
    Report,
}

const WORDS: [Word; 10] = [
    Word::Redeem,
    Word::Acknowledge,
    Word::Beat(Phase::Agent),
    Word::FirstLog,
    Word::SecondLog,
    Word::Beat(Phase::Upload),
    Word::Upload("files/a"),
    Word::Upload("work.bundle"),
    Word::Beat(Phase::Report),
    Word::Report,
];
const LINES: [&str; 3] = ["one\n", "two\n", "three\n"];

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

/// The seed of the guest that runs.
fn seed_of(backend: &Fake, memory: &Memory) -> Option<Seed> {
    let mut vmids = backend.vmids().into_iter();
    let vmid = vmids.find(|vmid| backend.power(*vmid) == Some(Power::Running))?;
    let power_on = (backend.stamp(vmid).unwrap(), backend.power_ons(vmid));
    if memory.guest.borrow().power_on.as_ref() != Some(&power_on) {
        let bytes = backend.booted_with(vmid).unwrap();
        memory.guest.replace(Known {
            power_on: Some(power_on),
            seed: Some(Seed::decode(&bytes).unwrap()),
            ..Known::default()
        });
    }
    memory.guest.borrow().seed.clone()
}

async fn guest(lab: &Lab, story: Story, memory: &Memory) {
    loop {
        sleep(PACE).await;
        let Some(seed) = seed_of(&lab.backend, memory).filter(|_| story != Story::BootFails) else {
            continue;
        };
        let next = memory.guest.borrow().next;
        let told_to_end = story != Story::Cancelled || lab_says_cancelled(lab, memory).await;
        let word = match WORDS.get(next) {
            Some(Word::Beat(Phase::Report) | Word::Report) if story.reports().is_none() || !told_to_end => {
                Word::Beat(Phase::Agent)
            }
            Some(Word::Redeem | Word::Acknowledge) => WORDS[next],
            // Nobody gave it work.
            Some(_) if memory.guest.borrow().order.is_none() => Word::Beat(Phase::Idle),
            Some(word) => *word,
            None => continue,
        };
        let mut guest = Guest {
            origin: GuestOrigin::Address(seed.address),
            seed,
            key: [9; 32],
            session: memory.guest.borrow().session.clone(),
            runner_version: "0.1.0",
        };
        match say(&mut guest, lab, story, memory, word).await {
            Ok(()) => {
                let is_next = WORDS.get(next) == Some(&word);
                {
                    let mut known = memory.guest.borrow_mut();
                    known.session = guest.session;
                    known.next += usize::from(is_next);
                }
                if !is_next {
                    sleep(WORKING).await;
                }
            }
            Err(GuestRefusal::Unavailable(_)) => {}
            Err(refusal) => {
                // A runner that is turned away ends, and its machine with it.
                if memory.guest.borrow_mut().gave_up.replace(refusal).is_none() {
                    lab.backend.stop(vmid(guest.seed.vmid));
                }
            }
        }
    }
}

async fn lab_says_cancelled(lab: &Lab, memory: &Memory) -> bool {
    let id = memory.job.borrow().as_ref().map(|job| job.id.clone());
    match id {
        Some(id) => lab
            .store
            .job(&id)
            .await
            .unwrap()
            .is_some_and(|job: JobRecord| job.cancel_requested),
        None => false,
    }
}

async fn say(
    guest: &mut Guest,
    lab: &Lab,
    story: Story,
    memory: &Memory,
    word: Word,
) -> Result<(), GuestRefusal> {
    match word {
        Word::Redeem => {
            let answer = guest.redeem(lab).await?;
            if let Order::Job(order) = answer.order {
                memory.guest.borrow_mut().order = Some(order.job);
            }
            Ok(())
        }
        Word::Acknowledge => {
            let session = guest.authenticate(lab).await?;
            lab.engine().acknowledge(&session).await
        }
        Word::Beat(phase) if story.has_workspace() => workspace::beat(guest, lab, phase).await,
        Word::Beat(phase) => guest.beat(lab, phase).await.map(drop),
        Word::FirstLog => logs(guest, lab, 0, &LINES[..2]).await,
        // Begins before what is known, as a runner does whose answer was lost.
        Word::SecondLog => logs(guest, lab, 1, &LINES[1..]).await,
        Word::Upload(name) => guest.upload(lab, name, b"bytes").await,
        Word::Report => {
            let order = memory.guest.borrow().order.clone();
            let Some((order, (status, code))) = order.zip(story.reports()) else {
                return Ok(());
            };
            let job = lab.job(&order.parse().unwrap()).await;
            guest.report(lab, &job, status, Some(code)).await
        }
    }
}

async fn logs(guest: &Guest, lab: &Lab, first: u64, texts: &[&str]) -> Result<(), GuestRefusal> {
    let session = guest.authenticate(lab).await?;
    let piece = |text: &&str| LogPiece {
        stream: Stream::Stdout,
        text: (*text).to_owned(),
    };
    let batch = LogBatch {
        first,
        pieces: texts.iter().map(piece).collect(),
    };
    lab.engine().guest_logs(&session, batch).await
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
