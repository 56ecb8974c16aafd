//! What others do on the host opens nothing to a guest: whoever renames its port, forwards ports of the host's own, or
//! accepts everything before our rules are asked.

#[cfg(test)]
mod tests {
    use agentlab_tests_netns::lab::{Lab, skipped};

    #[test]
    fn a_port_that_somebody_renames_passes_nothing_until_it_has_its_name_again() {
        if skipped() {
            return;
        }
        let mut lab = Lab::with_policy().unwrap();
        let rename = |lab: &Lab, from: &str, to: &str| {
            let script = format!("link set {from} down\nlink set {from} name {to}\nlink set {to} up");
            lab.host.ip(&script).unwrap();
        };
        let outside = "1.1.1.1:443";
        assert!(lab.b.namespace.opens(outside).unwrap());
        rename(&lab, "tap1001i0", "odd0");
        for target in [outside, "10.77.0.1:8844", "192.168.1.1:80"] {
            assert!(lab.b.namespace.is_closed(target).unwrap(), "{target}");
        }
        let found = lab.enforce(|enforcer| Ok(enforcer.verify()?)).unwrap();
        assert!(found.iter().any(|drift| drift.object == "port odd0"), "{found:?}");
        assert!(
            lab.b.namespace.is_closed(outside).unwrap(),
            "sealed by its new name"
        );
        rename(&lab, "odd0", "tap1001i0");
        lab.enforce(|enforcer| Ok(enforcer.verify()?)).unwrap();
        assert!(lab.b.namespace.opens(outside).unwrap());
    }

    #[test]
    fn a_port_that_the_host_forwards_leads_no_guest_inside() {
        if skipped() {
            return;
        }
        let lab = Lab::with_policy().unwrap();
        let forwards = "table ip forwards {
            chain prerouting {
                type nat hook prerouting priority dstnat
                ip daddr 5.5.5.5 tcp dport 8080 dnat to 192.168.1.1:80
                ip daddr 9.9.9.9 tcp dport 443 dnat to 172.17.0.5:80
                ip daddr 10.77.0.1 tcp dport 8844 dnat to 6.6.6.6:80
                ip daddr 9.9.8.9 tcp dport 443 dnat to 1.1.1.1:443
            }
        }";
        lab.host.run("nft", &["-f", "-"], forwards).unwrap();
        for target in ["5.5.5.5:8080", "9.9.9.9:443", "10.77.0.1:8844"] {
            assert!(lab.b.namespace.is_closed(target).unwrap(), "{target}");
        }
        assert!(
            lab.b.namespace.opens("9.9.8.9:443").unwrap(),
            "nothing is forwarded, so this test shows nothing"
        );
    }

    #[test]
    fn whoever_accepts_everything_first_opens_nothing() {
        if skipped() {
            return;
        }
        let lab = Lab::with_policy().unwrap();
        let chain = |family: &str, hook: &str| {
            format!(
                "table {family} careless {{ chain {hook} {{ type filter hook {hook} priority -600; accept; }}; }}\n"
            )
        };
        let all: String = [
            (
                "inet",
                ["prerouting", "input", "forward", "output", "postrouting"],
            ),
            (
                "bridge",
                ["prerouting", "input", "forward", "output", "postrouting"],
            ),
        ]
        .iter()
        .flat_map(|(family, hooks)| hooks.iter().map(|hook| chain(family, hook)))
        .collect();
        lab.host.run("nft", &["-f", "-"], &all).unwrap();
        for target in ["192.168.1.1:80", "192.168.1.10:22", "10.77.0.11:22", "6.6.6.6:80"] {
            assert!(lab.b.namespace.is_closed(target).unwrap(), "{target}");
        }
        assert!(lab.b.namespace.opens("1.1.1.1:443").unwrap());
    }
}
