//! Bridge, ports, addresses and neighbours over rtnetlink.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt;
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::{Handle, LinkBridge, LinkBridgePort, LinkUnspec};

use super::error::EnforceError;
use crate::{BridgeSpec, Cidr, Drift, GuestPort, IfName};

/// A connection that lives in the network namespace of the thread that opened it.
pub(crate) struct Links {
    runtime: tokio::runtime::Runtime,
    handle: Handle,
}

/// What we need to know of a link.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    kind: Option<InfoKind>,
    pub(crate) controller: Option<u32>,
    up: bool,
    bridge: Vec<InfoBridge>,
    port: Vec<InfoBridgePort>,
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            kind: None,
            controller: None,
            up: message.header.flags.contains(LinkFlags::Up),
            bridge: Vec::new(),
            port: Vec::new(),
        };
        for attribute in message.attributes {
            if let LinkAttribute::IfName(name) = attribute {
                link.name = name;
            } else if let LinkAttribute::Controller(index) = attribute {
                link.controller = Some(index);
            } else if let LinkAttribute::LinkInfo(infos) = attribute {
                link.learn(infos);
            }
        }
        link
    }
}

impl Link {
    fn learn(&mut self, infos: Vec<LinkInfo>) {
        for info in infos {
            if let LinkInfo::Kind(kind) = info {
                self.kind = Some(kind);
            } else if let LinkInfo::Data(InfoData::Bridge(data)) = info {
                self.bridge = data;
            } else if let LinkInfo::PortData(InfoPortData::BridgePort(data)) = info {
                self.port = data;
            }
        }
    }

    /// Whether it is a tap on this bridge, or on none yet.
    pub(crate) fn is_our_tap(&self, bridge: u32) -> bool {
        self.kind == Some(InfoKind::Tun) && self.controller.is_none_or(|controller| controller == bridge)
    }
}

type Done = Result<(), rtnetlink::Error>;

impl Links {
    pub(crate) fn open() -> Result<Self, EnforceError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(EnforceError::Runtime)?;
        let entered = runtime.enter();
        let (connection, handle, _) = rtnetlink::new_connection().map_err(EnforceError::Runtime)?;
        drop(entered);
        // It ends with the runtime, which ends with this value.
        runtime.spawn(connection);
        Ok(Self { runtime, handle })
    }

    fn run(
        &self,
        action: &'static str,
        name: &IfName,
        work: impl Future<Output = Done>,
    ) -> Result<(), EnforceError> {
        self.runtime
            .block_on(work)
            .map_err(|error| failure(action, name, &error))
    }

    /// The link of a name; `None` when there is none.
    pub(crate) fn find(&self, name: &IfName) -> Result<Option<Link>, EnforceError> {
        let found = self
            .runtime
            .block_on(
                self.handle
                    .link()
                    .get()
                    .match_name(name.to_string())
                    .execute()
                    .try_next(),
            )
            .or_else(|error| {
                if errno(&error) == Some(libc::ENODEV) {
                    Ok(None)
                } else {
                    Err(error)
                }
            })
            .map_err(|error| failure("look up", name, &error))?;
        Ok(found.map(Link::from))
    }

    /// Every link that hangs on the bridge.
    pub(crate) fn ports(&self, bridge: &IfName) -> Result<Vec<Link>, EnforceError> {
        let Some(Link { index, .. }) = self.find(bridge)? else {
            return Ok(Vec::new());
        };
        let all: Vec<LinkMessage> = self
            .runtime
            .block_on(self.handle.link().get().execute().try_collect())
            .map_err(|error| failure("list the ports of", bridge, &error))?;
        Ok(all
            .into_iter()
            .map(Link::from)
            .filter(|link| link.controller == Some(index))
            .collect())
    }

    /// Networks of the addresses of all interfaces but one, with the interface's name.
    pub(crate) fn networks(&self, except: &IfName) -> Result<Vec<(Cidr, String)>, EnforceError> {
        let failed = |error: rtnetlink::Error| failure("list addresses besides", except, &error);
        let links: Vec<LinkMessage> = self
            .runtime
            .block_on(self.handle.link().get().execute().try_collect())
            .map_err(failed)?;
        let names: BTreeMap<u32, String> = links
            .into_iter()
            .map(Link::from)
            .map(|link| (link.index, link.name))
            .collect();
        let addresses: Vec<_> = self
            .runtime
            .block_on(self.handle.address().get().execute().try_collect())
            .map_err(failed)?;
        let mut networks = Vec::new();
        for message in addresses {
            let name = names.get(&message.header.index).cloned().unwrap_or_default();
            let address = message.attributes.iter().find_map(|attribute| {
                if let AddressAttribute::Address(IpAddr::V4(address)) = attribute {
                    Some(*address)
                } else {
                    None
                }
            });
            if let Some(address) = address
                && name != except.as_str()
            {
                networks.push((Cidr::containing(address, message.header.prefix_len), name));
            }
        }
        Ok(networks)
    }

    /// IPv4 addresses of an interface with the length of their prefix; none when there is no such interface.
    pub(crate) fn addresses(&self, name: &IfName) -> Result<Vec<(Ipv4Addr, u8)>, EnforceError> {
        let Some(link) = self.find(name)? else {
            return Ok(Vec::new());
        };
        let request = self.handle.address().get().set_link_index_filter(link.index);
        let messages: Vec<_> = self
            .runtime
            .block_on(request.execute().try_collect())
            .map_err(|error| failure("list the addresses of", name, &error))?;
        let own = |message: &AddressMessage| {
            let address = message.attributes.iter().find_map(|attribute| {
                if let AddressAttribute::Address(IpAddr::V4(address)) = attribute {
                    Some(*address)
                } else {
                    None
                }
            });
            Some((address?, message.header.prefix_len))
        };
        Ok(messages.iter().filter_map(own).collect())
    }

    /// Makes the bridge, or adopts it, and leaves it down when it was. Returns its index.
    pub(crate) fn ensure_bridge(&self, bridge: &BridgeSpec) -> Result<u32, EnforceError> {
        let mut wanted = LinkBridge::new(bridge.name.as_str())
            .stp_state(BridgeStpState::Disabled)
            .mcast_snooping(false)
            .address(bridge_mac(bridge.address).to_vec());
        if let Some(mtu) = bridge.mtu {
            wanted = wanted.mtu(mtu);
        }
        let request = self.handle.link().add(wanted.build());
        match self.find(&bridge.name)? {
            Some(link) if link.kind != Some(InfoKind::Bridge) => {
                return Err(EnforceError::NotABridge {
                    name: bridge.name.clone(),
                });
            }
            Some(_) => {
                let request = request.set_flags(NLM_F_REQUEST | NLM_F_ACK);
                self.run("adopt bridge", &bridge.name, request.execute())?;
            }
            None => self.run("make bridge", &bridge.name, request.execute())?,
        }
        let link = self.find(&bridge.name)?.ok_or_else(|| EnforceError::Link {
            action: "make bridge",
            name: bridge.name.clone(),
            reason: "it vanished at once".to_owned(),
        })?;
        Ok(link.index)
    }

    /// Gives the bridge its address.
    pub(crate) fn ensure_address(&self, index: u32, bridge: &BridgeSpec) -> Result<(), EnforceError> {
        let request = self
            .handle
            .address()
            .add(index, IpAddr::V4(bridge.address), bridge.prefix);
        self.run("set the address of", &bridge.name, request.replace().execute())
    }

    pub(crate) fn up(&self, index: u32, name: &IfName) -> Result<(), EnforceError> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.run("bring up", name, self.handle.link().set(message).execute())
    }

    /// Puts a link on the bridge.
    pub(crate) fn enslave(
        &self,
        index: u32,
        bridge: u32,
        mtu: Option<u32>,
        name: &IfName,
    ) -> Result<(), EnforceError> {
        let mut message = LinkUnspec::new_with_index(index).controller(bridge);
        if let Some(mtu) = mtu {
            message = message.mtu(mtu);
        }
        self.run(
            "put on the bridge",
            name,
            self.handle.link().set(message.build()).execute(),
        )
    }

    /// Sets the flags of a port, its one forwarding entry and the host's one neighbour entry for it.
    ///
    /// The forwarding entry is sticky: a static one that is not moves to whatever port last sent from its MAC, and with
    /// it everything that is meant for the guest.
    pub(crate) fn settle(&self, link: u32, bridge: u32, port: &GuestPort) -> Result<(), EnforceError> {
        self.isolate(link, &port.name)?;
        let entry = self.handle.neighbours().add_bridge(link, &port.mac);
        let entry = entry
            .state(NeighbourState::Noarp)
            .flags(NeighbourFlags::Controller | NeighbourFlags::Sticky)
            .replace();
        self.run("write the forwarding entry of", &port.name, entry.execute())?;
        let neighbour = self.handle.neighbours().add(bridge, IpAddr::V4(port.address));
        let neighbour = neighbour
            .link_layer_address(&port.mac)
            .state(NeighbourState::Permanent)
            .replace();
        self.run("write the neighbour entry of", &port.name, neighbour.execute())
    }

    /// Keeps a port from talking to other ports and from learning or being flooded.
    ///
    /// `neigh_suppress` stays off: with it the bridge itself answers whoever asks for the port's neighbour, past every
    /// rule of the bridge's output. There is nothing to suppress: broadcasts to a guest are judged one by one.
    pub(crate) fn isolate(&self, link: u32, name: &IfName) -> Result<(), EnforceError> {
        let message = LinkBridgePort::new(link)
            .isolated(true)
            .learning(false)
            .flood(false)
            .mcast_flood(false)
            .guard(true)
            .root_block(true)
            .hairpin(false)
            .neigh_suppress(false)
            .build();
        self.run(
            "set the port flags of",
            name,
            self.handle.link().set_port(message).execute(),
        )
    }

    /// Forgets the host's neighbour entry for an address. Absent is success.
    pub(crate) fn forget(&self, bridge: u32, address: Ipv4Addr, name: &IfName) -> Result<(), EnforceError> {
        let mut request = self.handle.neighbours().add(bridge, IpAddr::V4(address));
        let message = request.message_mut().clone();
        let done = self
            .runtime
            .block_on(self.handle.neighbours().del(message).execute());
        absent_is_fine(done).map_err(|error| failure("forget the neighbour entry of", name, &error))
    }

    /// Removes a link. Absent is success.
    pub(crate) fn delete(&self, index: u32, name: &IfName) -> Result<(), EnforceError> {
        let done = self.runtime.block_on(self.handle.link().del(index).execute());
        absent_is_fine(done).map_err(|error| failure("delete", name, &error))
    }

    /// What is wrong with the bridge.
    pub(crate) fn bridge_drift(&self, bridge: &BridgeSpec) -> Result<Vec<Drift>, EnforceError> {
        let object = format!("bridge {}", bridge.name);
        let Some(link) = self.find(&bridge.name)? else {
            return Ok(vec![Drift::new(object, "is missing")]);
        };
        let mut drifts = Vec::new();
        let mut check = |fine: bool, found: &str| {
            if !fine {
                drifts.push(Drift::new(object.clone(), found));
            }
        };
        check(link.kind == Some(InfoKind::Bridge), "is not a bridge");
        check(link.up, "is down");
        check(
            link.bridge
                .contains(&InfoBridge::StpState(BridgeStpState::Disabled)),
            "has STP on",
        );
        check(
            link.bridge.contains(&InfoBridge::MulticastSnooping(false)),
            "has multicast snooping on",
        );
        let addresses = self.addresses(&bridge.name)?;
        let has = addresses.contains(&(bridge.address, bridge.prefix));
        check(
            has,
            &format!("lacks address {}/{}", bridge.address, bridge.prefix),
        );
        Ok(drifts)
    }
}

/// What is wrong with a port's flags.
pub(crate) fn port_drift(link: &Link) -> Option<Drift> {
    let wanted = [
        (InfoBridgePort::Isolated(true), "isolation"),
        (InfoBridgePort::Learning(false), "learning"),
        (InfoBridgePort::UnicastFlood(false), "flooding"),
        (InfoBridgePort::MulticastFlood(false), "multicast flooding"),
        (InfoBridgePort::HairpinMode(false), "hairpin"),
        (InfoBridgePort::NeighSupress(false), "answers for its neighbour"),
    ];
    let wrong: Vec<_> = wanted
        .iter()
        .filter(|(flag, _)| !link.port.contains(flag))
        .map(|(_, word)| *word)
        .collect();
    (!wrong.is_empty()).then(|| {
        Drift::new(
            format!("port {}", link.name),
            format!("has wrong {}", wrong.join(", ")),
        )
    })
}

/// Fixed by us: a bridge without an address of its own takes the lowest of its ports', and changes with them.
fn bridge_mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0xa6, a, b, c, d]
}

fn errno(error: &rtnetlink::Error) -> Option<i32> {
    if let rtnetlink::Error::NetlinkError(message) = error {
        message.code.map(|code| -code.get())
    } else {
        None
    }
}

fn absent_is_fine(done: Done) -> Done {
    match done {
        Err(error) if matches!(errno(&error), Some(libc::ENODEV | libc::ENOENT)) => Ok(()),
        other => other,
    }
}

fn failure(action: &'static str, name: &IfName, error: &rtnetlink::Error) -> EnforceError {
    let reason = errno(error).map_or_else(
        || error.to_string(),
        |code| std::io::Error::from_raw_os_error(code).to_string(),
    );
    EnforceError::Link {
        action,
        name: name.clone(),
        reason,
    }
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Links").finish_non_exhaustive()
    }
}
