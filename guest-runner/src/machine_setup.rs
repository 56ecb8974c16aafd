//! Makes the machine the one its seed describes: name, clock, address, route, resolver. No DHCP, no cloud-init: the
//! runner starts before either would be ready.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agentlab_protocol::seed::Seed;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::console::say;
use crate::sys_net::Netlink;

/// How long a NIC's driver may take to appear.
const NIC_PATIENCE: Duration = Duration::from_secs(10);
const NIC_INTERVAL: Duration = Duration::from_millis(50);
/// A clock this little behind is right.
const CLOCK_BEHIND: Duration = Duration::from_secs(60);
/// A clock further ahead than this is wrong. One that is less may be right, and the seed old: no machine that boots again
/// by itself has been up for so long.
const CLOCK_AHEAD: Duration = Duration::from_secs(365 * 24 * 3600);

/// Takes every step that can be taken now and says on the console which ones failed: a machine without network may
/// still have a serial channel, so none of them ends the runner. Repeating it changes nothing. Returns whether the
/// network is settled; otherwise its interface has not appeared yet, see [`finish`].
pub fn begin(seed: &Seed) -> bool {
    told(
        "set the host name",
        rustix::system::sethostname(seed.hostname.as_bytes()).map_err(Into::into),
    );
    told("set the clock", set_clock(seed.clock));
    told("bring up lo", bring_up_loopback());
    told(
        "write /etc/resolv.conf",
        replace("/etc/resolv.conf", &format!("nameserver {}\n", seed.gateway)),
    );
    told("write /etc/hosts", write_hosts(&seed.hostname));
    settled(set_network(seed))
}

/// Waits for the interface, without holding up a channel that needs none, and sets it up.
pub async fn finish(seed: &Seed) {
    let started = tokio::time::Instant::now();
    while started.elapsed() < NIC_PATIENCE {
        tokio::time::sleep(NIC_INTERVAL).await;
        if settled(set_network(seed)) {
            return;
        }
    }
    say("could not set the address: no virtio network interface appeared");
}

fn settled(result: io::Result<bool>) -> bool {
    result.unwrap_or_else(|error| {
        say(format_args!("could not set the address: {error}"));
        true
    })
}

fn told(step: &str, result: io::Result<()>) {
    if let Err(error) = result {
        say(format_args!("could not {step}: {error}"));
    }
}

fn set_clock(host: u64) -> io::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let up = u64::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap_or(0);
    let Some(right) = corrected(now, Duration::from_secs(host.saturating_add(up))) else {
        return Ok(());
    };
    let tv_sec = i64::try_from(right.as_secs()).map_err(io::Error::other)?;
    Ok(clock_settime(ClockId::Realtime, Timespec { tv_sec, tv_nsec: 0 })?)
}

/// What the clock is to be set to, if it is far off. `expected` is the host's when the machine was powered on, and how long
/// the machine has been up: a runner that follows a killed one finds the same.
fn corrected(now: Duration, expected: Duration) -> Option<Duration> {
    let behind = now.saturating_add(CLOCK_BEHIND) < expected;
    let ahead = expected.saturating_add(CLOCK_AHEAD) < now;
    (behind || ahead).then_some(expected)
}

fn bring_up_loopback() -> io::Result<()> {
    Netlink::open()?.set_up(interface_index(Path::new("/sys/class/net/lo"))?)
}

/// `false`: there is no interface yet.
fn set_network(seed: &Seed) -> io::Result<bool> {
    let Some(index) = first_virtio_nic(Path::new("/sys/class/net"))? else {
        return Ok(false);
    };
    let mut netlink = Netlink::open()?;
    netlink.set_up(index)?;
    netlink.set_address(index, seed.address, seed.prefix)?;
    netlink.set_default_route(index, seed.gateway)?;
    Ok(true)
}

/// By index, because udev may rename an interface at any time.
fn first_virtio_nic(class_dir: &Path) -> io::Result<Option<u32>> {
    let mut interfaces = std::fs::read_dir(class_dir)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let driver = std::fs::canonicalize(path.join("device/driver")).unwrap_or_default();
            driver.file_name().is_some_and(|name| name == "virtio_net")
        })
        .collect::<Vec<PathBuf>>();
    interfaces.sort();
    interfaces.first().map(|path| interface_index(path)).transpose()
}

fn interface_index(path: &Path) -> io::Result<u32> {
    std::fs::read_to_string(path.join("ifindex"))?
        .trim()
        .parse()
        .map_err(io::Error::other)
}

fn write_hosts(hostname: &str) -> io::Result<()> {
    let path = "/etc/hosts";
    let standing = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => "127.0.0.1 localhost\n".to_owned(),
        other => other?,
    };
    let wanted = hosts_with(&standing, hostname);
    if wanted == standing {
        Ok(())
    } else {
        replace(path, &wanted)
    }
}

/// The file with exactly one line for 127.0.1.1, where Debian keeps a machine's own name.
fn hosts_with(standing: &str, hostname: &str) -> String {
    let others = standing
        .lines()
        .filter(|line| line.split_whitespace().next() != Some("127.0.1.1"));
    others
        .map(str::to_owned)
        .chain([format!("127.0.1.1 {hostname}")])
        .map(|line| line + "\n")
        .collect()
}

/// By rename: what stands there may be a link to a resolver that does not run.
fn replace(path: &str, content: &str) -> io::Result<()> {
    let fresh = format!("{path}.agentlab");
    std::fs::write(&fresh, content)?;
    std::fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_set_only_if_it_is_a_minute_behind_or_more_than_a_year_ahead() {
        let at = Duration::from_secs;
        let host = at(1_800_000_000);
        assert_eq!(corrected(at(0), host), Some(host));
        assert_eq!(corrected(host - at(61), host), Some(host));
        assert_eq!(corrected(host - at(60), host), None);
        assert_eq!(
            corrected(host + CLOCK_AHEAD, host),
            None,
            "an old seed says little"
        );
        let ahead = host + CLOCK_AHEAD + at(1);
        assert_eq!(corrected(ahead, host), Some(host));
    }

    #[test]
    fn the_hosts_file_names_the_machine_exactly_once() {
        let first = hosts_with(
            "127.0.0.1 localhost\n127.0.1.1\told old.example\n::1 ip6\n",
            "new",
        );
        assert_eq!(first, "127.0.0.1 localhost\n::1 ip6\n127.0.1.1 new\n");
        assert_eq!(hosts_with(&first, "new"), first);
    }

    #[test]
    fn only_a_virtio_interface_is_taken_and_the_first_by_name() {
        let dir = tempfile::tempdir().unwrap();
        for (name, driver, index) in [
            ("lo", None, "1"),
            ("ens1", Some("e1000"), "2"),
            ("ens9", Some("virtio_net"), "3"),
            ("ens3", Some("virtio_net"), "4"),
        ] {
            let device = dir.path().join(name).join("device");
            std::fs::create_dir_all(&device).unwrap();
            std::fs::write(dir.path().join(name).join("ifindex"), format!("{index}\n")).unwrap();
            if let Some(driver) = driver {
                let target = dir.path().join("drivers").join(driver);
                std::fs::create_dir_all(&target).unwrap();
                std::os::unix::fs::symlink(target, device.join("driver")).unwrap();
            }
        }
        assert_eq!(first_virtio_nic(dir.path()).unwrap(), Some(4));
        assert_eq!(first_virtio_nic(&dir.path().join("lo")).unwrap(), None);
    }
}
