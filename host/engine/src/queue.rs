//! Jobs that wait for a place, in the order they came: one line, bounded, kept in the records.
//!
//! ```text
//!   create ─► nobody waits, and there is room ─► job and sandbox in one transaction ─► driver
//!         └─► otherwise the job alone, QUEUED                ▲
//!                     └─► the first of them, whenever a sandbox is gone or the bound was raised
//! ```

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use agentlab_api::{ErrorCode, JobId, JobState, Problem, SandboxId, SandboxState, Vmid, WorkspaceId, chain};
use agentlab_store::{IdempotencyRecord, JobRecord, SandboxRecord, StoreError, Waiting, Write};
use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, sleep};

use crate::engine::{Engine, store_problem};
use crate::event::{self, StepEnd};
use crate::journal::Point;
use crate::sandbox::driver::{self, STORE_RETRY};
use crate::sandbox::perform::failure;
use crate::sandbox::reserve::{self, Full};
use crate::sandbox::step::Step;
use crate::shared::Shared;

/// Between two looks at the queue that nobody asked for.
const LOOK: Duration = Duration::from_secs(30);
const STUCK: &str = "Jobs wait, and no place can be given to them";

/// The line.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// Held by whoever adds to it or takes from it, from the look to the record. First come, first served.
    order: Mutex<()>,
    /// There may be a place.
    news: Notify,
}

impl Queue {
    /// A sandbox is gone, the bound was raised, or a daemon has begun.
    pub(crate) fn look(&self) {
        self.news.notify_one();
    }
}

/// What became of a new job.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) job: JobRecord,
    /// `None` for one that waits.
    pub(crate) sandbox: Option<SandboxRecord>,
    /// Its place in the line, from 1.
    pub(crate) position: Option<u32>,
}

/// Records a job with its sandbox, or in the line, or refuses it when the line is full.
pub(crate) async fn admit(
    shared: &Shared,
    job: JobRecord,
    key: Option<IdempotencyRecord>,
    occupied: HashSet<Vmid>,
    began: Instant,
) -> Result<Admitted, StoreError> {
    let _in_order = shared.queue.order.lock().await;
    let ahead = shared.store.waiting_jobs().await?.len();
    let sandbox = sandbox_of(shared, &job);
    let (settings, tunable) = (shared.settings.clone(), shared.tunable());
    let reserved = shared.journal.reserve(Point::Reserve, move |live| {
        let place = match sandbox {
            _ if ahead > 0 => Err(Full::Limit("Other jobs wait for a place".to_owned())),
            Some(mut sandbox) => {
                reserve::place(&settings, tunable.max_sandboxes, live, &occupied, &mut sandbox)
                    .map(|()| sandbox)
            }
            None => Err(Full::Numbers("The kernel gave no random bytes".to_owned())),
        };
        let used = key.map(|key| {
            Write::Idempotency(IdempotencyRecord {
                job: job.id.clone(),
                ..key
            })
        });
        match place {
            Ok(sandbox) => {
                let (job, mut writes) = begun(job, &sandbox, began);
                writes.insert(2, event::job_queued(&job, 0));
                writes.extend(used);
                let admitted = Admitted {
                    job,
                    sandbox: Some(sandbox),
                    position: None,
                };
                Ok((admitted, writes))
            }
            Err(_) if ahead < tunable.max_queued_jobs => {
                let mut writes = vec![
                    Write::Job(Box::new(job.clone())),
                    event::job_queued(&job, ahead + 1),
                ];
                writes.extend(used);
                let admitted = Admitted {
                    job,
                    sandbox: None,
                    position: u32::try_from(ahead + 1).ok(),
                };
                Ok((admitted, writes))
            }
            Err(full) => Err(format!(
                "{full}, and no more than {} jobs may wait",
                tunable.max_queued_jobs
            )),
        }
    });
    reserved.await
}

/// Records a sandbox that no job asks for, and what goes `with` it. It does not wait: a person does.
pub(crate) async fn admit_sandbox(
    shared: &Shared,
    waiting: &Waiting,
    name: Option<String>,
    occupied: HashSet<Vmid>,
    with: impl FnOnce(&SandboxRecord) -> Vec<Write> + Send + 'static,
) -> Result<Result<SandboxRecord, String>, StoreError> {
    let _in_order = shared.queue.order.lock().await;
    let began = Instant::now();
    let Some(mut sandbox) = fresh_sandbox(shared, waiting) else {
        return Ok(Err("The kernel gave no random bytes".to_owned()));
    };
    let (settings, tunable) = (shared.settings.clone(), shared.tunable());
    let reserved = shared.journal.reserve(Point::Reserve, move |live| {
        let refused = |reason: String| Ok((Err(reason), Vec::new()));
        if let Err(full) = reserve::place(&settings, tunable.max_sandboxes, live, &occupied, &mut sandbox) {
            return refused(full.to_string());
        }
        sandbox.name = name.unwrap_or_else(|| format!("sandbox-{}", sandbox.vmid));
        if let Some(other) = live.iter().find(|record| record.name == sandbox.name) {
            return refused(format!("Sandbox {} has the name `{}`", other.vmid, sandbox.name));
        }
        let mut writes = vec![
            Write::Sandbox(Box::new(sandbox.clone())),
            event::requested(&sandbox),
            event::step(&sandbox, Step::Reserve, false, began.elapsed(), &StepEnd::Done),
        ];
        writes.extend(with(&sandbox));
        Ok((Ok(sandbox), writes))
    });
    reserved.await
}

/// A job with its sandbox, and both as they are recorded.
fn begun(job: JobRecord, sandbox: &SandboxRecord, began: Instant) -> (JobRecord, Vec<Write>) {
    let job = JobRecord {
        sandbox: Some(sandbox.id),
        vmid: Some(sandbox.vmid),
        waiting: None,
        ..job
    };
    let took = began.elapsed();
    let writes = vec![
        Write::Sandbox(Box::new(sandbox.clone())),
        Write::Job(Box::new(job.clone())),
        event::requested(sandbox),
        event::step(sandbox, Step::Reserve, false, took, &StepEnd::Done),
    ];
    (job, writes)
}

/// A sandbox as its job asks for it; its numbers are chosen in the transaction. `None` without random bytes.
fn sandbox_of(shared: &Shared, job: &JobRecord) -> Option<SandboxRecord> {
    let sandbox = fresh_sandbox(shared, job.waiting.as_deref()?)?;
    Some(SandboxRecord {
        name: job.id.as_str().replace('_', "-"),
        job: Some(job.id.clone()),
        ..sandbox
    })
}

fn fresh_sandbox(shared: &Shared, waiting: &Waiting) -> Option<SandboxRecord> {
    let mut nonce = [0u8; 16];
    getrandom::fill(&mut nonce).ok()?;
    let now = shared.now();
    let lease = Duration::from_secs(u64::from(waiting.ttl_minutes) * 60);
    Some(SandboxRecord {
        id: SandboxId::generate(),
        vmid: shared.settings.vmid_first,
        name: String::new(),
        profile: waiting.profile.clone(),
        state: SandboxState::Requested,
        cursor: Step::Reserve.as_str().to_owned(),
        unwinding: false,
        nonce: hex::encode(nonce),
        mac: [0; 6],
        address: shared.settings.gateway,
        job: None,
        workspace: waiting.workspace,
        keepalive: waiting.keepalive,
        lease_expires_at: Some(now + lease),
        lease_warned: false,
        runner_key_sha256: None,
        acknowledged: false,
        runner_version: None,
        channel: None,
        last_heard_at: None,
        powered_on_at: None,
        paused_at: None,
        idle: None,
        failure: None,
        left_behind: Vec::new(),
        created_at: now,
        updated_at: now,
    })
}

/// Starts jobs from the line until the engine stops.
pub(crate) async fn run(engine: Weak<Engine>, shared: Arc<Shared>) {
    loop {
        let settled = match engine.upgrade() {
            None => return,
            Some(engine) => engine.is_settled(),
        };
        let pause = if settled { start_all(&shared).await } else { LOOK };
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.queue.news.notified() => {}
            () = sleep(pause) => {}
        }
    }
}

/// Returns how long to wait for the next look at most.
async fn start_all(shared: &Arc<Shared>) -> Duration {
    loop {
        match start_first(shared).await {
            Ok(true) => {}
            Ok(false) => return LOOK,
            Err(error) => {
                tracing::error!(error = %chain(&error), "no queued job can be started; trying again");
                return STORE_RETRY;
            }
        }
    }
}

/// Gives the first of the line a sandbox. False when nobody waits, or there is no place.
async fn start_first(shared: &Arc<Shared>) -> Result<bool, StoreError> {
    let _in_order = shared.queue.order.lock().await;
    let began = Instant::now();
    let Some(first) = shared.store.waiting_jobs().await?.into_iter().next() else {
        shared.clear(STUCK);
        return Ok(false);
    };
    let tunable = shared.tunable();
    if shared.holding() >= tunable.max_sandboxes {
        return Ok(false);
    }
    let Some(job) = shared.store.job(&first).await? else {
        return Ok(false);
    };
    let Some(mut sandbox) = sandbox_of(shared, &job) else {
        return Ok(false);
    };
    let settings = shared.settings.clone();
    // A clone that finds its VMID taken chooses another.
    let occupied = shared
        .glimpses
        .last()
        .map(|seen| seen.occupied.clone())
        .unwrap_or_default();
    let placed = shared.journal.reserve(Point::Start, move |live| {
        match reserve::place(&settings, tunable.max_sandboxes, live, &occupied, &mut sandbox) {
            Ok(()) => {
                let (job, writes) = begun(job, &sandbox, began);
                Ok((Ok((job, sandbox)), writes))
            }
            Err(full) => Ok((Err(full), Vec::new())),
        }
    });
    match placed.await? {
        Ok((job, sandbox)) => {
            shared.clear(STUCK);
            tracing::info!(job = %job.id, sandbox = %sandbox.id, vmid = %sandbox.vmid, "job has its place");
            driver::spawn(shared, sandbox, Some(job), false);
            Ok(true)
        }
        Err(Full::Limit(_)) => Ok(false),
        Err(Full::Numbers(reason)) => {
            shared.raise(&format!("{STUCK}: {reason}"));
            Ok(false)
        }
    }
}

/// Where a job waits, from 1; `None` when it does not.
pub(crate) async fn position(shared: &Shared, job: &JobRecord) -> Result<Option<u32>, Problem> {
    if job.waiting.is_none() || job.state.is_final() {
        return Ok(None);
    }
    let line = shared.store.waiting_jobs().await;
    Ok(place_in(&line.map_err(|error| store_problem(&error))?, &job.id))
}

/// The same in a line that was read before.
pub(crate) fn place_in(line: &[JobId], job: &JobId) -> Option<u32> {
    let ahead = line.iter().position(|waiting| waiting == job)?;
    u32::try_from(ahead + 1).ok()
}

/// Takes a job out of the line. `None` when it has left it already, or never was in it.
pub(crate) async fn cancel(shared: &Shared, id: &JobId) -> Result<Option<JobRecord>, Problem> {
    let failed = |error: StoreError| store_problem(&error);
    let _in_order = shared.queue.order.lock().await;
    let job = shared.store.job(id).await.map_err(failed)?;
    let Some(job) = job.filter(|job| job.waiting.is_some() && !job.state.is_final()) else {
        return Ok(None);
    };
    let cause = failure(
        ErrorCode::Cancelled,
        "Queue",
        "Cancelled by an operator while it waited for a place",
    );
    let job = JobRecord {
        state: JobState::Cancelled,
        failure: Some(cause),
        finished_at: Some(shared.now()),
        waiting: None,
        ..job
    };
    let writes = vec![Write::Job(Box::new(job.clone())), event::job_finished(&job)];
    let ended = shared.journal.commit(Point::Cancel, writes).await;
    ended.map_err(failed)?;
    shared.job_ended(&job);
    tracing::info!(job = %job.id, state = %job.state, "job");
    Ok(Some(job))
}

/// What a job waits with.
pub(crate) fn waiting(
    profile: agentlab_api::Profile,
    ttl_minutes: u32,
    keepalive: bool,
    workspace: Option<WorkspaceId>,
) -> Option<Box<Waiting>> {
    Some(Box::new(Waiting {
        profile,
        ttl_minutes,
        keepalive,
        workspace,
    }))
}
