//! The line of jobs that wait for a place.

use agentlab_api::{ErrorCode, JobState, JobView, SandboxState};
use agentlab_backend::fake::Call;

use super::lab::{Lab, request, vmid};
use crate::Tunable;

async fn one_place() -> Lab {
    Lab::with(|settings| {
        settings.max_sandboxes = 1;
        settings.max_queued_jobs = 3;
    })
    .await
}

async fn positions(lab: &Lab, jobs: &[&JobView]) -> Vec<Option<u32>> {
    let mut positions = Vec::new();
    for job in jobs {
        let view = lab.job(&job.id).await;
        assert_eq!(
            view.sandbox.is_some(),
            view.queue_position.is_none() && !view.state.is_final()
        );
        positions.push(view.queue_position);
    }
    positions
}

/// Cancels whoever has the place, and waits until `next` has it.
async fn hand_on(lab: &Lab, holder: &JobView, next: &JobView) {
    lab.engine().cancel_job(&holder.id).await.unwrap();
    let look = async {
        while lab.job(&next.id).await.sandbox.is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(120), look)
        .await
        .unwrap();
}

#[tokio::test]
async fn jobs_beyond_the_bound_wait_in_order_and_the_line_has_an_end() {
    let lab = one_place().await;
    let jobs = [lab.run().await, lab.run().await, lab.run().await, lab.run().await];
    let [first, second, third, fourth] = &jobs;
    assert_eq!(second.queue_position, Some(1));
    assert_eq!(
        positions(&lab, &[first, second, third, fourth]).await,
        [None, Some(1), Some(2), Some(3)]
    );
    let listed = lab.engine().jobs(None, None).await.unwrap().jobs;
    let listed: Vec<_> = listed.iter().rev().map(|job| job.queue_position).collect();
    assert_eq!(listed, [None, Some(1), Some(2), Some(3)]);
    let problem = lab.engine().create_job(request(), None).await.unwrap_err();
    assert_eq!(problem.code, ErrorCode::LimitReached, "{problem:?}");
    assert_eq!(lab.store.sandboxes(true).await.unwrap().len(), 1);

    hand_on(&lab, first, second).await;
    assert_eq!(
        positions(&lab, &[second, third, fourth]).await,
        [None, Some(1), Some(2)]
    );
    hand_on(&lab, second, third).await;
    hand_on(&lab, third, fourth).await;
    lab.engine().cancel_job(&fourth.id).await.unwrap();
    for job in &jobs {
        let job = lab.job(&job.id).await;
        let sandbox = lab.until_sandbox(&job, SandboxState::Destroyed).await;
        assert_eq!(job.state, JobState::Cancelled);
        assert_eq!(sandbox.profile, "demo");
    }
    lab.assert_empty().await;
}

#[tokio::test]
async fn a_job_that_waits_is_told_so_and_its_story_goes_on_when_it_starts() {
    let lab = one_place().await;
    let (first, second) = (lab.run().await, lab.run().await);
    hand_on(&lab, &first, &second).await;
    let second = lab.job(&second.id).await;
    lab.boot(&second).await;
    let filter = agentlab_store::EventFilter {
        job: Some(second.id.clone()),
        sandbox: None,
    };
    let events = lab.store.events(&filter, 0, 1000).await.unwrap();
    assert!(events[0].message.ends_with("in place 1"), "{events:?}");
    assert_eq!(events[0].data["queue_position"], 1);
    assert!(events[1].message.contains("REQUESTED"), "{events:?}");
}

#[tokio::test]
async fn the_line_survives_a_restart_and_new_jobs_go_to_its_end() {
    let mut lab = one_place().await;
    let (first, second) = (lab.run().await, lab.run().await);
    lab.restart().await;
    let third = lab.run().await;
    assert_eq!(
        positions(&lab, &[&first, &second, &third]).await,
        [None, Some(1), Some(2)]
    );
    // Room is made while nobody serves.
    lab.engine().cancel_job(&first.id).await.unwrap();
    lab.until_sandbox(&first, SandboxState::Destroyed).await;
    lab.restart().await;
    let second = lab.job(&second.id).await;
    assert_eq!((second.state, third.queue_position), (JobState::Queued, Some(2)));
    hand_on(&lab, &second, &third).await;
}

#[tokio::test]
async fn a_job_that_waits_can_be_cancelled_and_the_others_move_up() {
    let lab = one_place().await;
    let jobs = [lab.run().await, lab.run().await, lab.run().await];
    let [first, second, third] = &jobs;
    let cancelled = lab.engine().cancel_job(&second.id).await.unwrap();
    assert_eq!((cancelled.state, cancelled.sandbox), (JobState::Cancelled, None));
    assert_eq!(lab.engine().cancel_job(&second.id).await.unwrap(), cancelled);
    assert_eq!(positions(&lab, &[first, third]).await, [None, Some(1)]);
    assert_eq!(
        lab.job(&second.id).await.failure.unwrap().code,
        ErrorCode::Cancelled
    );
}

#[tokio::test]
async fn a_raised_bound_starts_who_waits() {
    let lab = one_place().await;
    let (first, second) = (lab.run().await, lab.run().await);
    let tunable = Tunable {
        max_sandboxes: 2,
        profiles: Vec::new(),
        ..(*lab.engine().tunable()).clone()
    };
    lab.engine().tune(tunable);
    lab.boot(&first).await;
    let look = async {
        while lab.job(&second.id).await.sandbox.is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(120), look)
        .await
        .unwrap();
    // With the profile it was asked for with, although that is gone.
    let second = lab.job(&second.id).await;
    assert_eq!(lab.sandbox(&second).await.profile, "demo");
    let problem = lab.engine().create_job(request(), None).await.unwrap_err();
    assert_eq!(problem.code, ErrorCode::UnknownProfile);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_waits_for_its_turn_says_so_and_is_not_too_late() {
    for (call, step) in [(Call::CloneTemplate, "Clone"), (Call::PowerOn, "PowerOn")] {
        waits_for_its_turn(call, step).await;
    }
}

async fn waits_for_its_turn(call: Call, step: &str) {
    let lab = Lab::new().await;
    let vmid = vmid(1000);
    let hang = lab.backend.hang_next(call);
    lab.backend.set_waits_behind(vmid, Some(2));
    let job = lab.run().await;
    hang.reached().await;
    // Much longer than it may take.
    tokio::time::sleep(10 * lab.settings.provisioning_timeout).await;
    assert_eq!(lab.sandbox(&job).await.state, SandboxState::Provisioning);
    let told = lab.messages(&job).await;
    let waits =
        |said: &&String| said.contains(&format!("{step} waits for its turn, 2 others wait before it"));
    assert_eq!(told.iter().filter(waits).count(), 1, "{told:#?}");

    // Its turn has come, and still nothing comes of it.
    lab.backend.set_waits_behind(vmid, None);
    lab.until_job(&job, JobState::Failed).await;
    drop(hang);
}

#[tokio::test]
async fn a_repeated_request_finds_the_job_that_waits() {
    let lab = one_place().await;
    lab.run().await;
    let key = || Some("k".to_owned());
    let first = lab.engine().create_job(request(), key()).await.unwrap();
    let again = lab.engine().create_job(request(), key()).await.unwrap();
    assert_eq!(first, again);
    assert_eq!(again.queue_position, Some(1));
}
