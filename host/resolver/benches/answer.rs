//! What the resolver adds to an answer, next to the same question put to the plain upstream. Addresses are opened in the
//! kernel by the policy as it is shipped. Needs root; runs in a namespace of its own.

use std::error::Error;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agentlab_netpolicy::{BridgeSpec, Enforcer, GuestPort, HostPolicy, IfName, Trust, USUAL_DENIAL_GROUP};
use agentlab_resolver::budget::{Allowance, Limits};
use agentlab_resolver::message::{FromResolver, Opening, ToResolver};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use nix::sched::{CloneFlags, unshare};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

const ROUNDS: u32 = 2000;
const BRIDGE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const FILTERED: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
const FORWARDED: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 12);
const UPSTREAM: &str = "127.0.0.1:5300";
/// Nobody's; the resolver refuses to be root.
const NOBODY: u32 = 65_534;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let mut out = std::io::stdout();
    if !nix::unistd::geteuid().is_root() {
        writeln!(out, "SKIP: it needs root")?;
        return Ok(());
    }
    // This is the only thread, so everything that follows happens in the new namespace.
    unshare(CloneFlags::CLONE_NEWNET)?;
    ip("link set lo up")?;
    ip("link add vmbr0 type bridge")?;
    let mut enforcer = Enforcer::start(host()?)?;
    let port = GuestPort {
        name: "tap1000i0".parse()?,
        mac: [2, 0, 0, 0, 0, 1],
        address: FILTERED,
        trust: Trust::Allowlist(Vec::new()),
    };
    let _tap = enforcer.attach(&port)?;
    ip(&format!("address add {FILTERED}/32 dev lo"))?;
    ip(&format!("address add {FORWARDED}/32 dev lo"))?;
    let upstream = UdpSocket::bind(UPSTREAM)?;
    std::thread::spawn(move || answer_for_ever(&upstream));
    let (mut child, line) = start()?;
    let daemon = line.try_clone()?;
    let policy = std::thread::spawn(move || open_for_ever(daemon, &mut enforcer, &port.name));

    let resolver = SocketAddr::from((BRIDGE, 53));
    let fresh: &dyn Fn(u32) -> String = &|number| format!("n{number}.example.com.");
    let same: &dyn Fn(u32) -> String = &|_| "same.example.com.".to_owned();
    let plain = timed(FILTERED, UPSTREAM.parse()?, fresh)?;
    writeln!(
        out,
        "{:<44} {:>8} {:>8} {:>8}",
        "microseconds", "median", "least", "ratio"
    )?;
    report(&mut out, "plain upstream, on loopback", &plain, &plain)?;
    for (what, whose, name) in [
        ("nat: forwarded", FORWARDED, fresh),
        ("nat: known", FORWARDED, same),
        ("allowlist: asked, sifted, opened in the kernel", FILTERED, fresh),
        ("allowlist: known, opened again", FILTERED, same),
    ] {
        report(&mut out, what, &timed(whose, resolver, name)?, &plain)?;
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()))?;
    let resident = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap_or_default();
    writeln!(out, "resident: {}", resident.trim_start_matches("VmRSS:").trim())?;
    // It ends with its line.
    line.shutdown(std::net::Shutdown::Both)?;
    child.wait()?;
    policy.join().map_err(|_| "the policy's thread panicked")?;
    Ok(())
}

fn host() -> Outcome<HostPolicy> {
    Ok(HostPolicy {
        bridge: BridgeSpec {
            name: "vmbr1".parse()?,
            address: BRIDGE,
            prefix: 16,
            mtu: None,
        },
        uplink: Some("vmbr0".parse()?),
        guest_ports: Vec::new(),
        dns: true,
        machine_uids: None,
        tailnet: None,
        denial_group: USUAL_DENIAL_GROUP,
    })
}

fn ip(words: &str) -> Outcome<()> {
    let status = Command::new("ip").args(words.split(' ')).status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("ip {words}: {status}").into())
    }
}

/// The resolver as the daemon starts it.
fn start() -> Outcome<(Child, UnixStream)> {
    let (line, theirs) = UnixStream::pair()?;
    let child = Command::new(env!("CARGO_BIN_EXE_agentlab-resolver"))
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .uid(NOBODY)
        .gid(NOBODY)
        .spawn()?;
    let (udp, tcp) = (UdpSocket::bind((BRIDGE, 53))?, TcpListener::bind((BRIDGE, 53))?);
    let descriptors = [udp.as_fd(), tcp.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(&line, &[IoSlice::new(b"s")], &mut control, SendFlags::NOSIGNAL)?;
    let plenty = Allowance {
        size: 1e9,
        refill: 1e9,
    };
    say(
        &line,
        &ToResolver::Start {
            limits: Limits {
                questions: plenty,
                questions_forwarded: plenty,
                new_names: plenty,
                new_bytes: plenty,
                ..Limits::default()
            },
            upstreams: vec![UPSTREAM.parse()?],
            resolv_conf: "/etc/resolv.conf".into(),
            bridge: BRIDGE,
        },
    )?;
    say(
        &line,
        &ToResolver::Guest {
            address: FORWARDED,
            names: None,
        },
    )?;
    let names = Some(vec!["*.example.com".to_owned()]);
    say(
        &line,
        &ToResolver::Guest {
            address: FILTERED,
            names,
        },
    )?;
    Ok((child, line))
}

fn say(mut line: &UnixStream, message: &ToResolver) -> std::io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).map_err(std::io::Error::other)?;
    line.write_all(&[&length.to_be_bytes(), body.as_slice()].concat())
}

/// The daemon's part: what it is asked for, it opens.
fn open_for_ever(mut line: UnixStream, enforcer: &mut Enforcer, port: &IfName) {
    let mut length = [0; 4];
    while line.read_exact(&mut length).is_ok() {
        let mut body = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap_or(0)];
        if line.read_exact(&mut body).is_err() {
            return;
        }
        let Ok(FromResolver::Open {
            id,
            addresses,
            seconds,
            ..
        }) = serde_json::from_slice(&body)
        else {
            continue;
        };
        let time = Duration::from_secs(u64::from(seconds));
        let outcome = match enforcer.resolve(port, &addresses, None, time) {
            Ok(()) => Opening::Open,
            Err(_) => Opening::Closed,
        };
        if say(&line, &ToResolver::Opened { id, outcome }).is_err() {
            return;
        }
    }
}

fn answer_for_ever(socket: &UdpSocket) {
    let mut buffer = [0; 1500];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let question = buffer
            .get(..length)
            .and_then(|bytes| Message::from_vec(bytes).ok());
        let Some(query) = question.as_ref().and_then(|question| question.queries.first()) else {
            continue;
        };
        let id = question.as_ref().map_or(0, |question| question.metadata.id);
        let mut answer = Message::new(id, MessageType::Response, OpCode::Query);
        answer.add_query(query.clone());
        for last in 1..=2 {
            let data = RData::A(A::new(8, 8, 8, last));
            answer.add_answer(Record::from_rdata(query.name.clone(), 60, data));
        }
        if let Ok(bytes) = answer.to_vec() {
            // Whoever gave up has no use for it.
            let _ = socket.send_to(&bytes, from);
        }
    }
}

/// One question after the other.
fn timed(from: Ipv4Addr, to: SocketAddr, name: &dyn Fn(u32) -> String) -> Outcome<Vec<Duration>> {
    let source = if to.ip().is_loopback() {
        Ipv4Addr::LOCALHOST
    } else {
        from
    };
    let socket = UdpSocket::bind((source, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut buffer = [0; 1500];
    let mut times = Vec::new();
    for number in 0..ROUNDS {
        let mut question = Message::new(7, MessageType::Query, OpCode::Query);
        question.add_query(Query::query(Name::from_ascii(name(number))?, RecordType::A));
        let bytes = question.to_vec()?;
        let begun = Instant::now();
        socket.send(&bytes)?;
        let length = socket.recv(&mut buffer)?;
        times.push(begun.elapsed());
        let answer = Message::from_vec(buffer.get(..length).unwrap_or_default())?;
        if answer.answers.len() != 2 {
            return Err(format!(
                "{} was not answered: {:?}",
                name(number),
                answer.metadata.response_code
            )
            .into());
        }
    }
    times.sort();
    Ok(times)
}

fn report(out: &mut impl Write, what: &str, times: &[Duration], plain: &[Duration]) -> Outcome<()> {
    let median = |times: &[Duration]| times.get(times.len() / 2).copied().unwrap_or_default();
    let least = times.first().copied().unwrap_or_default();
    let ratio = median(times).as_secs_f64() / median(plain).as_secs_f64();
    let (median, least) = (median(times).as_micros(), least.as_micros());
    Ok(writeln!(out, "{what:<44} {median:>8} {least:>8} {ratio:>8.2}")?)
}
