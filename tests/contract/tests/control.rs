//! The control socket, asked by somebody who does not use our client.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use agentlab_api::{ErrorCode, JobView, Problem};
use agentlab_tests_contract::Lab;
use serde_json::{Value, json};

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    /// The problem it is, which must be one in every respect.
    fn problem(&self) -> Problem {
        assert!(
            self.head.contains("content-type: application/problem+json"),
            "{self:?}"
        );
        let problem: Problem = serde_json::from_str(&self.body).unwrap();
        assert_eq!(problem.status, self.status);
        assert_eq!(problem.type_uri, format!("urn:agentlab:problem:{}", problem.code));
        assert!(!problem.detail.is_empty() && !problem.title.is_empty());
        problem
    }
}

fn connected(lab: &Lab) -> UnixStream {
    let stream = UnixStream::connect(lab.path("run/agentlabd.sock")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// Sends bytes as they are and reads until the daemon hangs up.
fn raw(lab: &Lab, bytes: &[u8]) -> Answer {
    let mut stream = connected(lab);
    // A daemon that has refused already may not want the rest.
    let _ = stream.write_all(bytes);
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    Answer {
        status: head
            .split(' ')
            .nth(1)
            .and_then(|word| word.parse().ok())
            .unwrap_or(0),
        head: head.to_lowercase(),
        body: body.to_owned(),
    }
}

fn send(lab: &Lab, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: agentlab\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    );
    raw(lab, &[head.as_bytes(), body].concat())
}

fn request() -> Value {
    json!({"repository": {"kind": "url", "url": "https://example.invalid/r.git"}, "task": "ok", "profile": "demo"})
}

fn post_job(lab: &Lab, body: &Value) -> Answer {
    send(lab, "POST", "/v1/jobs", "", body.to_string().as_bytes())
}

fn alive(lab: &Lab) {
    assert_eq!(
        send(lab, "GET", "/v1/status", "", b"").status,
        200,
        "{}",
        lab.log()
    );
}

#[test]
fn a_body_that_is_too_large_is_refused_as_too_large() {
    let lab = Lab::started().unwrap();
    let mut huge = request();
    huge["task"] = json!("x".repeat(2 << 20));
    let answer = post_job(&lab, &huge);
    assert_eq!((answer.status, answer.problem().code), (413, ErrorCode::TooLarge));
    huge["task"] = json!("x".repeat(300 << 10));
    let problem = post_job(&lab, &huge).problem();
    assert_eq!(
        (problem.code, problem.errors[0].pointer.as_str()),
        (ErrorCode::InvalidValue, "/task")
    );
    alive(&lab);
}

#[test]
fn a_body_that_is_no_json_is_refused_as_malformed() {
    let lab = Lab::started().unwrap();
    let nested = "[".repeat(500_000);
    let twice = format!("{}{}", request(), request());
    for body in [
        b"{".as_slice(),
        b"",
        b"\xff\xfe",
        b"nonsense",
        nested.as_bytes(),
        twice.as_bytes(),
    ] {
        let answer = send(&lab, "POST", "/v1/jobs", "", body);
        let shown: String = String::from_utf8_lossy(body).chars().take(20).collect();
        let expected = match body.first() {
            // Read as `{}`, which lacks everything; and a list where a job belongs, however deep.
            None | Some(b'[') => (422, ErrorCode::InvalidValue),
            Some(_) => (400, ErrorCode::MalformedRequest),
        };
        assert_eq!((answer.status, answer.problem().code), expected, "{shown}");
    }
    alive(&lab);
}

#[test]
fn a_field_at_fault_is_named_by_its_pointer() {
    let lab = Lab::started().unwrap();
    let with = |pointer: &str, value: Value| {
        let mut body = request();
        match pointer.rsplit_once('/') {
            Some(("", field)) => body[field] = value,
            Some((parent, field)) => body.pointer_mut(parent).unwrap()[field] = value,
            None => panic!("{pointer}"),
        }
        let answer = post_job(&lab, &body);
        let problem = answer.problem();
        assert_eq!(answer.status, 422, "{problem:?}");
        assert_eq!(problem.errors[0].pointer, pointer, "{problem:?}");
    };
    with("/deadline", json!(5));
    with("/repository/branch", json!("main"));
    with("/deadline_seconds", json!(-1));
    with("/deadline_seconds", json!(0));
    with("/ttl_minutes", json!(99_999_999));
    with("/task", json!(7));
    with("/task", json!("a\u{0}b"));
    with("/profile", json!("nobody"));
    with("/reference", json!("--upload-pack=id"));
    with("/repository/url", json!("ext::sh -c id"));
    with("/repository/url", json!("file:///etc"));
    let twice = r#"{"task": "ok", "task": "rm", "profile": "demo"}"#;
    let problem = send(&lab, "POST", "/v1/jobs", "", twice.as_bytes()).problem();
    assert_eq!(problem.errors[0].pointer, "/task", "{problem:?}");
    let list = lab.json(&["job", "list"]).unwrap();
    assert_eq!(list["jobs"].as_array().unwrap().len(), 0, "{list:#}");
}

#[test]
fn a_bundle_that_was_never_uploaded_starts_nothing() {
    let lab = Lab::started().unwrap();
    let mut body = request();
    body["repository"] = json!({"kind": "bundle", "sha256": "0".repeat(64), "label": "/root"});
    let answer = post_job(&lab, &body);
    assert!((400..500).contains(&answer.status), "{answer:?}");
    answer.problem();
    body["repository"]["sha256"] = json!("../../etc/passwd");
    assert_eq!(
        post_job(&lab, &body).problem().errors[0].pointer,
        "/repository/sha256"
    );
}

#[test]
fn a_route_or_method_that_does_not_exist_is_a_problem_too() {
    let lab = Lab::started().unwrap();
    for path in [
        "/",
        "/v1",
        "/v1/nothing",
        "/v2/status",
        "/v1/status/",
        "/guest/v1/redeem",
        "/guest/v1/heartbeat",
        "/v1/jobs/job_000000000000/nothing",
    ] {
        let answer = send(&lab, "GET", path, "", b"");
        assert_eq!(
            (answer.status, answer.problem().code),
            (404, ErrorCode::NoSuchRoute),
            "{path}"
        );
    }
    for (method, path) in [
        ("PUT", "/v1/jobs"),
        ("DELETE", "/v1/status"),
        ("POST", "/v1/status"),
        ("BREW", "/v1/jobs"),
    ] {
        let answer = send(&lab, method, path, "", b"");
        assert_eq!(
            (answer.status, answer.problem().code),
            (405, ErrorCode::NoSuchRoute),
            "{method} {path}"
        );
        assert!(answer.head.contains("\r\nallow: "), "{answer:?}");
    }
}

#[test]
fn ids_queries_and_paths_of_somebody_elses_making_are_refused() {
    let lab = Lab::started().unwrap();
    for path in [
        "/v1/jobs/nonsense",
        "/v1/jobs/job_..%2f..%2fx",
        "/v1/jobs?limit=many",
        "/v1/jobs?cursor=%00",
        "/v1/jobs?page=2",
        "/v1/events?after=-1",
    ] {
        let answer = send(&lab, "GET", path, "", b"");
        assert_eq!(
            (answer.status, answer.problem().code),
            (422, ErrorCode::InvalidValue),
            "{path}"
        );
    }
    let job = lab.detached("write a.txt b").unwrap();
    lab.finished(&job).unwrap();
    for name in [
        "..%2f..%2f..%2fagentlab.db",
        "files/..%2f..%2fx",
        "%2e%2e/%2e%2e/agentlab.db",
        "/etc/passwd",
        "files/a.txt%00",
        "absent",
    ] {
        let answer = send(&lab, "GET", &format!("/v1/jobs/{job}/artifacts/{name}"), "", b"");
        assert!(matches!(answer.status, 404 | 422), "{name}: {answer:?}");
        answer.problem();
    }
    let answer = send(
        &lab,
        "GET",
        &format!("/v1/jobs/{job}/artifacts/files/a.txt"),
        "",
        b"",
    );
    assert_eq!((answer.status, answer.body.as_str()), (200, "b"), "{answer:?}");
}

#[test]
fn an_idempotency_key_of_another_request_is_a_conflict() {
    let lab = Lab::started().unwrap();
    let send = |body: &Value, key: &str| {
        let headers = format!("idempotency-key: {key}\r\n");
        send(&lab, "POST", "/v1/jobs", &headers, body.to_string().as_bytes())
    };
    let first: JobView = serde_json::from_str(&send(&request(), "k").body).unwrap();
    let again: JobView = serde_json::from_str(&send(&request(), "k").body).unwrap();
    assert_eq!(first.id, again.id);
    let mut other = request();
    other["task"] = json!("exit 3");
    let answer = send(&other, "k");
    assert_eq!(
        (answer.status, answer.problem().code),
        (422, ErrorCode::IdempotencyConflict)
    );
    for key in ["", &"k".repeat(201), "k\u{e9}"] {
        let answer = send(&request(), key);
        assert_eq!(
            (answer.status, answer.problem().code),
            (422, ErrorCode::InvalidValue),
            "{key}"
        );
    }
}

#[test]
fn bytes_that_are_no_http_end_their_connection_and_nothing_else() {
    let lab = Lab::started().unwrap();
    let head = b"GET /v1/status HTTP/1.1\r\nhost: agentlab\r\n".as_slice();
    let endless = [head, &b"x-filler: yyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(40_000)].concat();
    let long = [head, b"x-long: ", "y".repeat(2 << 20).as_bytes(), b"\r\n\r\n"].concat();
    for bytes in [
        b"\0\xff\xffnot http\r\n\r\n".as_slice(),
        b"GET /v1/status HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnot a frame at all",
        b"POST /v1/jobs HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n{}",
        b"POST /v1/jobs HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffffff\r\n",
        &endless,
        &long,
    ] {
        let answer = raw(&lab, bytes);
        assert!(answer.status == 0 || answer.status >= 400, "{answer:?}");
        alive(&lab);
    }
}

#[test]
fn connections_that_say_nothing_hold_nobody_up() {
    let lab = Lab::started().unwrap();
    let idle: Vec<_> = (0..200).map(|_| connected(&lab)).collect();
    let mut half = connected(&lab);
    half.write_all(b"POST /v1/jobs HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{")
        .unwrap();
    alive(&lab);
    drop((idle, half));
}
