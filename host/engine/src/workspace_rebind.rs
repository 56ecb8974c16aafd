//! Hands a workspace from one sandbox to a new one. The new one is made and has booted before the old one is touched; the
//! old one is stopped, its guest having let go of the disk, and destroyed last; whatever goes wrong puts the disk back.
//!
//! ```text
//!   new runs ─ new stops ─ old stops ─ old gives ─ new takes ─ new starts ─ mounted ─ old goes
//!      └──────────┴───────────┴────────────┴───────────┴───────────┴─ back: new gives ─ old takes ─ old starts ─ new goes
//! ```
//!
//! What is next is read from the records of the two, so that it goes on from anywhere after a restart.

use std::sync::Arc;
use std::time::Duration;

use agentlab_api::{
    ErrorCode, Problem, SandboxId, SandboxRequest, SandboxState, WorkspaceId, WorkspaceRebind, WorkspaceView,
    chain,
};
use agentlab_store::{Rebind, SandboxRecord, StoreError, WorkspaceRecord, Write};
use tokio::time::{Instant, sleep};

use crate::engine::{Engine, store_problem};
use crate::event;
use crate::journal::Point;
use crate::sandbox::inbox::{Message, WorkspaceChange};
use crate::sandbox::machine::{Request, State};
use crate::shared::Shared;
use crate::workspace::{holder, select, view_of};
use crate::workspace_free::suits;

/// Between two looks.
const PACE: Duration = Duration::from_millis(500);
/// From when the new sandbox runs until its guest says that the disk is mounted.
const MOUNT: Duration = Duration::from_secs(180);

/// One of the two sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Side {
    state: SandboxState,
    /// It has the workspace.
    has: bool,
    /// It is being taken down, or that is all that is left of it.
    goes: bool,
    /// Its last start has failed.
    stuck: bool,
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Wait,
    Ask(Whose, Wish),
    Change(Whose, Hand),
    /// It cannot be finished.
    TurnBack(&'static str),
    /// The workspace is where it is to be, and the other one is gone or going.
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    Old,
    New,
}

/// What an operator could ask for, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Start,
    Stop,
    Destroy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hand {
    Give,
    Take,
}

fn is_up(side: &Side) -> bool {
    matches!(side.state, SandboxState::Ready | SandboxState::Running)
}

/// Decides. `None` for a sandbox that is gone; `mounted`: the new one's guest has said so.
pub(crate) fn next(rebind: &Rebind, old: Option<Side>, new: Option<Side>, mounted: bool) -> Action {
    if rebind.back {
        return back(old, new);
    }
    let Some(new) = new.filter(|new| !new.goes && !new.stuck) else {
        return Action::TurnBack("the new sandbox failed");
    };
    match (new.state, new.has) {
        (SandboxState::Running | SandboxState::Ready, true) if mounted => match old {
            Some(old) if !rebind.keep_old && !old.goes => Action::Ask(Whose::Old, Wish::Destroy),
            Some(_) | None => Action::Done,
        },
        (SandboxState::Running | SandboxState::Ready, false) => Action::Ask(Whose::New, Wish::Stop),
        (SandboxState::Stopped, true) => Action::Ask(Whose::New, Wish::Start),
        (SandboxState::Stopped, false) => match old {
            Some(old) if old.has => let_go(Whose::Old, &old),
            Some(_) | None => Action::Change(Whose::New, Hand::Take),
        },
        (
            SandboxState::Running
            | SandboxState::Ready
            | SandboxState::Requested
            | SandboxState::Provisioning
            | SandboxState::Booting,
            _,
        ) => Action::Wait,
        (
            SandboxState::Suspended | SandboxState::Timeout | SandboxState::Destroyed | SandboxState::Failed,
            _,
        ) => Action::TurnBack("the new sandbox is not up"),
    }
}

/// The disk comes back to where it was.
fn back(old: Option<Side>, new: Option<Side>) -> Action {
    if let Some(new) = new.filter(|new| new.has) {
        return let_go(Whose::New, &new);
    }
    let gone = match new {
        Some(new) if !new.goes => Action::Ask(Whose::New, Wish::Destroy),
        Some(_) | None => Action::Done,
    };
    match old {
        Some(old) if old.goes || old.stuck => gone,
        Some(old) if old.state == SandboxState::Stopped && !old.has => Action::Change(Whose::Old, Hand::Take),
        Some(old) if old.state == SandboxState::Stopped => Action::Ask(Whose::Old, Wish::Start),
        Some(old) if old.has && is_up(&old) => gone,
        Some(old) if old.has => Action::Wait,
        Some(_) | None => gone,
    }
}

/// Whoever has it stops first: only then has its guest let go.
fn let_go(whose: Whose, side: &Side) -> Action {
    match side.state {
        SandboxState::Ready | SandboxState::Running => Action::Ask(whose, Wish::Stop),
        SandboxState::Stopped => Action::Change(whose, Hand::Give),
        // It is on its way to one of the two, or is being taken down, which frees it.
        SandboxState::Requested
        | SandboxState::Provisioning
        | SandboxState::Booting
        | SandboxState::Suspended
        | SandboxState::Timeout
        | SandboxState::Destroyed
        | SandboxState::Failed => Action::Wait,
    }
}

fn side(record: Option<&SandboxRecord>, workspace: WorkspaceId) -> Option<Side> {
    let record = record?;
    let state = State::of(record);
    (state != State::Destroyed).then(|| Side {
        state: record.state,
        has: record.workspace == Some(workspace),
        goes: record.unwinding || record.state == SandboxState::Failed,
        stuck: state == State::Stopped && record.failure.is_some(),
    })
}

/// Runs one rebind to its end.
pub(crate) async fn until_done(shared: Arc<Shared>, id: WorkspaceId) -> WorkspaceId {
    let mut mounting: Option<Instant> = None;
    loop {
        match once(&shared, id, &mut mounting).await {
            Ok(true) => return id,
            Ok(false) => {}
            Err(error) => tracing::error!(workspace = %id, error = %chain(&error), "could not record"),
        }
        sleep(PACE).await;
    }
}

/// True when there is nothing more to do.
async fn once(shared: &Shared, id: WorkspaceId, mounting: &mut Option<Instant>) -> Result<bool, StoreError> {
    let Some(workspace) = shared.store.workspace(id).await? else {
        return Ok(true);
    };
    let Some(rebind) = workspace.rebind.clone() else {
        return Ok(true);
    };
    let old = shared.store.sandbox(rebind.from).await?;
    let new = shared.store.sandbox(rebind.to).await?;
    let mounted = workspace.mounted_in == Some(rebind.to);
    let (old_side, new_side) = (side(old.as_ref(), id), side(new.as_ref(), id));
    let mut action = next(&rebind, old_side, new_side, mounted);
    let waits_for_mount = action == Action::Wait && new_side.is_some_and(|new| new.has && is_up(&new));
    if !waits_for_mount {
        *mounting = None;
    } else if mounting.get_or_insert_with(Instant::now).elapsed() > MOUNT {
        action = Action::TurnBack("the new sandbox's guest did not mount it");
    }
    let of = |whose| match whose {
        Whose::Old => rebind.from,
        Whose::New => rebind.to,
    };
    match action {
        Action::Wait => {}
        Action::Ask(whose, request) => ask(shared, of(whose), request).await,
        Action::Change(whose, hand) => change(shared, of(whose), hand, id).await,
        Action::TurnBack(reason) => {
            let reason = new
                .and_then(|new| new.failure)
                .map_or_else(|| reason.to_owned(), |failure| failure.to_string());
            turn_back(shared, workspace, rebind, &reason).await?;
        }
        Action::Done => {
            done(shared, workspace, &rebind).await?;
            return Ok(true);
        }
    }
    Ok(false)
}

/// What is not possible now is asked again at the next look.
async fn ask(shared: &Shared, sandbox: SandboxId, request: Wish) {
    let Some(handle) = shared.driver(sandbox) else {
        return;
    };
    let request = match request {
        Wish::Start => Request::Start,
        Wish::Stop => Request::Stop,
        Wish::Destroy => Request::Destroy { force: true },
    };
    let answer = handle.ask(|reply| Message::Request { request, reply }).await;
    tracing::debug!(%sandbox, ok = matches!(answer, Ok(Ok(_))), "asked for a rebind");
}

async fn change(shared: &Shared, sandbox: SandboxId, hand: Hand, id: WorkspaceId) {
    let _alone = shared.workspaces.alone().await;
    let Some(handle) = shared.driver(sandbox) else {
        return;
    };
    let change = match hand {
        Hand::Give => WorkspaceChange::Give,
        Hand::Take => WorkspaceChange::Take(id),
    };
    let answer = handle.ask(|reply| Message::Workspace { change, reply }).await;
    tracing::debug!(%sandbox, ok = matches!(answer, Ok(Ok(_))), "workspace changes hands");
}

async fn turn_back(
    shared: &Shared,
    workspace: WorkspaceRecord,
    rebind: Rebind,
    reason: &str,
) -> Result<(), StoreError> {
    tracing::warn!(workspace = %workspace.id, reason, "rebind is undone");
    let workspace = WorkspaceRecord {
        rebind: Some(Rebind { back: true, ..rebind }),
        trouble: Some(format!("The last rebind was undone: {reason}")),
        ..workspace
    };
    commit(shared, workspace, "goes back to the sandbox that had it").await
}

async fn done(shared: &Shared, workspace: WorkspaceRecord, rebind: &Rebind) -> Result<(), StoreError> {
    let what = if rebind.back {
        "is where it was"
    } else {
        "is in its new sandbox"
    };
    let workspace = WorkspaceRecord {
        rebind: None,
        trouble: if rebind.back { workspace.trouble } else { None },
        ..workspace
    };
    commit(shared, workspace, what).await?;
    shared.workspaces.ended();
    Ok(())
}

async fn commit(shared: &Shared, workspace: WorkspaceRecord, what: &str) -> Result<(), StoreError> {
    let told = event::workspace(&workspace, None, what);
    let writes = vec![Write::Workspace(Box::new(workspace)), told];
    shared.journal.commit(Point::Workspace, writes).await.map(drop)
}

impl Engine {
    /// Has a new sandbox made and the workspace handed to it, and returns once that is recorded.
    ///
    /// # Errors
    /// Nobody has the workspace, a job works on it, or the new sandbox cannot be asked for.
    pub async fn rebind_workspace(
        &self,
        selector: &str,
        request: WorkspaceRebind,
    ) -> Result<WorkspaceView, Problem> {
        self.accepting()?;
        let _alone = self.shared.workspaces.alone().await;
        let workspace = select(&self.shared, selector).await?;
        let conflict = |text: String| Problem::new(ErrorCode::StateConflict, text);
        let name = workspace.name.clone();
        if workspace.rebind.is_some() || workspace.task.is_some() {
            return Err(conflict(format!("Workspace `{name}` is being changed already")));
        }
        let live = self.shared.store.sandboxes(false).await;
        let live = live.map_err(|error| store_problem(&error))?;
        let Some(old) = holder(&live, workspace.id) else {
            return Err(
                conflict(format!("Nobody has workspace `{name}`")).with_hint(format!(
                    "`agentlab sandbox new --profile {} --workspace {name}` makes a sandbox that has it",
                    request.profile
                )),
            );
        };
        let can_stop = matches!(
            old.state,
            SandboxState::Running | SandboxState::Ready | SandboxState::Stopped
        );
        if old.job.is_some() || !can_stop || old.unwinding {
            let text = format!("Sandbox {} has workspace `{name}` and is {}", old.vmid, old.state);
            return Err(conflict(text).with_hint("a job must end first, and a paused sandbox go on"));
        }
        let wanted = SandboxRequest {
            profile: request.profile,
            name: None,
            ttl_minutes: request.ttl_minutes,
            workspace: None,
            workspace_wait_seconds: None,
        };
        let profile = self.profile(&wanted.profile)?;
        suits(Some(&name), &profile)?;
        let (from, old_vmid, keep_old) = (old.id, old.vmid, request.keep_old);
        // Both or neither: a new sandbox that nobody hands anything to would stay until its lease ends.
        let handed_on = move |new: &SandboxRecord| {
            let workspace = WorkspaceRecord {
                rebind: Some(Rebind {
                    from,
                    to: new.id,
                    keep_old,
                    back: false,
                }),
                trouble: None,
                ..workspace
            };
            let what = format!("is to go from sandbox {old_vmid} to {}", new.vmid);
            let told = event::workspace(&workspace, None, &what);
            vec![Write::Workspace(Box::new(workspace)), told]
        };
        self.new_sandbox(wanted, profile, None, handed_on).await?;
        self.shared.workspaces.news.notify_one();
        view_of(&self.shared, select(&self.shared, &name).await?).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rebind(back: bool) -> Rebind {
        Rebind {
            from: SandboxId::generate(),
            to: SandboxId::generate(),
            keep_old: false,
            back,
        }
    }

    fn at(state: SandboxState, has: bool) -> Option<Side> {
        Some(Side {
            state,
            has,
            goes: false,
            stuck: false,
        })
    }

    const STATES: [SandboxState; 10] = SandboxState::ALL;

    #[test]
    fn the_old_sandbox_is_touched_only_once_the_new_one_has_been_up_and_goes_last() {
        let go = |old, new, mounted| next(&rebind(false), old, new, mounted);
        use SandboxState::{Booting, Running, Stopped};
        let old = at(Running, true);
        assert_eq!(go(old, at(Booting, false), false), Action::Wait);
        assert_eq!(
            go(old, at(Running, false), false),
            Action::Ask(Whose::New, Wish::Stop)
        );
        assert_eq!(
            go(old, at(Stopped, false), false),
            Action::Ask(Whose::Old, Wish::Stop)
        );
        let old = at(Stopped, true);
        assert_eq!(
            go(old, at(Stopped, false), false),
            Action::Change(Whose::Old, Hand::Give)
        );
        let old = at(Stopped, false);
        assert_eq!(
            go(old, at(Stopped, false), false),
            Action::Change(Whose::New, Hand::Take)
        );
        assert_eq!(
            go(old, at(Stopped, true), false),
            Action::Ask(Whose::New, Wish::Start)
        );
        assert_eq!(go(old, at(Running, true), false), Action::Wait);
        assert_eq!(
            go(old, at(Running, true), true),
            Action::Ask(Whose::Old, Wish::Destroy)
        );
        assert_eq!(go(None, at(Running, true), true), Action::Done);
        let kept = Rebind {
            keep_old: true,
            ..rebind(false)
        };
        assert_eq!(next(&kept, old, at(Running, true), true), Action::Done);
    }

    #[test]
    fn nothing_of_the_old_sandbox_is_destroyed_before_the_new_one_has_mounted_the_disk() {
        for old_state in STATES {
            for new_state in STATES {
                for (old_has, new_has) in [(true, false), (false, true), (false, false)] {
                    for back in [false, true] {
                        let action = next(
                            &rebind(back),
                            at(old_state, old_has),
                            at(new_state, new_has),
                            false,
                        );
                        assert_ne!(
                            action,
                            Action::Ask(Whose::Old, Wish::Destroy),
                            "{old_state} {new_state}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_failure_puts_the_disk_back_and_the_old_sandbox_up_before_the_new_one_goes() {
        use SandboxState::{Running, Stopped};
        let failed = Some(Side {
            state: Stopped,
            has: true,
            goes: false,
            stuck: true,
        });
        assert!(matches!(
            next(&rebind(false), at(Stopped, false), failed, false),
            Action::TurnBack(_)
        ));
        assert!(matches!(
            next(&rebind(false), at(Stopped, false), None, false),
            Action::TurnBack(_)
        ));
        let go = |old, new| next(&rebind(true), old, new, false);
        assert_eq!(
            go(at(Stopped, false), at(Stopped, true)),
            Action::Change(Whose::New, Hand::Give)
        );
        assert_eq!(
            go(at(Stopped, false), at(Stopped, false)),
            Action::Change(Whose::Old, Hand::Take)
        );
        assert_eq!(
            go(at(Stopped, true), at(Stopped, false)),
            Action::Ask(Whose::Old, Wish::Start)
        );
        assert_eq!(
            go(at(Running, true), at(Stopped, false)),
            Action::Ask(Whose::New, Wish::Destroy)
        );
        assert_eq!(
            go(at(Running, true), failed.map(|new| Side { has: false, ..new })),
            Action::Ask(Whose::New, Wish::Destroy)
        );
        assert_eq!(go(at(Running, true), None), Action::Done);
    }
}
