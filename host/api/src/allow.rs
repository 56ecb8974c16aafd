//! Where a sandbox with `network.mode: allowlist` may go: one entry of `network.allow`.
//!
//! ```text
//!   example.com                  that name, every port
//!   *.example.com                every name below it
//!   example.com tcp/443          that name, one port or a few: tcp/8000-8007, udp/53
//!   192.0.2.7  192.0.2.0/24      addresses, every port
//!   192.0.2.0/24 tcp/443         addresses, one port or a range: tcp/8000-9000, udp/53
//!   tcp/443                      any public address, these ports
//! ```
//!
//! `example.com:443` and `192.0.2.7:443` are other spellings of the same with `tcp/443`.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name, and longest label in it, as DNS has it.
const LONGEST_NAME: usize = 253;
const LONGEST_LABEL: usize = 63;

/// One entry. Private and special ranges stay closed whatever it says.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AllowEntry {
    /// What a name stands for at the moment.
    Name {
        /// `example.com`, or `*.example.com` for all names below it: lower case, without a final dot.
        name: String,
        /// Only these ports, [`MOST_PORTS_OF_NAME`] at most.
        ports: Option<AllowPorts>,
    },
    /// Addresses.
    Network {
        /// First address.
        address: Ipv4Addr,
        /// Length of the prefix.
        prefix: u8,
        /// Only these ports.
        ports: Option<AllowPorts>,
    },
}

/// Ports of one protocol, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AllowPorts {
    /// TCP; UDP otherwise.
    pub tcp: bool,
    /// Lowest, at least 1.
    pub first: u16,
    /// Highest.
    pub last: u16,
}

impl AllowPorts {
    /// How many they are.
    #[must_use]
    pub fn count(self) -> u32 {
        u32::from(self.last.saturating_sub(self.first)) + 1
    }
}

/// Ports of one name at most: each of its addresses is opened with each of them, for a time.
pub const MOST_PORTS_OF_NAME: u32 = 8;

/// Why a text is no entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` {reason}", .text.escape_debug().take(80).collect::<String>())]
pub struct AllowError {
    text: String,
    reason: &'static str,
}

impl FromStr for AllowEntry {
    type Err = AllowError;

    fn from_str(text: &str) -> Result<Self, AllowError> {
        read(text).map_err(|reason| AllowError {
            text: text.to_owned(),
            reason,
        })
    }
}

fn read(text: &str) -> Result<AllowEntry, &'static str> {
    let mut words = text.split_whitespace();
    let (first, second) = (words.next().ok_or("is empty")?, words.next());
    if words.next().is_some() {
        return Err("has too many words: expected a name or a network, and its ports");
    }
    if let Some(ports) = ports(first) {
        return match second {
            None => Ok(AllowEntry::Network {
                address: Ipv4Addr::UNSPECIFIED,
                prefix: 0,
                ports: Some(ports?),
            }),
            Some(_) => {
                Err("names ports first: write name or network, then its ports, as in example.com tcp/443")
            }
        };
    }
    let (first, behind_colon) = with_colon(first)?;
    let ports = match (second, behind_colon) {
        (None, None) => None,
        (None, Some(ports)) => Some(ports),
        (Some(second), None) => Some(
            ports(second)
                .ok_or("has a second word that is no port: expected tcp/443, udp/53 or tcp/8000-8010")??,
        ),
        (Some(_), Some(_)) => return Err("names its ports twice"),
    };
    if let Some((address, prefix)) = network(first)? {
        return Ok(AllowEntry::Network {
            address,
            prefix,
            ports,
        });
    }
    if ports.is_some_and(|ports| ports.count() > MOST_PORTS_OF_NAME) {
        return Err("names more than 8 ports of a name: name fewer, or none for every port");
    }
    let name = name(first)?;
    Ok(AllowEntry::Name { name, ports })
}

/// `example.com:443` is `example.com tcp/443`. More than one colon is what IPv6 has.
fn with_colon(text: &str) -> Result<(&str, Option<AllowPorts>), &'static str> {
    let Some((destination, port)) = text.split_once(':') else {
        return Ok((text, None));
    };
    if destination.contains('/') && !destination.ends_with(|last: char| last.is_ascii_digit())
        || port.contains([':', '/'])
    {
        return Err(
            "is neither a name nor an IPv4 network: IPv6 is closed, and an URL is written as its name alone",
        );
    }
    if destination.is_empty() {
        return Err("names a port and no destination: any public address is tcp/443");
    }
    range(true, port).map(|ports| (destination, Some(ports)))
}

fn ports(text: &str) -> Option<Result<AllowPorts, &'static str>> {
    let (protocol, range) = text.split_once('/')?;
    let tcp = match protocol {
        "tcp" => true,
        "udp" => false,
        _ => return None,
    };
    Some(self::range(tcp, range))
}

fn range(tcp: bool, text: &str) -> Result<AllowPorts, &'static str> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    match (port(first), port(last)) {
        (Some(first), Some(last)) if first <= last => Ok(AllowPorts { tcp, first, last }),
        (Some(_), Some(_)) => Err("has a range of ports that ends before it begins"),
        _ => Err("has a port that is none: expected 1 to 65535"),
    }
}

/// `None` for what does not look like an address at all.
fn network(text: &str) -> Result<Option<(Ipv4Addr, u8)>, &'static str> {
    let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
    let numeric = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if !numeric(address) {
        return if text.contains('/') {
            Err("is no IPv4 network: expected ADDRESS/PREFIX, as in 192.0.2.0/24")
        } else {
            Ok(None)
        };
    }
    let address: Ipv4Addr = address
        .parse()
        .map_err(|_| "is no IPv4 address: expected four numbers from 0 to 255")?;
    let prefix: u8 = prefix
        .parse()
        .ok()
        .filter(|prefix| (1..=32).contains(prefix))
        .ok_or("has a prefix that is none: expected 1 to 32")?;
    if address.to_bits() & u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0) != 0 {
        return Err("has bits of the host behind its prefix: write the network's first address");
    }
    if address.is_private() || address.is_loopback() || address.is_link_local() || address.is_multicast() {
        return Err("is private or special, and no mode opens such a range");
    }
    Ok(Some((address, prefix)))
}

fn name(text: &str) -> Result<String, &'static str> {
    if !text.is_ascii() {
        return Err("has letters beyond ASCII: write the name as DNS has it, xn--...");
    }
    let lower = text.to_ascii_lowercase();
    let name = lower.strip_suffix('.').unwrap_or(&lower);
    let plain = name.strip_prefix("*.").unwrap_or(name);
    if plain.contains('*') {
        return Err("has a `*` in the wrong place: only a whole first label may be one, as in *.example.com");
    }
    if name.len() > LONGEST_NAME {
        return Err("is longer than names can be, 253 letters");
    }
    let wrong = |label: &str| {
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        label.is_empty()
            || label.len() > LONGEST_LABEL
            || !label.bytes().all(letter)
            || label.starts_with('-')
            || label.ends_with('-')
    };
    if plain.split('.').any(wrong) {
        return Err("is no name: labels have 1 to 63 letters, digits, `-` and `_`, with a dot between them");
    }
    if !plain.contains('.') {
        return Err("has one label: a whole top-level domain is not a destination");
    }
    Ok(name.to_owned())
}

impl TryFrom<String> for AllowEntry {
    type Error = AllowError;

    fn try_from(text: String) -> Result<Self, AllowError> {
        text.parse()
    }
}

impl From<AllowEntry> for String {
    fn from(entry: AllowEntry) -> Self {
        entry.to_string()
    }
}

impl fmt::Display for AllowEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, prefix, ports) = match self {
            Self::Name { name, ports: None } => return f.write_str(name),
            Self::Name {
                name,
                ports: Some(ports),
            } => return write!(f, "{name} {ports}"),
            Self::Network {
                prefix: 0,
                ports: Some(ports),
                ..
            } => return write!(f, "{ports}"),
            Self::Network {
                address,
                prefix,
                ports,
            } => (address, prefix, ports),
        };
        write!(f, "{address}")?;
        if *prefix != 32 {
            write!(f, "/{prefix}")?;
        }
        match ports {
            Some(ports) => write!(f, " {ports}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for AllowPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", if self.tcp { "tcp" } else { "udp" }, self.first)?;
        if self.first == self.last {
            Ok(())
        } else {
            write!(f, "-{}", self.last)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_written_in_one_way() {
        for (text, shown) in [
            ("Example.COM.", "example.com"),
            ("*.example.com", "*.example.com"),
            ("_dmarc.xn--bcher-kva.example", "_dmarc.xn--bcher-kva.example"),
            ("1.1.1.1", "1.1.1.1"),
            ("1.1.1.1/32", "1.1.1.1"),
            ("8.8.0.0/16", "8.8.0.0/16"),
            ("8.8.0.0/16  tcp/443", "8.8.0.0/16 tcp/443"),
            ("1.1.1.1 udp/8000-8010", "1.1.1.1 udp/8000-8010"),
            ("tcp/443-443", "tcp/443"),
            ("Example.org:443", "example.org tcp/443"),
            ("*.example.org:8000-8007", "*.example.org tcp/8000-8007"),
            ("example.org  udp/53", "example.org udp/53"),
            ("1.1.1.1:853", "1.1.1.1 tcp/853"),
            ("8.8.0.0/16:443", "8.8.0.0/16 tcp/443"),
        ] {
            let entry: AllowEntry = text.parse().unwrap();
            assert_eq!(entry.to_string(), shown, "{text}");
            assert_eq!(entry.to_string().parse::<AllowEntry>().unwrap(), entry);
        }
    }

    #[test]
    fn what_is_no_destination_is_refused_with_its_reason() {
        for (text, words) in [
            ("", "is empty"),
            ("com", "one label"),
            ("*", "wrong place"),
            ("*.com", "one label"),
            ("a.*.com", "wrong place"),
            ("*example.com", "wrong place"),
            ("*.*.example.com", "wrong place"),
            ("ex ample.com", "no port"),
            ("-a.example.com", "no name"),
            ("a..example.com", "no name"),
            ("bücher.example", "xn--"),
            ("https://example.com", "IPv6 is closed"),
            ("https://example.com:443/", "IPv6 is closed"),
            ("example.com:", "1 to 65535"),
            ("example.com:https", "1 to 65535"),
            (":443", "no destination"),
            ("example.com:443 tcp/444", "twice"),
            ("example.com tcp/8000-8008", "more than 8 ports"),
            ("com:443", "one label"),
            ("2001:db8::/32", "IPv6 is closed"),
            ("2001:db8::1", "IPv6 is closed"),
            ("1.1.1.1/33", "1 to 32"),
            ("0.0.0.0/0", "1 to 32"),
            ("8.8.8.8/8", "first address"),
            ("1.1.1", "four numbers"),
            ("1.1.1.256", "four numbers"),
            ("example.com/24", "no IPv4 network"),
            ("10.0.0.0/8", "private"),
            ("169.254.169.254", "private"),
            ("tcp/0", "1 to 65535"),
            ("tcp/9-8", "before it begins"),
            ("tcp/443 1.1.1.1", "first"),
            ("1.1.1.1 sctp/1", "no port"),
            ("1.1.1.1 tcp/1 tcp/2", "too many words"),
        ] {
            let error = text.parse::<AllowEntry>().unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
        let long = format!("{}.example.com", "a".repeat(64));
        assert!(long.parse::<AllowEntry>().is_err());
        let long = format!("{}example.com", "abcdefghi.".repeat(26));
        assert!(
            long.parse::<AllowEntry>()
                .unwrap_err()
                .to_string()
                .contains("253")
        );
    }
}
