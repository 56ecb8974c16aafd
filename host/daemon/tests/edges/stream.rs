//! Server-sent events: in order, resumable, and with an end.

use std::time::Duration;

use agentlab_api::{Event, JobState, JobView};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::json;

use crate::lab::Lab;
use crate::wire::{Control, request};

/// One frame: id, event, data.
type Frame = (Option<u64>, String, String);

struct Reader {
    body: Incoming,
    text: String,
    _control: Control,
}

impl Reader {
    async fn open(lab: &Lab, path: &str, last: Option<u64>) -> Self {
        let last = last.map(|id| id.to_string());
        let mut headers = vec![("accept", "text/event-stream")];
        headers.extend(last.as_deref().map(|id| ("last-event-id", id)));
        let mut control = lab.control().await;
        let response = control.open(request("GET", path, &headers, "")).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self {
            body: response.into_body(),
            text: String::new(),
            _control: control,
        }
    }

    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some((frame, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    frame
                        .lines()
                        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                        .map(str::to_owned)
                };
                let parsed = (
                    field("id").map(|id| id.parse().unwrap()),
                    field("event").unwrap_or_default(),
                    field("data").unwrap_or_default(),
                );
                self.text = rest.to_owned();
                return Some(parsed);
            }
            let frame = tokio::time::timeout(Duration::from_secs(60), self.body.frame())
                .await
                .expect("a frame")?;
            self.text += std::str::from_utf8(frame.unwrap().data_ref().unwrap()).unwrap();
        }
    }

    async fn all(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            frames.push(frame);
        }
        frames
    }
}

#[tokio::test]
async fn a_jobs_events_are_resumed_without_loss_and_end_when_its_sandbox_is_gone() {
    let lab = Lab::start().await;
    let job = lab.job().await;
    let path = format!("/v1/jobs/{}/events", job.id);

    let mut reader = Reader::open(&lab, &path, None).await;
    let first = reader.next().await.unwrap();
    let second = reader.next().await.unwrap();
    assert!(second.0 > first.0);
    let event: Event = serde_json::from_str(&first.2).unwrap();
    assert_eq!(
        (Some(event.seq), event.kind.to_string()),
        (first.0, first.1.clone())
    );
    drop(reader);

    let mut resumed = Reader::open(&lab, &path, first.0).await;
    assert_eq!(resumed.next().await.unwrap(), second);

    let answer = lab.post(&format!("/v1/jobs/{}/cancel", job.id), &json!({})).await;
    assert!(answer.status == 200 || answer.status == 202, "{}", answer.text());
    let rest = resumed.all().await;
    let (id, kind, data) = rest.last().unwrap();
    assert_eq!((id, kind.as_str()), (&None, "end"));
    assert_eq!(
        serde_json::from_str::<JobView>(data).unwrap().state,
        JobState::Cancelled
    );
    let ids: Vec<u64> = rest.iter().filter_map(|frame| frame.0).collect();
    assert!(ids.is_sorted() && ids.first() > second.0.as_ref(), "{ids:?}");

    // What was streamed is what is listed.
    let listed: serde_json::Value = lab.get(&path).await.json();
    let listed: Vec<Event> = serde_json::from_value(listed["events"].clone()).unwrap();
    let streamed = [first.0.unwrap(), second.0.unwrap()]
        .into_iter()
        .chain(ids)
        .collect::<Vec<_>>();
    assert_eq!(listed.iter().map(|event| event.seq).collect::<Vec<_>>(), streamed);
    assert!(lab.fake.leftovers().is_empty(), "{:?}", lab.fake.leftovers());
}

#[tokio::test]
async fn the_log_of_a_job_that_is_over_ends_at_once() {
    let lab = Lab::start().await;
    let job = lab.job().await;
    lab.post(&format!("/v1/jobs/{}/cancel", job.id), &json!({})).await;
    lab.until(&job, |job| job.state.is_final()).await;
    let frames = Reader::open(&lab, &format!("/v1/jobs/{}/logs", job.id), None)
        .await
        .all()
        .await;
    assert_eq!(frames.last().unwrap().1, "end");
}

#[tokio::test]
async fn all_events_are_followed_across_jobs() {
    let lab = Lab::start().await;
    let mut reader = Reader::open(&lab, "/v1/events", None).await;
    let jobs = [lab.job().await, lab.job().await];
    for job in jobs {
        loop {
            let event: Event = serde_json::from_str(&reader.next().await.unwrap().2).unwrap();
            if event.job.as_ref() == Some(&job.id) {
                break;
            }
        }
    }
}
