//! A host with the daemon's own policy and resolver, two guests on cables, and an Internet whose name server lies.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use agentlab_api::{AllowEntry, Vmid};
use agentlab_engine::port::{Disturbance, Network, Port, Trust};
use agentlab_resolver::budget::{Allowance, Limits};
use agentlab_tests_netns::guest::Guest;
use agentlab_tests_netns::namespace::{Namespace, PATIENCE};
use agentlabd::EnforcedNetwork;
use anyhow::{Context, Result, anyhow, ensure};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

/// Where guests ask.
pub(crate) const RESOLVER: &str = "10.77.0.1:53";
/// Where the resolver asks.
const UPSTREAM: &str = "9.9.9.9:53";
const UPSTREAMS: &str = "dns: {upstreams: [9.9.9.9]}";
/// A question that got no answer is asked again after this time, as a guest's own resolver does.
const AGAIN: Duration = Duration::from_secs(5);

/// `name type target`: what the upstream says.
const ZONE: &[&str] = &[
    "good.example.com A 8.8.8.8",
    "other.example.com A 8.8.4.4",
    "alias.example.com CNAME edge.cdn.net",
    "edge.cdn.net A 8.8.4.4",
    "evil.net A 8.8.8.8",
    "evilexample.com A 8.8.8.8",
    "rebound.example.com A 8.8.8.8",
    "rebound.example.com A 10.77.0.1",
    "cunning.example.com CNAME inside.evil.net",
    "inside.evil.net A 192.168.1.20",
    "host.example.com A 5.5.5.5",
    "text.example.com TXT words",
    "circle.example.com CNAME circle.example.com",
];

/// All of it.
pub(crate) struct Lab {
    pub(crate) host: Arc<Namespace>,
    net: Arc<Namespace>,
    pub(crate) a: Guest,
    pub(crate) b: Guest,
    pub(crate) network: Arc<EnforcedNetwork>,
    /// Questions that reached the upstream.
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
    runtime: Runtime,
    stop: Option<oneshot::Sender<()>>,
    daemon: Option<JoinHandle<()>>,
}

/// Few questions, so that a test sees their end.
fn limits() -> Limits {
    Limits {
        questions: Allowance {
            size: 100.0,
            refill: 1.0,
        },
        ..Limits::default()
    }
}

pub(crate) fn vmid(number: u32) -> Vmid {
    Vmid::try_from(1000 + number).unwrap()
}

impl Lab {
    pub(crate) fn new() -> Result<Self> {
        Self::with(UPSTREAMS)
    }

    /// What a name opens closes within seconds.
    pub(crate) fn short() -> Result<Self> {
        let limits = Limits {
            answer_seconds: (1, 2),
            grace_seconds: 2,
            ..limits()
        };
        Self::build(UPSTREAMS, limits)
    }

    /// With these lines of configuration.
    pub(crate) fn with(lines: &str) -> Result<Self> {
        Self::build(lines, limits())
    }

    fn build(lines: &str, limits: Limits) -> Result<Self> {
        let (host, net) = (Arc::new(Namespace::new()?), Arc::new(Namespace::new()?));
        host.ip(&format!(
            "link add vmbr0 type veth peer name eth0 netns {}\nlink set vmbr0 up\n\
             address add 192.168.1.10/24 dev vmbr0\naddress add 5.5.5.5/32 dev vmbr0\n\
             route add default via 192.168.1.1",
            net.path()
        ))?;
        net.ip(
            "link set eth0 up\naddress add 192.168.1.1/24 dev eth0\naddress add 9.9.9.9/32 dev lo\n\
             address add 8.8.8.8/32 dev lo\naddress add 8.8.4.4/32 dev lo\naddress add 1.1.1.1/32 dev lo",
        )?;
        let asked = Arc::default();
        serve_names(&net, UPSTREAM, &asked)?;
        take_calls(&net)?;
        let text = format!("uplink: vmbr0\n{lines}\n");
        let (network, stop, daemon) = start(&host, text, limits)?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let cable = |number: u32| -> Result<Guest> {
            let last = u8::try_from(number)?;
            let port = Port {
                vmid: vmid(number),
                mac: agentlab_backend::MacAddress([0x02, 0, 0, 0, 1, last]),
                address: Ipv4Addr::new(10, 77, 0, 11 + last),
            };
            let tap = runtime.block_on(network.attach(&port))?.context("no tap")?;
            Guest::plug(tap, port.mac.0, port.address, Ipv4Addr::new(10, 77, 0, 1))
        };
        let (a, b) = (cable(0)?, cable(1)?);
        Ok(Self {
            host,
            net,
            a,
            b,
            network,
            asked,
            runtime,
            stop: Some(stop),
            daemon: Some(daemon),
        })
    }

    /// Lets an upstream answer at one more address.
    pub(crate) fn answer_at(&self, address: &str) -> Result<()> {
        serve_names(&self.net, address, &self.asked)
    }

    pub(crate) fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Puts a guest into `allowlist` with these entries.
    pub(crate) fn allow(&self, number: u32, entries: &[&str]) -> Result<()> {
        let list: Vec<AllowEntry> = entries
            .iter()
            .map(|entry| Ok(entry.parse()?))
            .collect::<Result<_>>()?;
        self.wait(async {
            self.network.supports(Trust::Allowlist).await?;
            self.network.allow(vmid(number), &list).await?;
            Ok(self.network.set_trust(vmid(number), Trust::Allowlist).await?)
        })
    }

    pub(crate) fn trust(&self, number: u32, trust: Trust) -> Result<()> {
        Ok(self.wait(self.network.set_trust(vmid(number), trust))?)
    }

    /// What the daemon is told about the resolver next.
    pub(crate) fn disturbance(&self) -> Result<Disturbance> {
        let told = self.wait(async { tokio::time::timeout(PATIENCE, self.network.disturbed()).await });
        told.context("nothing was told")
    }

    /// The process that resolves.
    pub(crate) fn resolver(&self) -> Result<i32> {
        let inside = self
            .host
            .enter(|| Ok::<_, anyhow::Error>(fs::metadata("/proc/thread-self/ns/net")?.ino()))??;
        let of = |pid: i32| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let namespace = fs::metadata(format!("/proc/{pid}/ns/net")).map(|file| file.ino());
            name.starts_with("agentlab-resol") && namespace.ok() == Some(inside)
        };
        fs::read_dir("/proc")?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .find(|pid| of(*pid))
            .ok_or_else(|| anyhow!("no resolver runs"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(daemon) = self.daemon.take() {
            // One that panicked has failed its test already.
            let _ = daemon.join();
        }
    }
}

/// A thread in the host's namespace, for as long as the lab: everything of the daemon's begins there.
type Daemon = (Arc<EnforcedNetwork>, oneshot::Sender<()>, JoinHandle<()>);

fn start(host: &Arc<Namespace>, text: String, limits: Limits) -> Result<Daemon> {
    let config = agentlab_config::parse_config(&text, "config.yaml")?.value;
    let (stop, stopped) = oneshot::channel::<()>();
    let (send, started) = std::sync::mpsc::channel();
    let host = Arc::clone(host);
    let daemon = std::thread::spawn(move || {
        let lived = host.enter(|| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let network = Arc::new(EnforcedNetwork::start_with(&config, limits).await?);
                send.send(Ok(network))?;
                // Ends with the lab, whose end of it is dropped.
                let _ = stopped.await;
                anyhow::Ok(())
            })
        });
        if let Err(error) = lived.and_then(|lived| lived) {
            let _ = send.send(Err(error));
        }
    });
    let network = started.recv().context("the daemon's thread ended")??;
    Ok((network, stop, daemon))
}

/// The upstream, over UDP and TCP.
fn serve_names(net: &Namespace, at: &str, asked: &Arc<Mutex<Vec<String>>>) -> Result<()> {
    let (udp, tcp) =
        net.enter(|| Ok::<_, anyhow::Error>((UdpSocket::bind(at)?, TcpListener::bind(at)?)))??;
    let log = Arc::clone(asked);
    // Both end with the process; their namespace is held by their sockets alone.
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            if let Some(answer) = told(&buffer[..length], &log, true) {
                let _ = udp.send_to(&answer, from);
            }
        }
    });
    let log = Arc::clone(asked);
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let _ = stream.map(|mut stream| -> Result<()> {
                let question = framed(&mut stream)?;
                let answer = told(&question, &log, false).context("no question")?;
                frame(&mut stream, &answer)
            });
        }
    });
    Ok(())
}

/// Somebody who takes every call.
fn take_calls(net: &Namespace) -> Result<()> {
    for port in [443, 8443] {
        let listener = net.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))??;
        std::thread::spawn(move || {
            let mut open = Vec::new();
            for stream in listener.incoming().flatten() {
                open.push(stream);
            }
        });
    }
    Ok(())
}

fn told(bytes: &[u8], log: &Mutex<Vec<String>>, over_udp: bool) -> Option<Vec<u8>> {
    let question = Message::from_vec(bytes).ok()?;
    let query = question.queries.first()?.clone();
    let name = query.name.to_lowercase().to_ascii();
    let name = name.trim_end_matches('.').to_owned();
    let options = question
        .edns
        .as_ref()
        .map_or(0, |edns| edns.options().as_ref().len());
    log.lock()
        .unwrap()
        .push(format!("{name} {} {options}", query.query_type));
    let mut answer = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
    answer.add_query(query.clone());
    if name == "large.example.com" {
        if over_udp {
            answer.metadata.truncation = true;
        } else {
            for last in 1..=30 {
                let data = RData::A(A(Ipv4Addr::new(8, 8, 3, last)));
                answer.add_answer(Record::from_rdata(query.name.clone(), 1, data));
            }
        }
        return answer.to_vec().ok();
    }
    let mut zone: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    for line in ZONE {
        let mut words = line.split(' ');
        let (owner, kind, target) = (words.next()?, words.next()?, words.next()?);
        zone.entry(owner).or_default().push((kind, target));
    }
    let mut owner = (query.name.clone(), name);
    if !zone.contains_key(owner.1.as_str()) && !owner.1.ends_with(".wild.example.com") {
        answer.metadata.response_code = ResponseCode::NXDomain;
    }
    // Two steps are as far as any alias leads here.
    for _ in 0..2 {
        let mut next = None;
        for (kind, target) in zone.get(owner.1.as_str()).into_iter().flatten() {
            let data = match *kind {
                "A" if query.query_type == RecordType::A => RData::A(A(target.parse().ok()?)),
                "CNAME" => {
                    let target = Name::from_ascii(format!("{target}.")).ok()?;
                    next = Some((target.clone(), target.to_ascii().trim_end_matches('.').to_owned()));
                    RData::CNAME(CNAME(target))
                }
                "TXT" if query.query_type == RecordType::TXT => {
                    RData::TXT(TXT::new(vec![(*target).to_owned()]))
                }
                _ => continue,
            };
            answer.add_answer(Record::from_rdata(owner.0.clone(), 1, data));
        }
        match next {
            Some(next) if next.1 != owner.1 => owner = next,
            Some(_) | None => break,
        }
    }
    answer.to_vec().ok()
}

fn framed(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn frame(stream: &mut TcpStream, bytes: &[u8]) -> Result<()> {
    let length = u16::try_from(bytes.len())?.to_be_bytes();
    Ok(stream.write_all(&[&length, bytes].concat())?)
}

fn question(name: &str, kind: RecordType) -> Result<Message> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name)?, kind));
    Ok(message)
}

/// Asks as a guest, over UDP, until there is an answer; an upstream that was too slow for the resolver is none.
pub(crate) fn ask(guest: &Guest, name: &str, kind: RecordType) -> Result<Message> {
    let mut answer = None;
    until("an answer", || {
        let given = ask_once(guest, name, kind)?;
        let late = given.metadata.response_code == ResponseCode::ServFail;
        answer = Some(given);
        Ok(!late)
    })?;
    answer.context("no answer")
}

/// Asks as a guest, over UDP.
pub(crate) fn ask_once(guest: &Guest, name: &str, kind: RecordType) -> Result<Message> {
    send(guest, &question(name, kind)?.to_vec()?)?.context("no answer")
}

/// Asks with bytes of one's own, and again while there is silence. `None`: refused, or silence to the end.
pub(crate) fn send(guest: &Guest, bytes: &[u8]) -> Result<Option<Message>> {
    guest.namespace.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(RESOLVER)?;
        socket.set_read_timeout(Some(AGAIN))?;
        let mut buffer = [0; 4096];
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            socket.send(bytes)?;
            match socket.recv(&mut buffer) {
                Ok(length) => return Ok(Some(Message::from_vec(&buffer[..length])?)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
        Ok(None)
    })?
}

/// Asks as a guest, over TCP.
pub(crate) fn ask_by_stream(guest: &Guest, name: &str) -> Result<Message> {
    let bytes = question(name, RecordType::A)?.to_vec()?;
    guest.namespace.enter(|| {
        let mut stream = TcpStream::connect(RESOLVER)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        frame(&mut stream, &bytes)?;
        Ok(Message::from_vec(&framed(&mut stream)?)?)
    })?
}

pub(crate) fn addresses(message: &Message) -> Vec<String> {
    let address = |record: &Record| {
        let RData::A(address) = &record.data else {
            return None;
        };
        Some(address.0.to_string())
    };
    message.answers.iter().filter_map(address).collect()
}

/// Whether a guest reaches an address.
pub(crate) fn opens(guest: &Guest, to: &str) -> bool {
    guest.namespace.opens(to).unwrap()
}

/// Whether a guest does not reach an address.
pub(crate) fn is_closed(guest: &Guest, to: &str) -> bool {
    guest.namespace.is_closed(to).unwrap()
}

/// Tries until it is so.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let mut failed = None;
    let so = agentlab_tests_netns::namespace::until(|| match is_so() {
        Ok(so) => so,
        Err(error) => {
            failed = Some(error);
            true
        }
    });
    failed.map_or(Ok(()), Err)?;
    ensure!(so, "it never came to this: {what}");
    Ok(())
}
