//! What a virtual machine's own process, which an attacker may have taken over, reaches of the host's network.

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, TcpListener};
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};
    use std::thread;

    use agentlab_netpolicy::{Enforcer, Observer};
    use agentlab_tests_netns::lab::{MACHINE_UIDS, bare_host, host_policy, skipped};
    use agentlab_tests_netns::namespace::{Namespace, until};

    /// Seconds within which a connection comes about on the busiest machine.
    const PATIENCE: &str = "60";
    /// Seconds after which a connection is taken for refused.
    const SILENCE: &str = "1";

    fn reaches(host: &Namespace, uid: u32, (address, port): (IpAddr, u16), within: &str) -> bool {
        let connect = format!("exec 3<>/dev/tcp/{address}/{port}");
        let status = host.enter(|| {
            Command::new("timeout")
                .args([within, "bash", "-c", &connect])
                .uid(uid)
                .gid(uid)
                .stderr(Stdio::null())
                .status()
                .unwrap()
        });
        status.unwrap().success()
    }

    #[test]
    fn a_machine_s_process_reaches_nothing_of_the_host_s_network() {
        if skipped() {
            return;
        }
        let host = bare_host().unwrap();
        let (first, last) = MACHINE_UIDS;
        let addresses: [IpAddr; 3] = ["127.0.0.1", "::1", "192.168.1.10"].map(|text| text.parse().unwrap());
        let listeners = addresses.map(|address| {
            let listener = host.enter(|| TcpListener::bind((address, 0)).unwrap()).unwrap();
            let port = listener.local_addr().unwrap().port();
            (address, port, listener)
        });
        for (address, port, _) in &listeners {
            assert!(
                reaches(&host, first, (*address, *port), PATIENCE),
                "{address} without a policy"
            );
        }
        let mut enforcer = host
            .enter(|| Enforcer::start(host_policy().unwrap()))
            .unwrap()
            .unwrap();
        for (address, port, _) in &listeners {
            thread::scope(|scope| {
                // Each waits for an answer that never comes.
                for uid in [first, first + 7, last] {
                    let host = &host;
                    scope.spawn(move || {
                        let reached = reaches(host, uid, (*address, *port), SILENCE);
                        assert!(!reached, "{uid} reached {address}");
                    });
                }
            });
            for uid in [0, 65_534, first - 1, last + 1] {
                assert!(
                    reaches(&host, uid, (*address, *port), PATIENCE),
                    "{uid} cannot reach {address}"
                );
            }
        }
        let counted = || {
            let denials = host.enter(|| Observer::open().unwrap().denials().unwrap());
            let denials = denials.unwrap();
            let counted = denials
                .iter()
                .find(|denial| denial.reason.contains("Virtual machine's process"));
            counted.unwrap().packets
        };
        // On a busy machine the time is over before some have called at all.
        let (address, port, _) = listeners[0];
        assert!(until(|| {
            let enough = counted() >= 9;
            assert!(enough || !reaches(&host, first, (address, port), SILENCE));
            enough
        }));
        // Damage to the rule is seen and repaired like any other.
        host.run("nft", &["flush", "chain", "inet", "agentlab", "output"], "")
            .unwrap();
        let seen = host.enter(|| enforcer.verify()).unwrap().unwrap();
        assert!(
            seen.iter()
                .any(|drift| drift.object.contains("rule 1 of chain output")),
            "{seen:?}"
        );
        assert!(
            !reaches(&host, first, (address, port), SILENCE),
            "the rule was not repaired"
        );
    }
}
