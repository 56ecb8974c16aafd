//! The control API: every route, and every way to ask wrongly.

use agentlab_api::{JobView, Method, ROUTES, UploadedBundle};
use serde_json::{Value, json};

use crate::lab::{Lab, job_request};

const HELLO_SHA256: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

#[tokio::test]
async fn every_route_of_the_table_is_there_and_answers_in_json() {
    let lab = Lab::start().await;
    for route in ROUTES {
        let path = route
            .path
            .replace("{job}", "job_0123456789ab")
            .replace("{sandbox}", "4711")
            .replace("{name}", "nobody")
            .replace("{workspace}", "nobody")
            .replace("{snapshot}", "none")
            .replace("{*name}", "files/none");
        let answer = match route.method {
            Method::Get => lab.get(&path).await,
            Method::Post => lab.post(&path, &whole_body(&path)).await,
            Method::Delete => lab.control().await.send("DELETE", &path, &[], "").await,
        };
        if path.contains('4') || path.contains("nobody") {
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (404, "not_found"),
                "{path}"
            );
        } else if answer.status >= 400 {
            // A stream both ways takes HTTP/2, and this is HTTP/1.1.
            let expected = if path.ends_with("/stream") { 400 } else { 422 };
            assert_eq!(answer.status, expected, "{path}: {}", answer.text());
            answer.code();
        } else {
            assert_eq!(answer.header("content-type"), "application/json", "{path}");
        }
    }
}

/// Where something is named, what is asked of it, or it would be the body that is refused.
fn whole_body(path: &str) -> Value {
    match path.rsplit('/').next() {
        Some("commands") => json!({"words": ["true"]}),
        Some("renew") => json!({"ttl_minutes": 60}),
        Some("resize") => json!({"size_gb": 8}),
        Some("attach") => json!({"sandbox": "4711"}),
        Some("adopt") => json!({"volume": "of-nobody"}),
        Some("snapshots" | "fork") => json!({"name": "another"}),
        Some("move") => json!({"storage": "fast"}),
        Some("rebind") => json!({"profile": "demo"}),
        Some(_) | None => json!({}),
    }
}

#[tokio::test]
async fn an_operator_s_order_reaches_the_policy_and_its_refusal_the_operator() {
    let lab = Lab::start().await;
    let order = json!({"order": "trust", "name": "tap9i0", "trust": {"mode": "nat"}});
    let answer = lab.post("/v1/network", &order).await;
    assert_eq!((answer.status, answer.json::<Value>()), (200, order));
    let answer = lab
        .post("/v1/network", &json!({"order": "unbind", "name": "tap9i0"}))
        .await;
    assert_eq!((answer.status, answer.code().as_str()), (409, "state_conflict"));
    assert!(
        answer.text().contains("No port `tap9i0` is bound"),
        "{}",
        answer.text()
    );
    for wrong in [
        json!({"order": "open"}),
        json!({"order": "unbind", "name": "tap*"}),
        json!({"order": "unbind", "name": "tap9i0", "force": true}),
    ] {
        assert_eq!(lab.post("/v1/network", &wrong).await.status, 422, "{wrong}");
    }
}

#[tokio::test]
async fn what_is_no_route_is_a_problem_too() {
    let lab = Lab::start().await;
    assert_eq!(lab.get("/v1/nothing").await.code(), "no_such_route");
    assert_eq!(lab.get("/guest/v1/heartbeat").await.status, 404);
    let answer = lab.control().await.send("PATCH", "/v1/jobs", &[], "").await;
    assert_eq!((answer.status, answer.code().as_str()), (405, "no_such_route"));
    assert!(answer.header("allow").contains("POST"), "{answer:?}");
}

#[tokio::test]
async fn a_wrong_request_is_refused_with_the_field_at_fault() {
    let lab = Lab::start().await;
    let mut unknown = job_request();
    unknown["deadline"] = json!(5);
    let answer = lab.post("/v1/jobs", &unknown).await;
    assert_eq!((answer.status, answer.code().as_str()), (422, "invalid_value"));
    assert_eq!(answer.json::<Value>()["errors"][0]["pointer"], "/deadline");

    let answer = lab.control().await.send("POST", "/v1/jobs", &[], "{").await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (400, "malformed_request")
    );

    let mut huge = job_request();
    huge["task"] = json!("x".repeat(1 << 20));
    let answer = lab.post("/v1/jobs", &huge).await;
    assert_eq!((answer.status, answer.code().as_str()), (413, "too_large"));

    for path in [
        "/v1/jobs?limit=many",
        "/v1/jobs?page=2",
        "/v1/events?after=-1",
        "/v1/sandboxes?limit=many",
        "/v1/sandboxes?cursor=nonsense",
        "/v1/jobs/nonsense",
    ] {
        assert_eq!(lab.get(path).await.code(), "invalid_value", "{path}");
    }
    let headers = [("last-event-id", "yesterday")];
    let answer = lab.control().await.send("GET", "/v1/events", &headers, "").await;
    assert_eq!(answer.code(), "invalid_value");
    assert_eq!(
        lab.post("/v1/sandboxes/1000/destroy", &json!({"forse": true}))
            .await
            .code(),
        "invalid_value"
    );
}

#[tokio::test]
async fn a_job_is_answered_at_once_and_found_again() {
    let lab = Lab::start().await;
    let answer = lab.post("/v1/jobs", &job_request()).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    let job: JobView = answer.json();
    assert_eq!(answer.header("location"), format!("/v1/jobs/{}", job.id));
    assert_eq!(lab.job_now(&job).await.id, job.id);
    let list: Value = lab.get("/v1/jobs?limit=1").await.json();
    assert_eq!(list["jobs"][0]["id"], job.id.as_str());
    let status: Value = lab.get("/v1/status").await.json();
    assert_eq!(status["backend"]["kind"], "fake");
}

#[tokio::test]
async fn an_idempotency_key_makes_one_job() {
    let lab = Lab::start().await;
    let send = async |body: &Value| {
        lab.control()
            .await
            .send(
                "POST",
                "/v1/jobs",
                &[("idempotency-key", "k-1")],
                body.to_string(),
            )
            .await
    };
    let (first, second): (JobView, JobView) = (
        send(&job_request()).await.json(),
        send(&job_request()).await.json(),
    );
    assert_eq!(first.id, second.id);
    let mut other = job_request();
    other["task"] = json!("false");
    assert_eq!(send(&other).await.code(), "idempotency_conflict");
    let key = "x".repeat(201);
    let answer = lab
        .control()
        .await
        .send("POST", "/v1/jobs", &[("idempotency-key", &key)], "{}")
        .await;
    assert_eq!(answer.status, 422);
}

#[tokio::test]
async fn a_bundle_is_stored_by_its_hash() {
    let lab = Lab::start().await;
    let headers = [("x-agentlab-sha256", HELLO_SHA256)];
    let answer = lab
        .control()
        .await
        .send("POST", "/v1/bundles", &headers, "hello")
        .await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let bundle: UploadedBundle = answer.json();
    assert_eq!((bundle.sha256.as_str(), bundle.size_bytes), (HELLO_SHA256, 5));
    let stored = lab.config.data_dir.join("bundles").join(HELLO_SHA256);
    assert_eq!(std::fs::read(stored).unwrap(), b"hello");
}

#[tokio::test]
async fn a_bundle_that_is_too_large_or_not_what_was_announced_leaves_nothing() {
    let lab = Lab::start().await;
    // More than the limit, and more than a socket's buffers: the answer must still arrive.
    let answer = lab
        .control()
        .await
        .send("POST", "/v1/bundles", &[], vec![0u8; 8 << 20])
        .await;
    assert_eq!((answer.status, answer.code().as_str()), (413, "too_large"));
    let headers = [("x-agentlab-sha256", HELLO_SHA256)];
    let answer = lab
        .control()
        .await
        .send("POST", "/v1/bundles", &headers, "hullo")
        .await;
    assert_eq!((answer.status, answer.code().as_str()), (422, "invalid_value"));
    assert_eq!(
        lab.control()
            .await
            .send("POST", "/v1/bundles", &[], "")
            .await
            .status,
        422
    );
    for directory in ["bundles", "incoming"] {
        let left: Vec<_> = std::fs::read_dir(lab.config.data_dir.join(directory))
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name(), entry.metadata().unwrap().len()))
            .collect();
        assert!(left.is_empty(), "{directory}: {left:?}");
    }
}
