//! Why the policy does not stand.

use std::io;

use crate::{Cidr, IfName, PlanError};

/// Why the kernel's state is not what was asked for. The old policy still stands: transactions are whole or nothing.
#[derive(Debug, thiserror::Error)]
pub enum EnforceError {
    /// The intent contradicts itself.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The kernel refused a transaction.
    #[error("The kernel refused {object}{}: {code}{hint}", .text.as_ref().map_or_else(String::new, |text| format!(" ({text})")))]
    Refused {
        /// The object it named.
        object: String,
        /// Its own words.
        text: Option<String>,
        /// Its error.
        code: io::Error,
        /// What to do about it.
        hint: String,
    },
    /// netfilter's socket failed.
    #[error("Netfilter's netlink socket failed at {action}{}", hint(.source))]
    Netfilter {
        /// What was tried.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a change of a link, an address or a neighbour.
    #[error("Could not {action} `{name}`: {reason}")]
    Link {
        /// What was tried.
        action: &'static str,
        /// The interface.
        name: IfName,
        /// In the kernel's words.
        reason: String,
    },
    /// A kernel setting could not be read or written.
    #[error("Could not set {path} to {value}")]
    Sysctl {
        /// The file.
        path: String,
        /// What it should say.
        value: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The bridge's name belongs to something else.
    #[error("`{name}` exists and is not a bridge: remove it or choose another bridge name")]
    NotABridge {
        /// The name.
        name: IfName,
    },
    /// A table of our name that we did not make.
    #[error(
        "Table {family} agentlab is somebody else's, it has no chain of ours: remove it with `nft delete table {family} agentlab`"
    )]
    ForeignTable {
        /// Its family.
        family: &'static str,
    },
    /// The uplink does not exist.
    #[error(
        "Uplink `{name}` does not exist: name the interface that leads to the Internet, as `ip route` shows it"
    )]
    NoSuchUplink {
        /// The name.
        name: IfName,
    },
    /// The agent subnet is in use.
    #[error("Agent subnet {subnet} overlaps {taken} of `{name}`: choose another subnet")]
    SubnetTaken {
        /// The agent subnet.
        subnet: Cidr,
        /// What it overlaps.
        taken: Cidr,
        /// Whose address that is.
        name: String,
    },
    /// The tap device could not be made.
    #[error("Could not make tap `{name}`{}", tap_hint(.source))]
    Tap {
        /// The tap.
        name: IfName,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A link with the port's name exists and is not ours.
    #[error("`{name}` exists and is not a tap on our bridge: it was left alone")]
    NotOurs {
        /// The name.
        name: IfName,
    },
    /// No such port.
    #[error("No port `{name}` is bound")]
    UnknownPort {
        /// The name.
        name: IfName,
    },
    /// The port was found on the bridge and sealed; nobody said whose it is.
    #[error("Port `{name}` is known by name only: bind it with its MAC and address first")]
    NameOnly {
        /// The name.
        name: IfName,
    },
    /// This host cannot enforce a trust level.
    #[error("Trust `{trust}` cannot be enforced here: {reason}")]
    Unsupported {
        /// The trust level.
        trust: &'static str,
        /// Why.
        reason: String,
    },
    /// Operators' bindings could not be read or kept.
    #[error("Operators' bindings, ports.json, cannot be read or kept; the policy itself stands")]
    Stored {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody else listens where we are told of refusals.
    #[error(
        "NFLOG group {group} has a listener already: refusals are counted and not told; end that program or choose another group"
    )]
    GroupBusy {
        /// The group.
        group: u16,
    },
    /// The runtime that drives rtnetlink did not start.
    #[error("Could not start the netlink runtime")]
    Runtime(#[source] io::Error),
}

fn tap_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            ". This kernel has no TUN/TAP device, /dev/net/tun: `modprobe tun` loads it"
        }
        Some(libc::EPERM | libc::EACCES) => ". It needs CAP_NET_ADMIN, and access to /dev/net/tun",
        _ => "",
    }
}

/// What an errno of nf_tables usually means to an operator.
pub(crate) fn hint(code: &io::Error) -> &'static str {
    match code.raw_os_error() {
        Some(libc::EPERM) => ". It needs CAP_NET_ADMIN in this network namespace",
        Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT) => {
            ". This kernel lacks nf_tables, or a part of it: it needs CONFIG_NF_TABLES and CONFIG_NETFILTER_NETLINK"
        }
        Some(libc::ENOBUFS | libc::EMSGSIZE) => ". The socket buffers are too small: raise net.core.wmem_max",
        _ => "",
    }
}
