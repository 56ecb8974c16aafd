//! Jobs as an operator asks for them: recorded whole, together with their sandbox, or refused.

use std::collections::HashSet;
use std::time::Duration;

use agentlab_api::{
    ArtifactView, ErrorCode, JobId, JobList, JobRequest, JobState, JobView, Problem, Profile,
    RepositorySource, Vmid, WorkspaceId, chain,
};
use agentlab_store::{IdempotencyRecord, Incoming, JobRecord, StoreError};
use tokio::time::{Instant, timeout};

use crate::engine::{Engine, store_problem};
use crate::glimpse::{self, Glimpse};
use crate::port::{NetworkError, Trust};
use crate::queue::{self, Admitted};
use crate::request::{self, Settled};
use crate::sandbox::driver;
use crate::sandbox::inbox::Message;
use crate::sandbox::machine::granted;
use crate::sandbox::perform::backend_failure;
use crate::sandbox::step::Step;
use crate::view;
use crate::workspace_free::{self, Wanted};

/// How long a request waits for the hypervisor, or for the packet policy, before anything is recorded.
const ASK: Duration = Duration::from_secs(2);
const PAGE: u32 = 50;
const LONGEST_PAGE: u32 = 500;

impl Engine {
    /// Records a job and its sandbox and returns; provisioning goes on without the caller. The same idempotency key
    /// with the same request answers with the job it made.
    ///
    /// # Errors
    /// Anything about the request that cannot be done, before anything is recorded.
    pub async fn create_job(
        &self,
        request: JobRequest,
        idempotency_key: Option<String>,
    ) -> Result<JobView, Problem> {
        self.accepting()?;
        let key = idempotency_key
            .map(|key| idempotency(key, &request))
            .transpose()?;
        if let Some(known) = self.repeated(key.as_ref()).await? {
            return Ok(known);
        }
        let began = Instant::now();
        let profile = request::profile(&self.shared.tunable().profiles, &request.profile)?.clone();
        let settled = request::settle(&request, &profile)?;
        let wanted = Wanted::within(request.workspace.as_deref(), request.workspace_wait_seconds)?;
        self.enforceable(&profile).await?;
        self.secrets_are_there(&profile).await?;
        let occupied = self.inventory(&profile).await?;
        let workspace = workspace_free::free(&self.shared, wanted, &profile).await?;
        let given = workspace.as_ref().map(|free| free.id);
        let job = self.draft(&request, profile, settled, given)?;
        // Nobody removes the bundle between the look and the record that needs it.
        let bundles = match &job.repository {
            RepositorySource::Bundle { .. } => Some(self.shared.bundles.lock().await),
            RepositorySource::Url { .. } => None,
        };
        self.bundle_is_here(&job.repository).await?;
        let made = queue::admit(&self.shared, job, key.clone(), occupied, began).await;
        drop((bundles, workspace));
        match made {
            Ok(Admitted { job, sandbox, position }) => {
                tracing::info!(job = %job.id, position, "job queued");
                if let Some(sandbox) = sandbox {
                    driver::spawn(&self.shared, sandbox, Some(job.clone()), false);
                }
                Ok(view::job(job, position))
            }
            // The same key may have been recorded a moment ago.
            Err(StoreError::Conflict(reason)) => match self.repeated(key.as_ref()).await? {
                Some(known) => Ok(known),
                None => Err(Problem::new(ErrorCode::LimitReached, reason)
                    .with_stage(Step::Reserve.as_str())
                    .with_hint("destroy sandboxes that are no longer needed, or raise max_sandboxes or max_queued_jobs")),
            },
            Err(error) => Err(store_problem(&error)),
        }
    }

    async fn repeated(&self, key: Option<&IdempotencyRecord>) -> Result<Option<JobView>, Problem> {
        let Some(key) = key else { return Ok(None) };
        let known = self
            .shared
            .store
            .idempotent_job(&key.key)
            .await
            .map_err(|error| store_problem(&error))?;
        match known {
            None => Ok(None),
            Some(known) if known.request_sha256 == key.request_sha256 => self.job(&known.job).await.map(Some),
            Some(known) => Err(Problem::new(
                ErrorCode::IdempotencyConflict,
                format!("This idempotency key made {} from another request", known.job),
            )
            .with_hint("use a new key for a new request")),
        }
    }

    /// Asked before anything is made: a mode that cannot be enforced is no mode at all.
    pub(crate) async fn enforceable(&self, profile: &Profile) -> Result<(), Problem> {
        if self.shared.channels_of(profile).is_empty() {
            let text = format!(
                "Profile `{}` names no way to its guest that this back end has",
                profile.name
            );
            return Err(Problem::new(ErrorCode::InvalidValue, text)
                .with_field("/profile", "no usable channel")
                .with_hint("leave `network.channels` out, or add tls"));
        }
        let trust = granted(profile.network.mode);
        match timeout(ASK, self.shared.network.supports(trust)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                let problem = Problem::new(ErrorCode::NetworkUnenforced, error.to_string());
                Err(
                    if matches!((&error, trust), (NetworkError::Unsupported { .. }, Trust::Nat)) {
                        problem.with_hint(
                            "set `uplink` in config.yaml to the interface towards the Internet, or \
                         `network: {mode: \"off\"}` in the profile",
                        )
                    } else if matches!(error, NetworkError::Unresolved { .. }) {
                        problem.with_hint(
                            "`agentlab status` says whether names are resolved; `dns` in config.yaml says by whom",
                        )
                    } else {
                        problem.with_hint(format!(
                            "profile `{}` asks for network mode {}; `agentlab net verify` tells what differs",
                            profile.name, profile.network.mode
                        ))
                    },
                )
            }
            Err(_) => Err(Problem::new(
                ErrorCode::NetworkUnenforced,
                "The packet policy did not answer in time",
            )),
        }
    }

    /// Checks the template and says which VMIDs the hypervisor has given away. One that is slow is taken as it was
    /// last: the clone finds out anyway.
    pub(crate) async fn inventory(&self, profile: &Profile) -> Result<HashSet<Vmid>, Problem> {
        let seen = match glimpse::look(&self.shared, ASK).await {
            Glimpse::Now(seen) | Glimpse::Late(Some(seen)) => seen,
            Glimpse::Failed(error) => {
                let failure = backend_failure(Step::Reserve.as_str(), &error);
                return Err(Problem::new(failure.code, failure.message).with_stage(failure.stage));
            }
            Glimpse::Late(None) => {
                return Err(Problem::new(
                    ErrorCode::BackendUnreachable,
                    format!("The back end did not answer within {} s", ASK.as_secs()),
                ));
            }
        };
        request::template(&seen.templates, profile, &self.shared.settings.runner_version)?;
        Ok(seen.occupied.clone())
    }

    async fn bundle_is_here(&self, repository: &RepositorySource) -> Result<(), Problem> {
        let RepositorySource::Bundle { sha256, .. } = repository else {
            return Ok(());
        };
        let opened = self.shared.store.files().open_bundle(sha256).await;
        match opened.map_err(|error| store_problem(&error))? {
            Some(_) => Ok(()),
            None => {
                let text = "the bundle was not uploaded, or has been removed since";
                Err(Problem::new(ErrorCode::InvalidValue, text)
                    .with_field("/repository/sha256", text)
                    .with_hint("upload it with POST /v1/bundles and ask again"))
            }
        }
    }

    /// The job as it is recorded when it must wait.
    fn draft(
        &self,
        request: &JobRequest,
        profile: Profile,
        settled: Settled,
        workspace: Option<WorkspaceId>,
    ) -> Result<JobRecord, Problem> {
        let id = JobId::generate().map_err(|error| {
            Problem::new(
                ErrorCode::Internal,
                format!("The kernel gave no random bytes: {error}"),
            )
        })?;
        Ok(JobRecord {
            id,
            state: JobState::Queued,
            repository: request.repository.clone(),
            reference: request.reference.clone(),
            task: request.task.clone(),
            profile: profile.name.clone(),
            agent: settled.agent,
            push: request.push.clone(),
            retention_days: profile.artifacts.retention_days,
            deadline_seconds: settled.deadline_seconds,
            sandbox: None,
            vmid: None,
            channel: None,
            cancel_requested: false,
            next_log_piece: 0,
            outcome: None,
            failure: None,
            created_at: self.shared.now(),
            started_at: None,
            paused_seconds: 0,
            finished_at: None,
            waiting: queue::waiting(profile, settled.ttl_minutes, settled.keepalive, workspace),
        })
    }

    /// One job.
    ///
    /// # Errors
    /// There is none of that id.
    pub async fn job(&self, id: &JobId) -> Result<JobView, Problem> {
        let job = self.job_record(id).await?;
        let position = queue::position(&self.shared, &job).await?;
        Ok(view::job(job, position))
    }

    async fn job_record(&self, id: &JobId) -> Result<JobRecord, Problem> {
        let found = self
            .shared
            .store
            .job(id)
            .await
            .map_err(|error| store_problem(&error))?;
        found.ok_or_else(|| {
            Problem::new(ErrorCode::NotFound, format!("There is no job {id}"))
                .with_hint("`agentlab job list` shows all")
        })
    }

    /// A page of jobs, newest first.
    ///
    /// # Errors
    /// The cursor is not one of ours.
    pub async fn jobs(&self, cursor: Option<String>, limit: Option<u32>) -> Result<JobList, Problem> {
        let before = request::cursor(cursor)?;
        let limit = limit.unwrap_or(PAGE).clamp(1, LONGEST_PAGE);
        let page = self.shared.store.jobs(before, limit).await;
        let (jobs, next) = page.map_err(|error| store_problem(&error))?;
        let line = if jobs.iter().any(|job| job.waiting.is_some()) {
            let line = self.shared.store.waiting_jobs().await;
            line.map_err(|error| store_problem(&error))?
        } else {
            Vec::new()
        };
        let shown = jobs.into_iter().map(|job| {
            let position = queue::place_in(&line, &job.id);
            view::job(job, position)
        });
        Ok(JobList {
            jobs: shown.collect(),
            next_cursor: next.map(|cursor| cursor.to_string()),
        })
    }

    /// Ends a job: at once when its guest has not begun, otherwise by asking the guest and, if need be, without it.
    /// A job that has ended is answered as it is.
    ///
    /// # Errors
    /// There is no such job, or the request could not be recorded.
    pub async fn cancel_job(&self, id: &JobId) -> Result<JobView, Problem> {
        let job = self.job_record(id).await?;
        if job.state.is_final() {
            return Ok(view::job(job, None));
        }
        if let Some(cancelled) = queue::cancel(&self.shared, id).await? {
            return Ok(view::job(cancelled, None));
        }
        // It may have got its sandbox meanwhile.
        let job = self.job_record(id).await?;
        let handle = job
            .sandbox
            .and_then(|sandbox| self.shared.driver(sandbox))
            .ok_or_else(|| {
                Problem::new(
                    ErrorCode::ShuttingDown,
                    format!("Job {id} is not being driven at the moment"),
                )
                .with_hint("try again in a few seconds")
            })?;
        match handle.ask(|reply| Message::Cancel { reply }).await {
            Ok(Ok(job)) => Ok(view::job(job, None)),
            // It may have ended between the look and the request.
            Ok(Err(problem)) => {
                let now = self.job_record(id).await?;
                if now.state.is_final() {
                    Ok(view::job(now, None))
                } else {
                    Err(problem)
                }
            }
            Err(why) => Err(crate::engine::no_answer(why)),
        }
    }

    /// Files a job left, by name.
    ///
    /// # Errors
    /// There is no such job.
    pub async fn job_artifacts(&self, id: &JobId) -> Result<Vec<ArtifactView>, Problem> {
        self.job_record(id).await?;
        let files = self
            .shared
            .store
            .artifacts(id)
            .await
            .map_err(|error| store_problem(&error))?;
        Ok(files.into_iter().map(view::artifact).collect())
    }

    /// One of them, opened.
    ///
    /// # Errors
    /// There is no such file, or it is no longer what was recorded.
    pub async fn open_artifact(
        &self,
        id: &JobId,
        name: &str,
    ) -> Result<(ArtifactView, tokio::fs::File), Problem> {
        self.job_record(id).await?;
        let shown: String = name.escape_debug().take(200).collect();
        let absent = || {
            Problem::new(ErrorCode::NotFound, format!("Job {id} left no file `{shown}`"))
                .with_hint(format!("`agentlab job artifacts {id}` lists what there is"))
        };
        let store = &self.shared.store;
        let record = store
            .artifact(id, name)
            .await
            .map_err(|error| store_problem(&error))?
            .ok_or_else(absent)?;
        let opened = store
            .files()
            .open_artifact(&record.sha256)
            .await
            .map_err(|error| store_problem(&error))?;
        match opened {
            Some((file, size)) if size == record.size_bytes => Ok((view::artifact(record), file)),
            Some((_, size)) => Err(Problem::new(
                ErrorCode::Internal,
                format!(
                    "File `{shown}` of job {id} has {size} bytes on disk, {} were recorded",
                    record.size_bytes
                ),
            )),
            None => Err(absent()),
        }
    }

    /// Begins the upload of a repository.
    ///
    /// # Errors
    /// The disk is too full.
    pub async fn receive_bundle(&self) -> Result<Incoming, Problem> {
        self.accepting()?;
        let limit = self.shared.settings.max_bundle_bytes;
        self.shared
            .store
            .files()
            .receive_bundle(limit)
            .await
            .map_err(|error| store_problem(&error))
    }
}

/// A key with what it stands for; the job's id is filled in when there is one.
fn idempotency(key: String, request: &JobRequest) -> Result<IdempotencyRecord, Problem> {
    if key.is_empty() || key.len() > 255 || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        let text = "an idempotency key has 1 to 255 printable ASCII characters";
        return Err(Problem::new(ErrorCode::InvalidValue, text));
    }
    // How long somebody is ready to wait is no part of what he asks for.
    let asked = JobRequest {
        workspace_wait_seconds: None,
        ..request.clone()
    };
    let body = serde_json::to_vec(&asked).map_err(|error| {
        Problem::new(
            ErrorCode::Internal,
            format!("The request cannot be hashed: {}", chain(&error)),
        )
    })?;
    let nobody = JobId::generate().map_err(|error| Problem::new(ErrorCode::Internal, error.to_string()))?;
    Ok(IdempotencyRecord {
        key,
        request_sha256: hex::encode(agentlab_protocol::session::sha256(&body)),
        job: nobody,
    })
}
