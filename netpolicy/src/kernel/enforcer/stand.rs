//! What a start finds: a policy to adopt, one to replace, or a host that cannot have one.

use std::collections::BTreeMap;

use crate::binding::Binding;
use crate::kernel::error::EnforceError;
use crate::kernel::observer::Observer;
use crate::kernel::standing::{FAMILIES, Standing};
use crate::plan::fitting;
use crate::{GuestPort, HostPolicy, IfName, Trust};

/// The bindings that stand, when the tables are exactly what they should be with them. Otherwise the policy is replaced
/// with all of them sealed: the ports of guests that run are still known, and somebody may trust them again.
pub(super) fn stand_or_seal(
    host: &HostPolicy,
    kernel: &mut Observer,
) -> Result<BTreeMap<IfName, Binding>, EnforceError> {
    let reading = kernel.read()?;
    if kernel.is_whole(host, &reading)? {
        return Ok(reading
            .bindings
            .into_iter()
            .map(|binding| (binding.name().clone(), binding))
            .collect());
    }
    let expected = kernel.ruleset(host, reading.bindings.iter())?;
    let wanted = Standing::of(&expected)?;
    refuse_foreign_tables(&wanted, &reading.standing)?;
    let drifts = wanted.drift(&reading.standing);
    let first = drifts.first().map(ToString::to_string);
    tracing::info!(
        first,
        ports = reading.bindings.len(),
        "no policy to adopt, everything is sealed"
    );
    let sealed = |binding| match binding {
        Binding::Known(port) => Some(GuestPort {
            trust: Trust::Sealed,
            ..port
        }),
        Binding::SealedName(_) => None,
    };
    let ports: Vec<GuestPort> = reading.bindings.iter().cloned().filter_map(sealed).collect();
    // What does not fit this host any more is forgotten, which seals it too.
    let bindings: BTreeMap<IfName, Binding> = fitting(host, &ports)
        .into_iter()
        .map(|port| (port.name.clone(), Binding::Known(port.clone())))
        .collect();
    let whole = kernel.ruleset(host, bindings.values())?;
    kernel.make_stand(&whole, &reading.standing)?;
    kernel.clear_resolved(&whole)?;
    Ok(bindings)
}

/// A table of our name without any chain of ours was made by somebody who means something else by it.
fn refuse_foreign_tables(wanted: &Standing, seen: &Standing) -> Result<(), EnforceError> {
    for (number, family) in FAMILIES {
        let (Some(wanted), Some(seen)) = (wanted.tables.get(&number), seen.tables.get(&number)) else {
            continue;
        };
        // Others may call a chain the same, but hardly a set as well.
        let ours = seen.chains.keys().any(|name| {
            wanted.chains.contains_key(name) && seen.sets.keys().any(|set| wanted.sets.contains_key(set))
        });
        if !seen.chains.is_empty() && !ours {
            return Err(EnforceError::ForeignTable { family });
        }
    }
    Ok(())
}

/// A subnet that is in use elsewhere would be routed to the wrong side, or answered by the wrong machine.
pub(super) fn refuse_taken_subnet(host: &HostPolicy, kernel: &Observer) -> Result<(), EnforceError> {
    let subnet = host.bridge.subnet();
    let networks = kernel.links.networks(&host.bridge.name)?;
    match networks.into_iter().find(|(network, _)| network.overlaps(subnet)) {
        None => Ok(()),
        Some((taken, name)) => Err(EnforceError::SubnetTaken { subnet, taken, name }),
    }
}
