//! Where the program runs: in a network of its own, with files of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use agentlab_netpolicy::{BridgeSpec, GuestService, HostPolicy, Protocol, USUAL_DENIAL_GROUP};
use nix::sched::{CloneFlags, unshare};

/// Where this test keeps what the machine's own programs keep elsewhere.
pub(crate) fn places() -> PathBuf {
    let test = std::thread::current().name().unwrap_or("main").replace(':', "-");
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(test)
}

/// Exit status, standard output and standard error.
pub(crate) fn net(arguments: &[&str]) -> (i32, String, String) {
    // Nothing of this machine's own is read or written.
    let places = places();
    let (locks, state) = (places.join("lock"), places.join("state"));
    let own = [
        "--config",
        "/dev/null",
        "--lock-dir",
        locks.to_str().unwrap(),
        "--state-dir",
        state.to_str().unwrap(),
    ];
    run(env!("CARGO_BIN_EXE_agentlab-net"), &[arguments, &own].concat())
}

pub(crate) fn json(arguments: &[&str]) -> serde_json::Value {
    let (status, text, words) = net(&[arguments, &["--json"]].concat());
    assert_eq!(status, 0, "{arguments:?}: {text} {words}");
    serde_json::from_str(&text).unwrap()
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> (i32, String, String) {
    let child = Command::new(program)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let output = child.unwrap().wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

pub(crate) fn ip(lines: &[&str]) {
    for line in lines {
        assert_eq!(run("ip", &line.split(' ').collect::<Vec<_>>()).0, 0, "{line}");
    }
}

/// From here on this test's own thread, and what it starts, live in a network of their own.
pub(crate) fn in_network_with_uplink() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    assert_eq!(run("ip", &["link", "add", "wan0", "type", "bridge"]).0, 0);
}

/// As a daemon with options of its own puts it up.
pub(crate) fn daemons_policy() -> HostPolicy {
    let tcp = |port| GuestService {
        protocol: Protocol::Tcp,
        port,
    };
    HostPolicy {
        bridge: BridgeSpec {
            name: "br7".parse().unwrap(),
            address: "10.78.1.1".parse().unwrap(),
            prefix: 24,
            mtu: None,
        },
        uplink: Some("wan0".parse().unwrap()),
        guest_ports: vec![tcp(9844), tcp(9846)],
        dns: true,
        machine_uids: Some((1_900_000_007, 1_900_000_099)),
        tailnet: Some("tail0".parse().unwrap()),
        denial_group: USUAL_DENIAL_GROUP,
    }
}
