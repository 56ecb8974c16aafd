//! Who may talk to whom, with real packets. Each probe carries the number of its row in `docs/security.md`.

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod probes;
#[cfg(test)]
mod wide;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Write as _;
    use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
    use std::sync::mpsc;
    use std::thread;
    use std::time::{Duration, Instant};

    use agentlab_netpolicy::Trust;
    use agentlab_tests_netns::frame::{token, tokens};
    use agentlab_tests_netns::guest::Guest;
    use agentlab_tests_netns::lab::{HOST_ON_LAN, Lab, skipped};

    use agentlab_tests_netns::namespace::{Namespace, SILENCE, until};

    use crate::probes::{ALL, How, Level, Probe, Who, all_probes};
    use crate::wide;

    /// How often what did not get through is tried again, each time for twice as long. What a busy machine is late with
    /// or has lost gets through in the end, what a rule refuses never does.
    const TRIES: u32 = 7;

    fn guest(lab: &Lab, who: Who) -> &Guest {
        match who {
            Who::A => &lab.a,
            Who::B => &lab.b,
            Who::Stranger => &lab.stranger,
            Who::Host | Who::Net | Who::Other | Who::Tailnet => unreachable!("not a guest"),
        }
    }

    /// Refusals that no probe comes as far as: those that other tests show at work, and those that stand behind another
    /// which refuses the same before.
    const UNPROVEN: [&str; 10] = [
        "More flows at once than one guest may have",
        "Virtual machine's process that talks to the network",
        "Guest's port that hangs on another bridge",
        "ARP packet delivered on a port itself",
        "Reply from outside to a guest that must not get any",
        "IPv6",
        "Destination that is the host's own, broadcast or multicast",
        "Guest without trust, to the host",
        "Guest without trust, to the uplink",
        "Packet of no known flow, to the host",
    ];
    /// A little below what was seen: a probe that cannot fail any more proves nothing.
    const LEAKS_WITHOUT_POLICY: usize = 190;
    const LEAKS_WITH_FORWARD_RULES: usize = 155;

    /// Number of a leak that no probe stands for: any frame at all that a sealed guest gets.
    const ANYTHING: u32 = 0;

    /// Tries everything, and again what has not got through until enough has.
    fn fire(lab: &Lab, probes: &[Probe], enough: impl Fn(&BTreeSet<u32>) -> bool) -> BTreeSet<u32> {
        let mut passed = BTreeSet::new();
        for again in 0..TRIES {
            let left: Vec<_> = numbered(probes)
                .filter(|(_, number)| !passed.contains(number))
                .collect();
            passed.extend(fire_once(lab, &left, SILENCE * 2_u32.pow(again)));
            if enough(&passed) {
                break;
            }
        }
        passed
    }

    fn fire_level(lab: &Lab, probes: &[Probe], level: Level) -> BTreeSet<u32> {
        fire(lab, probes, |passed| {
            numbered(probes).all(|(probe, number)| !probe.passes.contains(&level) || passed.contains(&number))
        })
    }

    fn numbered(probes: &[Probe]) -> impl Iterator<Item = (&Probe, u32)> {
        probes.iter().zip(1..)
    }

    /// Sends everything at once and returns the numbers of what got through in this time.
    fn fire_once(lab: &Lab, probes: &[(&Probe, u32)], patience: Duration) -> BTreeSet<u32> {
        // What is still on its way into some ear was sent under another policy.
        lab.settle();
        for guest in [&lab.a, &lab.b, &lab.stranger] {
            let _ = guest.take_frames();
        }
        let _ = lab.listening.take();
        lab.host.ip("neigh flush dev vmbr1").unwrap();
        let mut passed = BTreeSet::new();
        let end = Instant::now() + patience;
        thread::scope(|scope| {
            let connected = scope.spawn(|| connect_all(lab, probes, patience));
            for &(probe, number) in probes {
                match &probe.how {
                    How::Tcp(_) | How::TcpFrom(..) => {}
                    How::Udp(who, to) => send(lab, *who, *to, number),
                    How::Frames(who, frames) => {
                        frames
                            .iter()
                            .for_each(|frame| guest(lab, *who).inject(frame).unwrap());
                    }
                    How::Overhear(command, _) => lab.host.ip(command).unwrap(),
                    How::Ask(who, frame, _) | How::Poison(who, frame, ..) => {
                        guest(lab, *who).inject(frame).unwrap()
                    }
                }
            }
            passed.extend(connected.join().unwrap());
        });
        wait_until(end);
        lab.settle();
        passed.extend(lab.listening.take().iter().map(|heard| heard.token));
        let seen = [
            (Who::A, lab.a.take_frames()),
            (Who::B, lab.b.take_frames()),
            (Who::Stranger, lab.stranger.take_frames()),
        ];
        if seen
            .iter()
            .any(|(place, frames)| *place == Who::A && !frames.is_empty())
        {
            passed.insert(ANYTHING);
        }
        for &(probe, number) in probes {
            let sent_by =
                |place| matches!(&probe.how, How::Udp(who, _) | How::Frames(who, _) if *who == place);
            let through = match &probe.how {
                How::Tcp(_) | How::TcpFrom(..) => false,
                How::Overhear(_, sign) => {
                    let guests = seen.iter().filter(|(place, _)| *place != Who::Stranger);
                    guests
                        .into_iter()
                        .any(|(_, frames)| frames.iter().any(|frame| sign(frame)))
                }
                How::Udp(..) | How::Frames(..) => seen
                    .iter()
                    .filter(|(place, _)| !sent_by(*place))
                    .any(|(_, frames)| frames.iter().any(|frame| tokens(frame).contains(&number))),
                How::Ask(who, _, answers) => seen
                    .iter()
                    .any(|(place, frames)| place == who && frames.iter().any(|frame| answers(frame))),
                How::Poison(_, _, question, sign) => {
                    let arguments: Vec<_> = question.split(' ').collect();
                    lab.host.run("ip", &arguments, "").unwrap().contains(sign)
                }
            };
            if through {
                passed.insert(number);
            }
        }
        passed
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a thread of the test's own, which has nothing else to do"
    )]
    fn wait_until(when: Instant) {
        thread::sleep(when.saturating_duration_since(Instant::now()));
    }

    fn connect_all(lab: &Lab, probes: &[(&Probe, u32)], patience: Duration) -> Vec<u32> {
        let (done, connected) = mpsc::channel();
        thread::scope(|scope| {
            for &(probe, number) in probes {
                let (who, to) = match &probe.how {
                    How::Tcp(to) => (Who::A, to),
                    How::TcpFrom(who, to) => (*who, to),
                    How::Udp(..) | How::Frames(..) | How::Ask(..) | How::Overhear(..) | How::Poison(..) => {
                        continue;
                    }
                };
                let done = done.clone();
                scope.spawn(move || {
                    let connect = || TcpStream::connect_timeout(to, patience).is_ok();
                    if namespace(lab, who).enter(connect).unwrap() {
                        done.send(number).unwrap();
                    }
                });
            }
        });
        drop(done);
        connected.iter().collect()
    }

    fn namespace(lab: &Lab, who: Who) -> &Namespace {
        match who {
            Who::Host => &lab.host,
            Who::Net => &lab.net,
            Who::Other => &lab.other,
            Who::Tailnet => &lab.tail,
            Who::A | Who::B | Who::Stranger => &guest(lab, who).namespace,
        }
    }

    fn send(lab: &Lab, who: Who, to: SocketAddr, number: u32) {
        namespace(lab, who)
            .enter(|| {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
                // A sealed guest may be told at once that nobody answers.
                let _ = socket.send_to(&token(number), to);
            })
            .unwrap();
    }

    fn trust(level: Level) -> Trust {
        match level {
            Level::Sealed => Trust::Sealed,
            Level::Bootstrap => Trust::BootstrapOnly,
            Level::Off => Trust::Off,
            Level::Nat => Trust::Nat,
            Level::Allowlist => Trust::Allowlist(wide::allowed()),
        }
    }

    fn set_level(lab: &mut Lab, level: Level) {
        lab.enforce(|enforcer| {
            let name = "tap1000i0".parse()?;
            enforcer.set_trust(&name, trust(level))?;
            if level == Level::Allowlist {
                let minute = Duration::from_secs(60);
                enforcer.resolve(&name, &wide::RESOLVED, None, minute)?;
                let (address, port) = wide::RESOLVED_WITH_PORT;
                enforcer.resolve(&name, &[address], Some(&[port]), minute)?;
            }
            Ok(())
        })
        .unwrap();
    }

    /// Commands that delete each rule of ours, with what it says.
    fn deletions(lab: &Lab) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for family in ["bridge", "arp", "inet"] {
            let arguments = ["--handle", "list", "table", family, "agentlab"];
            let listing = lab.host.run("nft", &arguments, "").unwrap();
            let mut chain = None;
            for line in listing.lines().map(str::trim) {
                if line.starts_with("set ") || line.starts_with("map ") || line == "}" {
                    chain = None;
                } else if let Some(rest) = line.strip_prefix("chain ") {
                    chain = rest.split(' ').next().map(str::to_owned);
                } else if let (Some(chain), Some((rule, handle))) = (&chain, line.rsplit_once(" # handle ")) {
                    let command = format!("delete rule {family} agentlab {chain} handle {handle}");
                    found.push((command, format!("{family} {chain}: {rule}")));
                }
            }
        }
        found
    }

    /// Rules without which every probe still gets its verdict: each stands behind another one that says the same, is
    /// shown by a test of its own, or only makes things faster or better told.
    const SPARE_RULES: usize = 29;

    #[test]
    #[ignore = "takes minutes: `cargo test -p agentlab-tests-netns --test isolation -- --ignored`"]
    fn the_probes_notice_when_a_single_rule_is_missing() {
        let mut lab = Lab::with_policy().unwrap();
        let probes = all_probes(&lab);
        for level in ALL.into_iter().rev() {
            set_level(&mut lab, level);
            let passed = fire_level(&lab, &probes, level);
            assert_eq!(wrong(&probes, &passed, level), Vec::<String>::new());
        }
        let count = deletions(&lab).len();
        let mut spare = Vec::new();
        for place in 0..count {
            if place % 4 == 0 {
                // Nobody takes the connections that come through, and a listener keeps a hundred or so.
                lab = Lab::with_policy().unwrap();
            }
            let (command, words) = deletions(&lab).swap_remove(place);
            lab.host.run("nft", &[&command], "").unwrap();
            let noticed = ALL.into_iter().rev().find_map(|level| {
                set_level(&mut lab, level);
                // What a busy machine lost once it does not lose again.
                let mut wrongs = [(), ()].map(|()| {
                    let passed = fire_once(&lab, &numbered(&probes).collect::<Vec<_>>(), SILENCE);
                    let mut found: BTreeSet<String> = wrong(&probes, &passed, level).into_iter().collect();
                    if level == Level::Sealed && passed.contains(&ANYTHING) {
                        found.insert("a frame came out of a sealed cable".to_owned());
                    }
                    found
                });
                let [first, second] = &mut wrongs;
                first.retain(|found| second.contains(found));
                first.pop_first()
            });
            match noticed {
                None => spare.push(words),
                Some(probe) => println!("{words}\n    {probe}"),
            }
            lab.enforce(|enforcer| Ok(enforcer.make_stand()?)).unwrap();
        }
        println!("{} of {count} rules are spare: {spare:#?}", spare.len());
        assert!(spare.len() <= SPARE_RULES, "{spare:#?}");
    }

    fn wrong(probes: &[Probe], passed: &BTreeSet<u32>, level: Level) -> Vec<String> {
        probes
            .iter()
            .zip(1_u32..)
            .filter(|(probe, number)| probe.passes.contains(&level) != passed.contains(number))
            .map(|(probe, number)| {
                let verdict = if passed.contains(&number) {
                    "LEAKED"
                } else {
                    "was blocked"
                };
                format!("{level:?} {} #{number} {verdict}: {}", probe.row, probe.what)
            })
            .collect()
    }

    /// Absent where br_netfilter is not loaded, and then half of the proof: CI must have it.
    fn set_or_say(lab: &Lab, setting: &str, value: &str) {
        let Err(error) = lab.host.set(setting, value) else {
            return;
        };
        let in_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
        assert!(
            !in_ci,
            "in CI this must be tested, but {setting} = {value}: {error:#}"
        );
        let _ = writeln!(std::io::stderr(), "SKIP: {setting} = {value}: {error:#}");
    }

    #[test]
    fn every_probe_gets_the_verdict_of_its_level() {
        if skipped() {
            return;
        }
        let mut lab = Lab::with_policy().unwrap();
        let probes = all_probes(&lab);
        assert!(probes.len() >= 200, "only {} probes", probes.len());
        let mut problems = Vec::new();
        for bridge_netfilter in ["0", "1"] {
            for family in ["iptables", "ip6tables", "arptables"] {
                set_or_say(&lab, &format!("bridge/bridge-nf-call-{family}"), bridge_netfilter);
            }
            for level in ALL {
                set_level(&mut lab, level);
                let passed = fire_level(&lab, &probes, level);
                problems.extend(wrong(&probes, &passed, level));
                if level == Level::Sealed && passed.contains(&ANYTHING) {
                    problems.push("Sealed S-01 a frame came out of the cable".to_owned());
                }
            }
        }
        let denials = lab.enforce(|enforcer| Ok(enforcer.denials()?)).unwrap();
        let unproven = denials.iter().filter(|denial| denial.packets == 0);
        problems.extend(
            unproven
                .filter(|denial| !UNPROVEN.contains(&denial.reason.as_str()))
                .map(|denial| format!("No probe was refused by: {} ({})", denial.reason, denial.place)),
        );
        let rules = lab.host.run("nft", &["list", "ruleset"], "").unwrap_or_default();
        assert!(
            problems.is_empty(),
            "{} wrong verdicts:\n{}\n{rules}",
            problems.len(),
            problems.join("\n")
        );
    }

    #[test]
    fn what_leaves_the_host_carries_the_host_s_address() {
        if skipped() {
            return;
        }
        let mut lab = Lab::with_policy().unwrap();
        lab.enforce(|enforcer| Ok(enforcer.set_trust(&"tap1000i0".parse()?, Trust::Nat)?))
            .unwrap();
        send(&lab, Who::A, "8.8.8.8:9999".parse().unwrap(), 1);
        let mut heard = Vec::new();
        until(|| {
            heard.extend(lab.listening.take());
            heard.retain(|heard| !heard.from.ip().is_unspecified());
            !heard.is_empty()
        });
        assert_eq!(heard.len(), 1, "{heard:?}");
        let from = heard[0].from.ip().to_canonical();
        assert_eq!((heard[0].place, from), ("net", IpAddr::V4(HOST_ON_LAN)));
    }

    /// Forbidden probes that get through where there is no policy of ours, of which this many should, and those that do not.
    fn leaks(lab: &Lab, enough: usize) -> (usize, Vec<String>) {
        let probes = all_probes(lab);
        let never = || numbered(&probes).filter(|(probe, _)| probe.passes.is_empty());
        let passed = fire(lab, &probes, |passed| {
            never().filter(|(_, number)| passed.contains(number)).count() >= enough
        });
        let (leaks, tight): (Vec<_>, Vec<_>) = never().partition(|(_, number)| passed.contains(number));
        let tight: Vec<_> = tight
            .iter()
            .map(|(probe, number)| format!("{} #{number} {}", probe.row, probe.what))
            .collect();
        println!(
            "{} of {} forbidden probes leak; not: {tight:#?}",
            leaks.len(),
            leaks.len() + tight.len()
        );
        (leaks.len(), tight)
    }

    #[test]
    fn without_a_policy_the_same_probes_leak() {
        if skipped() {
            return;
        }
        let (leaks, tight) = leaks(&Lab::without_policy().unwrap(), LEAKS_WITHOUT_POLICY);
        assert!(
            leaks >= LEAKS_WITHOUT_POLICY,
            "only {leaks} leaks; tight: {tight:#?}"
        );
    }

    #[test]
    fn with_rules_for_forwarding_only_most_of_them_leak_all_the_same() {
        if skipped() {
            return;
        }
        let (leaks, tight) = leaks(&Lab::with_forward_rules_only().unwrap(), LEAKS_WITH_FORWARD_RULES);
        assert!(
            leaks >= LEAKS_WITH_FORWARD_RULES,
            "only {leaks} leaks; tight: {tight:#?}"
        );
    }
}
