//! The keys of the daemon's config.yaml that the policy follows from. Whether the file is right is the daemon's to say.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use serde::Deserialize;

use super::host::HostArguments;
use crate::IfName;

const USUAL: &str = "/etc/agentlab/config.yaml";
/// As the daemon has it.
const USUAL_UIDS: (u32, u32) = (1_900_000_000, 4096);

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    bridge: Option<IfName>,
    bridge_address: Option<String>,
    uplink: Option<IfName>,
    bootstrap_listen: Option<SocketAddrV4>,
    artifact_listen: Option<SocketAddrV4>,
    qemu: Qemu,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Qemu {
    uid_first: Option<u32>,
    uid_count: Option<u32>,
}

/// Takes from the configuration what no option said. The usual file may be missing, or another user's.
pub(super) fn fill(given: &mut HostArguments) -> Result<()> {
    let path = given.config.as_deref().unwrap_or(Path::new(USUAL));
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if given.config.is_none() && is_absent(&error) => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let file = parse(&text).with_context(|| format!("reading {}", path.display()))?;
    merge(given, file)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::NotADirectory
    )
}

fn parse(text: &str) -> Result<File> {
    // A file of comments alone is an empty one.
    let is_empty = text.lines().all(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#')
    });
    if is_empty {
        return Ok(File::default());
    }
    serde_saphyr::from_str(text).map_err(|error| anyhow!("{error}"))
}

fn merge(given: &mut HostArguments, file: File) -> Result<()> {
    let (first, count) = USUAL_UIDS;
    let uids = |qemu: &Qemu| {
        let first = qemu.uid_first.unwrap_or(first);
        let last = first.saturating_add(qemu.uid_count.unwrap_or(count).saturating_sub(1));
        (first, last)
    };
    if file.qemu.uid_first.is_some() || file.qemu.uid_count.is_some() {
        given.machine_uids = given.machine_uids.or(Some(uids(&file.qemu)));
    }
    given.bridge = given.bridge.take().or(file.bridge);
    given.uplink = given.uplink.take().or(file.uplink);
    let port = |listener: Option<SocketAddrV4>| listener.map(|listener| listener.port());
    given.bootstrap_port = given.bootstrap_port.or(port(file.bootstrap_listen));
    given.artifact_port = given.artifact_port.or(port(file.artifact_listen));
    if let Some(text) = &file.bridge_address {
        let (address, prefix) = address(text).with_context(|| {
            format!(
                "`bridge_address` is `{}`, and not ADDRESS/PREFIX",
                text.escape_debug()
            )
        })?;
        given.address = given.address.or(Some(address));
        given.prefix = given.prefix.or(Some(prefix));
    }
    Ok(())
}

fn address(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    Some((address.parse().ok()?, prefix.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_win_and_what_the_daemon_reads_is_read_the_same() {
        let text = "backend: qemu\nbridge: br7\nbridge_address: 10.78.1.1/24\nuplink: wan0\n\
                    bootstrap_listen: 10.78.1.1:9844\nqemu:\n  uid_first: 7000\n  accelerator: tcg\n";
        let mut given = HostArguments {
            prefix: Some(20),
            ..HostArguments::default()
        };
        merge(&mut given, parse(text).unwrap()).unwrap();
        assert_eq!(given.bridge, Some("br7".parse().unwrap()));
        assert_eq!(
            (given.address, given.prefix),
            (Some(Ipv4Addr::new(10, 78, 1, 1)), Some(20))
        );
        assert_eq!(given.machine_uids, Some((7000, 11_095)));
        assert_eq!((given.bootstrap_port, given.artifact_port), (Some(9844), None));
        let mut nothing = HostArguments::default();
        merge(&mut nothing, parse("# a comment\n\n").unwrap()).unwrap();
        assert!(nothing.is_empty());
        for bad in [
            "bridge: 'a b'",
            "bridge: [",
            "bootstrap_listen: here",
            "bridge_address: 10.0.0.1",
        ] {
            let read = parse(bad).and_then(|file| merge(&mut HostArguments::default(), file));
            assert!(read.is_err(), "{bad}");
        }
    }
}
