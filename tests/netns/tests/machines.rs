//! What a virtual machine's own process, which an attacker may have taken over, reaches of the host's network.

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, TcpListener};
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};
    use std::thread;

    use agentlab_netpolicy::{Enforcer, Observer};
    use agentlab_tests_netns::lab::{MACHINE_UIDS, bare_host, host_policy, skipped};
    use agentlab_tests_netns::namespace::Namespace;

    fn reaches(host: &Namespace, uid: u32, address: IpAddr, port: u16) -> bool {
        let connect = format!("exec 3<>/dev/tcp/{address}/{port}");
        let status = host.enter(|| {
            Command::new("timeout")
                .args(["1", "bash", "-c", &connect])
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
                reaches(&host, first, *address, *port),
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
                        assert!(!reaches(host, uid, *address, *port), "{uid} reached {address}");
                    });
                }
            });
            for uid in [0, 65_534, first - 1, last + 1] {
                assert!(
                    reaches(&host, uid, *address, *port),
                    "{uid} cannot reach {address}"
                );
            }
        }
        let denials = host
            .enter(|| Observer::open().unwrap().denials().unwrap())
            .unwrap();
        let counted = denials
            .iter()
            .find(|denial| denial.reason.contains("Virtual machine's process"))
            .unwrap();
        assert!(counted.packets >= 9, "{counted:?}");
        // Damage to the rule is seen and repaired like any other.
        host.run("nft", &["flush", "chain", "inet", "agentlab", "output"], "")
            .unwrap();
        let seen = host.enter(|| enforcer.verify()).unwrap().unwrap();
        assert!(
            seen.iter()
                .any(|drift| drift.object.contains("rule 1 of chain output")),
            "{seen:?}"
        );
        let (address, port, _) = &listeners[0];
        assert!(
            !reaches(&host, first, *address, *port),
            "the rule was not repaired"
        );
    }
}
