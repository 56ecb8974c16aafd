//! The policy as a whole: planned, applied, verified, sealed, tried out.

use agentlab_netpolicy::{Enforcer, GuestPort, Observer, Trust};
use nix::sched::{CloneFlags, unshare};

use crate::ground::{daemons_policy, in_network_with_uplink, ip, net, places, run};
use crate::requirement::skipped;

const FOREIGN_BRIDGE: [&str; 3] = [
    "link add vmbr1 type bridge stp_state 1",
    "link add eth1 type veth peer name eth2",
    "link set eth1 master vmbr1",
];

#[test]
fn smoke_believes_what_a_sandbox_can_reach_and_nothing_else_of_it() {
    if skipped() {
        return;
    }
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    // Stands in for a sandbox: it runs the script in a network where one port of one address answers.
    assert_eq!(run("ip", &["link", "set", "lo", "up"]).0, 0);
    assert_eq!(run("ip", &["address", "add", "10.77.0.1/32", "dev", "lo"]).0, 0);
    let listeners = [8844, 8846].map(|port| std::net::TcpListener::bind(("10.77.0.1", port)).unwrap());
    let (draft, shell) = (places().join("draft"), places().join("exec"));
    std::fs::create_dir_all(places()).unwrap();
    std::fs::write(
        &draft,
        "#!/bin/sh\n[ \"$1 $2 $3\" = \"exec --stdin 1000\" ] || exit 9\nshift 3\nexec \"$@\"\n",
    )
    .unwrap();
    // By a child: while another test begins a process, that may hold open what this process writes, and what is open
    // for writing cannot be run.
    let copied = run("install", &[draft.to_str().unwrap(), shell.to_str().unwrap()]);
    assert_eq!(copied.0, 0, "{copied:?}");
    let program = ["--agentlab", shell.to_str().unwrap()];
    let smoke = |more: &[&str]| net(&[&["smoke", "1000"], &program[..], more].concat());
    let (status, text, words) = smoke(&["--mode", "off"]);
    assert_eq!(status, 0, "{text} {words}");
    assert!(text.contains("PASS metadata address"), "{text}");
    let (status, text, _) = smoke(&["--mode", "off", "--lan", "10.77.0.1:8844"]);
    assert!(
        status == 1 && text.contains("FAIL machine on the host's LAN"),
        "{text}"
    );
    let (status, text, _) = smoke(&["--mode", "nat", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (status, &report["passed"]),
        (1, &serde_json::Value::Bool(false)),
        "{text}"
    );
    drop(listeners);
    let (status, _, words) = net(&["smoke", "1001", "--agentlab", shell.to_str().unwrap()]);
    assert!(status == 2 && words.contains("asking 1001 failed"), "{words}");
}

#[test]
fn a_bridge_of_somebody_else_is_left_alone_unless_forced_and_the_plan_says_what_differs() {
    if skipped() {
        return;
    }
    in_network_with_uplink();
    // A number of a network is used again when it is gone, and this test has run before.
    let _ = std::fs::remove_dir_all(places());
    ip(&FOREIGN_BRIDGE);
    let (status, _, words) = net(&["apply", "--uplink", "wan0"]);
    for part in ["made by somebody else", "has STP on", "port eth1", "--force"] {
        assert!(status == 2 && words.contains(part), "{part}: {status} {words}");
    }
    assert_ne!(net(&["verify", "--uplink", "wan0"]).0, 0);
    let (_, text, _) = net(&["plan", "--diff", "--uplink", "wan0"]);
    assert!(
        text.contains("@ chain inet agentlab from_bridge\n+ meta mark != "),
        "{text}"
    );
    assert_eq!(net(&["apply", "--uplink", "wan0", "--force"]).0, 0);
    let rule = ["add", "rule", "inet", "agentlab", "nat", "counter", "accept"];
    assert_eq!(run("nft", &rule).0, 0);
    let (_, text, _) = net(&["plan", "--diff"]);
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(
        lines,
        ["@ chain inet agentlab nat", "- (a rule of counter, immediate)"],
        "{text}"
    );
    // Flushed while nobody looks, it is ours still; made anew by somebody else, it is not.
    assert_eq!(run("nft", &["flush", "ruleset"]).0, 0);
    let (status, _, words) = net(&["apply", "--uplink", "wan0"]);
    assert_eq!(status, 0, "{words}");
    assert_eq!(run("nft", &["flush", "ruleset"]).0, 0);
    ip(&["link del vmbr1", "link del eth1"]);
    ip(&FOREIGN_BRIDGE);
    assert_eq!(net(&["apply", "--uplink", "wan0"]).0, 2);
}

#[test]
fn without_the_right_to_change_a_network_nothing_is_done_and_that_is_said() {
    if skipped() {
        return;
    }
    let line = [
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        env!("CARGO_BIN_EXE_agentlab-net"),
        "apply",
        "--config",
        "/dev/null",
        "--lock-dir",
        "/tmp",
    ];
    let (status, _, words) = run("setpriv", &line);
    assert!(status == 2 && words.contains("CAP_NET_ADMIN"), "{status} {words}");
}

#[test]
fn the_plan_is_printed_without_any_privilege() {
    let (status, text, _) = net(&[
        "plan",
        "--bridge",
        "br7",
        "--uplink",
        "wan0",
        "--bootstrap-port",
        "1234",
        "--machine-uids",
        "70000-70009",
    ]);
    assert_eq!(status, 0);
    for part in [
        "iifname \"br7\" goto from_bridge",
        "oifname \"wan0\" masquerade",
        "tcp . 1234",
        "meta skuid 70000-70009 counter drop",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
}

#[test]
fn a_plan_can_be_had_as_json_and_opens_the_resolver_unless_told_otherwise() {
    let (status, text, _) = net(&["plan", "--json"]);
    let plan: serde_json::Value = serde_json::from_str(&text).unwrap();
    let ruleset = plan["ruleset"].as_str().unwrap();
    let resolver = "ip daddr 10.77.0.1 meta l4proto udp th dport 53 accept";
    assert!(status == 0 && ruleset.contains(resolver), "{ruleset}");
    let (_, text, _) = net(&["plan", "--no-dns"]);
    assert!(
        text.contains("table inet") && !text.contains("dport 53 accept"),
        "{text}"
    );
}

#[test]
fn what_cannot_be_planned_is_an_error_that_says_what_to_do() {
    let (status, text, words) = net(&["plan", "--address", "9.9.9.9"]);
    assert_eq!((status, text.as_str()), (2, ""));
    assert!(
        words.contains("9.9.0.0/16") && words.contains("choose one inside"),
        "{words}"
    );
    let (status, ..) = net(&["plan", "--uplink", "not a name"]);
    assert_eq!(status, 2);
}

#[test]
fn what_another_program_put_up_is_verified_sealed_and_applied_as_it_stands() {
    if skipped() {
        return;
    }
    in_network_with_uplink();
    for uplink in [true, false] {
        for dns in [true, false] {
            let mut host = daemons_policy();
            host.dns = dns;
            host.uplink = host.uplink.filter(|_| uplink);
            let mut enforcer = Enforcer::start(host.clone()).unwrap();
            assert_eq!(Observer::open().unwrap().host().unwrap(), Some(host.clone()));
            let port = GuestPort {
                name: "tap1000i0".parse().unwrap(),
                mac: [2, 0, 0, 0, 0, 7],
                address: "10.78.1.7".parse().unwrap(),
                trust: Trust::Off,
            };
            let _tap = enforcer.attach(&port).unwrap();
            for (command, standing) in [
                ("verify", Trust::Off),
                ("apply", Trust::Off),
                ("seal", Trust::Sealed),
            ] {
                let (status, text, words) = net(&[command]);
                assert_eq!(status, 0, "{command}: {text} {words}");
                assert_eq!(text.contains("uplink wan0"), uplink, "{command}: {text}");
                let mut observer = Observer::open().unwrap();
                assert_eq!(observer.host().unwrap(), Some(host.clone()), "{command}");
                assert_eq!(observer.drift(&host).unwrap(), [], "{command}");
                assert_eq!(observer.bindings().unwrap()[0].trust(), &standing, "{command}");
            }
            let (status, text, _) = net(&["verify", "--uplink", "other0"]);
            assert_eq!(status, 1, "{text}");
            enforcer.detach(&port.name).unwrap();
        }
    }
}

#[test]
fn drift_is_exit_status_one_and_repaired_by_apply() {
    if skipped() {
        return;
    }
    in_network_with_uplink();
    let with_uplink = |command: &[&str]| net(&[command, &["--uplink", "wan0"]].concat());
    let (status, text, _) = with_uplink(&["verify"]);
    assert!(
        status == 1 && text.contains("table inet agentlab: is missing"),
        "{status} {text}"
    );
    let (status, text, _) = with_uplink(&["apply", "--dry-run"]);
    assert!(
        status == 0 && text.contains("# would change: table inet agentlab: is missing"),
        "{status} {text}"
    );
    assert_eq!(with_uplink(&["verify"]).0, 1, "a dry run changed something");
    assert_eq!(with_uplink(&["apply"]).0, 0);
    assert_eq!(with_uplink(&["verify"]).0, 0);
    assert_eq!(
        run("nft", &["flush", "chain", "inet", "agentlab", "forward"]).0,
        0
    );
    let (status, text, _) = with_uplink(&["verify", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (status, &report["standing"]),
        (1, &serde_json::Value::Bool(false))
    );
    assert_eq!(
        report["drift"][0]["object"],
        "rule 1 of chain forward of table inet agentlab"
    );
    assert_eq!(with_uplink(&["seal"]).0, 0);
    assert_eq!(with_uplink(&["verify"]).0, 0);
    let (status, text, _) = net(&["status", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(
        status == 0 && report["ports"].as_array().unwrap().is_empty(),
        "{text}"
    );
    assert_eq!(report["policy"]["uplink"], "wan0");
    for (options, uplink) in [(&[][..], true), (&["--no-uplink"][..], false)] {
        let (status, text, _) = net(&[&["apply"], options].concat());
        assert_eq!(status, 0, "{text}");
        assert_eq!(text.contains("kept as it stood"), uplink, "{text}");
        assert_eq!(text.contains("uplink wan0"), uplink, "{text}");
    }
    let (status, text, _) = net(&["--json", "apply", "--uplink", "wan0", "--artifact-port", "9000"]);
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &report["changed"]), (0, &serde_json::Value::Bool(true)));
    let (status, _, words) = net(&["apply", "--uplink", "nosuch0"]);
    assert!(
        status == 2 && words.contains("`nosuch0` does not exist"),
        "{status} {words}"
    );
}
