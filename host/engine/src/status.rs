//! How the daemon is, for people, service managers and watchdogs. None of it waits for a hypervisor.

use std::sync::Arc;
use std::time::Duration;

use agentlab_api::{BackendStatus, Problem, StatusView, TemplateView, chain};
use agentlab_store::Counts;

use crate::engine::{Engine, store_problem};
use crate::glimpse::{self, Glimpse, Seen};

/// How long a status waits for a hypervisor that is slow.
const PATIENCE: Duration = Duration::from_secs(1);

/// The status without the hypervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Records per state.
    pub counts: Counts,
    /// Number of alarms.
    pub alarms: usize,
}

impl Engine {
    /// Returns when the records can be read and written: what everything else here waits for.
    ///
    /// # Errors
    /// They cannot.
    pub async fn pulse(&self) -> Result<(), String> {
        let store = &self.shared.store;
        let read = store.last_event().await;
        read.map_err(|error| chain(&error))?;
        let written = store.commit(Vec::new()).await;
        written.map(drop).map_err(|error| chain(&error))
    }

    /// The status without the hypervisor.
    ///
    /// # Errors
    /// The records cannot be read.
    pub async fn summary(&self) -> Result<Summary, Problem> {
        let counts = self.shared.store.counts().await;
        Ok(Summary {
            counts: counts.map_err(|error| store_problem(&error))?,
            alarms: self.shared.alarms().len() + self.shared.left_behind().len(),
        })
    }

    /// How the daemon is. A hypervisor that does not answer is an alarm in it, not an error.
    ///
    /// # Errors
    /// The records cannot be read.
    pub async fn status(&self) -> Result<StatusView, Problem> {
        let shared = &self.shared;
        let failed = |error| store_problem(&error);
        let (glimpse, counts, free, live_tokens) = tokio::join!(
            glimpse::look(shared, PATIENCE),
            shared.store.counts(),
            shared.store.files().free_bytes(),
            shared.store.live_tokens(shared.clock.now()),
        );
        let (counts, free) = (counts.map_err(failed)?, free.map_err(failed)?);
        let seen = match &glimpse {
            Glimpse::Now(seen) => Some(seen.clone()),
            Glimpse::Failed(_) => shared.glimpses.last(),
            Glimpse::Late(last) => last.clone(),
        };
        let mut alarms = match &glimpse {
            Glimpse::Now(_) => Vec::new(),
            Glimpse::Failed(error) if error.is_transient() => {
                crate::recover::unreached(shared, &chain(&**error));
                Vec::new()
            }
            Glimpse::Failed(error) => vec![chain(&**error)],
            Glimpse::Late(_) => vec![format!(
                "The back end has not answered for {} s or more; it is shown as it was last",
                PATIENCE.as_secs()
            )],
        };
        alarms.extend(shared.alarms());
        alarms.extend(shared.left_behind());
        if free < shared.settings.artifact_disk_floor {
            alarms.push(format!(
                "Only {free} bytes are free for artifacts; uploads are refused"
            ));
        }
        Ok(StatusView {
            version: shared.settings.daemon_version.clone(),
            started_at: shared.started_at,
            backend: BackendStatus {
                trouble: shared.condition.trouble(),
                ..backend(seen.as_ref())
            },
            sandboxes: counts.sandboxes,
            jobs: counts.jobs,
            artifact_free_bytes: free,
            live_tokens: live_tokens.map_err(failed)?,
            alarms,
        })
    }
}

fn backend(seen: Option<&Arc<Seen>>) -> BackendStatus {
    let Some(seen) = seen else {
        return BackendStatus {
            kind: "unknown".to_owned(),
            version: String::new(),
            accelerator: None,
            accelerator_reason: None,
            templates: Vec::new(),
            trouble: None,
        };
    };
    let templates = seen.templates.iter().map(|template| TemplateView {
        name: template.name.clone(),
        vmid: template.vmid,
        id: template.id.clone(),
        runner_version: template
            .runner_version
            .clone()
            .unwrap_or_else(|| "unknown".to_owned()),
    });
    BackendStatus {
        kind: seen.info.kind.to_owned(),
        version: seen.info.version.clone(),
        accelerator: seen.info.accelerator.clone(),
        accelerator_reason: seen.info.accelerator_reason.clone(),
        templates: templates.collect(),
        trouble: None,
    }
}
