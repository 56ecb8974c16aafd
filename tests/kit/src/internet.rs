//! The Internet, as far as a test needs one.

use anyhow::Result;

use crate::Namespace;

/// The interface by which a lab reaches it.
pub(crate) const UPLINK: &str = "up0";

/// Public addresses that exist in a namespace of the test's alone, behind a lab's uplink.
#[derive(Debug)]
pub struct Internet {
    namespace: Namespace,
}

impl Internet {
    /// Joins it to the namespace that is given, by an interface called `up0` there.
    pub(crate) fn behind(lab: &Namespace, addresses: &[&str]) -> Result<Self> {
        let namespace = Namespace::create()?;
        lab.cable((UPLINK, "192.0.2.1/24"), &namespace, ("eth0", "192.0.2.2/24"))?;
        lab.output("ip", &["route", "add", "default", "via", "192.0.2.2"])?;
        for address in addresses {
            let address = format!("{address}/32");
            namespace.output("ip", &["addr", "add", &address, "dev", "lo"])?;
        }
        Ok(Self { namespace })
    }

    /// Where its servers run.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}
