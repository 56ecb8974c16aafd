//! `agentlab-net` as an operator meets it: words and exit status.

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};

    use agentlab_netpolicy::{
        BridgeSpec, Enforcer, GuestPort, GuestService, HostPolicy, Observer, Protocol, Trust,
        USUAL_DENIAL_GROUP, WriterLock,
    };
    use nix::sched::{CloneFlags, unshare};

    /// Where this test keeps what the machine's own programs keep elsewhere.
    fn places() -> PathBuf {
        let test = std::thread::current().name().unwrap_or("main").replace(':', "-");
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(test)
    }

    /// Exit status, standard output and standard error.
    fn net(arguments: &[&str]) -> (i32, String, String) {
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

    fn json(arguments: &[&str]) -> serde_json::Value {
        let (status, text, words) = net(&[arguments, &["--json"]].concat());
        assert_eq!(status, 0, "{arguments:?}: {text} {words}");
        serde_json::from_str(&text).unwrap()
    }

    fn ip(lines: &[&str]) {
        for line in lines {
            assert_eq!(run("ip", &line.split(' ').collect::<Vec<_>>()).0, 0, "{line}");
        }
    }

    const FOREIGN_BRIDGE: [&str; 3] = [
        "link add vmbr1 type bridge stp_state 1",
        "link add eth1 type veth peer name eth2",
        "link set eth1 master vmbr1",
    ];

    /// From here on this test's own thread, and what it starts, live in a network of their own.
    fn in_network_with_uplink() {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        assert_eq!(run("ip", &["link", "add", "wan0", "type", "bridge"]).0, 0);
    }

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

    fn run(program: &str, arguments: &[&str]) -> (i32, String, String) {
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

    fn skipped() -> bool {
        if nix::unistd::geteuid().is_root() {
            return false;
        }
        let in_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
        assert!(!in_ci, "in CI this must run, but it needs root");
        eprintln!("SKIP: it needs root");
        true
    }

    /// As a daemon with options of its own puts it up.
    fn daemons_policy() -> HostPolicy {
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
}
