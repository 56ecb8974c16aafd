//! What lasts until the next boot: a bridge that ifupdown2, and with it the Proxmox GUI, knows, and kernel settings.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::HostPolicy;

const INTERFACES: &str = "/etc/network/interfaces";
const SETTINGS: &str = "/etc/sysctl.d/60-agentlab.conf";
/// Begins every file of ours; one without it is somebody else's.
const OURS: &str = "# Written by `agentlab net";

/// Writes both, and returns the files that are new or changed.
///
/// # Errors
/// The bridge is defined elsewhere, or a file is somebody else's, and there is no `force`; or it cannot be written.
pub(super) fn persist(host: &HostPolicy, force: bool) -> Result<Vec<PathBuf>> {
    let mut files = vec![(PathBuf::from(SETTINGS), settings(host))];
    let interfaces = Path::new(INTERFACES);
    if interfaces.exists() {
        let main = std::fs::read_to_string(interfaces).context("reading /etc/network/interfaces")?;
        let name = host.bridge.name.as_str();
        ensure!(
            force || !defines(&main, name),
            "bridge `{name}` is defined in {INTERFACES}: remove it there, or leave out --persist"
        );
        ensure!(
            includes(&main),
            "{INTERFACES} has no line `source /etc/network/interfaces.d/*`: add it, or leave out --persist"
        );
        let file = format!("/etc/network/interfaces.d/agentlab-{name}");
        files.push((file.into(), stanza(host)));
    }
    let mut written = Vec::new();
    for (path, text) in files {
        if put(&path, &text, force)? {
            written.push(path);
        }
    }
    Ok(written)
}

/// Puts text into a file of ours, whole or not at all. Returns whether it changed.
pub(super) fn put(path: &Path, text: &str, force: bool) -> Result<bool> {
    let shown = path.display();
    match std::fs::read_to_string(path) {
        Ok(there) if there == text => return Ok(false),
        Ok(there) => ensure!(
            force || there.starts_with(OURS),
            "{shown} is somebody else's: --force overwrites it"
        ),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("reading {shown}")),
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    // A name that neither ifupdown2, sysctl nor dnsmasq reads.
    let next = directory.join(".agentlab.next");
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .open(&next)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&next, path)
    };
    write().with_context(|| format!("writing {shown}"))?;
    Ok(true)
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split('#').next().unwrap_or_default().split_whitespace()
}

fn defines(interfaces: &str, bridge: &str) -> bool {
    interfaces.lines().any(|line| {
        let mut words = words(line);
        words.next() == Some("iface") && words.next() == Some(bridge)
    })
}

fn includes(interfaces: &str) -> bool {
    interfaces.lines().any(|line| {
        let mut words = words(line);
        let word = words.next();
        matches!(word, Some("source" | "source-directory")) && words.any(|path| path.contains("interfaces.d"))
    })
}

fn stanza(host: &HostPolicy) -> String {
    let bridge = &host.bridge;
    let mtu = bridge.mtu.map(|mtu| format!("\tmtu {mtu}\n")).unwrap_or_default();
    format!(
        "{OURS} apply --persist`. The policy comes from agentlab-net.service, not from here.\n\
         auto {name}\niface {name} inet static\n\taddress {address}/{prefix}\n\tbridge-ports none\n\
         \tbridge-stp off\n\tbridge-fd 0\n\tbridge-mcsnoop no\n{mtu}#AgentLab sandboxes\n",
        name = bridge.name,
        address = bridge.address,
        prefix = bridge.prefix,
    )
}

fn settings(host: &HostPolicy) -> String {
    let bridge = &host.bridge.name;
    let mut lines = format!("{OURS} apply --persist`. agentlab-net.service sets and verifies the same.\n");
    for (file, value) in crate::host_settings(host) {
        // A bridge that is not there yet is no reason to complain.
        let optional = if file.contains(bridge.as_str()) { "-" } else { "" };
        // `.` separates, unless `/` did so first: then it may be part of a name.
        let key = format!("net/{file}");
        let key = if bridge.as_str().contains('.') {
            key
        } else {
            key.replace('/', ".")
        };
        lines.push_str(&format!("{optional}{key} = {value}\n"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::host::HostArguments;

    fn host() -> HostPolicy {
        let given = HostArguments {
            uplink: Some("vmbr0".parse().unwrap()),
            config: Some("/dev/null".into()),
            ..HostArguments::default()
        };
        given.policy(None).unwrap()
    }

    #[test]
    fn a_bridge_that_is_defined_already_is_found_and_a_comment_is_none() {
        assert!(defines(
            "auto lo\niface vmbr1 inet static\n\taddress 1.2.3.4/24\n",
            "vmbr1"
        ));
        assert!(!defines(
            "# iface vmbr1 inet static\niface vmbr10 inet static\n",
            "vmbr1"
        ));
        assert!(includes("source /etc/network/interfaces.d/*\n"));
        assert!(!includes("# source /etc/network/interfaces.d/*\n"));
    }

    #[test]
    fn what_is_kept_is_one_setting_a_line() {
        let text = settings(&host());
        let lines: Vec<_> = text.lines().skip(1).collect();
        for line in [
            "net.ipv4.ip_forward = 1",
            "-net.ipv6.conf.vmbr1.accept_ra = 0",
            "-net.ipv6.conf.vmbr1.disable_ipv6 = 1",
        ] {
            assert!(lines.contains(&line), "{line} is missing in {text}");
        }
        assert!(
            lines.iter().all(|line| line.matches(" = ").count() == 1),
            "{text}"
        );
        let stanza = stanza(&host());
        assert!(
            stanza.contains("auto vmbr1\niface vmbr1 inet static\n\taddress 10.77.0.1/16\n"),
            "{stanza}"
        );
    }

    #[test]
    fn a_file_of_somebody_else_s_is_left_alone_unless_forced() {
        let path = std::env::temp_dir().join(format!("agentlab-interfaces-{}", std::process::id()));
        std::fs::write(&path, "theirs\n").unwrap();
        assert!(put(&path, "ours\n", false).is_err());
        assert!(put(&path, &settings(&host()), true).unwrap());
        assert!(!put(&path, &settings(&host()), false).unwrap());
        assert!(put(&path, &stanza(&host()), false).unwrap());
        std::fs::remove_file(path).unwrap();
    }
}
