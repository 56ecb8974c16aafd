//! Nobody who asks waits for a hypervisor or a packet policy that hangs. On a clock that stands still while anything
//! is being done, so that only waiting counts.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use agentlab_api::{ErrorCode, JobState, Problem, SandboxState};
use agentlab_backend::fake::Call;
use tokio::time::Instant;

use super::lab::{Lab, request};
use super::wires::Fault;

const BOUND: Duration = Duration::from_secs(2);
const FOREVER: Duration = Duration::from_secs(1_000_000);

/// What an operator hears, and how long he waited for it.
async fn asked<T>(what: &str, question: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
    let begun = Instant::now();
    let answer = question.await;
    let waited = begun.elapsed();
    assert!(waited <= BOUND, "{what} took {waited:?}");
    answer
}

async fn told<T>(what: &str, question: impl Future<Output = Result<T, Problem>>) -> T {
    match asked(what, question).await {
        Ok(answer) => answer,
        Err(problem) => panic!("{what}: {problem:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn every_request_is_answered_while_the_hypervisor_hangs_on_everything() {
    let lab = Lab::with(|settings| settings.reconcile_interval = Duration::from_secs(30)).await;
    let (running, booting) = (lab.run().await, lab.run().await);
    lab.running(&running).await;
    lab.boot(&booting).await;
    lab.backend.delay(None, FOREVER);
    // Reconciliation and a first status hang by now.
    tokio::time::sleep(Duration::from_secs(35)).await;

    let engine = lab.engine();
    let status = told("status", engine.status()).await;
    assert_eq!(status.backend.templates.len(), 1, "as last seen");
    let said = |alarms: &[String]| alarms.iter().any(|alarm| alarm.contains("not answered"));
    assert!(said(&status.alarms), "{:?}", status.alarms);
    let begun = Instant::now();
    told("status again", engine.status()).await;
    assert_eq!(
        begun.elapsed(),
        Duration::ZERO,
        "nobody waits for a look that hangs already"
    );

    told("summary", engine.summary()).await;
    told("sandboxes", engine.sandboxes(true, None, None)).await;
    told("sandbox", engine.sandbox("1000")).await;
    told("jobs", engine.jobs(None, None)).await;
    told("job", engine.job(&running.id)).await;
    told("artifacts", engine.job_artifacts(&running.id)).await;
    let problem = asked("console", engine.console("1000", 100)).await.unwrap_err();
    assert_eq!(problem.code, ErrorCode::BackendUnreachable);

    let new = told("create", engine.create_job(request(), None)).await;
    assert_eq!(new.state, JobState::Queued);
    let cancelled = told("cancel", engine.cancel_job(&new.id)).await;
    assert_eq!(cancelled.state, JobState::Cancelled);
    told("cancel of a running job", engine.cancel_job(&running.id)).await;
    for vmid in ["1000", "1001", "1002"] {
        told("destroy", engine.destroy_sandbox(vmid, true)).await;
    }
    let begun = Instant::now();
    engine.shutdown().await;
    assert!(begun.elapsed() <= Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(
        lab.backend.power(running.vmid.unwrap()).is_some(),
        "what hangs is not concluded"
    );
}

#[tokio::test(start_paused = true)]
async fn an_order_that_comes_while_the_packet_policy_hangs_is_done_when_it_answers() {
    let lab = Lab::with(|settings| settings.reconcile_interval = Duration::from_secs(1000)).await;
    let job = lab.run().await;
    let mut guest = lab.boot(&job).await;
    let reached = Arc::default();
    for nth in [1, 2] {
        lab.wires
            .fault("set_trust", nth, Fault::Hang(Arc::clone(&reached)));
    }
    // The guest is let in, and its driver waits for the policy to do the same. Whether it is answered first is not
    // our business here.
    let (_, ()) = tokio::join!(
        tokio::time::timeout(Duration::from_secs(1), guest.redeem(&lab)),
        reached.notified()
    );
    let problem = asked("destroy", lab.engine().destroy_sandbox("1000", false))
        .await
        .unwrap_err();
    assert_eq!(problem.code, ErrorCode::BackendUnreachable, "{problem:?}");
    lab.until_sandbox(&job, SandboxState::Destroyed).await;
    assert!(lab.job(&job.id).await.state.is_final());
    lab.assert_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_start_does_not_wait_for_a_hypervisor_and_takes_everything_up_when_it_answers() {
    let mut lab = Lab::new().await;
    let job = lab.run().await;
    lab.boot(&job).await;
    lab.stop().await;
    lab.backend.delay(Some(Call::Adopt), FOREVER);
    let begun = Instant::now();
    lab.start().await;
    assert!(begun.elapsed() <= BOUND, "{:?}", begun.elapsed());
    let engine = lab.engine().clone();
    told("status", engine.status()).await;
    assert_eq!(
        told("sandbox", engine.sandbox("1000")).await.state,
        SandboxState::Booting
    );
    let problem = asked("create", engine.create_job(request(), None))
        .await
        .unwrap_err();
    assert_eq!(problem.code, ErrorCode::BackendUnreachable);

    lab.backend.delay(Some(Call::Adopt), Duration::ZERO);
    let guest = lab.guest(&job).await;
    let look = async {
        while engine.accepting().is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(200), look)
        .await
        .unwrap();
    guest.clone().redeem(&lab).await.unwrap();
    lab.until_sandbox(&job, SandboxState::Running).await;
}
