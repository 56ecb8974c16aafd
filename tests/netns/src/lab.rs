//! The whole set-up, with the policy or without it.

use std::io::Write;
use std::net::Ipv4Addr;
use std::path::Path;

use agentlab_netpolicy::{
    BridgeSpec, Destination, Enforcer, GuestPort, GuestService, HostPolicy, IfName, PortRange, Protocol,
    Trust, USUAL_DENIAL_GROUP, create_tap,
};
use anyhow::{Context, Result};

use crate::ears::{Ears, Listening};
use crate::frame::Mac;
use crate::guest::Guest;
use crate::namespace::Namespace;

/// The host's address on the agents' bridge.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The bridge's Ethernet address.
pub const GATEWAY_MAC: Mac = [0x02, 0xa6, 10, 77, 0, 1];
/// The host's address on its LAN, and the source of what is masqueraded.
pub const HOST_ON_LAN: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 10);

/// The Ethernet address of the LAN's and the Internet's end.
const NET_MAC: Mac = [0x02, 0x6e, 0x65, 0x74, 0, 1];

/// First and last user id of virtual machines' processes.
pub const MACHINE_UIDS: (u32, u32) = (1_900_000_000, 1_900_004_095);

/// Everything.
#[derive(Debug)]
pub struct Lab {
    /// The machine under test.
    pub host: Namespace,
    /// LAN and Internet.
    pub net: Namespace,
    /// Behind the host's other bridges.
    pub other: Namespace,
    /// A device of the operator's tailnet.
    pub tail: Namespace,
    /// The guest that attacks.
    pub a: Guest,
    /// Its neighbour, who may do everything a guest can.
    pub b: Guest,
    /// A port that nobody bound.
    pub stranger: Guest,
    /// Ears everywhere.
    pub listening: Listening,
    /// The policy, unless the lab runs without.
    pub enforcer: Option<Enforcer>,
}

/// Why the lab cannot be built here.
fn missing() -> Option<String> {
    let reason = if !nix::unistd::geteuid().is_root() {
        "it needs root".to_owned()
    } else if !Path::new("/dev/net/tun").exists() {
        "it needs /dev/net/tun".to_owned()
    } else if let Err(error) = Namespace::new() {
        format!("it needs network namespaces and `ip`: {error:#}")
    } else {
        return None;
    };
    Some(reason)
}

/// Prints why a test does not run. In CI that is a failure, because a proof that did not run proves nothing.
#[must_use]
pub fn skipped() -> bool {
    let Some(reason) = missing() else { return false };
    let in_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(!in_ci, "in CI this must run, but {reason}");
    // A test's output is only shown when asked for, a line of its own on standard error always.
    let _ = writeln!(std::io::stderr(), "SKIP: {reason}");
    true
}

/// The policy of the lab's host.
pub fn host_policy() -> Result<HostPolicy> {
    let tcp = |port| GuestService {
        protocol: Protocol::Tcp,
        port,
    };
    Ok(HostPolicy {
        bridge: BridgeSpec {
            name: "vmbr1".parse()?,
            address: GATEWAY,
            prefix: 16,
            mtu: None,
        },
        uplink: Some("vmbr0".parse()?),
        guest_ports: vec![tcp(8844), tcp(8846)],
        dns: true,
        machine_uids: Some(MACHINE_UIDS),
        tailnet: Some("tail0".parse()?),
        denial_group: USUAL_DENIAL_GROUP,
    })
}

/// The port of guest number `number`: `tap100<number>i0`.
pub fn port(number: u8, trust: Trust) -> Result<GuestPort> {
    Ok(GuestPort {
        name: format!("tap{}i0", 1000 + u32::from(number)).parse()?,
        mac: [0x02, 0x61, 0x67, 0, 0, number],
        address: Ipv4Addr::new(10, 77, 0, 11 + number),
        trust,
    })
}

/// A host with an uplink and nothing else: enough for tests that send no packets.
pub fn bare_host() -> Result<Namespace> {
    let host = Namespace::new()?;
    host.ip("link add vmbr0 type bridge\nlink set vmbr0 up\naddress add 192.168.1.10/24 dev vmbr0")?;
    Ok(host)
}

/// The policy of the lab's host, put up on this one.
pub fn enforcer_on(host: &Namespace) -> Result<Enforcer> {
    host.enter(|| Ok(Enforcer::start(host_policy()?)?))?
}

/// A host with the policy and a port of each trust level, without cables.
pub fn bound_host() -> Result<(Namespace, Enforcer)> {
    let host = bare_host()?;
    let mut enforcer = enforcer_on(&host)?;
    let ports = one_of_each_trust()?;
    host.enter(|| enforcer.bind_all(&ports))??;
    Ok((host, enforcer))
}

/// The taps of ports of each trust level, on whichever host this thread is.
pub fn attach_one_of_each(enforcer: &mut Enforcer) -> Result<Vec<Tap>> {
    let ports = one_of_each_trust()?;
    Ok(ports
        .iter()
        .map(|port| enforcer.attach(port))
        .collect::<Result<_, _>>()?)
}

/// All that nft knows on a host, without counters.
pub fn listing(host: &Namespace) -> Result<String> {
    host.run("nft", &["--stateless", "list", "ruleset"], "")
}

/// Where an allow-list leads, with the first and last port where not every one is allowed.
pub fn destination(network: &str, ports: Option<(Protocol, u16, u16)>) -> Result<Destination> {
    let ports = ports.map(|(protocol, first, last)| PortRange {
        protocol,
        first,
        last,
    });
    Ok(Destination {
        network: network.parse()?,
        ports,
    })
}

/// One port of each trust level.
pub fn one_of_each_trust() -> Result<Vec<GuestPort>> {
    let allowlist = Trust::Allowlist(vec![
        destination("1.2.0.0/16", None)?,
        destination("9.9.9.9", Some((Protocol::Tcp, 443, 443)))?,
        destination("9.9.9.9", Some((Protocol::Udp, 1, 65_535)))?,
    ]);
    let levels = [
        Trust::Sealed,
        Trust::BootstrapOnly,
        Trust::Off,
        Trust::Nat,
        allowlist,
    ];
    let numbered = levels.into_iter().zip(0..);
    numbered.map(|(trust, number)| port(number, trust)).collect()
}

impl Lab {
    /// A host that is as careless as can be, then our policy over it.
    pub fn with_policy() -> Result<Self> {
        Self::build(|host| {
            host.enter(|| {
                let mut enforcer = Enforcer::start(host_policy()?)?;
                let taps = (
                    enforcer.attach(&port(0, Trust::Sealed)?)?,
                    enforcer.attach(&port(1, Trust::Nat)?)?,
                    stray_tap(&port(2, Trust::Sealed)?.name)?,
                );
                Ok((Some(enforcer), taps))
            })?
        })
    }

    /// The same host with bridge, taps and forwarding made by hand.
    pub fn without_policy() -> Result<Self> {
        Self::build(wire_by_hand)
    }

    /// The same, with what nearly everybody has for a policy: rules where packets are forwarded, and nowhere else.
    pub fn with_forward_rules_only() -> Result<Self> {
        Self::build(|host| {
            host.run("nft", &["-f", "-"], FORWARD_RULES)?;
            wire_by_hand(host)
        })
    }

    fn build(policy: impl FnOnce(&Namespace) -> Result<(Option<Enforcer>, (Tap, Tap, Tap))>) -> Result<Self> {
        let (host, net) = (Namespace::new()?, Namespace::new()?);
        let (other, tail) = (Namespace::new()?, Namespace::new()?);
        world(&host, &net, &other, &tail).context("making the world around the host")?;
        let (enforcer, (a, b, stranger)) = policy(&host)?;
        for name in ["tap1000i0", "tap1001i0", "tap1002i0"] {
            host.ip(&format!("link set {name} master vmbr1\nlink set {name} up"))?;
        }
        let guest = |tap, number| -> Result<_> {
            let port = port(number, Trust::Sealed)?;
            Guest::plug(tap, port.mac, port.address, GATEWAY)
        };
        let (a, b, stranger) = (guest(a, 0)?, guest(b, 1)?, guest(stranger, 2)?);
        let mut ears = Ears::default();
        let host_ports = [22, 53, 8006, 8844, 8845, 8846, 8847];
        ears.open("host", &host, &[53, 67, 8844, 9999], &host_ports)?;
        ears.join("host", &host, Ipv4Addr::new(224, 0, 0, 251), GATEWAY, 5353)?;
        let net_ports = [22, 53, 80, 443, 445, 853, 9000];
        ears.open("net", &net, &[53, 853, 9000, 9999], &net_ports)?;
        ears.overhear("net", &net, NET_MAC)?;
        ears.open("other", &other, &[9999], &[22, 80])?;
        ears.open("tail", &tail, &[9999], &[22, 80])?;
        ears.open("a", &a.namespace, &[], &[22])?;
        ears.open("b", &b.namespace, &[], &[22])?;
        Ok(Self {
            host,
            net,
            other,
            tail,
            a,
            b,
            stranger,
            listening: ears.listen(),
            enforcer,
        })
    }

    /// Returns once everything that is on its way has come out of the cables and is heard.
    pub fn settle(&self) {
        for guest in [&self.a, &self.b, &self.stranger] {
            guest.settle();
        }
        self.listening.settle();
    }

    /// Does something with the policy on a thread of the host.
    pub fn enforce<T: Send>(&mut self, work: impl FnOnce(&mut Enforcer) -> Result<T> + Send) -> Result<T> {
        let enforcer = self.enforcer.as_mut().context("this lab has no policy")?;
        self.host.enter(|| work(enforcer))?
    }
}

type Tap = std::os::fd::OwnedFd;

/// A tap that no policy knows of.
fn stray_tap(name: &IfName) -> Result<Tap> {
    create_tap(name).with_context(|| format!("making tap {name}"))
}

/// Bridge, taps and forwarding without any policy of ours.
fn wire_by_hand(host: &Namespace) -> Result<(Option<Enforcer>, (Tap, Tap, Tap))> {
    host.ip(&format!(
        "link add vmbr1 address 02:a6:0a:4d:00:01 type bridge mcast_snooping 0\n\
         address add {GATEWAY}/16 dev vmbr1\nlink set vmbr1 up"
    ))?;
    host.set("ipv4/ip_forward", "1")?;
    host.set("ipv4/neigh/vmbr1/locktime", "0")?;
    let tap = |number| -> Result<_> { stray_tap(&port(number, Trust::Sealed)?.name) };
    let taps = host.enter(|| Ok::<_, anyhow::Error>((tap(0)?, tap(1)?, tap(2)?)))??;
    Ok((None, taps))
}

/// A widespread forward chain: the tailnet may come in, private ranges are closed, the rest is masqueraded.
const FORWARD_RULES: &str = r#"
table inet classic {
    chain forward {
        type filter hook forward priority -100; policy accept;
        ct state established,related return
        iifname "tail0" oifname "vmbr1" accept
        iifname "vmbr1" ip saddr 10.77.0.0/16 ip daddr 100.64.0.0/10 drop
        iifname "vmbr1" ip saddr 10.77.0.0/16 ip daddr { 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 } drop
        iifname "vmbr1" ip6 daddr { fc00::/7, fe80::/10 } drop
    }
}
table ip classic_nat {
    chain postrouting {
        type nat hook postrouting priority 100;
        ip saddr 10.77.0.0/16 oifname "vmbr0" masquerade
    }
}
"#;

fn world(host: &Namespace, net: &Namespace, other: &Namespace, tail: &Namespace) -> Result<()> {
    // As careless as a host can be: every rogue packet that the policy lets through has its effect.
    for (setting, value) in [
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv6/conf/default/accept_ra", "2"),
        ("ipv6/conf/default/accept_dad", "0"),
    ] {
        host.set(setting, value)?;
    }
    let (net_path, other_path, tail_path) = (net.path(), other.path(), tail.path());
    host.ip(&format!(
        "link add vmbr0 type bridge
         link add up0 type veth peer name eth0 netns {net_path}
         link set up0 master vmbr0
         link set up0 up
         link set vmbr0 up
         address add {HOST_ON_LAN}/24 dev vmbr0
         address add 5.5.5.5/32 dev vmbr0
         address add 2001:db8:1::10/64 dev vmbr0 nodad
         route add default via 192.168.1.1
         link add vmbr2 type bridge
         link add second0 type veth peer name eth0 netns {other_path}
         link set second0 master vmbr2
         link set second0 up
         link set vmbr2 up
         address add 6.6.6.1/24 dev vmbr2
         link add docker0 type veth peer name docker netns {other_path}
         link set docker0 up
         address add 172.17.0.1/16 dev docker0
         link add tail0 type veth peer name tail netns {tail_path}
         link set tail0 up
         address add 100.100.0.1/24 dev tail0"
    ))?;
    let addresses = [
        "1.1.1.1",
        "8.8.8.8",
        "10.200.0.5",
        "169.254.169.254",
        "172.16.9.9",
        "100.64.1.1",
        "198.18.0.9",
    ]
    .iter()
    .chain(&[
        "203.0.113.9",
        "192.0.2.9",
        "198.51.100.9",
        "192.0.0.9",
        "192.88.99.9",
    ])
    .chain(&["8.8.4.4", "9.9.9.9", "9.9.8.9", "9.9.7.7", "192.168.200.9"])
    .map(|address| format!("address add {address}/32 dev lo\n"))
    .collect::<String>();
    net.ip(&format!(
        "{addresses}
         link set eth0 address {}
         link set eth0 up
         address add 192.168.1.1/24 dev eth0
         address add 192.168.1.20/24 dev eth0
         address add 2001:db8:1::1/64 dev eth0 nodad
         route add 10.77.0.0/16 via {HOST_ON_LAN}
         route add 2001:db8:77::/64 via 2001:db8:1::10",
        NET_MAC.map(|byte| format!("{byte:02x}")).join(":")
    ))?;
    other.ip("link set eth0 up
         address add 6.6.6.6/24 dev eth0
         link set docker up
         address add 172.17.0.5/16 dev docker
         route add default via 6.6.6.1")?;
    tail.ip("link set tail up
         address add 100.100.0.9/24 dev tail
         route add default via 100.100.0.1")
}
