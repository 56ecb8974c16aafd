//! Ports that an operator binds by hand, with a daemon and without one.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;

use agentlab_netpolicy::WriterLock;
use nix::sched::{CloneFlags, unshare};

use crate::ground::{daemons_policy, in_network_with_uplink, json, net, places, run};
use crate::requirement::skipped;

const BIND_OFF: [&str; 7] = [
    "bind",
    "tap77i0",
    "--mac",
    "02:00:00:00:00:07",
    "--ip",
    "10.77.3.7",
    "off",
];

#[test]
fn an_operator_binds_trusts_and_unbinds_a_port_and_a_boot_finds_it_sealed() {
    if skipped() {
        return;
    }
    in_network_with_uplink();
    json(&["apply", "--uplink", "wan0"]);
    let trust = || json(&["status"])["ports"][0]["trust"]["mode"].clone();
    let done = json(&BIND_OFF);
    assert_eq!((&done["ports"], &done["by_daemon"]), (&1.into(), &false.into()));
    assert_eq!(trust(), "off");
    json(&["trust", "tap77i0", "allowlist", "--allow", "1.1.1.1:tcp:443"]);
    let status = json(&["status"]);
    let list = &status["ports"][0]["trust"]["destinations"];
    assert_eq!(
        (&list[0]["network"], &list[0]["ports"]["first"]),
        (&"1.1.1.1".into(), &443.into())
    );
    // As after a boot: nothing stands, and what was kept is bound without trust.
    for family in ["bridge", "arp", "inet"] {
        assert_eq!(run("nft", &["delete", "table", family, "agentlab"]).0, 0);
    }
    json(&["apply", "--uplink", "wan0"]);
    assert_eq!(trust(), "sealed");
    json(&["unbind", "tap77i0"]);
    json(&["unbind", "tap77i0"]);
    json(&["apply"]);
    assert_eq!(json(&["status"])["ports"], serde_json::json!([]));
}

#[test]
fn while_a_daemon_holds_the_lock_it_is_asked_and_nothing_is_done_beside_it() {
    if skipped() {
        return;
    }
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    // Names of sockets are short.
    let socket = std::env::temp_dir().join(format!("agentlab-{}.sock", std::process::id()));
    let listener = UnixListener::bind(&socket).unwrap();
    let _lock = WriterLock::take(&places().join("lock"), Some(&socket)).unwrap();
    let daemon = std::thread::spawn(move || {
        let mut asked = Vec::new();
        for answer in ["200 OK", "409 Conflict"] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = [0; 4096];
            let mut text = String::new();
            while !text.ends_with('}') {
                let length = stream.read(&mut bytes).unwrap();
                text.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
            }
            let body = if answer.starts_with('2') {
                serde_json::json!({"drift": [], "ports": 1, "policy": daemons_policy()})
            } else {
                serde_json::json!({"title": "x", "detail": "No port `tap9i0` is bound"})
            };
            write!(stream, "HTTP/1.1 {answer}\r\nconnection: close\r\n\r\n{body}").unwrap();
            asked.push(text);
        }
        asked
    });
    let done = json(&[
        "bind",
        "tap9i0",
        "--mac",
        "02:00:00:00:00:09",
        "--ip",
        "10.78.1.9",
        "nat",
    ]);
    assert_eq!(done["by_daemon"], true);
    let (status, _, words) = net(&["trust", "tap9i0", "off"]);
    assert!(
        status == 2 && words.contains("No port `tap9i0` is bound"),
        "{words}"
    );
    let asked = daemon.join().unwrap();
    std::fs::remove_file(&socket).unwrap();
    assert!(
        asked[0].starts_with("POST /v1/network HTTP/1.1\r\n"),
        "{}",
        asked[0]
    );
    assert!(asked[0].ends_with(r#""trust":{"mode":"nat"}}}"#), "{}", asked[0]);
    let (status, _, words) = net(&["apply", "--bridge", "br8"]);
    assert!(status == 2 && words.contains("change it there"), "{words}");
    let (_, tables, _) = run("nft", &["list", "tables"]);
    assert_eq!(tables, "", "the policy has two writers");
}

/// Orders that cannot be, and words of the reason.
const CONTRADICTIONS: [(&str, &str); 10] = [
    ("trust tap78i0 nat", "No port `tap78i0` is bound"),
    ("trust tap77i0 open", "possible values"),
    (
        "trust tap77i0 nat --allow 1.1.1.1",
        "belongs to the trust `allowlist`",
    ),
    (
        "trust tap77i0 allowlist --allow example.org",
        "expected ADDRESS/PREFIX",
    ),
    (
        "trust tap77i0 allowlist --allow 1.1.0.0/16 --allow 1.1.1.1",
        "overlaps",
    ),
    (
        "bind tap79i0 --mac 02:00:00:00:00:07 --ip 10.77.3.8 off",
        "same MAC",
    ),
    (
        "bind tap79i0 --mac 02:00:00:00:00:08 --ip 10.77.3.7 off",
        "same address",
    ),
    (
        "bind tap79i0 --mac 03:00:00:00:00:08 --ip 10.77.3.8 off",
        "unicast",
    ),
    (
        "bind tap79i0 --mac 02:00:00:00:00:08 --ip 10.78.3.8 off",
        "outside",
    ),
    (
        "bind vmbr1 --mac 02:00:00:00:00:08 --ip 10.77.3.8 off",
        "the bridge",
    ),
];

#[test]
fn an_order_that_contradicts_the_policy_is_refused_and_changes_nothing() {
    if skipped() {
        return;
    }
    in_network_with_uplink();
    json(&["apply", "--uplink", "wan0"]);
    json(&BIND_OFF);
    let before = json(&["status"])["ports"].clone();
    for (line, words) in CONTRADICTIONS {
        let line: Vec<_> = line.split(' ').collect();
        let (status, _, said) = net(&line);
        assert!(status == 2 && said.contains(words), "{line:?}: {status} {said}");
    }
    assert_eq!(json(&["status"])["ports"], before);
}
