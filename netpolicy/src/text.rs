//! Rulesets as nft text.

use std::fmt;

use crate::ruleset::{
    Action, Base, BaseKind, Chain, Direction, Element, EtherType, Family, Field, Hook, Is, LOGGED_BYTES,
    Lasts, Match, Rule, Ruleset, Selector, Set, Side, TABLE, Table, Value,
};

impl fmt::Display for Ruleset {
    /// Adds, deletes and adds each table, which `nft -f` performs as one transaction: the old policy or the new one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for table in &self.tables {
            let family = table.family;
            writeln!(f, "table {family} {TABLE}\ndelete table {family} {TABLE}")?;
        }
        self.tables.iter().try_for_each(|table| table.fmt(f))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {TABLE} {{", self.family)?;
        self.sets.iter().try_for_each(|set| set.fmt(f))?;
        self.chains.iter().try_for_each(|chain| chain.fmt(f))?;
        writeln!(f, "}}")
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bridge => "bridge",
            Self::Arp => "arp",
            Self::Inet => "inet",
        })
    }
}

fn joined<T: fmt::Display>(f: &mut fmt::Formatter<'_>, parts: &[T], between: &str) -> fmt::Result {
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            f.write_str(between)?;
        }
        part.fmt(f)?;
    }
    Ok(())
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "\t{} {} {{\n\t\ttype ",
            if self.verdicts { "map" } else { "set" },
            self.name
        )?;
        joined(f, self.fields, " . ")?;
        writeln!(f, "{}", if self.verdicts { " : verdict" } else { "" })?;
        if let Some(size) = self.size {
            writeln!(f, "\t\tsize {size}")?;
        }
        if self.dynamic {
            writeln!(f, "\t\tflags dynamic")?;
        }
        if self.interval {
            writeln!(f, "\t\tflags interval")?;
        }
        if self.timed {
            writeln!(f, "\t\tflags timeout")?;
        }
        if !self.elements.is_empty() {
            f.write_str("\t\telements = {\n")?;
            for element in &self.elements {
                writeln!(f, "\t\t\t{element},")?;
            }
            f.write_str("\t\t}\n")?;
        }
        f.write_str("\t}\n")
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IfName => "ifname",
            Self::Ether => "ether_addr",
            Self::Ipv4 => "ipv4_addr",
            Self::Protocol => "inet_proto",
            Self::Service => "inet_service",
        })
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<&Value> = self.key().collect();
        joined(f, &parts, " . ")?;
        if let Some(Lasts { given, left }) = self.lasts {
            write!(f, " timeout {given}ms expires {left}ms")?;
        }
        self.chain.map_or(Ok(()), |chain| write!(f, " : goto {chain}"))
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IfName(name) => write!(f, "\"{name}\""),
            Self::Ether([a, b, c, d, e, g]) => write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"),
            Self::Ipv4(address) => address.fmt(f),
            Self::Network(network) => network.fmt(f),
            Self::Protocol(protocol) => protocol.fmt(f),
            Self::Port(port) => port.fmt(f),
            Self::Ports(range) if range.first == range.last => range.first.fmt(f),
            Self::Ports(range) => write!(f, "{}-{}", range.first, range.last),
        }
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tchain {} {{", self.name)?;
        if let Some(base) = self.base {
            writeln!(f, "\t\t{base}")?;
        }
        for rule in &self.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        f.write_str("\t}\n")
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            BaseKind::Filter => "filter",
            BaseKind::Nat => "nat",
        };
        let hook = match self.hook {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        };
        write!(
            f,
            "type {kind} hook {hook} priority {}; policy accept;",
            self.priority
        )
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = self.matches.iter().map(ToString::to_string).collect();
        if self.counted {
            parts.push("counter".to_owned());
        }
        if self.action != Action::Continue {
            parts.push(self.action.to_string());
        }
        if let Some(comment) = self.comment {
            parts.push(format!("comment \"{comment}\""));
        }
        joined(f, &parts, " ")
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Continue => Ok(()),
            Self::Log(group) => write!(f, "log group {group} snaplen {LOGGED_BYTES}"),
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::SetMark(mark) => write!(f, "meta mark set {mark:#010x}"),
            Self::Masquerade => f.write_str("masquerade"),
            Self::RejectWithReset => f.write_str("reject with tcp reset"),
            Self::RejectProhibited => f.write_str("reject with icmpx admin-prohibited"),
        }
    }
}

impl fmt::Display for Is {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Equal => "",
            Self::Not => "!= ",
        })
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "ip saddr",
            Self::Destination => "ip daddr",
        })
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(Direction::In, is, name) => write!(f, "iifname {is}\"{name}\""),
            Self::Name(Direction::Out, is, name) => write!(f, "oifname {is}\"{name}\""),
            Self::Mark(is, mark) => write!(f, "meta mark {is}{mark:#010x}"),
            Self::NotToHost => f.write_str("meta pkttype != host"),
            Self::Ipv4(is) => write!(f, "meta nfproto {is}ipv4"),
            Self::EtherType(EtherType::Ip) => f.write_str("ether type ip"),
            Self::EtherType(EtherType::Arp) => f.write_str("ether type arp"),
            Self::ArpForEthernet => f.write_str("arp htype 1 arp ptype ip arp hlen 6 arp plen 4"),
            Self::ArpOperation(operation) => write!(f, "arp operation {operation}"),
            Self::ToLinkLocalGroup => f.write_str("ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00"),
            Self::Address(side, is, address) => write!(f, "{side} {is}{address}"),
            Self::Inside(side, network) => write!(f, "{side} {network}"),
            Self::DestinationNotUnicast => f.write_str("fib daddr type != unicast"),
            Self::TransportProtocol(protocol) => write!(f, "meta l4proto {protocol}"),
            Self::DestinationPort(port) => write!(f, "th dport {port}"),
            Self::Owner(first, last) => write!(f, "meta skuid {first}-{last}"),
            Self::CtInvalid => f.write_str("ct state invalid"),
            Self::CtNew => f.write_str("ct state new"),
            Self::CtEstablished => f.write_str("ct state established"),
            Self::FlowsOver(count, set) => write!(f, "add @{set} {{ ip saddr ct count over {count} }}"),
            Self::CtReply => f.write_str("ct state established,related ct direction reply"),
            Self::Limit(rate) => write!(f, "limit rate {rate}/second burst 5 packets"),
            Self::LimitOfSource(rate, set) => {
                write!(
                    f,
                    "update @{set} {{ ip saddr limit rate {rate}/second burst 5 packets }}"
                )
            }
            Self::OnBridge(name) => write!(f, "meta ibrname \"{name}\""),
            Self::In(selectors, is, set) => {
                joined(f, selectors, " . ")?;
                write!(f, " {is}@{set}")
            }
            Self::Map(selectors, map) => {
                joined(f, selectors, " . ")?;
                write!(f, " vmap @{map}")
            }
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InName => "iifname",
            Self::OutName => "oifname",
            Self::EtherSource => "ether saddr",
            Self::EtherDestination => "ether daddr",
            Self::IpSource => "ip saddr",
            Self::IpDestination => "ip daddr",
            Self::ArpSenderEther => "arp saddr ether",
            Self::ArpSenderIp => "arp saddr ip",
            Self::ArpTargetIp => "arp daddr ip",
            Self::IpProtocol => "ip protocol",
            Self::DestinationPort => "th dport",
        })
    }
}
