//! What the policy costs, next to what `nft -f` takes for the same text. Needs root; runs in a namespace of its own.

use std::error::Error;
use std::io::Write;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agentlab_netpolicy::{
    BridgeSpec, Enforcer, GuestPort, GuestService, HostPolicy, Intent, LinkNews, LinkWatch, PortChange,
    Protocol, Trust, USUAL_DENIAL_GROUP, create_tap, plan,
};
use nix::sched::{CloneFlags, unshare};

const ROUNDS: usize = 50;

fn main() -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout();
    if !nix::unistd::geteuid().is_root() {
        writeln!(out, "SKIP: it needs root")?;
        return Ok(());
    }
    // This is the only thread, so everything that follows happens in the new namespace.
    unshare(CloneFlags::CLONE_NEWNET)?;
    run("ip", &["link", "add", "vmbr0", "type", "bridge"], "")?;
    let host = host()?;
    let mut enforcer = Enforcer::start(host.clone())?;
    one_flow()?;
    writeln!(
        out,
        "{:<40} {:>9} {:>9} {:>9} {:>8}",
        "microseconds", "median", "least", "nft -f", "ratio"
    )?;
    for count in [3, 1000] {
        let ports = (0..count).map(port).collect::<Result<Vec<_>, _>>()?;
        let ruleset = plan(&Intent {
            host: host.clone(),
            ports: ports.clone(),
        })?;
        let text = ruleset.to_string();
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        enforcer.bind_all(&ports)?;
        for _ in 0..ROUNDS {
            run("nft", &["-f", "-"], NOTHING)?;
            ours.push(timed(|| Ok(enforcer.make_stand()?))?);
        }
        for _ in 0..ROUNDS / 5 {
            theirs.push(timed(|| run("nft", &["-f", "-"], &text))?);
        }
        enforcer.bind_all(&ports)?;
        report(
            &mut out,
            &format!("whole: {} rules, {count} sandboxes", ruleset.rule_count()),
            ours,
            theirs,
        )?;
    }
    one_sandbox(&mut out, &mut enforcer)?;
    appearance(&mut out, &mut enforcer)?;
    enforcer.verify()?;
    let mut verified = Vec::new();
    for _ in 0..ROUNDS / 5 {
        verified.push(timed(|| Ok(enforcer.verify().map(drop)?))?);
    }
    let (median, least) = middle_and_least(verified);
    let (median, least) = (median.as_micros(), least.as_micros());
    Ok(writeln!(
        out,
        "{:<40} {median:>9} {least:>9}",
        "verify, 1000 sandboxes"
    )?)
}

/// Where there is no flow at all, the kernel knows without looking.
fn one_flow() -> Result<(), Box<dyn Error>> {
    run("ip", &["link", "set", "lo", "up"], "")?;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let to_itself = socket.local_addr()?;
    socket.send_to(b"flow", to_itself)?;
    Ok(())
}

/// Adds and removes one sandbox where a thousand are.
fn one_sandbox(out: &mut impl Write, enforcer: &mut Enforcer) -> Result<(), Box<dyn Error>> {
    let newcomers = (1000..1050).map(port).collect::<Result<Vec<_>, _>>()?;
    let (mut added, mut removed, mut again) = (Vec::new(), Vec::new(), Vec::new());
    for newcomer in &newcomers {
        added.push(timed(|| Ok(enforcer.bind(newcomer)?))?);
        removed.push(timed(|| Ok(enforcer.unbind(&newcomer.name)?))?);
    }
    for newcomer in newcomers.iter().take(10) {
        again.push(timed(|| Ok(enforcer.bind(newcomer)?))?);
        enforcer.unbind(&newcomer.name)?;
    }
    let (mut nft_added, mut nft_removed) = (Vec::new(), Vec::new());
    for newcomer in newcomers.iter().take(10) {
        nft_added.push(timed(|| {
            run("nft", &["-f", "-"], &element_change("add", newcomer))
        })?);
        nft_removed.push(timed(|| {
            run("nft", &["-f", "-"], &element_change("delete", newcomer))
        })?);
    }
    report(out, "one sandbox more, 1000 there", added, nft_added.clone())?;
    report(out, "the same, address used a moment ago", again, nft_added)?;
    report(out, "one sandbox less, 1000 there", removed, nft_removed)
}

/// A host without any policy of ours.
const NOTHING: &str = "delete table bridge agentlab\ndelete table arp agentlab\ndelete table inet agentlab\n";

/// From a port that appears on the bridge until it is bound: flags, forwarding and neighbour entry.
fn appearance(out: &mut impl Write, enforcer: &mut Enforcer) -> Result<(), Box<dyn Error>> {
    let mut watch = LinkWatch::open()?;
    let mut bound = Vec::new();
    for number in 2000..2050 {
        let port = port(number)?;
        enforcer.bind(&port)?;
        let tap = create_tap(&port.name)?;
        let enslave = format!("link set {} master vmbr1\n", port.name);
        watch.news()?;
        run("ip", &["-batch", "-"], &enslave)?;
        // The event is in the socket by now: what is measured is what the daemon adds to it.
        bound.push(timed(|| {
            let LinkNews::Hints(hints) = watch.news()? else {
                return Err("news were lost".into());
            };
            let mut changes = Vec::new();
            for hint in hints {
                changes.extend(enforcer.link_changed(&hint)?);
            }
            if changes == [PortChange::Bound(port.name.clone())] {
                Ok(())
            } else {
                Err(format!("not bound: {changes:?}").into())
            }
        })?);
        drop(tap);
        if let LinkNews::Hints(hints) = watch.news()? {
            for hint in hints {
                enforcer.link_changed(&hint)?;
            }
        }
    }
    let (median, least) = middle_and_least(bound);
    let (median, least) = (median.as_micros(), least.as_micros());
    Ok(writeln!(
        out,
        "{:<40} {median:>9} {least:>9}",
        "port appears, from event to bound"
    )?)
}

fn element_change(verb: &str, port: &GuestPort) -> String {
    let (name, address) = (&port.name, port.address);
    let mac = port.mac.map(|byte| format!("{byte:02x}")).join(":");
    [
        format!("bridge agentlab ports {{ \"{name}\" }}"),
        format!("bridge agentlab pins {{ \"{name}\" . {mac} . {address} }}"),
        format!("bridge agentlab addresses {{ \"{name}\" . {address} }}"),
        format!("arp agentlab ports {{ \"{name}\" }}"),
        format!("inet agentlab ports {{ \"{name}\" }}"),
        format!("inet agentlab trust {{ {address} : goto nat }}"),
    ]
    .map(|element| format!("{verb} element {element}\n"))
    .concat()
}

fn host() -> Result<HostPolicy, Box<dyn Error>> {
    let tcp = |port| GuestService {
        protocol: Protocol::Tcp,
        port,
    };
    Ok(HostPolicy {
        bridge: BridgeSpec {
            name: "vmbr1".parse()?,
            address: Ipv4Addr::new(10, 77, 0, 1),
            prefix: 16,
            mtu: None,
        },
        uplink: Some("vmbr0".parse()?),
        guest_ports: vec![tcp(8844), tcp(8846)],
        dns: true,
        machine_uids: None,
        tailnet: Some("tailscale0".parse()?),
        denial_group: USUAL_DENIAL_GROUP,
    })
}

fn port(number: u16) -> Result<GuestPort, Box<dyn Error>> {
    let [high, low] = number.to_be_bytes();
    Ok(GuestPort {
        name: format!("tap{}i0", 1000 + u32::from(number)).parse()?,
        mac: [2, 0, 0, 0, high, low],
        address: Ipv4Addr::new(10, 77, 1 + high, low),
        trust: Trust::Nat,
    })
}

fn timed(work: impl FnOnce() -> Result<(), Box<dyn Error>>) -> Result<Duration, Box<dyn Error>> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed())
}

/// The middle and the least of them.
fn middle_and_least(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    let at = |place: usize| times.get(place).copied().unwrap_or_default();
    (at(times.len() / 2), at(0))
}

fn report(
    out: &mut impl Write,
    what: &str,
    ours: Vec<Duration>,
    theirs: Vec<Duration>,
) -> Result<(), Box<dyn Error>> {
    let ((ours, least), (theirs, _)) = (middle_and_least(ours), middle_and_least(theirs));
    let ratio = theirs.as_secs_f64() / ours.as_secs_f64();
    let (ours, least, theirs) = (ours.as_micros(), least.as_micros(), theirs.as_micros());
    Ok(writeln!(
        out,
        "{what:<40} {ours:>9} {least:>9} {theirs:>9} {ratio:>7.1}x"
    )?)
}

fn run(program: &str, arguments: &[&str], input: &str) -> Result<(), Box<dyn Error>> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .spawn()?;
    child.stdin.take().ok_or("no pipe")?.write_all(input.as_bytes())?;
    let status = child.wait()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{program} failed: {status}").into())
    }
}
