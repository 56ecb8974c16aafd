//! What a change of trust opens, closes, cuts and tells.

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    use agentlab_netpolicy::{EnforceError, Enforcer, IfName, Protocol, Trust};
    use agentlab_tests_netns::frame::{IPV4, ethernet, ipv4_udp, token};
    use agentlab_tests_netns::lab::{Lab, destination, host_policy, port, skipped};
    use agentlab_tests_netns::namespace::{Namespace, PATIENCE, SILENCE, until};

    fn name(text: &str) -> IfName {
        text.parse().unwrap()
    }

    #[test]
    fn a_port_that_nobody_bound_is_found_and_sealed() {
        if skipped() {
            return;
        }
        let mut lab = Lab::with_policy().unwrap();
        let found = lab.enforce(|enforcer| Ok(enforcer.verify()?)).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].object, "port tap1002i0");
        assert_eq!(lab.enforce(|enforcer| Ok(enforcer.verify()?)).unwrap(), []);
        let stranger = name("tap1002i0");
        let trusted = lab
            .enforce(|enforcer| Ok(enforcer.set_trust(&stranger, Trust::Nat)))
            .unwrap();
        assert!(
            matches!(trusted, Err(EnforceError::NameOnly { .. })),
            "{trusted:?}"
        );
        // Somebody who says whose it is may have it.
        lab.enforce(|enforcer| Ok(enforcer.adopt(&port(2, Trust::Nat)?)?))
            .unwrap();
        assert!(opens(&lab.stranger.namespace, "1.1.1.1:443"));
    }

    fn opens(from: &Namespace, to: &str) -> bool {
        from.opens(to).unwrap()
    }

    fn is_closed(from: &Namespace, to: &str) -> bool {
        from.is_closed(to).unwrap()
    }

    fn trusted(trust: Trust) -> Lab {
        let mut lab = Lab::with_policy().unwrap();
        lab.enforce(|enforcer| Ok(enforcer.set_trust(&name("tap1000i0"), trust)?))
            .unwrap();
        lab
    }

    #[test]
    fn an_allowlist_opens_what_it_names_and_never_a_private_range() {
        if skipped() {
            return;
        }
        let lab = trusted(Trust::Allowlist(vec![
            destination("1.1.1.1", Some((Protocol::Tcp, 443, 443))).unwrap(),
            destination("10.200.0.0/16", None).unwrap(),
            destination("192.168.1.0/24", None).unwrap(),
        ]));
        let a = &lab.a.namespace;
        assert!(opens(a, "1.1.1.1:443"));
        assert!(opens(a, "10.77.0.1:8844"));
        for closed in [
            "1.1.1.1:80",
            "8.8.8.8:443",
            "10.200.0.5:80",
            "192.168.1.20:445",
            "10.77.0.1:8006",
        ] {
            assert!(is_closed(a, closed), "{closed} is open");
        }
    }

    /// Whether one end hears, within this time, when the other speaks.
    fn hears(ear: &mut TcpStream, mouth: &mut TcpStream, patience: Duration) -> bool {
        let mut buffer = [0; 4];
        ear.set_read_timeout(Some(patience)).unwrap();
        // A cut flow may already have told its ends.
        let said = mouth.write_all(b"word");
        said.is_ok() && ear.read_exact(&mut buffer).is_ok()
    }

    #[test]
    fn a_flow_that_lives_is_cut_when_trust_falls() {
        if skipped() {
            return;
        }
        let elsewhere = Trust::Allowlist(vec![destination("8.8.8.8", None).unwrap()]);
        for lower in [Trust::Sealed, Trust::Off, elsewhere] {
            let mut lab = trusted(Trust::Nat);
            let listener = lab
                .net
                .enter(|| TcpListener::bind("1.1.1.1:7777").unwrap())
                .unwrap();
            let mut inside = lab
                .a
                .namespace
                .enter(|| TcpStream::connect("1.1.1.1:7777").unwrap())
                .unwrap();
            let (mut outside, _) = listener.accept().unwrap();
            assert!(hears(&mut inside, &mut outside, PATIENCE) && hears(&mut outside, &mut inside, PATIENCE));
            assert!(has_flow(&lab, "dport=7777"));
            let wider = Trust::Nat;
            for (trust, alive) in [(wider, true), (lower.clone(), false)] {
                lab.enforce(|enforcer| Ok(enforcer.set_trust(&name("tap1000i0"), trust)?))
                    .unwrap();
                let (known, patience) = if alive {
                    (has_flow(&lab, "dport=7777"), PATIENCE)
                } else {
                    (flows(&lab).contains("dport=7777"), SILENCE)
                };
                assert_eq!(known, alive, "{lower:?}");
                assert_eq!(
                    hears(&mut inside, &mut outside, patience),
                    alive,
                    "{lower:?}: what the guest hears"
                );
                assert_eq!(
                    hears(&mut outside, &mut inside, patience),
                    alive,
                    "{lower:?}: what the outside hears"
                );
            }
        }
    }

    #[test]
    fn a_policy_that_is_replaced_under_traffic_loses_and_leaks_nothing() {
        const REPLACEMENTS: u32 = 25;
        const DENIED: u32 = 1_000_000;
        if skipped() {
            return;
        }
        let lab = trusted(Trust::Nat);
        let Lab {
            host,
            a,
            listening,
            enforcer,
            ..
        } = lab;
        let mut enforcer = enforcer.unwrap();
        let chains = [
            "bridge agentlab prerouting",
            "bridge agentlab from_guest_ip",
            "bridge agentlab forward",
            "bridge agentlab to_guest",
            "inet agentlab from_bridge",
            "inet agentlab prerouting",
            "inet agentlab forward",
            "inet agentlab guest_forward",
            "inet agentlab guest_input",
            "inet agentlab nat",
            "inet agentlab refuse",
            "inet agentlab postrouting",
        ];
        let damage = chains.map(|chain| format!("add rule {chain} counter\n")).concat();
        // A neighbour is not given up while this machine is busy with something else.
        for (place, link) in [(&a.namespace, "eth0"), (&host, "vmbr0"), (&host, "vmbr1")] {
            for tries in ["ucast_solicit", "mcast_solicit"] {
                place.set(&format!("ipv4/neigh/{link}/{tries}"), "60").unwrap();
            }
        }
        let (sent, over) = (AtomicU32::new(0), AtomicBool::new(false));
        let mut heard = Vec::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut replaced = 0;
                let replacing = host.enter(|| {
                    // Under traffic: for each replacement, a packet has got through.
                    while replaced < REPLACEMENTS || sent.load(Ordering::Relaxed) < REPLACEMENTS {
                        // Harmless damage in every chain on the way, so that all of them get new rules.
                        host.run("nft", &["-f", "-"], &damage).unwrap();
                        assert!(!enforcer.verify().unwrap().is_empty());
                        replaced += 1;
                    }
                });
                over.store(true, Ordering::Relaxed);
                replacing.unwrap();
            });
            let sending = a.namespace.enter(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                while !over.load(Ordering::Relaxed) {
                    let number = sent.fetch_add(1, Ordering::Relaxed);
                    let _ = socket.send_to(&token(number), "8.8.8.8:9999");
                    let _ = socket.send_to(&token(DENIED + number), "192.168.1.20:9999");
                    let _ = socket.send_to(&token(DENIED + number), "10.77.0.1:9999");
                    // Waiting for each keeps every queue on the way short: what is lost then, the policy lost.
                    let patient = Instant::now() + PATIENCE;
                    while !heard.contains(&number) && Instant::now() < patient {
                        heard.extend(listening.take().iter().map(|heard| heard.token));
                        thread::yield_now();
                    }
                }
            });
            sending.unwrap();
        });
        heard.extend(listening.take().iter().map(|heard| heard.token));
        let lost: Vec<_> = (0..sent.into_inner())
            .filter(|number| !heard.contains(number))
            .collect();
        let leaked: Vec<_> = heard.iter().filter(|number| **number >= DENIED).collect();
        assert!(
            lost.is_empty() && leaked.is_empty(),
            "lost {lost:?}, leaked {leaked:?}"
        );
    }

    #[test]
    fn a_flow_to_the_host_s_own_services_survives_a_fall_of_trust() {
        if skipped() {
            return;
        }
        let mut lab = trusted(Trust::Nat);
        let talk = lab
            .a
            .namespace
            .enter(|| TcpStream::connect("10.77.0.1:8844").unwrap())
            .unwrap();
        lab.enforce(|enforcer| Ok(enforcer.set_trust(&name("tap1000i0"), Trust::Off)?))
            .unwrap();
        assert!(has_flow(&lab, "dport=8844"), "{}", flows(&lab));
        drop(talk);
    }

    #[test]
    fn a_guest_that_somebody_is_logged_in_to_is_known_and_the_others_are_not() {
        if skipped() {
            return;
        }
        let mut lab = trusted(Trust::Off);
        let reached = |lab: &mut Lab| lab.enforce(|enforcer| Ok(enforcer.reached(22)?)).unwrap();
        assert!(reached(&mut lab).is_empty());
        let (login, other) = lab
            .tail
            .enter(|| {
                (
                    TcpStream::connect("10.77.0.11:22").unwrap(),
                    TcpStream::connect("10.77.0.12:22").unwrap(),
                )
            })
            .unwrap();
        let both = ["tap1000i0", "tap1001i0"].map(name);
        // What a connection has told its own end is not yet known everywhere on the way.
        assert!(until(|| reached(&mut lab).iter().eq(&both)));
        drop(other);
        // Nobody reads at the other end, which only the kernel knows of.
        assert!(until(|| reached(&mut lab).iter().eq(&both[..1])));
        drop(login);
    }

    #[test]
    fn a_recycled_address_inherits_no_flow() {
        if skipped() {
            return;
        }
        let mut lab = trusted(Trust::Nat);
        let talk = |lab: &Lab| {
            assert!(opens(&lab.a.namespace, "1.1.1.1:443"));
            assert!(has_flow(lab, "src=10.77.0.11"), "{}", flows(lab));
        };
        talk(&lab);
        assert!(opens(&lab.b.namespace, "1.1.1.1:443"));
        let heir = port(0, Trust::Nat).unwrap();
        let _tap = lab
            .enforce(|enforcer| {
                enforcer.detach(&heir.name)?;
                Ok(enforcer.attach(&heir)?)
            })
            .unwrap();
        assert!(!flows(&lab).contains("src=10.77.0.11"), "{}", flows(&lab));
        assert!(has_flow(&lab, "src=10.77.0.12"), "{}", flows(&lab));

        // An address that nobody gets is cleaned by the next verification, or by the next process.
        for next_process in [false, true] {
            let mut lab = trusted(Trust::Nat);
            talk(&lab);
            lab.enforce(|enforcer| Ok(enforcer.unbind(&heir.name)?)).unwrap();
            if next_process {
                lab.enforcer = None;
                lab.host
                    .enter(|| Enforcer::start(host_policy().unwrap()).map(drop))
                    .unwrap()
                    .unwrap();
            } else {
                lab.enforce(|enforcer| Ok(enforcer.verify()?)).unwrap();
            }
            assert!(
                !flows(&lab).contains("src=10.77.0.11"),
                "{next_process}: {}",
                flows(&lab)
            );
        }
    }

    /// Whether the host knows a flow. A list that is read while flows end elsewhere may miss one.
    fn has_flow(lab: &Lab, words: &str) -> bool {
        until(|| flows(lab).contains(words))
    }

    fn flows(lab: &Lab) -> String {
        lab.host
            .enter(|| std::fs::read_to_string("/proc/thread-self/net/nf_conntrack"))
            .unwrap()
            .unwrap()
    }

    #[test]
    fn a_refused_agent_is_told_at_once() {
        if skipped() {
            return;
        }
        let lab = trusted(Trust::Off);
        lab.a
            .namespace
            .enter(|| {
                let refused = TcpStream::connect_timeout(&"1.1.1.1:443".parse().unwrap(), PATIENCE);
                assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.connect("192.168.1.20:9999").unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                socket.send(b"hello").unwrap();
                let refused = socket.recv(&mut [0; 8]).unwrap_err();
                assert_ne!(
                    refused.kind(),
                    std::io::ErrorKind::WouldBlock,
                    "no ICMP came back"
                );
            })
            .unwrap();
    }

    #[test]
    fn a_bound_port_on_another_bridge_passes_nothing() {
        if skipped() {
            return;
        }
        let mut lab = trusted(Trust::Nat);
        lab.host.ip("link set tap1000i0 master vmbr2").unwrap();
        let link = lab
            .host
            .run("ip", &["-brief", "link", "show", "vmbr2"], "")
            .unwrap();
        let mac = parse_mac(link.split_whitespace().nth(2).unwrap());
        let packet = ipv4_udp(lab.a.address, "6.6.6.1".parse().unwrap(), 9999, &token(1));
        lab.a.inject(&ethernet(mac, lab.a.mac, IPV4, &packet)).unwrap();
        assert!(is_closed(&lab.a.namespace, "6.6.6.6:80"));
        assert_eq!(lab.listening.take(), []);
        assert!(until(|| refusals(
            &mut lab,
            "Guest's port that hangs on another bridge"
        ) > 0));
    }

    fn parse_mac(text: &str) -> [u8; 6] {
        let bytes: Vec<u8> = text
            .split(':')
            .map(|part| u8::from_str_radix(part, 16).unwrap())
            .collect();
        bytes.try_into().unwrap()
    }

    #[test]
    fn public_networks_the_host_is_part_of_are_closed_when_they_are_seen() {
        if skipped() {
            return;
        }
        let mut lab = trusted(Trust::Nat);
        lab.host.ip("address add 7.7.7.1/24 dev vmbr0").unwrap();
        lab.net.ip("address add 7.7.7.7/24 dev eth0").unwrap();
        assert!(
            opens(&lab.a.namespace, "7.7.7.7:80"),
            "the way itself does not work"
        );
        let found = lab.enforce(|enforcer| Ok(enforcer.verify()?)).unwrap();
        assert!(
            found.iter().any(|drift| drift.object.contains("set denied")),
            "{found:?}"
        );
        assert_eq!(lab.enforce(|enforcer| Ok(enforcer.verify()?)).unwrap(), []);
        assert!(is_closed(&lab.a.namespace, "7.7.7.7:80"));
        assert!(opens(&lab.a.namespace, "1.1.1.1:80"));
        lab.host.ip("address del 7.7.7.1/24 dev vmbr0").unwrap();
        lab.enforce(|enforcer| Ok(enforcer.verify()?)).unwrap();
        let denied = lab
            .host
            .run("nft", &["list", "set", "inet", "agentlab", "denied"], "")
            .unwrap();
        assert!(
            denied.contains("6.6.6.0/24") && !denied.contains("7.7.7.0"),
            "{denied}"
        );
    }

    #[test]
    fn a_guest_with_too_many_flows_gets_no_more_and_others_do() {
        if skipped() {
            return;
        }
        let mut lab = trusted(Trust::Nat);
        assert!(opens(&lab.a.namespace, "1.1.1.1:443"));
        // One flow for each port of each socket, until one is refused; a cable that is full loses some.
        let mut sent = 0;
        let why = "More flows at once than one guest may have";
        let refused = until(|| {
            lab.a
                .namespace
                .enter(|| {
                    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                    for port in 10_000..10_250 {
                        let _ = socket.send_to(b"x", ("1.1.1.1", port));
                    }
                })
                .unwrap();
            sent += 250;
            refusals(&mut lab, why) > 0
        });
        assert!(refused && sent > 4000, "after {sent}");
        assert!(is_closed(&lab.a.namespace, "1.1.1.1:443"));
        assert!(is_closed(&lab.a.namespace, "10.77.0.1:8844"));
        assert!(opens(&lab.b.namespace, "1.1.1.1:443"));
        assert!(opens(&lab.b.namespace, "10.77.0.1:8844"));
        assert_eq!(
            lab.enforce(|enforcer| Ok(enforcer.verify()?)).unwrap().len(),
            1,
            "but for the port that nobody bound, the guests' flows count as no drift"
        );
    }

    #[test]
    fn what_was_refused_can_be_counted() {
        if skipped() {
            return;
        }
        let mut lab = trusted(Trust::Nat);
        assert!(is_closed(&lab.a.namespace, "192.168.1.1:80"));
        assert!(until(|| refusals(&mut lab, "Private or special range") > 0));
    }

    /// Packets that were refused for one reason.
    fn refusals(lab: &mut Lab, why: &str) -> u64 {
        let denials = lab.enforce(|enforcer| Ok(enforcer.denials()?)).unwrap();
        let refused = denials.iter().filter(|denial| denial.reason == why);
        refused.map(|denial| denial.packets).sum()
    }
}
