//! Every step and every undo fails, repeats and hangs in turn, in every way that the world has for it. The list comes
//! from the steps themselves: one that is added must say here what it asks of the world.

use agentlab_api::{ErrorCode, JobState};
use agentlab_backend::BackendError;
use agentlab_backend::fake::{Call, Hang};
use tokio::sync::Notify;

use super::lab::{Lab, vmid};
use super::process::{End, Plan, World};
use super::story::{Memory, Story, judge, judge_as, tell};
use super::wires::Fault;
use crate::sandbox::step::Step;
use crate::{Moment, Point};

/// Somebody outside of the engine whom a step asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Backend(Call),
    /// The n-th call of that name in a job's life.
    Network(&'static str, usize),
    /// The records, at this point.
    Journal(Point),
    /// The guest itself.
    Guest,
}

/// Whom a step asks.
fn asked(step: Step) -> Vec<Asked> {
    match step {
        Step::Reserve => vec![Asked::Journal(Point::Reserve)],
        Step::Clone => vec![Asked::Backend(Call::CloneTemplate)],
        Step::Configure => vec![Asked::Backend(Call::Configure)],
        Step::AttachWorkspace => vec![
            Asked::Journal(Point::Enter("AttachWorkspace")),
            Asked::Backend(Call::AttachVolume),
            Asked::Backend(Call::GrowVolume),
        ],
        // A token is made in memory; that it is good is recorded.
        Step::IssueToken => vec![Asked::Journal(Point::Enter("Seed"))],
        Step::BindNetwork => vec![Asked::Network("attach", 0)],
        Step::Seed => vec![Asked::Backend(Call::PlaceSeed)],
        Step::PowerOn => vec![Asked::Network("set_trust", 0), Asked::Backend(Call::PowerOn)],
        Step::AwaitGuest => vec![Asked::Guest],
    }
}

/// Whom its undo asks.
fn asked_by_undo(step: Step) -> Vec<Asked> {
    match step {
        Step::PowerOn => vec![Asked::Network("set_trust", 2), Asked::Backend(Call::PowerOff)],
        Step::Clone => vec![Asked::Backend(Call::Destroy)],
        Step::BindNetwork => vec![Asked::Network("detach", 0)],
        Step::IssueToken => vec![Asked::Journal(Point::ForgetTokens)],
        Step::Seed => vec![Asked::Backend(Call::RemoveSeed)],
        Step::Reserve => vec![Asked::Journal(Point::Enter("DESTROYED"))],
        // Gone with the machine.
        Step::Configure | Step::AwaitGuest => Vec::new(),
        Step::AttachWorkspace => vec![Asked::Backend(Call::DetachVolume)],
    }
}

/// In which story the step has something to do: how it ends, and how it ends when an operator wants it to.
fn stories(step: Step) -> (Story, Story) {
    if step == Step::AttachWorkspace {
        (Story::Lasting, Story::Parted)
    } else {
        (Story::Completes, Story::Destroyed)
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    /// Refused, without an effect.
    Refused,
    /// Refused, with the whole effect.
    RefusedAfterwards,
    /// Not reached, once: the step is repeated.
    Unreached,
    /// The answer is lost: the step is repeated upon its own effect.
    Unheard,
    /// Never answered.
    Hangs,
}

const WRONGS: [Wrong; 5] = [
    Wrong::Refused,
    Wrong::RefusedAfterwards,
    Wrong::Unreached,
    Wrong::Unheard,
    Wrong::Hangs,
];

/// An answer that is no.
pub(super) fn refused() -> BackendError {
    BackendError::Refused {
        action: "it",
        vmid: vmid(1000),
        reason: "no such luck".into(),
        hint: None,
    }
}

/// No answer.
pub(super) fn unreachable() -> BackendError {
    BackendError::Unreachable {
        backend: "fake",
        action: "it",
        reason: "cable cut".into(),
    }
}

/// Sets the trap. `None` where it cannot go wrong like this: the packet policy and the records answer or do not.
fn trap(lab: &Lab, asked: Asked, wrong: Wrong) -> Option<(Plan, Option<Hang>)> {
    let backend = &lab.backend;
    let mut hang = None;
    let mut plan = Plan::Live;
    match (asked, wrong) {
        (Asked::Backend(call), Wrong::Refused) => backend.fail_next(call, refused()),
        (Asked::Backend(call), Wrong::RefusedAfterwards) => backend.lose_answer(call, refused()),
        (Asked::Backend(call), Wrong::Unreached) => backend.fail_next(call, unreachable()),
        (Asked::Backend(call), Wrong::Unheard) => backend.lose_answer(call, unreachable()),
        (Asked::Backend(call), Wrong::Hangs) => hang = Some(backend.hang_next(call)),
        (Asked::Network(call, nth), Wrong::Refused) => lab.wires.fault(call, nth, Fault::Refuse),
        (Asked::Network(call, nth), Wrong::RefusedAfterwards) => lab.wires.fault(call, nth, Fault::Lose),
        (Asked::Network(call, nth), Wrong::Hangs) => {
            lab.wires.fault(call, nth, Fault::Hang(Notify::new().into()))
        }
        (Asked::Journal(point), Wrong::Refused) => plan = Plan::RefuseAt { point, times: 3 },
        (Asked::Journal(point), Wrong::Hangs) => {
            // A disk that never answers is a process that never goes on.
            plan = Plan::Die {
                at: (point, Moment::Before),
                nth: 0,
            }
        }
        (Asked::Journal(point), Wrong::Unheard) => {
            plan = Plan::Die {
                at: (point, Moment::After),
                nth: 0,
            }
        }
        (Asked::Network(..), Wrong::Unreached | Wrong::Unheard)
        | (Asked::Journal(_), Wrong::RefusedAfterwards | Wrong::Unreached)
        | (Asked::Guest, _) => return None,
    }
    Some((plan, hang))
}

/// How the job must end when a forward step goes wrong.
fn expected(step: Step, asked: Asked, wrong: Wrong) -> (JobState, Option<(ErrorCode, &'static str)>) {
    let failed = |code| (JobState::Failed, Some((code, step.as_str())));
    match (asked, wrong) {
        (Asked::Journal(_), _) | (_, Wrong::Unreached | Wrong::Unheard) => (JobState::Completed, None),
        (Asked::Guest, _) => failed(ErrorCode::GuestSilent),
        (_, Wrong::Hangs) => failed(ErrorCode::ProvisioningTimeout),
        (Asked::Backend(_), Wrong::Refused | Wrong::RefusedAfterwards) => failed(ErrorCode::BackendFailed),
        (Asked::Network(..), Wrong::Refused | Wrong::RefusedAfterwards) => {
            failed(ErrorCode::NetworkUnenforced)
        }
    }
}

/// One life with a trap in it; a second one when the trap killed the first.
fn through(asked: Asked, wrong: Wrong, story: Story, life: impl AsyncFn(&Lab, &Memory)) -> bool {
    let mut world = World::new(|lab| {
        story.prepare(lab);
        lab.settings.provisioning_timeout = std::time::Duration::from_secs(5);
    });
    let memory = Memory::default();
    let Some((plan, _hang)) = trap(world.lab(), asked, wrong) else {
        return false;
    };
    let whole = async |lab: &Lab| life(lab, &memory).await;
    let (end, _) = world.process(plan, whole);
    if end == End::Killed {
        assert_eq!(world.process(Plan::Live, whole).0, End::Finished);
    } else {
        assert!(!matches!(plan, Plan::Die { .. }), "the point was reached");
    }
    true
}

#[test]
fn every_step_that_goes_wrong_is_repeated_or_undone() {
    for step in Step::ALL {
        let asked = asked(step);
        assert!(!asked.is_empty(), "{step} asks nobody");
        for (asked, wrong) in asked.iter().flat_map(|asked| WRONGS.map(|wrong| (*asked, wrong))) {
            println!("{step}: {asked:?} {wrong:?}");
            let (state, cause) = expected(step, asked, wrong);
            let (story, _) = stories(step);
            through(asked, wrong, story, async |lab, memory| {
                tell(lab, story, memory).await;
                judge_as(lab, memory, state, cause).await;
            });
        }
        if asked.contains(&Asked::Guest) {
            let (state, cause) = expected(step, Asked::Guest, Wrong::Hangs);
            assert_eq!((state, cause), Story::BootFails.end(), "told in full elsewhere");
        }
    }
}

#[test]
fn every_undo_that_goes_wrong_is_repeated_until_it_has_succeeded() {
    let mut steps = 0;
    for step in Step::ALL {
        for (asked, wrong) in asked_by_undo(step)
            .iter()
            .flat_map(|asked| WRONGS.map(|wrong| (*asked, wrong)))
        {
            let (completes, destroyed) = stories(step);
            for story in [completes, destroyed] {
                println!("undo of {step}: {asked:?} {wrong:?}, {story:?}");
                steps += usize::from(through(asked, wrong, story, async |lab, memory| {
                    tell(lab, story, memory).await;
                    judge(lab, story, memory).await;
                }));
            }
        }
    }
    assert!(steps >= 2 * 20, "{steps} undos were tried");
}

/// The whole world is gone for a while, in the midst of a teardown: what is left is said, and then it is taken away.
#[test]
fn a_hypervisor_that_is_away_during_a_teardown_is_waited_for() {
    let mut world = World::new(|_| {});
    let memory = Memory::default();
    let story = Story::Completes;
    let backend = world.lab().backend.clone();
    let hang = backend.hang_next(Call::PowerOff);
    let (end, _) = world.process(Plan::Live, async |lab| {
        let away = async {
            hang.reached().await;
            backend.set_unreachable(Some("cable cut"));
            hang.release();
            tokio::time::sleep(std::time::Duration::from_secs(120)).await;
            let alarms = lab.engine().status().await.unwrap().alarms;
            assert!(
                alarms.iter().any(|alarm| alarm.contains("left behind")),
                "{alarms:?}"
            );
            backend.set_unreachable(None);
        };
        tokio::join!(away, tell(lab, story, &memory));
        judge(lab, story, &memory).await;
    });
    assert_eq!(end, End::Finished);
}
