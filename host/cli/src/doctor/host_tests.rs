use serde_json::json;

use super::*;
use crate::doctor::row::State;

fn chain(family: &str, table: &str, name: &str, hook: &str, policy: &str) -> Value {
    json!({ "chain": { "family": family, "table": table, "name": name, "hook": hook, "policy": policy, "prio": 0 } })
}

#[test]
fn a_chain_of_others_that_drops_what_is_forwarded_is_named_with_what_to_do() {
    let answer = json!({ "nftables": [
        { "metainfo": { "version": "1.0.6" } },
        chain("inet", "agentlab", "forward", "forward", "drop"),
        chain("ip", "filter", "INPUT", "input", "drop"),
        chain("ip", "filter", "FORWARD", "forward", "drop"),
        { "chain": { "family": "ip", "table": "filter", "name": "DOCKER-USER" } },
    ]});
    let row = foreign_chains(&answer, "vmbr1");
    assert_eq!(row.state, State::Warn);
    assert!(row.seen.starts_with("ip filter FORWARD drops"), "{}", row.seen);
    assert!(
        row.next
            .unwrap()
            .starts_with("iptables -I DOCKER-USER -i vmbr1 -j ACCEPT")
    );
    let ours = json!({ "nftables": [chain("bridge", "agentlab_guests", "forward", "forward", "drop")] });
    assert_eq!(foreign_chains(&ours, "vmbr1").state, State::Ok);
}

#[test]
fn a_vsock_listener_and_a_clock_that_is_wrong_are_seen() {
    assert_eq!(vsock("\n").state, State::Ok);
    let row = vsock("v_str LISTEN 0 0 *:22  *:*\n");
    assert!(row.state == State::Warn && row.seen.contains("*:22"), "{row:?}");
    for (ahead, state) in [
        (Some(-4), State::Ok),
        (Some(90), State::Warn),
        (Some(-90), State::Warn),
        (None, State::Unknown),
    ] {
        assert_eq!(clock(ahead).state, state);
    }
    assert_eq!(merging(Some("1\n")).state, State::Warn);
    assert_eq!(merging(Some("0\n")).state, State::Ok);
}

#[test]
fn a_resolver_is_seen_on_the_bridge_or_on_all_addresses() {
    let table = |address: &str| {
        format!("  sl  local_address rem_address\n  1: {address}:0035 00000000:0000 07 0 0 0\n")
    };
    let bridge = "10.77.0.1".parse().unwrap();
    let own = format!("{:08X}", u32::from_ne_bytes([10, 77, 0, 1]));
    assert!(listens(&table(&own), bridge, 53));
    assert!(listens(&table("00000000"), bridge, 53));
    assert!(!listens(&table(&own), bridge, 54));
    assert!(!listens(&table("0100007F"), bridge, 53));
}
