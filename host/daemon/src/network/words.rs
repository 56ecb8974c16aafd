//! From the engine's and the configuration's words to the policy's, and back.

use agentlab_api::{AllowEntry, Vmid, chain};
use agentlab_config::{BackendKind, Config};
use agentlab_engine::port::{NetworkError, Port, Trust};
use agentlab_netpolicy as policy;
use agentlab_netpolicy::{BridgeSpec, EnforceError, GuestPort, GuestService, HostPolicy, IfName, Protocol};

use super::allow;

pub(super) fn refused(action: &'static str, error: &EnforceError) -> NetworkError {
    if let EnforceError::Unsupported { trust, reason } = error {
        NetworkError::Unsupported {
            mode: (*trust).to_owned(),
            reason: reason.clone(),
        }
    } else {
        NetworkError::Unenforced {
            action,
            reason: chain(error),
        }
    }
}

pub(super) fn host_policy(config: &Config) -> Result<HostPolicy, String> {
    let name = |text: &str| text.parse::<IfName>().map_err(|error| error.to_string());
    let tcp = |port| GuestService {
        protocol: Protocol::Tcp,
        port,
    };
    Ok(HostPolicy {
        bridge: BridgeSpec {
            name: name(&config.bridge)?,
            address: config.bridge_address.address,
            prefix: config.bridge_address.prefix,
            mtu: None,
        },
        uplink: config.uplink.as_deref().map(name).transpose()?,
        guest_ports: vec![
            tcp(config.bootstrap_listen.port()),
            tcp(config.artifact_listen.port()),
        ],
        dns: true,
        machine_uids: (config.backend == BackendKind::Qemu).then(|| {
            let last = config.qemu.uid_first.saturating_add(config.qemu.uid_count - 1);
            (config.qemu.uid_first, last)
        }),
        tailnet: Some(name("tailscale0")?),
        denial_group: policy::USUAL_DENIAL_GROUP,
    })
}

/// The name is the binding's key, in the kernel as well.
pub(super) fn port_name(vmid: Vmid) -> Result<IfName, NetworkError> {
    format!("tap{vmid}i0")
        .parse()
        .map_err(|error: policy::IfNameError| NetworkError::Unenforced {
            action: "naming",
            reason: error.to_string(),
        })
}

pub(super) fn port_vmid(name: &IfName) -> Option<Vmid> {
    let tap = if name.as_str().starts_with("fwpr") {
        &name.twin()?
    } else {
        name
    };
    tap.as_str().strip_prefix("tap")?.strip_suffix("i0")?.parse().ok()
}

pub(super) fn sealed(port: &Port) -> Result<GuestPort, NetworkError> {
    Ok(GuestPort {
        name: port_name(port.vmid)?,
        mac: port.mac.0,
        address: port.address,
        trust: policy::Trust::Sealed,
    })
}

pub(super) fn level(trust: Trust, list: &[AllowEntry]) -> policy::Trust {
    match trust {
        Trust::Sealed => policy::Trust::Sealed,
        Trust::BootstrapOnly => policy::Trust::BootstrapOnly,
        Trust::Off => policy::Trust::Off,
        Trust::Nat => policy::Trust::Nat,
        Trust::Allowlist => policy::Trust::Allowlist(allow::destinations(list)),
    }
}

/// What a guest of a level may ask for: nothing, the names of its list, or anything.
pub(super) fn asks(trust: Trust, list: &[AllowEntry]) -> Option<Option<Vec<String>>> {
    match trust {
        Trust::Sealed | Trust::BootstrapOnly | Trust::Off => None,
        Trust::Nat => Some(None),
        Trust::Allowlist => Some(Some(allow::names(list))),
    }
}
