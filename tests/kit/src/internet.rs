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
        let pid = namespace.pid().to_string();
        let ip = |of: &Namespace, words: &str| {
            let words: Vec<&str> = words.split(' ').collect();
            of.output("ip", &words).map(drop)
        };
        ip(
            lab,
            &format!("link add {UPLINK} type veth peer name eth0 netns {pid}"),
        )?;
        ip(lab, &format!("addr add 192.0.2.1/24 dev {UPLINK}"))?;
        ip(lab, &format!("link set {UPLINK} up"))?;
        ip(lab, "route add default via 192.0.2.2")?;
        ip(&namespace, "addr add 192.0.2.2/24 dev eth0")?;
        for address in addresses {
            ip(&namespace, &format!("addr add {address}/32 dev lo"))?;
        }
        ip(&namespace, "link set eth0 up")?;
        Ok(Self { namespace })
    }

    /// Where its servers run.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}
