//! Whether a workspace can be given away, and waiting until it can.

use std::time::Duration;

use agentlab_api::{ErrorCode, Problem, Profile, WorkspaceId, WorkspaceUse};
use agentlab_store::WorkspaceRecord;
use tokio::sync::MutexGuard;
use tokio::time::{Instant, sleep};

use crate::engine::store_problem;
use crate::shared::Shared;
use crate::workspace::{holder, invalid, select};

/// Between two looks at a workspace that somebody has.
const PACE: Duration = Duration::from_millis(500);
const LONGEST_WAIT: u32 = 3600;

/// A workspace that is about to be given away, with the right to do so.
pub(crate) struct Free<'a> {
    pub(crate) id: WorkspaceId,
    _alone: MutexGuard<'a, ()>,
}

/// What a request says of a workspace.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    selector: Option<&'a str>,
    patience: Duration,
}

impl<'a> Wanted<'a> {
    pub(crate) fn at_once(selector: Option<&'a str>) -> Self {
        let patience = Duration::ZERO;
        Self { selector, patience }
    }

    /// With the time that a caller is ready to wait for it.
    pub(crate) fn within(selector: Option<&'a str>, wait_seconds: Option<u32>) -> Result<Self, Problem> {
        const FIELD: &str = "/workspace_wait_seconds";
        let seconds = wait_seconds.unwrap_or(0);
        if seconds > LONGEST_WAIT {
            return Err(invalid(FIELD, format!("{LONGEST_WAIT} s is the longest wait"))
                .with_hint("ask again when it has passed"));
        }
        if wait_seconds.is_some() && selector.is_none() {
            return Err(
                invalid(FIELD, "there is no workspace to wait for").with_hint("name one in `workspace`")
            );
        }
        let patience = Duration::from_secs(seconds.into());
        Ok(Self { selector, patience })
    }
}

/// Of a request that names a workspace: which, once nobody has it or waits for it. Nobody else is held up meanwhile, and
/// of several that wait one gets it.
pub(crate) async fn free<'a>(
    shared: &'a Shared,
    wanted: Wanted<'_>,
    profile: &Profile,
) -> Result<Option<Free<'a>>, Problem> {
    let Some(selector) = suits(wanted.selector, profile)? else {
        return Ok(None);
    };
    let until = Instant::now() + wanted.patience;
    loop {
        let alone = shared.workspaces.alone().await;
        let record = select(shared, selector).await?;
        let problem = match at_rest(shared, &record).await {
            Ok(()) => {
                let (id, _alone) = (record.id, alone);
                return Ok(Some(Free { id, _alone }));
            }
            Err(problem) => problem,
        };
        drop(alone);
        if problem.code != ErrorCode::StateConflict || Instant::now() >= until {
            return Err(after(wanted.patience, problem));
        }
        tokio::select! {
            () = shared.stop.cancelled() => {
                return Err(Problem::new(ErrorCode::ShuttingDown, "The daemon is stopping"));
            }
            () = sleep(PACE) => {}
        }
    }
}

fn after(patience: Duration, problem: Problem) -> Problem {
    if patience.is_zero() {
        return problem;
    }
    let detail = format!("{}; waited {} s for it", problem.detail, patience.as_secs());
    Problem { detail, ..problem }
}

/// What is asked for, if the profile goes with it.
pub(crate) fn suits<'a>(selector: Option<&'a str>, profile: &Profile) -> Result<Option<&'a str>, Problem> {
    match (selector, profile.storage.workspace) {
        (None, Some(WorkspaceUse::Attach)) => {
            let text = format!("Profile `{}` works on a workspace only", profile.name);
            Err(invalid("/workspace", text)
                .with_hint("name one with --workspace; its key is `storage.workspace`"))
        }
        (Some(_), Some(WorkspaceUse::None)) => {
            let text = format!("Profile `{}` works on no workspace", profile.name);
            Err(invalid("/workspace", text).with_hint("its key is `storage.workspace`"))
        }
        (selector, _) => Ok(selector),
    }
}

/// Refuses what somebody has, waits for, or is at work on.
pub(crate) async fn at_rest(shared: &Shared, record: &WorkspaceRecord) -> Result<(), Problem> {
    let name = &record.name;
    let conflict =
        |text: String| Problem::new(ErrorCode::StateConflict, text.clone()).with_field("/workspace", text);
    if record.task.is_some() || record.rebind.is_some() || record.volume.is_none() {
        return Err(conflict(format!(
            "Workspace `{name}` is not ready: its volume, or who has it, is being changed"
        ))
        .with_hint(format!("`agentlab workspace show {name}` says what is under way")));
    }
    let live = shared.store.sandboxes(false).await;
    let live = live.map_err(|error| store_problem(&error))?;
    if let Some(other) = holder(&live, record.id) {
        let job = other
            .job
            .as_ref()
            .map_or_else(String::new, |job| format!(", for {job}"));
        return Err(conflict(format!(
            "Workspace `{name}` is attached to sandbox {} ({}){job}",
            other.vmid, other.name
        ))
        .with_hint(
            "one sandbox at a time has it: --workspace-wait waits for that one to end; destroy it, or \
             `agentlab workspace rebind`",
        ));
    }
    let jobs = shared.store.unfinished_jobs().await;
    let jobs = jobs.map_err(|error| store_problem(&error))?;
    let waiting = jobs.iter().find(|job| {
        job.waiting
            .as_deref()
            .is_some_and(|waiting| waiting.workspace == Some(record.id))
    });
    match waiting {
        Some(job) => Err(conflict(format!("{} waits for workspace `{name}`", job.id))
            .with_hint("it gets the workspace when there is a place for it")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_needs_a_workspace_and_has_an_end() {
        assert!(Wanted::within(None, None).is_ok() && Wanted::within(Some("w"), Some(3600)).is_ok());
        for (selector, seconds) in [(None, 0), (None, 5), (Some("w"), 3601)] {
            let refused = Wanted::within(selector, Some(seconds)).unwrap_err();
            assert_eq!(
                refused.errors[0].pointer, "/workspace_wait_seconds",
                "{refused:?}"
            );
        }
    }

    #[test]
    fn a_profile_may_demand_a_workspace_or_forbid_one() {
        let profile = |key: &str| -> Profile {
            let value =
                serde_json::json!({"name": "p", "template_vmid": 9000, "storage": {"workspace": key}});
            serde_json::from_value(value).unwrap()
        };
        let (demands, forbids) = (profile("attach"), profile("none"));
        assert!(suits(None, &demands).is_err() && suits(Some("w"), &forbids).is_err());
        assert!(suits(Some("w"), &demands).is_ok() && suits(None, &forbids).is_ok());
    }
}
