//! Giving up what the process was born with. It refuses to work with anything left.

use rustix::process::{DumpableBehavior, Resource, Rlimit, getuid, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, set_capabilities, set_name,
    set_no_new_privs,
};

/// Two sockets, the line, 1024 questions and 256 streams.
const MOST_FILES: u64 = 2048;

/// Gives up every capability, core dumps and new privileges, and looks whether anything is left.
///
/// # Errors
/// It is root, or something cannot be given up.
pub fn harden() -> Result<(), String> {
    let failed = |what: &'static str| move |error: rustix::io::Errno| format!("{what}: {error}");
    if getuid().is_root() {
        return Err(
            "it was started as root, and reads what strangers wrote: start it as a user of its own".into(),
        );
    }
    // Begun from a descriptor it would be listed under a number.
    set_name(c"agentlab-resolver").map_err(failed("taking its name"))?;
    set_no_new_privs(true).map_err(failed("giving up new privileges"))?;
    clear_ambient_capability_set().map_err(failed("giving up ambient capabilities"))?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(failed("giving up capabilities"))?;
    let left = capabilities(None).map_err(failed("looking at capabilities"))?;
    if left != none {
        return Err("capabilities are left after giving them up".into());
    }
    // Others of its user may not look into it.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("forbidding dumps"))?;
    let limit = |most| Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    setrlimit(Resource::Core, limit(0)).map_err(failed("limiting dumps"))?;
    setrlimit(Resource::Nofile, limit(MOST_FILES)).map_err(failed("limiting files"))
}
