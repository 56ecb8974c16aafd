//! The daemon's own resolver as a guest meets it: real packets, the process as it is shipped, and an upstream that lies.

#[cfg(test)]
mod lab;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::Instant;

    use agentlab_engine::port::{Disturbance, Network, NetworkError, Trust};
    use agentlab_tests_netns::lab::skipped;
    use agentlab_tests_netns::namespace::{PATIENCE, SILENCE};
    use hickory_proto::op::ResponseCode;
    use hickory_proto::rr::RecordType;

    use crate::lab::{Lab, addresses, ask, ask_by_stream, ask_once, is_closed, opens, send, until, vmid};

    const LIST: [&str; 3] = ["good.example.com", "*.example.com", "1.1.1.1 tcp/443"];

    fn code(message: &hickory_proto::op::Message) -> ResponseCode {
        message.metadata.response_code
    }

    #[test]
    fn an_allowed_name_is_open_the_moment_its_answer_is_there_and_nothing_else_is() {
        if skipped() {
            return;
        }
        let lab = Lab::new().unwrap();
        lab.allow(0, &["good.example.com", "1.1.1.1 tcp/443"]).unwrap();
        assert!(is_closed(&lab.a, "8.8.8.8:443"), "open before anybody asked");
        let answer = ask(&lab.a, "gOOd.Example.com.", RecordType::A).unwrap();
        assert_eq!(
            (code(&answer), addresses(&answer)),
            (ResponseCode::NoError, vec!["8.8.8.8".to_owned()])
        );
        assert!(opens(&lab.a, "8.8.8.8:443"));
        assert!(opens(&lab.a, "1.1.1.1:443"), "named by address");
        assert!(is_closed(&lab.a, "8.8.4.4:443"));
        for name in [
            "evil.net.",
            "evilexample.com.",
            "other.example.com.",
            "example.com.",
        ] {
            let answer = ask(&lab.a, name, RecordType::A).unwrap();
            assert_eq!(
                (code(&answer), answer.answers.len()),
                (ResponseCode::NXDomain, 0),
                "{name}"
            );
        }
        // Only what is allowed leaves the host, and none of the guest's options with it.
        lab.asked.lock().unwrap().dedup();
        assert_eq!(*lab.asked.lock().unwrap(), ["good.example.com A 0"]);
        let denied = lab.wait(lab.network.denials(vmid(0)));
        let evil = denied
            .iter()
            .find(|denied| denied.target == "name evil.net A")
            .unwrap();
        assert_eq!(evil.rule, "name_not_allowed");
        assert!(evil.hint.contains("network.allow"));
        // What one guest asked opens nothing to another.
        lab.allow(1, &["good.example.com"]).unwrap();
        assert!(is_closed(&lab.b, "8.8.8.8:443"));
    }

    #[test]
    fn a_name_with_ports_opens_these_and_no_others() {
        if skipped() {
            return;
        }
        let lab = Lab::new().unwrap();
        let (https, other) = ("8.8.8.8:443", "8.8.8.8:8443");
        for (list, open, closed) in [
            (["good.example.com:443", "1.1.1.1"], vec![https], vec![other]),
            (["*.example.com tcp/8443", "1.1.1.1"], vec![other], vec![https]),
            // A name that two entries allow opens what both open.
            (
                ["good.example.com:443", "*.example.com:8443"],
                vec![https, other],
                vec![],
            ),
            (
                ["good.example.com:443", "good.example.com"],
                vec![https, other],
                vec![],
            ),
            (
                ["good.example.com udp/443", "1.1.1.1"],
                vec![],
                vec![https, other],
            ),
        ] {
            lab.allow(0, &list).unwrap();
            assert!(is_closed(&lab.a, https), "{list:?} before anything was asked");
            let answer = ask(&lab.a, "good.example.com.", RecordType::A).unwrap();
            assert_eq!(addresses(&answer), ["8.8.8.8"], "{list:?}");
            for to in open {
                assert!(opens(&lab.a, to), "{list:?} {to}");
            }
            for to in closed {
                assert!(is_closed(&lab.a, to), "{list:?} {to}");
            }
            lab.trust(0, Trust::Off).unwrap();
        }
    }

    #[test]
    fn answers_that_lead_inside_are_no_answers() {
        if skipped() {
            return;
        }
        let lab = Lab::new().unwrap();
        lab.allow(0, &LIST).unwrap();
        for (name, expected) in [
            ("rebound.example.com.", ResponseCode::NXDomain),
            ("cunning.example.com.", ResponseCode::NXDomain),
            ("circle.example.com.", ResponseCode::NXDomain),
            ("host.example.com.", ResponseCode::NXDomain),
        ] {
            let answer = ask(&lab.a, name, RecordType::A).unwrap();
            assert_eq!((code(&answer), answer.answers.len()), (expected, 0), "{name}");
        }
        for closed in ["8.8.8.8:443", "10.77.0.1:443", "192.168.1.20:443", "5.5.5.5:443"] {
            assert!(is_closed(&lab.a, closed), "{closed}");
        }
        let denied = lab.wait(lab.network.denials(vmid(0)));
        assert!(
            denied.iter().any(|denied| denied.rule == "private_answer"),
            "{denied:?}"
        );
        let alias = ask(&lab.a, "alias.example.com.", RecordType::A).unwrap();
        assert_eq!(
            (alias.answers.len(), addresses(&alias)),
            (2, vec!["8.8.4.4".to_owned()])
        );
        assert!(opens(&lab.a, "8.8.4.4:443"));
    }

    #[test]
    fn what_a_name_opened_closes_with_its_time_and_living_flows_go_on() {
        if skipped() {
            return;
        }
        let lab = Lab::short().unwrap();
        lab.allow(0, &LIST).unwrap();
        // A machine that stands still for longer than the answer is good for has to ask again.
        let asked_and_called = || {
            let mut flow = None;
            until("open", || {
                ask(&lab.a, "good.example.com.", RecordType::A)?;
                flow = lab.a.namespace.enter(|| TcpStream::connect("8.8.8.8:443").ok())?;
                Ok(flow.is_some())
            })
            .unwrap();
            flow.unwrap()
        };
        let mut flow = asked_and_called();
        until("closed", || Ok(is_closed(&lab.a, "8.8.8.8:443"))).unwrap();
        flow.set_read_timeout(Some(SILENCE)).unwrap();
        flow.write_all(b"still here").unwrap();
        // Nobody answers, and nobody resets it.
        let error = flow.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        drop(asked_and_called());
        // Trust that falls takes it at once, and gives nothing back.
        lab.trust(0, Trust::Off).unwrap();
        assert!(is_closed(&lab.a, "8.8.8.8:443"));
        lab.allow(0, &LIST).unwrap();
        assert!(is_closed(&lab.a, "8.8.8.8:443"));
    }

    #[test]
    fn streams_get_the_same_answers_and_those_that_do_not_fit_a_datagram() {
        if skipped() {
            return;
        }
        let lab = Lab::new().unwrap();
        lab.allow(0, &LIST).unwrap();
        let short = ask(&lab.a, "large.example.com.", RecordType::A).unwrap();
        assert!(short.metadata.truncation && addresses(&short).len() < 30);
        let long = ask_by_stream(&lab.a, "large.example.com.").unwrap();
        assert_eq!((long.metadata.truncation, addresses(&long).len()), (false, 30));
        assert_eq!(
            code(&ask_by_stream(&lab.a, "evil.net.").unwrap()),
            ResponseCode::NXDomain
        );
        assert!(is_closed(&lab.a, "8.8.8.8:443"), "nothing else is open");
    }

    #[test]
    fn other_types_are_empty_or_refused_and_nonsense_is_told_so() {
        if skipped() {
            return;
        }
        let lab = Lab::new().unwrap();
        lab.allow(0, &LIST).unwrap();
        for kind in [
            RecordType::AAAA,
            RecordType::HTTPS,
            RecordType::SVCB,
            RecordType::TXT,
        ] {
            let answer = ask(&lab.a, "good.example.com.", kind).unwrap();
            assert_eq!(
                (code(&answer), answer.answers.len()),
                (ResponseCode::NoError, 0),
                "{kind}"
            );
        }
        for kind in [RecordType::ANY, RecordType::AXFR] {
            assert_eq!(
                code(&ask(&lab.a, "good.example.com.", kind).unwrap()),
                ResponseCode::Refused
            );
        }
        assert_eq!(*lab.asked.lock().unwrap(), Vec::<String>::new());
        let mut junk = vec![0; 40];
        junk[5] = 9;
        assert_eq!(
            code(&send(&lab.a, &junk).unwrap().unwrap()),
            ResponseCode::FormErr
        );
        assert_eq!(
            code(&send(&lab.a, &[0; 3000]).unwrap().unwrap()),
            ResponseCode::FormErr
        );
        // After all of that it still answers.
        assert_eq!(
            addresses(&ask(&lab.a, "good.example.com.", RecordType::A).unwrap()),
            ["8.8.8.8"]
        );
    }

    #[test]
    fn a_guest_that_asks_too_much_is_refused_and_its_neighbour_is_not() {
        if skipped() {
            return;
        }
        let lab = Lab::new().unwrap();
        lab.allow(0, &LIST).unwrap();
        lab.allow(1, &LIST).unwrap();
        let mut codes = Vec::new();
        for number in 0..150 {
            let answer = ask(&lab.a, &format!("n{number}.evil.net."), RecordType::A).unwrap();
            codes.push(code(&answer));
        }
        assert!(codes.contains(&ResponseCode::NXDomain) && codes.contains(&ResponseCode::Refused));
        assert_eq!(
            code(&ask(&lab.b, "good.example.com.", RecordType::A).unwrap()),
            ResponseCode::NoError
        );
        let rules: Vec<&str> = lab
            .wait(lab.network.denials(vmid(0)))
            .iter()
            .map(|denied| denied.rule)
            .collect();
        assert!(rules.contains(&"question_rate"), "{rules:?}");
        // Data in names below a wildcard never leaves the host.
        let data = "mzxw6ytboi5dsmrqgiydembsga3tkojzgu2tinrtgq4tcmbw";
        let answer = ask(&lab.b, &format!("{data}.wild.example.com."), RecordType::A).unwrap();
        assert_eq!(code(&answer), ResponseCode::NXDomain);
        assert!(!lab.asked.lock().unwrap().iter().any(|asked| asked.contains(data)));
    }

    #[test]
    fn nat_is_forwarded_and_lower_levels_are_not_answered() {
        if skipped() {
            return;
        }
        let lab = Lab::new().unwrap();
        lab.trust(0, Trust::Nat).unwrap();
        let text = ask(&lab.a, "text.example.com.", RecordType::TXT).unwrap();
        assert_eq!((code(&text), text.answers.len()), (ResponseCode::NoError, 1));
        assert_eq!(
            addresses(&ask(&lab.a, "evil.net.", RecordType::A).unwrap()),
            ["8.8.8.8"]
        );
        assert_eq!(
            code(&ask(&lab.a, "nowhere.net.", RecordType::A).unwrap()),
            ResponseCode::NXDomain
        );
        lab.trust(0, Trust::Off).unwrap();
        assert!(ask(&lab.a, "evil.net.", RecordType::A).is_err());
        assert!(ask_by_stream(&lab.a, "evil.net.").is_err());
    }

    #[test]
    fn a_resolver_that_dies_is_told_of_and_replaced_and_it_may_do_nothing_on_its_host() {
        if skipped() {
            return;
        }
        let lab = Lab::new().unwrap();
        lab.allow(0, &LIST).unwrap();
        let first = lab.resolver().unwrap();
        let status = fs::read_to_string(format!("/proc/{first}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace()
                .skip(1)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert!(!field("Uid:").contains(&"0".to_owned()) && !field("Gid:").contains(&"0".to_owned()));
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(field(set), ["0000000000000000"], "{set}");
        }
        assert_eq!(
            (field("NoNewPrivs:"), field("Groups:").len()),
            (vec!["1".to_owned()], 0)
        );
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(first), nix::sys::signal::SIGKILL).unwrap();
        let told = lab.disturbance().unwrap();
        assert!(
            matches!(&told, Disturbance::Unresolved(reason) if reason.contains("signal: 9")),
            "{told:?}"
        );
        assert_eq!(lab.disturbance().unwrap(), Disturbance::Resolved);
        assert_ne!(lab.resolver().unwrap(), first);
        // The next one knows the guests.
        assert_eq!(
            addresses(&ask(&lab.a, "good.example.com.", RecordType::A).unwrap()),
            ["8.8.8.8"]
        );
        assert_eq!(
            code(&ask(&lab.a, "evil.net.", RecordType::A).unwrap()),
            ResponseCode::NXDomain
        );
    }

    #[test]
    fn upstreams_that_do_not_answer_are_told_of_until_one_does() {
        if skipped() {
            return;
        }
        // Nobody is there: every question is refused at once.
        let lab = Lab::with("dns: {upstreams: ['192.168.1.1:5300']}").unwrap();
        lab.allow(0, &LIST).unwrap();
        let answer = ask_once(&lab.a, "good.example.com.", RecordType::A).unwrap();
        assert_eq!(code(&answer), ResponseCode::ServFail);
        let told = lab.disturbance().unwrap();
        assert!(
            matches!(&told, Disturbance::Unresolved(reason) if reason.contains("192.168.1.1:5300")),
            "{told:?}"
        );
        lab.answer_at("192.168.1.1:5300").unwrap();
        assert_eq!(lab.disturbance().unwrap(), Disturbance::Resolved);
        assert_eq!(
            addresses(&ask(&lab.a, "good.example.com.", RecordType::A).unwrap()),
            ["8.8.8.8"]
        );
    }

    #[test]
    fn a_mode_without_a_resolver_is_refused_before_anything_is_made() {
        if skipped() {
            return;
        }
        let lab = Lab::with("dns: {enabled: false}").unwrap();
        let refused = lab.wait(lab.network.supports(Trust::Allowlist));
        assert!(
            matches!(&refused, Err(NetworkError::Unresolved { reason, .. }) if reason.contains("dns.enabled")),
            "{refused:?}"
        );
        assert_eq!(lab.wait(lab.network.supports(Trust::Nat)), Ok(()));
        assert_eq!(lab.wait(lab.network.supports(Trust::Off)), Ok(()));
        assert!(lab.resolver().is_err());
    }

    #[test]
    fn rules_that_somebody_flushes_stand_again_although_nobody_asks_what_was_found() {
        if skipped() {
            return;
        }
        let lab = Lab::new().unwrap();
        lab.trust(0, Trust::Nat).unwrap();
        assert!(opens(&lab.a, "8.8.8.8:443"));
        let rules = || lab.host.run("nft", &["-s", "list", "tables"], "");
        let standing = rules().unwrap();
        assert!(standing.contains("bridge agentlab"), "{standing}");
        // Looks now and then, which come without any sign too, would take minutes for as many.
        let give_up = Instant::now() + PATIENCE;
        for _ in 0..20 {
            lab.host.run("nft", &["flush", "ruleset"], "").unwrap();
            until("the policy stands again", || Ok(rules()? == standing)).unwrap();
            assert!(Instant::now() < give_up, "they are not looked at when they go");
        }
        assert!(opens(&lab.a, "8.8.8.8:443"), "trusted as before");
        assert!(is_closed(&lab.a, "192.168.1.1:443"));
    }
}
