//! Every journal point of every story: the process is killed right before it and right after it, the commit is refused,
//! the clock jumps. And every call into the world: the process is killed in it. Whatever happens, the story ends as it
//! would have, and nothing is left.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use agentlab_backend::fake::Call;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::lab::Lab;
use super::process::{End, Plan, World, numbered};
use super::story::{Memory, Story, judge, tell};
use super::wires::Fault;
use crate::sandbox::step::Step;
use crate::{Moment, Point};

/// Lives through a story in processes of these plans and a last one that is left alone. What the first one reached,
/// and how it ended.
fn live(story: Story, plans: &[Plan]) -> (End, Vec<(Point, Moment)>) {
    let mut world = World::new(|lab| story.prepare(lab));
    let memory = Memory::default();
    let mut first = None;
    for plan in plans.iter().chain([&Plan::Live]) {
        let (end, reached) = world.process(*plan, async |lab| {
            tell(lab, story, &memory).await;
            judge(lab, story, &memory).await;
        });
        let first = first.get_or_insert((end, reached));
        if end == End::Finished {
            return first.clone();
        }
    }
    panic!("a process that nobody kills ends by itself");
}

/// Each moment of an undisturbed story, with how often it was reached before.
fn moments(story: Story) -> Vec<((Point, Moment), usize)> {
    numbered(&live(story, &[]).1)
}

/// Threads of the store take their own time, so that one beat of a guest more or less comes: then once more.
const TRIES: usize = 5;

fn killed_at_every_moment(story: Story) {
    for (at, nth) in moments(story) {
        let (point, moment) = at;
        println!("{story:?}, killed {moment:?} {point} ({nth})");
        let reached = (0..TRIES).any(|_| live(story, &[Plan::Die { at, nth }]).0 == End::Killed);
        assert!(reached, "{story:?} never came to {moment:?} {point} ({nth})");
    }
}

macro_rules! killed {
    ($($name:ident: $story:ident,)*) => {
        const KILLED: &[Story] = &[$(Story::$story),*];

        $(#[test]
        fn $name() {
            killed_at_every_moment(Story::$story);
        })*
    };
}

killed! {
    a_job_that_completes_survives_a_kill_at_every_point: Completes,
    a_job_whose_agent_fails_survives_a_kill_at_every_point: AgentFails,
    a_job_whose_step_fails_survives_a_kill_at_every_point: StepFails,
    a_job_whose_guest_is_silent_survives_a_kill_at_every_point: BootFails,
    a_job_whose_machine_dies_survives_a_kill_at_every_point: MachineDies,
    a_sandbox_being_destroyed_survives_a_kill_at_every_point: Destroyed,
    a_job_being_cancelled_survives_a_kill_at_every_point: Cancelled,
    a_lease_that_ends_survives_a_kill_at_every_point: LeaseEnds,
    a_sandbox_that_is_kept_survives_a_kill_at_every_point: Kept,
    a_job_whose_vmid_is_taken_survives_a_kill_at_every_point: Taken,
    a_machine_that_does_not_go_survives_a_kill_at_every_point: Stubborn,
    a_job_that_waits_for_a_place_survives_a_kill_at_every_point: Waits,
    a_sandbox_that_is_stopped_started_and_paused_survives_a_kill_at_every_point: Used,
    a_job_on_a_workspace_survives_a_kill_at_every_point: Lasting,
    a_workspace_is_free_again_after_a_kill_at_every_point_of_its_end: Parted,
}

/// Every point that there is, by name. One that is added must be met by a story.
fn all_points() -> BTreeSet<String> {
    let states = [
        "BOOTING",
        "RUNNING",
        "READY",
        "SUSPENDED",
        "STOPPED",
        "TIMEOUT",
        "Unwinding",
        "FAILED",
        "DESTROYED",
    ];
    let steps = Step::ALL.into_iter().filter(|step| *step != Step::AwaitGuest);
    let entered = states
        .into_iter()
        .chain(steps.map(Step::as_str))
        .map(Point::Enter);
    let undone = [
        Step::PowerOn,
        Step::AttachWorkspace,
        Step::Clone,
        Step::BindNetwork,
        Step::IssueToken,
        Step::Seed,
    ];
    let others = [
        Point::Reserve,
        Point::Workspace,
        Point::Start,
        Point::ReserveAgain,
        Point::Left,
        Point::ForgetTokens,
        Point::Acknowledge,
        Point::Heartbeat,
        Point::Log,
        Point::Artifact,
        Point::Cancel,
        Point::LeaseWarning,
        Point::LeaseRenewed,
        Point::Used,
        Point::WentOn,
        Point::TaskBegun,
    ];
    let points = entered.chain(undone.map(Point::Undo)).chain(others);
    points.map(|point| point.to_string()).collect()
}

#[test]
fn every_point_is_met_and_no_story_is_left_out() {
    assert_eq!(KILLED, Story::ALL);
    let met: BTreeSet<String> = Story::ALL
        .into_iter()
        .flat_map(moments)
        .map(|((point, _), _)| point.to_string())
        .collect();
    assert_eq!(met, all_points());
}

/// A daemon that dies again and again while it recovers. Moments are chosen by a fixed sequence of numbers, so that a
/// failure comes again.
#[test]
fn a_process_that_is_killed_while_it_recovers_is_no_worse() {
    let mut state = 0x2545_f491_u32;
    let mut number = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        usize::try_from(state).unwrap()
    };
    for story in Story::ALL {
        let moments = moments(story);
        for _ in 0..8 {
            let mut die = || {
                let (at, nth) = moments[number() % moments.len()];
                Plan::Die { at, nth }
            };
            let plans = [die(), die(), die(), die()];
            println!("{story:?}, {plans:?}");
            live(story, &plans);
        }
    }
}

/// Refuses every commit of a story in turn, once and often.
fn refused_at_every_commit(story: Story) {
    for from in 0..moments(story).len() / 2 {
        for times in [1, 4] {
            println!("{story:?}, {times} from {from} on");
            live(story, &[Plan::Refuse { from, times }]);
        }
    }
}

macro_rules! refused {
    ($($name:ident: $story:ident,)*) => {
        $(#[test]
        fn $name() {
            refused_at_every_commit(Story::$story);
        })*
    };
}

refused! {
    a_job_completes_though_any_commit_is_refused: Completes,
    a_failed_step_is_undone_though_any_commit_is_refused: StepFails,
    a_silent_guest_is_given_up_though_any_commit_is_refused: BootFails,
    a_dead_machine_is_noticed_though_any_commit_is_refused: MachineDies,
    a_sandbox_is_destroyed_though_any_commit_is_refused: Destroyed,
    a_job_is_cancelled_though_any_commit_is_refused: Cancelled,
    a_lease_ends_though_any_commit_is_refused: LeaseEnds,
    a_kept_sandbox_goes_though_any_commit_is_refused: Kept,
    another_vmid_is_found_though_any_commit_is_refused: Taken,
    a_machine_that_does_not_go_is_waited_for_though_any_commit_is_refused: Stubborn,
    a_job_gets_its_place_though_any_commit_is_refused: Waits,
    a_sandbox_is_stopped_started_and_paused_though_any_commit_is_refused: Used,
    a_job_on_a_workspace_completes_though_any_commit_is_refused: Lasting,
    a_workspace_is_free_again_though_any_commit_is_refused: Parted,
}

#[test]
fn a_clock_that_jumps_at_every_commit_changes_no_ending() {
    for story in Story::ALL {
        for hours in [24, -24] {
            println!("{story:?}, {hours} h");
            live(story, &[Plan::Jump { hours }]);
        }
    }
}

#[test]
fn the_next_process_waits_for_the_very_task_that_the_last_one_began() {
    let mut world = World::new(|lab| Story::Completes.prepare(lab));
    let memory = Memory::default();
    let whole = async |lab: &Lab| {
        tell(lab, Story::Completes, &memory).await;
        judge(lab, Story::Completes, &memory).await;
    };
    let die = Plan::Die {
        at: (Point::TaskBegun, Moment::After),
        nth: 0,
    };
    assert_eq!(world.process(die, whole).0, End::Killed);

    let backend = world.lab().backend.clone();
    backend.forget_calls();
    let still_runs = backend.hang_next(Call::AwaitTask);
    let a_while = async {
        still_runs.reached().await;
        sleep(Duration::from_secs(20)).await;
    };
    assert_eq!(world.process_until(Plan::Live, a_while, whole).0, End::Killed);
    assert_eq!(backend.count(Call::CloneTemplate), 0, "while the task runs");
    assert_eq!(backend.awaited_tasks(), []);
    drop(still_runs);

    assert_eq!(world.process(Plan::Live, whole).0, End::Finished);
    let awaited = backend.awaited_tasks();
    assert_eq!(
        awaited.first().map(|task| task.as_str()),
        Some("fake:1:clone:1000")
    );
}

/// A call into the world in which the process is killed.
#[derive(Debug, Clone, Copy)]
enum Within {
    Backend(Call),
    Network(&'static str, usize),
}

/// All calls that change the world, each as often as a job makes it.
const CALLS: [Within; 12] = [
    Within::Backend(Call::CloneTemplate),
    Within::Backend(Call::Configure),
    Within::Network("attach", 0),
    Within::Backend(Call::PlaceSeed),
    Within::Network("set_trust", 0),
    Within::Backend(Call::PowerOn),
    Within::Network("set_trust", 1),
    Within::Network("set_trust", 2),
    Within::Backend(Call::PowerOff),
    Within::Backend(Call::Destroy),
    Within::Network("detach", 0),
    Within::Backend(Call::RemoveSeed),
];

/// The calls that a workspace adds.
const WORKSPACE_CALLS: [Within; 5] = [
    Within::Backend(Call::CreateVolume),
    Within::Backend(Call::AttachVolume),
    Within::Backend(Call::GrowVolume),
    Within::Backend(Call::DetachVolume),
    Within::Backend(Call::DestroyVolume),
];

#[test]
fn a_process_killed_within_any_call_ends_the_job_in_the_same_place() {
    let of_jobs: &[Within] = &CALLS;
    let all = [
        (Story::Completes, of_jobs),
        (Story::Destroyed, of_jobs),
        (Story::Lasting, &WORKSPACE_CALLS),
        (Story::Parted, &WORKSPACE_CALLS),
    ];
    for (story, calls) in all {
        for call in calls {
            println!("{story:?}, killed in {call:?}");
            let mut world = World::new(|_| {});
            let memory = Memory::default();
            let whole = async |lab: &Lab| {
                tell(lab, story, &memory).await;
                judge(lab, story, &memory).await;
            };
            let (end, _) = match *call {
                Within::Backend(call) => {
                    let hang = world.lab().backend.hang_next(call);
                    world.process_until(Plan::Live, hang.reached(), whole)
                }
                Within::Network(call, nth) => {
                    let reached = Arc::new(Notify::new());
                    let fault = Fault::Hang(reached.clone());
                    world.lab().wires.fault(call, nth, fault);
                    world.process_until(Plan::Live, reached.notified(), whole)
                }
            };
            assert_eq!(end, End::Killed, "{call:?} was made");
            let (end, _) = world.process(Plan::Live, whole);
            assert_eq!(end, End::Finished);
        }
    }
}
