//! Asking others. Port and number of every question are random, so is the case of its letters, and an answer must
//! repeat all of them: who cannot see the question cannot answer it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::question::decode;

/// An upstream that answers at all answers sooner; the next one is tried then.
const UDP: Duration = Duration::from_millis(1500);
const TCP: Duration = Duration::from_secs(3);
/// Upstreams that are used, as `resolv.conf(5)` has it.
const MOST: usize = 3;
/// How often the file is looked at, when there are questions.
const LOOK: Duration = Duration::from_secs(5);
/// Datagrams that do not answer the question and are waited out, each try.
const MOST_STRAY: usize = 64;

/// Whom to ask.
#[derive(Debug)]
pub(crate) struct Upstreams {
    /// Of the configuration; the file's when there are none.
    fixed: Vec<SocketAddr>,
    resolv_conf: PathBuf,
    bridge: Ipv4Addr,
    read: Mutex<FromFile>,
    /// The one that answered last is asked first.
    first: AtomicUsize,
}

#[derive(Debug)]
struct FromFile {
    list: Vec<SocketAddr>,
    modified: Option<SystemTime>,
    looked: Option<Instant>,
}

impl Upstreams {
    pub(crate) fn new(fixed: Vec<SocketAddr>, resolv_conf: PathBuf, bridge: Ipv4Addr) -> Self {
        Self {
            fixed,
            resolv_conf,
            bridge,
            read: Mutex::new(FromFile {
                list: Vec::new(),
                modified: None,
                looked: None,
            }),
            first: AtomicUsize::new(0),
        }
    }

    /// Whom it asks now. A file that cannot be read leaves those that it had.
    pub(crate) fn list(&self) -> Vec<SocketAddr> {
        let of_use = |list: &[SocketAddr]| {
            let ours = |address: &&SocketAddr| address.ip() != IpAddr::V4(self.bridge);
            list.iter().filter(ours).take(MOST).copied().collect()
        };
        if !self.fixed.is_empty() {
            return of_use(&self.fixed);
        }
        let mut read = self.lock();
        if read.looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            read.looked = Some(Instant::now());
            let modified = std::fs::metadata(&self.resolv_conf)
                .and_then(|file| file.modified())
                .ok();
            if (modified.is_none() || modified != read.modified)
                && let Ok(text) = std::fs::read_to_string(&self.resolv_conf)
            {
                read.list = name_servers(&text);
                read.modified = modified;
            }
        }
        of_use(&read.list)
    }

    fn lock(&self) -> MutexGuard<'_, FromFile> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks one after the other, and the first one over TCP at last: one that does not repeat the case of letters, or
    /// whose answers do not fit, still has a voice.
    ///
    /// # Errors
    /// Nobody answered; the words say who said what.
    pub(crate) async fn ask(&self, name: &Name, kind: RecordType, dnssec: bool) -> Result<Message, String> {
        let list = self.list();
        let Some(count) = std::num::NonZeroUsize::new(list.len()) else {
            return Err(
                "there is no upstream to ask: name one in `dns.upstreams`, or in the host's resolv.conf"
                    .into(),
            );
        };
        let first = self.first.load(Ordering::Relaxed) % count;
        let order = || list.iter().enumerate().cycle().skip(first).take(list.len());
        let mut last = String::new();
        let mut unwilling = None;
        let tries = order()
            .map(|to| (to, false))
            .chain(order().take(1).map(|to| (to, true)));
        for ((index, to), over_tcp) in tries {
            let answer = exchange(*to, name, kind, dnssec, over_tcp).await;
            match answer {
                Ok(answer) if is_final(answer.metadata.response_code) => {
                    self.first.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(answer) => unwilling = Some(answer),
                Err(error) => last = format!("{to}: {error}"),
            }
        }
        // It answered, if only that it will not.
        unwilling.ok_or(last)
    }
}

fn is_final(code: ResponseCode) -> bool {
    matches!(code, ResponseCode::NoError | ResponseCode::NXDomain)
}

async fn exchange(
    to: SocketAddr,
    name: &Name,
    kind: RecordType,
    dnssec: bool,
    over_tcp: bool,
) -> io::Result<Message> {
    let question = question(name, kind, dnssec)?;
    let bytes = question.to_vec().map_err(io::Error::other)?;
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
    if !over_tcp {
        let answer = timeout(UDP, over_udp(to, &question, &bytes))
            .await
            .map_err(late)??;
        if let Some(answer) = answer.filter(|answer| !answer.metadata.truncation) {
            return Ok(answer);
        }
    }
    timeout(TCP, by_stream(to, &question, &bytes))
        .await
        .map_err(late)?
}

fn question(name: &Name, kind: RecordType, dnssec: bool) -> io::Result<Message> {
    let mut id = [0; 2];
    getrandom::fill(&mut id).map_err(io::Error::other)?;
    let mut message = Message::new(u16::from_ne_bytes(id), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut name = name.clone();
    name.randomize_label_case();
    let mut query = Query::query(name, kind);
    query.set_query_class(DNSClass::IN);
    message.add_query(query);
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    edns.set_dnssec_ok(dnssec);
    message.set_edns(edns);
    Ok(message)
}

/// Gives the name that an answer repeats the letters it was asked with.
fn spell_as(question: &Message, answer: &mut Message) {
    if let ([asked], [repeated]) = (question.queries.as_slice(), answer.queries.as_mut_slice())
        && repeated.name == asked.name
    {
        repeated.name = asked.name.clone();
    }
}

/// Whether this is what was asked for, letter by letter.
fn answers(question: &Message, answer: &Message) -> bool {
    let [asked] = question.queries.as_slice() else {
        return false;
    };
    let [repeated] = answer.queries.as_slice() else {
        return false;
    };
    answer.metadata.message_type == MessageType::Response
        && answer.metadata.id == question.metadata.id
        && answer.metadata.op_code == OpCode::Query
        && repeated.query_type == asked.query_type
        && repeated.query_class == asked.query_class
        && repeated.name.eq_case(&asked.name)
}

/// `None` for an answer that repeats everything but the case of letters: whoever made it can only have the question asked
/// again, over a stream.
async fn over_udp(to: SocketAddr, question: &Message, bytes: &[u8]) -> io::Result<Option<Message>> {
    let any = match to {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    // The kernel chooses the port, at random; connected, nobody but the upstream's address is heard.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(to).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; 4096];
    for _ in 0..MOST_STRAY {
        let length = socket.recv(&mut buffer).await?;
        let Some(mut answer) = buffer.get(..length).and_then(decode) else {
            continue;
        };
        if answers(question, &answer) {
            return Ok(Some(answer));
        }
        spell_as(question, &mut answer);
        if answers(question, &answer) {
            return Ok(None);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        "many answers, none of them to the question",
    ))
}

async fn by_stream(to: SocketAddr, question: &Message, bytes: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    let mut answer = decode(&answer).ok_or(io::ErrorKind::InvalidData)?;
    // Nobody but the upstream can write into the stream, so the case of letters may be what it likes.
    spell_as(question, &mut answer);
    if answers(question, &answer) {
        Ok(answer)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "an answer to another question",
        ))
    }
}

/// The name servers of a `resolv.conf(5)`. Those with an interface in their address cannot be asked from here.
pub(crate) fn name_servers(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| line.trim_start().strip_prefix("nameserver"))
        .filter(|rest| rest.starts_with([' ', '\t']))
        .filter_map(|rest| rest.split_whitespace().next()?.parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, 53))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_as_the_host_reads_them() {
        let text = "# nameserver 1.1.1.1\nsearch lan\nnameserver\t9.9.9.9\n nameserver 2620:fe::fe # x\nnameservers 8.8.8.8\n\
                    nameserver fe80::1%eth0\nnameserver nonsense\nnameserver 127.0.0.53";
        let found: Vec<String> = name_servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["9.9.9.9:53", "[2620:fe::fe]:53", "127.0.0.53:53"]);
    }

    #[test]
    fn the_resolver_never_asks_itself() {
        let bridge = Ipv4Addr::new(10, 77, 0, 1);
        let list = ["10.77.0.1:53", "1.1.1.1:53"].map(|text| text.parse().unwrap());
        let upstreams = Upstreams::new(list.to_vec(), "/nonexistent".into(), bridge);
        assert_eq!(upstreams.list(), [list[1]]);
    }

    #[test]
    fn an_answer_must_repeat_number_type_and_every_letter() {
        let name = Name::from_ascii("a-rather-long-name.example.com.").unwrap();
        let question = question(&name, RecordType::A, false).unwrap();
        let mut good = question.clone();
        good.metadata.message_type = MessageType::Response;
        assert!(answers(&question, &good));
        let mut other_id = good.clone();
        other_id.metadata.id = question.metadata.id.wrapping_add(1);
        let mut other_type = good.clone();
        other_type.queries[0].query_type = RecordType::TXT;
        let mut other_case = good.clone();
        let flipped: String = question.queries[0]
            .name
            .to_ascii()
            .chars()
            .map(|letter| {
                if letter.is_ascii_lowercase() {
                    letter.to_ascii_uppercase()
                } else {
                    letter.to_ascii_lowercase()
                }
            })
            .collect();
        other_case.queries[0].name = Name::from_ascii(flipped).unwrap();
        for bad in [other_id, other_type, other_case, question.clone()] {
            assert!(!answers(&question, &bad));
        }
    }
}
