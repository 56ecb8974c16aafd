//! The keys that say where guests live and where they reach their host: one subnet, and every address in it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use serde::Deserialize;

use crate::check::Check;
use crate::raw::Raw;
use crate::{BridgeAddress, DnsConfig};

pub(crate) struct NetworkPart {
    pub(crate) bridge: String,
    pub(crate) address: BridgeAddress,
    pub(crate) uplink: Option<String>,
    pub(crate) bootstrap: SocketAddrV4,
    pub(crate) artifacts: SocketAddrV4,
}

impl NetworkPart {
    pub(crate) fn of(raw: &Raw, check: &mut Check<'_>) -> Self {
        let bridge = raw.bridge.clone().unwrap_or_else(|| "vmbr1".to_owned());
        check.interface("bridge", &bridge);
        if let Some(uplink) = &raw.uplink {
            check.interface("uplink", uplink);
            if *uplink == bridge {
                check.fault(&["uplink"], "is the agent bridge itself");
            }
        }
        let text = raw.bridge_address.as_deref().unwrap_or("10.77.0.1/16");
        let address = bridge_address(text).unwrap_or_else(|reason| {
            check.fault(&["bridge_address"], reason);
            BridgeAddress {
                address: Ipv4Addr::new(10, 77, 0, 1),
                prefix: 16,
            }
        });
        let subnet = format!("{}/{}", address.network(), address.prefix);
        if raw.agent_subnet.as_ref().is_some_and(|given| *given != subnet) {
            check.fault(
                &["agent_subnet"],
                format!("must be {subnet}, the subnet of `bridge_address`; it may be left out"),
            );
        }
        let bootstrap = listener(
            "bootstrap_listen",
            raw.bootstrap_listen.as_deref(),
            address.address,
            8844,
            check,
        );
        let artifacts = listener(
            "artifact_listen",
            raw.artifact_listen.as_deref(),
            address.address,
            8846,
            check,
        );
        if bootstrap == artifacts {
            check.fault(&["artifact_listen"], "is the same as `bootstrap_listen`");
        }
        if let Some(url) = &raw.controller_url {
            controller_url(url, bootstrap, check);
        }
        Self {
            bridge,
            address,
            uplink: raw.uplink.clone(),
            bootstrap,
            artifacts,
        }
    }
}

/// `dns:` as it stands in the file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawDns {
    pub(crate) enabled: Option<bool>,
    pub(crate) upstreams: Option<Vec<String>>,
}

/// As many as `resolv.conf(5)` takes.
const MOST_UPSTREAMS: usize = 3;

impl RawDns {
    pub(crate) fn into_config(self, bridge: Ipv4Addr, check: &mut Check<'_>) -> DnsConfig {
        let path = ["dns", "upstreams"];
        let enabled = self.enabled.unwrap_or(true);
        let given = self.upstreams.unwrap_or_default();
        if !enabled && !given.is_empty() {
            check.fault(&path, "would be ignored: `dns.enabled` is false");
        }
        if given.len() > MOST_UPSTREAMS {
            check.fault(
                &path,
                format!("names {}, and at most {MOST_UPSTREAMS} are asked", given.len()),
            );
        }
        let mut upstreams = Vec::new();
        for text in given.iter().take(MOST_UPSTREAMS) {
            match upstream(text) {
                Some(address) if address.ip() == IpAddr::V4(bridge) => {
                    check.fault(&path, format!("names {address}, where the resolver itself listens"));
                }
                Some(address) => upstreams.push(address),
                None => check.fault(
                    &path,
                    format!(
                        "holds `{}`, and must hold addresses, with a port where it is not 53, such as 9.9.9.9 or 192.0.2.1:5353",
                        text.escape_debug()
                    ),
                ),
            }
        }
        DnsConfig { enabled, upstreams }
    }
}

fn upstream(text: &str) -> Option<SocketAddr> {
    let address = match text.parse::<IpAddr>() {
        Ok(address) => SocketAddr::new(address, 53),
        Err(_) => text.parse().ok()?,
    };
    let usable = address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast();
    usable.then_some(address)
}

fn bridge_address(text: &str) -> Result<BridgeAddress, String> {
    let shape = || {
        format!(
            "is `{}`, and must be an IPv4 address with prefix, such as 10.77.0.1/16",
            text.escape_debug()
        )
    };
    let (address, prefix) = text.split_once('/').ok_or_else(shape)?;
    let address: Ipv4Addr = address.parse().map_err(|_| shape())?;
    let prefix: u8 = prefix.parse().map_err(|_| shape())?;
    if !(8..=28).contains(&prefix) {
        return Err(format!("has prefix {prefix}, and must have one from 8 to 28"));
    }
    let given = BridgeAddress { address, prefix };
    if address == given.network() || address == given.broadcast() {
        return Err(format!(
            "is `{text}`, which names the subnet and not an address in it"
        ));
    }
    if !address.is_private() {
        return Err(format!(
            "is `{text}`, and the agent subnet must be private (RFC 1918)"
        ));
    }
    Ok(given)
}

fn listener(
    key: &str,
    given: Option<&str>,
    host: Ipv4Addr,
    port: u16,
    check: &mut Check<'_>,
) -> SocketAddrV4 {
    let default = SocketAddrV4::new(host, port);
    let Some(text) = given else { return default };
    match text.parse::<SocketAddrV4>() {
        Ok(address) if *address.ip() == host && address.port() != 0 => address,
        Ok(_) => {
            check.fault(
                &[key],
                format!("must be a port of the bridge address {host}: guests reach no other"),
            );
            default
        }
        Err(_) => {
            check.fault(&[key], format!("must be address:port, such as {default}"));
            default
        }
    }
}

fn controller_url(url: &str, bootstrap: SocketAddrV4, check: &mut Check<'_>) {
    let rest = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"));
    let Some(rest) = rest else {
        return check.fault(&["controller_url"], "must begin with https://");
    };
    if rest.trim_end_matches('/') != bootstrap.to_string() {
        return check.fault(
            &["controller_url"],
            format!("must be https://{bootstrap}, where guests are listened to"),
        );
    }
    if url.starts_with("http://") {
        check.warnings.push(format!(
            "`controller_url` says http://, and guests are served TLS with a pinned key there; write https://{bootstrap}"
        ));
    }
}
