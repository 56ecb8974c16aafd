//! Kernel settings that are files. Each is read back by `verify`.

use std::io;
use std::path::{Path, PathBuf};

use super::error::EnforceError;
use crate::{Drift, HostPolicy, IfName};

const ROOT: &str = "/proc/sys/net";

/// One setting, relative to `/proc/sys/net`, and what it must say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    file: String,
    value: &'static str,
}

/// Settings of the bridge and, with an uplink, of the host.
pub(crate) fn of_host(host: &HostPolicy) -> Vec<Setting> {
    let bridge = &host.bridge.name;
    let mut settings = of_port(bridge);
    settings.extend([
        // A guest must not learn, by asking around, which other addresses this host has.
        Setting::of_interface("ipv4", bridge, "arp_ignore", "1"),
        Setting::of_interface("ipv4", bridge, "rp_filter", "1"),
        Setting::of_interface("ipv4", bridge, "send_redirects", "0"),
        Setting::of_interface("ipv4", bridge, "route_localnet", "0"),
        Setting::of_interface("ipv4", bridge, "proxy_arp", "0"),
    ]);
    if host.uplink.is_some() {
        settings.push(Setting {
            file: "ipv4/ip_forward".to_owned(),
            value: "1",
        });
    }
    settings
}

/// Settings of an interface that a guest can send to: no IPv6, nothing learnt from it.
pub(crate) fn of_port(name: &IfName) -> Vec<Setting> {
    vec![
        Setting::of_interface("ipv6", name, "accept_ra", "0"),
        Setting::of_interface("ipv6", name, "disable_ipv6", "1"),
        Setting::of_interface("ipv4", name, "accept_redirects", "0"),
        Setting::of_interface("ipv4", name, "accept_source_route", "0"),
    ]
}

/// The host's settings as pairs of file, below `/proc/sys/net`, and value.
#[must_use]
pub(crate) fn host_settings(host: &HostPolicy) -> Vec<(String, &'static str)> {
    of_host(host)
        .into_iter()
        .map(|setting| (setting.file, setting.value))
        .collect()
}

impl Setting {
    fn of_interface(protocol: &str, name: &IfName, key: &str, value: &'static str) -> Self {
        Self {
            file: format!("{protocol}/conf/{name}/{key}"),
            value,
        }
    }

    fn path(&self) -> PathBuf {
        Path::new(ROOT).join(&self.file)
    }

    /// A kernel without IPv6 has nothing to switch off.
    fn applies(&self) -> bool {
        !self.file.starts_with("ipv6/") || Path::new(ROOT).join("ipv6").exists()
    }

    /// Writes it, unless it says so already: some of these files are read-only in a container that is set up right.
    pub(crate) fn write(&self) -> Result<(), EnforceError> {
        if !self.applies() || self.read().is_ok_and(|value| value == self.value) {
            return Ok(());
        }
        std::fs::write(self.path(), self.value).map_err(|source| EnforceError::Sysctl {
            path: self.path().display().to_string(),
            value: self.value,
            source,
        })
    }

    fn read(&self) -> io::Result<String> {
        std::fs::read_to_string(self.path()).map(|text| text.trim().to_owned())
    }

    /// What is wrong with it, if anything.
    pub(crate) fn drift(&self) -> Option<Drift> {
        if !self.applies() {
            return None;
        }
        let found = match self.read() {
            Ok(value) if value == self.value => return None,
            Ok(value) => format!("is {value} instead of {}", self.value),
            Err(error) => format!("cannot be read: {error}"),
        };
        Some(Drift::new(format!("net/{}", self.file), found))
    }
}
