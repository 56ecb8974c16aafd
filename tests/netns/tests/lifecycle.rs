//! The policy over time: applied, adopted, drifted, repaired, outlived, taken away.

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use agentlab_netpolicy::{
        EnforceError, Enforcer, GuestPort, IfName, Intent, Observer, PlanError, Protocol, Trust,
    };
    use agentlab_tests_netns::lab::{
        attach_one_of_each, bare_host, bound_host, enforcer_on, host_policy, listing, one_of_each_trust,
        port, skipped,
    };
    use agentlab_tests_netns::namespace::Namespace;

    fn name(text: &str) -> IfName {
        text.parse().unwrap()
    }

    #[test]
    fn the_kernel_lists_what_nft_makes_of_our_text() {
        if skipped() {
            return;
        }
        let (host, other) = (bare_host().unwrap(), Namespace::new().unwrap());
        let mut enforcer = enforcer_on(&host).unwrap();
        let _taps = host.enter(|| attach_one_of_each(&mut enforcer)).unwrap().unwrap();
        let intent = Intent {
            host: host_policy().unwrap(),
            ports: one_of_each_trust().unwrap(),
        };
        let text = host
            .enter(|| Observer::open().unwrap().ruleset_of(&intent).unwrap().to_string())
            .unwrap();
        other.run("nft", &["--check", "-f", "-"], &text).unwrap();
        other.run("nft", &["-f", "-"], &text).unwrap();
        let (ours, theirs) = (listing(&host).unwrap(), listing(&other).unwrap());
        assert_eq!(ours, theirs);
        assert!(ours.contains("tap1003i0"), "{ours}");
    }

    #[test]
    fn attach_and_detach_leave_no_link_and_no_element_behind() {
        if skipped() {
            return;
        }
        let host = bare_host().unwrap();
        let mut enforcer = enforcer_on(&host).unwrap();
        let state = |host: &Namespace| {
            ["ip -o link", "bridge fdb", "ip neigh"]
                .map(|words| {
                    let mut words = words.split(' ');
                    let program = words.next().unwrap();
                    host.run(program, &words.collect::<Vec<_>>(), "").unwrap()
                })
                .join("")
                + &listing(host).unwrap()
        };
        let before = state(&host);
        host.enter(|| {
            let mut taps = Vec::new();
            for port in one_of_each_trust().unwrap() {
                taps.push(enforcer.attach(&port).unwrap());
                // The same cable again: a new descriptor, the old one is dead.
                taps.push(enforcer.attach(&port).unwrap());
            }
            assert_eq!(enforcer.attached().unwrap().len(), 5);
            assert_eq!(enforcer.verify().unwrap(), []);
        })
        .unwrap();
        assert_ne!(state(&host), before);
        host.enter(|| {
            // The descriptors are closed already: detaching what is half gone must succeed as well.
            for port in one_of_each_trust().unwrap() {
                enforcer.detach(&port.name).unwrap();
                enforcer.detach(&port.name).unwrap();
            }
            assert_eq!(enforcer.verify().unwrap(), []);
        })
        .unwrap();
        assert_eq!(state(&host), before);
    }

    #[test]
    fn what_names_opened_keeps_the_time_it_has_left_through_a_replace() {
        if skipped() {
            return;
        }
        let host = bare_host().unwrap();
        let mut enforcer = enforcer_on(&host).unwrap();
        let (listed, other) = (name("tap1004i0"), name("tap1003i0"));
        let address = "8.8.8.8".parse().unwrap();
        let open = |host: &Namespace| {
            let set = ["list", "set", "inet", "agentlab", "resolved"];
            let text = host.run("nft", &set, "").unwrap();
            let left = text
                .split("expires ")
                .nth(1)?
                .split(['s', ' '])
                .next()?
                .to_owned();
            assert!(text.contains("10.77.0.15 . 8.8.8.8 timeout 1m"), "{text}");
            Some(left.trim_end_matches('m').parse::<u64>().unwrap())
        };
        host.enter(|| {
            enforcer.bind_all(&one_of_each_trust().unwrap()).unwrap();
            let minute = std::time::Duration::from_secs(60);
            let refused = enforcer.resolve(&other, &[address], None, minute);
            assert!(
                matches!(refused, Err(EnforceError::Unsupported { .. })),
                "{refused:?}"
            );
            enforcer.resolve(&listed, &[address], None, minute).unwrap();
            let https = agentlab_netpolicy::PortRange {
                protocol: Protocol::Tcp,
                first: 443,
                last: 443,
            };
            enforcer
                .resolve(&listed, &[address], Some(&[https]), minute)
                .unwrap();
            // Once more is a new time, and no error.
            enforcer.resolve(&listed, &[address], None, minute).unwrap();
        })
        .unwrap();
        assert!(open(&host).is_some());
        let set = "delete element inet agentlab resolved { 10.77.0.15 . 8.8.8.8 }
\
                   add element inet agentlab resolved { 10.77.0.15 . 8.8.8.8 timeout 1m expires 20s }";
        host.run("nft", &["-f", "-"], set).unwrap();
        // Replaced because of damage, and because of a new list of ports.
        host.run("nft", &["add", "chain", "inet", "agentlab", "extra"], "")
            .unwrap();
        assert!(!host.enter(|| enforcer.verify()).unwrap().unwrap().is_empty());
        host.enter(|| enforcer.bind_all(&one_of_each_trust().unwrap()))
            .unwrap()
            .unwrap();
        let left = open(&host).unwrap();
        assert!((15..=20).contains(&left), "{left} s are left");
        let with_port = || {
            let set = ["list", "set", "inet", "agentlab", "resolved_ports"];
            host.run("nft", &set, "").unwrap()
        };
        assert!(
            with_port().contains("10.77.0.15 . 8.8.8.8 . tcp . 443 timeout 1m"),
            "{}",
            with_port()
        );
        assert_eq!(host.enter(|| enforcer.verify()).unwrap().unwrap(), []);
        // Trust that falls takes them along, and so does the end of the port.
        for end in 0..3 {
            host.enter(|| {
                let port = one_of_each_trust().unwrap().swap_remove(4);
                enforcer.bind(&port).unwrap();
                let time = std::time::Duration::from_secs(60);
                enforcer.resolve(&listed, &[address], None, time).unwrap();
                match end {
                    0 => enforcer.set_trust(&listed, Trust::Off).unwrap(),
                    1 => enforcer.unbind(&listed).unwrap(),
                    _ => enforcer.seal().unwrap(),
                }
            })
            .unwrap();
            assert_eq!(open(&host), None, "{end}");
            assert!(!with_port().contains("8.8.8.8"), "{end}");
        }
    }

    #[test]
    fn the_policy_outlives_its_process_and_the_next_one_adopts_it() {
        if skipped() {
            return;
        }
        let host = bare_host().unwrap();
        let (mut child, mut output) = host
            .enter(|| {
                let mut child = Command::new(std::env::current_exe().unwrap())
                    .args([
                        "--exact",
                        "tests::holds_a_policy_until_it_is_killed",
                        "--ignored",
                        "--nocapture",
                    ])
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap();
                let output = BufReader::new(child.stdout.take().unwrap());
                (child, output)
            })
            .unwrap();
        let mut line = String::new();
        while !line.contains("standing") {
            line.clear();
            assert_ne!(output.read_line(&mut line).unwrap(), 0, "the child ended early");
        }
        let alive = listing(&host).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(listing(&host).unwrap(), alive);
        assert!(
            !host.run("ip", &["link"], "").unwrap().contains("tap1003i0"),
            "a tap outlived its descriptor"
        );
        let mut next = enforcer_on(&host).unwrap();
        host.enter(|| {
            let names: Vec<_> = one_of_each_trust()
                .unwrap()
                .into_iter()
                .map(|port| port.name)
                .collect();
            assert_eq!(next.attached().unwrap(), names);
            // Sealed ports are as well known as the others.
            next.set_trust(&names[0], Trust::Nat).unwrap();
            next.set_trust(&names[0], Trust::Sealed).unwrap();
        })
        .unwrap();
        drop(next);
        assert_eq!(listing(&host).unwrap(), alive, "adopting changed something");
    }

    /// Not a test: the process that the one above kills.
    #[test]
    #[ignore = "run by another test, as a process of its own"]
    fn holds_a_policy_until_it_is_killed() {
        let mut enforcer = Enforcer::start(host_policy().unwrap()).unwrap();
        let _taps = attach_one_of_each(&mut enforcer).unwrap();
        println!("standing");
        std::thread::park();
    }

    #[test]
    fn a_policy_that_does_not_fit_is_replaced_and_every_port_sealed() {
        if skipped() {
            return;
        }
        let (host, enforcer) = bound_host().unwrap();
        drop(enforcer);
        host.run("nft", &["add", "rule", "inet", "agentlab", "input", "accept"], "")
            .unwrap();
        let mut next = enforcer_on(&host).unwrap();
        assert_eq!(next.attached().unwrap().len(), 5);
        let standing = host
            .enter(|| Observer::open().unwrap().bindings().unwrap())
            .unwrap();
        assert!(
            standing.iter().all(|binding| *binding.trust() == Trust::Sealed),
            "{standing:?}"
        );
        host.enter(|| next.set_trust(&name("tap1003i0"), Trust::Nat))
            .unwrap()
            .unwrap();
    }

    #[test]
    fn tables_of_others_stay_as_they_are() {
        if skipped() {
            return;
        }
        let host = bare_host().unwrap();
        let foreign = "table inet filter {\nchain input {\ntype filter hook input priority 0; policy accept;\n\
                       iifname \"vmbr0\" counter accept\n}\n}\ntable bridge other {\nset ports {\ntype ifname\n}\n}\n";
        host.run("nft", &["-f", "-"], foreign).unwrap();
        let theirs = |host: &Namespace| {
            let list = |table: &[&str]| {
                host.run("nft", &[&["list", "table"], table].concat(), "")
                    .unwrap()
            };
            list(&["inet", "filter"]) + &list(&["bridge", "other"])
        };
        let before = theirs(&host);
        let mut enforcer = enforcer_on(&host).unwrap();
        host.enter(|| {
            enforcer.bind_all(&one_of_each_trust().unwrap()).unwrap();
            enforcer.seal().unwrap();
            enforcer.unbind(&name("tap1003i0")).unwrap();
            assert_eq!(enforcer.verify().unwrap(), []);
        })
        .unwrap();
        assert_eq!(theirs(&host), before);
    }

    #[test]
    fn a_table_of_our_name_that_somebody_else_made_is_left_alone() {
        if skipped() {
            return;
        }
        let host = bare_host().unwrap();
        let theirs = "table inet agentlab {\nchain forward {\ntype filter hook forward priority -100; policy accept;\n\
                      iifname \"vmbr1\" drop\n}\n}\n";
        host.run("nft", &["-f", "-"], theirs).unwrap();
        let before = listing(&host).unwrap();
        let refused = host.enter(|| Enforcer::start(host_policy().unwrap())).unwrap();
        assert!(
            matches!(refused, Err(EnforceError::ForeignTable { family: "inet" })),
            "{refused:?}"
        );
        assert_eq!(listing(&host).unwrap(), before);
    }

    #[test]
    fn what_is_refused_leaves_the_old_policy_standing() {
        if skipped() {
            return;
        }
        let (host, mut enforcer) = bound_host().unwrap();
        let before = listing(&host).unwrap();
        host.ip("link add tap1009i0 type bridge").unwrap();
        host.enter(|| {
            let twin = GuestPort {
                name: name("tap1008i0"),
                ..port(3, Trust::Nat).unwrap()
            };
            let refused = enforcer.attach(&twin);
            assert!(
                matches!(refused, Err(EnforceError::Plan(PlanError::Shared { .. }))),
                "{refused:?}"
            );
            let outside = GuestPort {
                address: "10.78.0.5".parse().unwrap(),
                ..port(8, Trust::Nat).unwrap()
            };
            let refused = enforcer.attach(&outside);
            assert!(
                matches!(refused, Err(EnforceError::Plan(PlanError::GuestAddress { .. }))),
                "{refused:?}"
            );
            let refused = enforcer.attach(&port(9, Trust::Nat).unwrap());
            assert!(
                matches!(refused, Err(EnforceError::NotOurs { .. })),
                "{refused:?}"
            );
            let mut both = one_of_each_trust().unwrap();
            both.push(twin);
            assert!(enforcer.bind_all(&both).is_err());
        })
        .unwrap();
        assert_eq!(listing(&host).unwrap(), before);
    }

    #[test]
    fn a_host_that_cannot_keep_the_promise_is_refused() {
        if skipped() {
            return;
        }
        let host = bare_host().unwrap();
        let start = |change: &dyn Fn(&mut agentlab_netpolicy::HostPolicy)| {
            let mut policy = host_policy().unwrap();
            change(&mut policy);
            Enforcer::start(policy)
        };
        host.enter(|| {
            let refused = start(&|policy| policy.uplink = Some(name("nosuch0")));
            assert!(
                matches!(refused, Err(EnforceError::NoSuchUplink { .. })),
                "{refused:?}"
            );
            let refused = start(&|policy| policy.bridge.address = "192.168.200.1".parse().unwrap());
            assert!(
                matches!(refused, Err(EnforceError::SubnetTaken { .. })),
                "{refused:?}"
            );
        })
        .unwrap();
        host.ip("link add tunnel0 type veth peer name vmbr1").unwrap();
        let refused = host.enter(|| start(&|_| {})).unwrap();
        assert!(
            matches!(refused, Err(EnforceError::NotABridge { .. })),
            "{refused:?}"
        );
        let without = host
            .enter(|| {
                start(&|policy| {
                    policy.uplink = None;
                    policy.bridge.name = name("vmbr7");
                })
            })
            .unwrap()
            .unwrap();
        let unsupported = host.enter(|| without.supports(&Trust::Nat)).unwrap();
        assert!(
            matches!(unsupported, Err(EnforceError::Unsupported { .. })),
            "{unsupported:?}"
        );
        assert!(host.enter(|| without.supports(&Trust::Off)).unwrap().is_ok());
    }
}
