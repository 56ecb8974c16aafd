//! Sandboxes: listed, and what is refused told.

use serde_json::{Value, json};

use super::stand_in::{Daemon, ID, JSON, problem};

fn sandbox(vmid: u32) -> Value {
    json!({ "id": format!("01890000-0000-7000-8000-{vmid:012}"), "vmid": vmid, "name": format!("n{vmid}"),
        "profile": "demo", "state": "RUNNING", "address": "10.77.0.2", "network_mode": "nat", "keepalive": false,
        "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z" })
}

#[test]
fn all_that_live_are_listed_and_of_the_others_a_page() {
    let page = |vmids: &[u32], next: Option<&str>| {
        let sandboxes: Vec<Value> = vmids.iter().map(|vmid| sandbox(*vmid)).collect();
        json!({ "sandboxes": sandboxes, "next_cursor": next }).to_string()
    };
    let daemon = Daemon::answering(vec![
        (
            "GET /v1/sandboxes?cursor=1.a",
            200,
            JSON,
            page(&[1002], Some("2.b")),
        ),
        ("GET /v1/sandboxes?cursor=2.b", 200, JSON, page(&[1001], None)),
        ("GET /v1/sandboxes", 200, JSON, page(&[1003], Some("1.a"))),
    ]);
    let ran = daemon.run(&["sandbox", "list"]);
    let listed: Vec<&str> = ran.stdout.lines().skip(1).map(|line| &line[..4]).collect();
    assert_eq!(
        (ran.code, listed, ran.stderr.as_str()),
        (0, vec!["1003", "1002", "1001"], "")
    );
    for (arguments, words) in [
        (
            ["sandbox", "list", "--all"].as_slice(),
            "sandbox list --all --cursor 1.a",
        ),
        (&["sandbox", "list", "-n", "1"], "sandbox list --cursor 1.a"),
    ] {
        let ran = daemon.run(arguments);
        assert_eq!(ran.stdout.lines().count(), 2, "{ran:?}");
        assert!(ran.stderr.contains(words), "{ran:?}");
    }
}

#[test]
fn problems_are_told_in_words_or_as_the_document() {
    let body = problem("state_conflict", "Sandbox is \u{1b}[2Jbusy", 409);
    let daemon = Daemon::answering(vec![
        ("GET /v1/sandboxes/1000", 200, JSON, sandbox(1000).to_string()),
        // By what was found: the VMID may have a new owner by now.
        (
            "POST /v1/sandboxes/01890000-0000-7000-8000-000000001000/destroy",
            409,
            "application/problem+json",
            body.clone(),
        ),
    ]);
    let ran = daemon.run(&["sandbox", "delete", "1000"]);
    assert_eq!(ran.code, 5);
    assert_eq!(
        ran.stderr,
        "error: Sandbox is \\x1b[2Jbusy (at Clone)\nhint: look there\n"
    );
    let ran = daemon.run(&["rm", "1000", "--json"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (5, ""));
    assert_eq!(
        serde_json::from_str::<Value>(&ran.stdout).unwrap(),
        serde_json::from_str::<Value>(&body).unwrap()
    );
    let ran = daemon.run(&["job", "show", ID]);
    assert_eq!(ran.code, 3);
}
