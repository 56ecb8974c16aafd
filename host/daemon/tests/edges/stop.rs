//! A graceful stop while everything is under way: it takes 5 s at most, breaks off what does not end, and leaves
//! machines running for the next start.

use std::time::{Duration, Instant};

use agentlab_api::{JobState, JobView};
use agentlab_backend::Power;
use agentlab_backend::fake::Call;
use http_body_util::BodyExt as _;
use hyper::Response;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use crate::lab::{Lab, job_request};
use crate::wire::request;

/// The promise is 5 s; the rest is for a machine that has more to do than this test.
const PROMISE: Duration = Duration::from_secs(60);

/// One that waits for its guest, powered on.
async fn booting(lab: &Lab) -> JobView {
    let job = lab.job().await;
    let job = lab.until(&job, |job| job.vmid.is_some()).await;
    let vmid = job.vmid.unwrap();
    while lab.fake.power(vmid) != Some(Power::Running) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    job
}

async fn stream(lab: &Lab, path: &str) -> Response<Incoming> {
    let mut control = lab.control().await;
    let headers = [("accept", "text/event-stream")];
    let response = control.open(request("GET", path, &headers, "")).await;
    assert_eq!(response.status(), 200);
    response
}

/// A request whose body does not all come.
async fn begin(lab: &Lab, what: &str, body: &str) -> UnixStream {
    let mut stream = UnixStream::connect(&lab.config.socket_path).await.unwrap();
    let length = if body.is_empty() { 0 } else { 1_000_000 };
    let text = format!("{what} HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn a_stop_takes_no_longer_than_promised_whatever_hangs_and_machines_run_on() {
    let mut lab = Lab::start().await;
    let job = booting(&lab).await;
    let vmid = job.vmid.unwrap();

    // Streams that never end, on all events and on one job.
    let streams = [
        stream(&lab, "/v1/events").await,
        stream(&lab, &format!("/v1/jobs/{}/logs", job.id)).await,
    ];
    // Calls that hang: of a driver that clones, and of a request that looks.
    let clone = lab.fake.hang_next(Call::CloneTemplate);
    let console = lab.fake.hang_next(Call::Console);
    let cloning = lab.job().await;
    clone.reached().await;
    let looking = begin(&lab, &format!("GET /v1/sandboxes/{vmid}/console"), "").await;
    console.reached().await;
    // A client that says it sends much, and sends little.
    let uploading = begin(&lab, "POST /v1/bundles", "half").await;

    let begun = Instant::now();
    lab.stop().await;
    let took = begun.elapsed();
    assert!(took <= PROMISE, "{took:?}");
    assert!(!lab.config.socket_path.exists());
    for stream in streams {
        // It ends; whether in good order is said by the other tests.
        let _ = stream.into_body().collect().await;
    }
    for mut request in [looking, uploading] {
        // Answered or cut off: it is over.
        let _ = request.read_to_end(&mut Vec::new()).await;
    }
    assert_eq!(lab.fake.power(vmid), Some(Power::Running));
    drop((clone, console));

    // Nothing was lost: both go on, and end as their operator wants.
    lab.restart().await;
    for job in [job, cloning] {
        assert_eq!(lab.job_now(&job).await.state, JobState::Queued);
        let answer = lab.post(&format!("/v1/jobs/{}/cancel", job.id), &json!({})).await;
        assert!(answer.status < 300, "{}", answer.text());
        lab.until(&job, |job| job.state == JobState::Cancelled).await;
    }
    for _ in 0..2400 {
        if lab.fake.leftovers().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{:?}", lab.fake.leftovers());
}

#[tokio::test]
async fn a_request_that_was_taken_before_the_stop_is_answered() {
    let mut lab = Lab::start().await;
    // Slow, not hanging: shorter than a request waits for the hypervisor.
    lab.fake.delay(Some(Call::Templates), Duration::from_millis(700));
    let asking = lab.control().await;
    let mut requests = JoinSet::new();
    requests.spawn(async move {
        asking
            .send("POST", "/v1/jobs", &[], job_request().to_string())
            .await
    });
    while lab.fake.count(Call::Templates) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    lab.stop().await;
    let answer = requests.join_next().await.unwrap().unwrap();
    assert_eq!(answer.status, 202, "{}", answer.text());
    lab.fake.delay(Some(Call::Templates), Duration::ZERO);
    lab.restart().await;
    let list: Value = lab.get("/v1/jobs").await.json();
    assert_eq!(list["jobs"][0]["id"], answer.json::<Value>()["id"]);
}
