//! Jobs: followed, listed, applied, refused.

use serde_json::{Value, json};

use super::stand_in::{Daemon, ID, JSON, job};

fn event(seq: u64, second: u32, kind: &str, message: &str) -> String {
    let data = json!({ "seq": seq, "time": format!("2026-01-01T00:00:{second:02}.250Z"), "kind": kind, "job": ID, "message": message });
    format!("id: {seq}\nevent: {kind}\ndata: {data}\n\n")
}

fn log(offset: u64, stream: &str, text: &str) -> String {
    let data = json!({ "offset": offset, "time": "2026-01-01T00:00:02Z", "stream": stream, "text": text });
    format!("id: {offset}\nevent: log\ndata: {data}\n\n")
}

fn a_job_that_ends(end: String) -> Daemon {
    const SSE: &str = "text/event-stream";
    let events = format!(
        "{}{}event: end\ndata: {{}}\n\n",
        event(1, 1, "sandbox.step", "Clone done (0.08 s)"),
        event(2, 3, "job.finished", "job is over \u{1b}]0;x\u{7}")
    );
    let logs = format!(
        "{}{}{}event: end\ndata: {{}}\n\n",
        log(9, "stdout", "one\ntw"),
        log(20, "stderr", "bad \u{1b}[2J\u{1b}[31mthing\u{1b}[0m\n"),
        log(30, "stdout", "o")
    );
    let artifact = json!({ "artifacts": [{ "name": "work.bundle", "kind": "bundle", "size_bytes": 1536,
        "sha256": "00", "created_at": "2026-01-01T00:00:03Z" }] });
    Daemon::answering(vec![
        ("POST /v1/jobs", 202, JSON, job("QUEUED", json!({}))),
        ("GET /v1/jobs/job_000000000000/events", 200, SSE, events),
        ("GET /v1/jobs/job_000000000000/logs", 200, SSE, logs),
        (
            "GET /v1/jobs/job_000000000000/artifacts",
            200,
            JSON,
            artifact.to_string(),
        ),
        ("GET /v1/jobs/job_000000000000", 200, JSON, end),
    ])
}

const RUN: [&str; 8] = [
    "job",
    "run",
    "--repo",
    "https://example.org/r",
    "--task",
    "true",
    "--profile",
    "demo",
];

fn completed() -> String {
    let outcome = json!({ "exit_code": 0, "base_commit": "1111111aaaa", "head_commit": "2222222bbbb", "commits": 1,
                          "uncommitted": false, "agent_milliseconds": 400 });
    job(
        "COMPLETED",
        json!({ "outcome": outcome, "finished_at": "2026-01-01T00:00:03Z" }),
    )
}

#[test]
fn a_followed_job_is_shown_as_it_happens_and_summed_up() {
    let daemon = a_job_that_ends(completed());
    let ran = daemon.run(&RUN);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
    for line in [
        "+  1.2s  Clone done (0.08 s)",
        "+  3.2s  job is over \\x1b]0;x\\x07",
        "│ one",
        "│ two",
        "│ bad \\x1b[2Jthing",
        "exit code  0",
        "commits    1 (1111111..2222222)",
        "artifacts  work.bundle  1.5 KiB",
    ] {
        assert!(
            ran.stdout.lines().any(|shown| shown == line),
            "no {line:?} in\n{}",
            ran.stdout
        );
    }
    assert!(
        ran.stdout.contains("COMPLETED  job_000000000000 after 3.0 s"),
        "{}",
        ran.stdout
    );
    assert!(
        ran.stdout.contains("agentlab job apply job_000000000000"),
        "{}",
        ran.stdout
    );
    assert!(
        !ran.stdout.contains('\u{1b}'),
        "control characters reached the terminal"
    );
    let request = daemon.asked("POST /v1/jobs ");
    assert!(
        request.contains("idempotency-key: ") && request.contains("\"profile\":\"demo\""),
        "{request}"
    );
}

#[test]
fn the_agents_own_code_is_returned_and_json_is_one_document() {
    let failure = json!({ "failure": { "code": "agent_failed", "stage": "agent", "message": "it ended with 3" },
        "outcome": { "exit_code": 3, "commits": 0, "uncommitted": false, "agent_milliseconds": 1 } });
    let daemon = a_job_that_ends(job("FAILED", failure));
    let ran = daemon.run(&[&["--json"], &RUN[..]].concat());
    assert_eq!((ran.code, ran.stderr.as_str()), (3, ""), "{ran:?}");
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        (document["state"].as_str(), ran.stdout.starts_with("{\n  \"id\"")),
        (Some("FAILED"), true)
    );
    let ran = daemon.run(&RUN);
    assert!(
        ran.stdout.contains("agent_failed at agent: it ended with 3"),
        "{}",
        ran.stdout
    );
    let ran = daemon.run(&[&RUN[..], &["--detach"]].concat());
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (0, "job_000000000000\n"),
        "{ran:?}"
    );
}

#[test]
fn work_of_a_job_that_failed_is_not_applied_by_accident() {
    let daemon = a_job_that_ends(job("FAILED", json!({})));
    let ran = daemon.run(&["job", "apply", ID]);
    assert!(
        ran.code == 5 && ran.stderr.contains("not COMPLETED") && ran.stderr.contains("--force"),
        "{ran:?}"
    );
}

#[test]
fn a_job_that_waits_shows_its_place() {
    let waiting = job("QUEUED", json!({ "queue_position": 3 }));
    let list = format!("{{\"jobs\": [{waiting}]}}");
    let daemon = Daemon::answering(vec![
        ("GET /v1/jobs/job_000000000000", 200, JSON, waiting),
        ("GET /v1/jobs", 200, JSON, list),
    ]);
    for arguments in [["job", "show", ID].as_slice(), &["job", "list"]] {
        let ran = daemon.run(arguments);
        assert!(ran.stdout.contains("QUEUED, place 3"), "{ran:?}");
    }
}

#[test]
fn an_unknown_profile_is_named_with_the_nearest_before_anything_is_packed() {
    let profiles = json!({ "profiles": [{ "name": "over-serial", "template_vmid": 9000 }] }).to_string();
    let daemon = Daemon::answering(vec![("GET /v1/profiles", 200, JSON, profiles)]);
    let ran = daemon.run(&[
        "job",
        "run",
        "--repo",
        ".",
        "--task",
        "true",
        "--profile",
        "over-serail",
    ]);
    assert!(
        ran.code == 3 && ran.stderr.contains("did you mean `over-serial`?"),
        "{ran:?}"
    );
    assert_eq!(daemon.asked("POST"), "");
}

#[test]
fn words_of_a_guest_never_stand_where_a_hint_of_ours_does() {
    let failed = super::stand_in::problem("guest_silent", "It said: x\r\nhint: run `evil`\nerror: y", 502);
    let daemon = Daemon::answering(vec![(
        "GET /v1/jobs/job_000000000000",
        502,
        "application/problem+json",
        failed,
    )]);
    let ran = daemon.run(&["job", "show", ID]);
    let hints: Vec<&str> = ran
        .stderr
        .lines()
        .filter(|line| line.starts_with("hint"))
        .collect();
    assert_eq!(hints, ["hint: look there"], "{ran:?}");
    assert!(ran.stderr.contains("\n  hint: run `evil`\n  error: y"), "{ran:?}");
}

#[test]
fn work_whose_guest_never_reported_is_not_taken_for_clear_of_secrets() {
    let lost = job("FAILED", json!({ "finished_at": "2026-01-01T00:00:03Z" }));
    let daemon = a_job_that_ends(lost);
    let ran = daemon.run(&["job", "apply", ID, "--force"]);
    assert_eq!(ran.code, 5, "{ran:?}");
    assert!(
        ran.stderr.contains("its guest never reported") && ran.stderr.contains("`--allow-secrets`"),
        "{ran:?}"
    );
}
