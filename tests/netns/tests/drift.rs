//! What somebody changes behind the policy's back is seen, named and repaired.

#[cfg(test)]
mod tests {
    use agentlab_netpolicy::{Intent, Observer};
    use agentlab_tests_netns::lab::{
        attach_one_of_each, bare_host, bound_host, enforcer_on, host_policy, listing, skipped,
    };
    use agentlab_tests_netns::namespace::Namespace;

    /// Program, its words, and what is then seen to differ.
    const DAMAGES: &[(&str, &str, &str)] = &[
        ("nft", "delete table inet agentlab", "table inet agentlab"),
        (
            "nft",
            "flush table bridge agentlab",
            "rule 1 of chain prerouting of table bridge agentlab",
        ),
        (
            "nft",
            "flush chain inet agentlab forward",
            "rule 1 of chain forward",
        ),
        (
            "nft",
            "add rule inet agentlab nat counter",
            " of chain nat of table inet agentlab",
        ),
        (
            "nft",
            "insert rule inet agentlab guest_forward accept",
            "rule 1 of chain guest_forward",
        ),
        ("nft", "add chain inet agentlab extra", "chain extra"),
        (
            "nft",
            "add element inet agentlab trust { 10.77.0.99 : goto nat }",
            "set trust",
        ),
        (
            "nft",
            "delete element bridge agentlab ports { \"tap1003i0\" }",
            "set ports of table bridge",
        ),
        (
            "nft",
            "delete element inet agentlab denied { 10.0.0.0/8 }",
            "set denied",
        ),
        ("nft", "flush set arp agentlab ports", "set ports of table arp"),
        (
            "bridge",
            "link set dev tap1003i0 isolated off learning on",
            "port tap1003i0",
        ),
        (
            "bridge",
            "link set dev tap1003i0 neigh_suppress on",
            "port tap1003i0",
        ),
        ("ip", "link set vmbr1 down", "bridge vmbr1"),
        ("ip", "address del 10.77.0.1/16 dev vmbr1", "bridge vmbr1"),
        (
            "ip",
            "link set vmbr1 type bridge stp_state 1 mcast_snooping 1",
            "bridge vmbr1",
        ),
        ("sysctl", "-w net.ipv4.ip_forward=0", "net/ipv4/ip_forward"),
        (
            "sysctl",
            "-w net.ipv6.conf.vmbr1.disable_ipv6=0",
            "net/ipv6/conf/vmbr1/disable_ipv6",
        ),
    ];

    #[test]
    fn every_kind_of_damage_is_seen_and_repaired() {
        if skipped() {
            return;
        }
        let host = bare_host().unwrap();
        let mut enforcer = enforcer_on(&host).unwrap();
        let _taps = host.enter(|| attach_one_of_each(&mut enforcer)).unwrap().unwrap();
        let sound = listing(&host).unwrap();
        for &(program, damage, object) in DAMAGES {
            if program == "sysctl" {
                let (setting, value) = damage.trim_start_matches("-w net.").split_once('=').unwrap();
                host.set(&setting.replace('.', "/"), value).unwrap();
            } else {
                host.run(program, &damage.split(' ').collect::<Vec<_>>(), "")
                    .unwrap();
            }
            let seen = host.enter(|| enforcer.verify()).unwrap().unwrap();
            assert!(
                seen.iter().any(|drift| drift.object.contains(object)),
                "{damage}: expected {object} among {seen:?}"
            );
            let again = host.enter(|| enforcer.verify()).unwrap().unwrap();
            assert_eq!(again, [], "{damage} was not repaired");
            assert_eq!(listing(&host).unwrap(), sound, "{damage}");
        }
    }

    /// Whether a line of a listing is a rule, and not where a set or chain begins.
    fn is_rule(line: &str) -> bool {
        let opens = line.contains('{') || line.starts_with("set ");
        !opens || line.ends_with('}') || line.contains(" { ip saddr ")
    }

    /// Commands that delete one rule each: all rules, in every table of ours.
    fn rules(host: &Namespace) -> Vec<String> {
        let mut found = Vec::new();
        for family in ["bridge", "arp", "inet"] {
            let listing = host
                .run("nft", &["--handle", "list", "table", family, "agentlab"], "")
                .unwrap();
            let mut chain = String::new();
            for line in listing.lines().map(str::trim) {
                if let Some(rest) = line.strip_prefix("chain ") {
                    chain = rest.split(' ').next().unwrap().to_owned();
                } else if let Some((rule, handle)) = line.rsplit_once(" # handle ")
                    && is_rule(rule)
                {
                    found.push(format!("delete rule {family} agentlab {chain} handle {handle}"));
                }
            }
        }
        found
    }

    #[test]
    fn the_removal_of_each_single_rule_is_seen_and_repaired() {
        if skipped() {
            return;
        }
        let (host, mut enforcer) = bound_host().unwrap();
        let (sound, count) = (listing(&host).unwrap(), rules(&host).len());
        let intent = Intent {
            host: host_policy().unwrap(),
            ports: Vec::new(),
        };
        let planned = host.enter(|| {
            Observer::open()
                .unwrap()
                .ruleset_of(&intent)
                .unwrap()
                .rule_count()
        });
        assert_eq!(count, planned.unwrap(), "some rules were not tried");
        for place in 0..count {
            // Handles are new after each repair.
            let damage = rules(&host).swap_remove(place);
            host.run("nft", &[&damage], "").unwrap();
            let seen = host.enter(|| enforcer.verify()).unwrap().unwrap();
            assert!(!seen.is_empty(), "{damage} was not seen");
            assert_eq!(listing(&host).unwrap(), sound, "{damage} was not repaired");
        }
    }
}
