//! What the policy is made from: options, then the daemon's configuration, then what stands, then what is usual.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::config;
use crate::{BridgeSpec, GuestService, HostPolicy, IfName, Observer, Protocol, USUAL_DENIAL_GROUP};

/// The same for every command: what stands is compared with them. What is not given is taken from the policy that stands.
#[derive(Debug, Default, Clone, Args)]
pub(super) struct HostArguments {
    /// The daemon's configuration: what no option says is taken from here [default: /etc/agentlab/config.yaml, if there]
    #[arg(long, global = true, value_name = "PATH")]
    pub(super) config: Option<PathBuf>,
    /// Bridge that the sandboxes hang on [default: as it stands, or vmbr1]
    #[arg(long, global = true, value_name = "NAME")]
    pub(super) bridge: Option<IfName>,
    /// The host's address on the bridge [default: as it stands, or 10.77.0.1]
    #[arg(long, global = true)]
    pub(super) address: Option<Ipv4Addr>,
    /// Prefix length of the agent subnet [default: as it stands, or 16]
    #[arg(long, global = true, value_name = "LENGTH")]
    pub(super) prefix: Option<u8>,
    /// MTU of the bridge and its taps
    #[arg(long, global = true, value_name = "BYTES")]
    pub(super) mtu: Option<u32>,
    /// Interface that leads to the Internet; without it no sandbox leaves the host [default: as it stands, or none]
    #[arg(long, global = true, value_name = "NAME", overrides_with = "no_uplink")]
    pub(super) uplink: Option<IfName>,
    /// No sandbox leaves the host, even if one that stands lets them
    #[arg(long, global = true, overrides_with = "uplink")]
    pub(super) no_uplink: bool,
    /// TCP port of the bootstrap listener [default: as both stand, or 8844]
    #[arg(long, global = true, value_name = "PORT")]
    pub(super) bootstrap_port: Option<u16>,
    /// TCP port of the artifact listener [default: as both stand, or 8846]
    #[arg(long, global = true, value_name = "PORT")]
    pub(super) artifact_port: Option<u16>,
    /// Let sandboxes in `nat` and `allowlist` ask the resolver on the bridge address [default: as it stands, or so]
    #[arg(long, global = true, overrides_with = "no_dns")]
    pub(super) dns: bool,
    /// Do not let them
    #[arg(long, global = true, overrides_with = "dns")]
    pub(super) no_dns: bool,
    /// User ids the virtual machines run under: their processes get no network of the host's own [default: as it
    /// stands, or 1900000000-1900004095]
    #[arg(long, global = true, value_name = "FIRST-LAST", value_parser = user_ids)]
    pub(super) machine_uids: Option<(u32, u32)>,
    /// Interface of the tailnet, whose devices may reach running sandboxes [default: as it stands, or tailscale0]
    #[arg(long, global = true, value_name = "NAME", overrides_with = "no_tailnet")]
    pub(super) tailnet: Option<IfName>,
    /// Nobody outside reaches a sandbox, not even over a tailnet
    #[arg(long, global = true, overrides_with = "tailnet")]
    pub(super) no_tailnet: bool,
    /// NFLOG group that is told of what sandboxes are refused [default: as it stands, or 7744]
    #[arg(long, global = true, value_name = "NUMBER")]
    pub(super) denial_group: Option<u16>,
}

/// The daemon's own default.
const USUAL_MACHINE_UIDS: (u32, u32) = (1_900_000_000, 1_900_004_095);

fn user_ids(text: &str) -> Result<(u32, u32), String> {
    let range = text
        .split_once('-')
        .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    range.ok_or_else(|| "expected FIRST-LAST, as in 1900000000-1900004095".to_owned())
}

impl HostArguments {
    /// Whether nothing was asked for.
    pub(super) fn is_empty(&self) -> bool {
        let words = [self.no_uplink, self.dns, self.no_dns, self.no_tailnet];
        let names = [&self.bridge, &self.uplink, &self.tailnet];
        !words.contains(&true)
            && names.iter().all(|name| name.is_none())
            && self.address.is_none()
            && self.prefix.is_none()
            && self.mtu.is_none()
            && self.bootstrap_port.is_none()
            && self.artifact_port.is_none()
            && self.machine_uids.is_none()
            && self.denial_group.is_none()
    }

    /// The whole of it.
    ///
    /// # Errors
    /// The configuration cannot be read, or names what no policy can be made from.
    pub(super) fn policy(&self, standing: Option<&HostPolicy>) -> Result<HostPolicy> {
        let mut given = self.clone();
        config::fill(&mut given)?;
        Ok(given.resolved(standing))
    }

    /// The same, where what stands is of interest and no condition.
    ///
    /// # Errors
    /// As [`Self::policy`].
    pub(super) fn policy_here(&self) -> Result<HostPolicy> {
        let standing = Observer::open()
            .and_then(|mut observer| observer.host())
            .unwrap_or_default();
        self.policy(standing.as_ref())
    }

    fn resolved(&self, standing: Option<&HostPolicy>) -> HostPolicy {
        let tcp = |port| GuestService {
            protocol: Protocol::Tcp,
            port,
        };
        let bridge = standing.map(|host| &host.bridge);
        let ports = match (self.bootstrap_port, self.artifact_port, standing) {
            (None, None, Some(host)) => host.guest_ports.clone(),
            (bootstrap, artifact, _) => vec![tcp(bootstrap.unwrap_or(8844)), tcp(artifact.unwrap_or(8846))],
        };
        HostPolicy {
            bridge: BridgeSpec {
                name: self
                    .bridge
                    .clone()
                    .or_else(|| bridge.map(|bridge| bridge.name.clone()))
                    .unwrap_or_else(IfName::usual_bridge),
                address: self
                    .address
                    .or(bridge.map(|bridge| bridge.address))
                    .unwrap_or(Ipv4Addr::new(10, 77, 0, 1)),
                prefix: self.prefix.or(bridge.map(|bridge| bridge.prefix)).unwrap_or(16),
                mtu: self.mtu,
            },
            uplink: match &self.uplink {
                _ if self.no_uplink => None,
                Some(name) => Some(name.clone()),
                None => standing.and_then(|host| host.uplink.clone()),
            },
            guest_ports: ports,
            machine_uids: self
                .machine_uids
                .or_else(|| standing.map_or(Some(USUAL_MACHINE_UIDS), |host| host.machine_uids)),
            dns: !self.no_dns && (self.dns || standing.is_none_or(|host| host.dns)),
            tailnet: match &self.tailnet {
                Some(name) => Some(name.clone()),
                None if self.no_tailnet => None,
                None => standing.map_or_else(|| Some(IfName::usual_tailnet()), |host| host.tailnet.clone()),
            },
            denial_group: self
                .denial_group
                .or_else(|| standing.map(|host| host.denial_group))
                .unwrap_or(USUAL_DENIAL_GROUP),
        }
    }
}
