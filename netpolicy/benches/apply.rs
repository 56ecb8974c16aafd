//! What the policy costs, next to what `nft -f` takes for the same text. Needs root; runs in a namespace of its own.

use std::error::Error;
use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agentlab_netpolicy::{
    BridgeSpec, Enforcer, GuestPort, GuestService, HostPolicy, Intent, Protocol, Trust, plan,
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
    writeln!(
        out,
        "{:<44} {:>10} {:>10} {:>8}",
        "median of 50", "netlink", "nft", "ratio"
    )?;
    for count in [3, 1000] {
        let ports = (0..count).map(port).collect::<Result<Vec<_>, _>>()?;
        let ruleset = plan(&Intent {
            host: host.clone(),
            ports: ports.clone(),
        })?;
        let ours = median(ROUNDS, || Ok(enforcer.bind_all(&ports)?))?;
        let text = ruleset.to_string();
        let theirs = median(ROUNDS / 5, || run("nft", &["-f", "-"], &text))?;
        enforcer.bind_all(&ports)?;
        let what = format!("whole: {} rules, {count} sandboxes", ruleset.rule_count());
        report(&mut out, &what, ours, theirs)?;
    }
    one_sandbox(&mut out, &mut enforcer)?;
    let began = Instant::now();
    let drift = enforcer.verify()?;
    let took = began.elapsed();
    writeln!(
        out,
        "{:<44} {:>10}   {} differences",
        "verify, 1000 sandboxes",
        micros(took),
        drift.len()
    )?;
    Ok(())
}

/// Adds and removes one sandbox where a thousand are.
fn one_sandbox(out: &mut impl Write, enforcer: &mut Enforcer) -> Result<(), Box<dyn Error>> {
    let newcomer = port(1000)?;
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        enforcer.bind(&newcomer)?;
        added.push(began.elapsed());
        let began = Instant::now();
        enforcer.unbind(&newcomer.name)?;
        removed.push(began.elapsed());
    }
    let (mac, address) = ("02:00:00:00:03:e8", newcomer.address);
    let name = &newcomer.name;
    let change = |verb: &str| {
        [
            format!("{verb} element bridge agentlab ports {{ \"{name}\" }}"),
            format!("{verb} element bridge agentlab pins {{ \"{name}\" . {mac} . {address} }}"),
            format!("{verb} element bridge agentlab addresses {{ \"{name}\" . {address} }}"),
            format!("{verb} element arp agentlab ports {{ \"{name}\" }}"),
            format!("{verb} element inet agentlab ports {{ \"{name}\" }}"),
            format!("{verb} element inet agentlab trust {{ {address} : goto nat }}"),
        ]
        .join("\n")
    };
    let (mut nft_added, mut nft_removed) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS / 5 {
        let began = Instant::now();
        run("nft", &["-f", "-"], &change("add"))?;
        nft_added.push(began.elapsed());
        let began = Instant::now();
        run("nft", &["-f", "-"], &change("delete"))?;
        nft_removed.push(began.elapsed());
    }
    report(
        out,
        "one sandbox more, 1000 there",
        middle(added),
        middle(nft_added),
    )?;
    report(
        out,
        "one sandbox less, 1000 there",
        middle(removed),
        middle(nft_removed),
    )
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

fn median(
    rounds: usize,
    mut work: impl FnMut() -> Result<(), Box<dyn Error>>,
) -> Result<Duration, Box<dyn Error>> {
    let mut times = Vec::new();
    for _ in 0..rounds {
        let began = Instant::now();
        work()?;
        times.push(began.elapsed());
    }
    Ok(middle(times))
}

fn middle(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn micros(time: Duration) -> String {
    format!("{} us", time.as_micros())
}

fn report(out: &mut impl Write, what: &str, ours: Duration, theirs: Duration) -> Result<(), Box<dyn Error>> {
    let ratio = theirs.as_secs_f64() / ours.as_secs_f64();
    Ok(writeln!(
        out,
        "{what:<44} {:>10} {:>10} {ratio:>7.1}x",
        micros(ours),
        micros(theirs)
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
