//! Ports that come and go behind the policy's back, and what is told of them at once.

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Instant;

    use agentlab_netpolicy::{
        Binding, EnforceError, Enforcer, GuestPort, IfName, LinkNews, LinkWatch, PortChange, Refusal,
        RefusalWatch, Trust, USUAL_DENIAL_GROUP, create_tap,
    };
    use agentlab_tests_netns::frame::{BROADCAST, ethernet, token};
    use agentlab_tests_netns::guest::Guest;
    use agentlab_tests_netns::lab::{GATEWAY, Lab, bare_host, host_policy, port, skipped};
    use agentlab_tests_netns::namespace::{Namespace, PATIENCE, SILENCE, until};

    fn name(text: &str) -> IfName {
        text.parse().unwrap()
    }

    /// Has the policy follow everything that was told, and returns what became of ports.
    fn follow(enforcer: &mut Enforcer, watch: &mut LinkWatch) -> Vec<PortChange> {
        let LinkNews::Hints(hints) = watch.news().unwrap() else {
            panic!("news were lost");
        };
        let followed = hints.iter().map(|hint| enforcer.link_changed(hint).unwrap());
        followed.flatten().collect()
    }

    /// A host whose policy stands and that is watched; nothing where this tier cannot run.
    fn started() -> Option<(Namespace, Enforcer, LinkWatch)> {
        if skipped() {
            return None;
        }
        let host = bare_host().unwrap();
        let (enforcer, watch) = host
            .enter(|| {
                let watch = LinkWatch::open().unwrap();
                (Enforcer::start(host_policy().unwrap()).unwrap(), watch)
            })
            .unwrap();
        Some((host, enforcer, watch))
    }

    #[test]
    fn a_port_that_appears_is_bound_at_once_and_unbound_when_it_is_gone() {
        let Some((host, mut enforcer, mut watch)) = started() else {
            return;
        };
        let expected = port(3, Trust::Nat).unwrap();
        host.enter(|| enforcer.bind(&expected)).unwrap().unwrap();
        follow(&mut enforcer, &mut watch);
        for _ in 0..2 {
            let tap = host.enter(|| create_tap(&expected.name)).unwrap().unwrap();
            host.ip("link set tap1003i0 master vmbr1\nlink set tap1003i0 up")
                .unwrap();
            let bound = PortChange::Bound(expected.name.clone());
            assert_eq!(host.enter(|| follow(&mut enforcer, &mut watch)).unwrap(), [bound]);
            let flags = host
                .run("bridge", &["-d", "link", "show", "dev", "tap1003i0"], "")
                .unwrap();
            assert!(
                flags.contains("isolated on") && flags.contains("learning off"),
                "{flags}"
            );
            assert_eq!(host.enter(|| enforcer.verify()).unwrap().unwrap(), []);
            // Following itself changes the link, and must not go on for ever.
            assert_eq!(host.enter(|| follow(&mut enforcer, &mut watch)).unwrap(), []);
            drop(tap);
            assert!(host.loses("tap1003i0"));
            let gone = PortChange::Unbound(expected.name.clone());
            assert_eq!(host.enter(|| follow(&mut enforcer, &mut watch)).unwrap(), [gone]);
            assert!(enforcer.attached().unwrap().is_empty());
            let rules = host.run("nft", &["list", "ruleset"], "").unwrap();
            assert!(
                !rules.contains("tap1003i0") && !rules.contains("10.77.0.14"),
                "{rules}"
            );
            // A binding made before old news are read is not taken for the old one.
            host.enter(|| enforcer.bind(&expected)).unwrap().unwrap();
        }
        // Sealing what is gone is no error: it passes nothing.
        let gone = name("tap1009i0");
        host.enter(|| {
            enforcer.set_trust(&gone, Trust::Sealed).unwrap();
            assert!(matches!(
                enforcer.set_trust(&gone, Trust::Nat),
                Err(EnforceError::UnknownPort { .. })
            ));
        })
        .unwrap();
    }

    #[test]
    fn a_binding_that_is_newer_than_the_end_of_a_link_outlives_its_news() {
        let Some((host, mut enforcer, mut watch)) = started() else {
            return;
        };
        let port = port(3, Trust::Nat).unwrap();
        host.enter(|| {
            drop(enforcer.attach(&port).unwrap());
            assert!(host.loses("tap1003i0"));
            // The link is gone, and nobody has read so yet.
            enforcer.bind(&port).unwrap();
            assert_eq!(follow(&mut enforcer, &mut watch), []);
            assert_eq!(enforcer.attached().unwrap(), std::slice::from_ref(&port.name));
        })
        .unwrap();
    }

    #[test]
    fn a_new_tap_of_an_old_name_is_not_unbound_by_news_of_the_old_one() {
        let Some((host, mut enforcer, mut watch)) = started() else {
            return;
        };
        let port = port(3, Trust::Nat).unwrap();
        host.enter(|| {
            drop(enforcer.attach(&port).unwrap());
            assert!(host.loses("tap1003i0"));
            let _second = enforcer.attach(&port).unwrap();
            assert_eq!(follow(&mut enforcer, &mut watch), []);
            assert_eq!(enforcer.attached().unwrap(), std::slice::from_ref(&port.name));
            assert_eq!(enforcer.verify().unwrap(), []);
        })
        .unwrap();
    }

    #[test]
    fn with_the_hypervisor_s_own_firewall_the_link_before_it_gets_the_binding() {
        let Some((host, mut enforcer, mut watch)) = started() else {
            return;
        };
        let tap = port(3, Trust::Nat).unwrap();
        host.enter(|| enforcer.bind(&tap)).unwrap().unwrap();
        host.ip("link add fwpr1003p0 type veth peer name fwln1003i0")
            .unwrap();
        host.ip("link set fwpr1003p0 master vmbr1").unwrap();
        let standing = name("fwpr1003p0");
        host.enter(|| {
            assert_eq!(
                follow(&mut enforcer, &mut watch),
                [PortChange::Bound(standing.clone())]
            );
            let moved = GuestPort {
                name: standing.clone(),
                ..tap.clone()
            };
            assert!(enforcer.bindings().eq(&[Binding::Known(moved)]));
            assert_eq!(enforcer.verify().unwrap(), []);
            // Whoever knows the machine's own name for it reaches it by that.
            enforcer.set_trust(&tap.name, Trust::Off).unwrap();
            assert_eq!(enforcer.bindings().next().unwrap().trust(), &Trust::Off);
        })
        .unwrap();
        host.ip("link del fwpr1003p0").unwrap();
        let changes = host.enter(|| follow(&mut enforcer, &mut watch)).unwrap();
        assert_eq!(changes, [PortChange::Unbound(standing)]);
        assert!(enforcer.attached().unwrap().is_empty());
    }

    #[test]
    fn two_ports_that_nobody_bound_are_closed_off_from_each_other_when_they_appear() {
        let Some((host, mut enforcer, mut watch)) = started() else {
            return;
        };
        let strangers: Vec<Guest> = [4, 5]
            .into_iter()
            .map(|number| {
                let stranger = port(number, Trust::Sealed).unwrap();
                let tap = host.enter(|| create_tap(&stranger.name)).unwrap().unwrap();
                let lines = format!("link set {0} master vmbr1\nlink set {0} up", stranger.name);
                host.ip(&lines).unwrap();
                Guest::plug(tap, stranger.mac, stranger.address, GATEWAY).unwrap()
            })
            .collect();
        let passes = |number, within| {
            let frame = ethernet(BROADCAST, strangers[0].mac, 0x88b5, &token(number));
            strangers[0].inject(&frame).unwrap();
            let patient = Instant::now() + within;
            while Instant::now() < patient {
                if strangers[1].take_tokens().contains(&number) {
                    return true;
                }
                std::thread::yield_now();
            }
            false
        };
        let kernel_knows = host
            .run("nft", &["list", "chain", "bridge", "agentlab", "forward"], "")
            .unwrap()
            .contains("ibrname");
        let (open, within) = if kernel_knows {
            (false, SILENCE)
        } else {
            (true, PATIENCE)
        };
        assert_eq!(passes(1, within), open, "before anybody looked");
        let sealed = [4, 5].map(|number| PortChange::Sealed(port(number, Trust::Sealed).unwrap().name));
        let mut changes = host.enter(|| follow(&mut enforcer, &mut watch)).unwrap();
        changes.retain(|change| sealed.contains(change));
        assert_eq!(changes, sealed);
        assert!(!passes(2, SILENCE), "a frame passed between two strangers");
        assert_eq!(host.enter(|| enforcer.verify()).unwrap().unwrap(), []);
    }

    #[test]
    fn what_a_guest_is_refused_is_told_with_its_cause_and_no_more_often_than_allowed() {
        if skipped() {
            return;
        }
        let mut lab = Lab::with_policy().unwrap();
        lab.enforce(|enforcer| Ok(enforcer.set_trust(&name("tap1000i0"), Trust::Off)?))
            .unwrap();
        let mut watch = lab
            .host
            .enter(|| RefusalWatch::open(USUAL_DENIAL_GROUP))
            .unwrap()
            .unwrap();
        let busy = lab.host.enter(|| RefusalWatch::open(USUAL_DENIAL_GROUP)).unwrap();
        assert!(
            matches!(
                busy,
                Err(EnforceError::GroupBusy {
                    group: USUAL_DENIAL_GROUP
                })
            ),
            "{busy:?}"
        );
        let tries = [
            ("192.168.1.1:80", Refusal::PrivateNetwork),
            ("10.77.0.1:8006", Refusal::HostService),
            ("1.1.1.1:443", Refusal::NoNetwork),
        ];
        for (to, _) in tries {
            assert!(!lab.a.namespace.opens(to).unwrap(), "{to} is open");
        }
        let mut told = Vec::new();
        until(|| {
            told.extend(watch.refused().unwrap());
            told.len() >= tries.len()
        });
        let host = host_policy().unwrap();
        for (to, why) in tries {
            let target = format!("tcp {to}");
            let found = told.iter().find(|packet| packet.target() == target);
            let found = found.unwrap_or_else(|| panic!("{to} was not told: {told:?}"));
            assert_eq!(found.guest, lab.a.address);
            assert_eq!(Refusal::of(&host, &Trust::Off, found), why);
        }
        // A guest that knocks everywhere does not drown what is told of others.
        lab.a
            .namespace
            .enter(|| {
                let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
                for port in 1000..1500 {
                    let _ = socket.send_to(b"x", (Ipv4Addr::new(192, 168, 1, 20), port));
                }
            })
            .unwrap();
        let flood = watch.refused().unwrap().len();
        assert!(flood < 30, "{flood} were told at once");
        assert!(!lab.b.namespace.opens("192.168.1.1:81").unwrap());
        assert!(until(|| {
            let told = watch.refused().unwrap();
            told.iter().any(|packet| packet.guest == lab.b.address)
        }));
    }
}
