//! From a question to its answer, and the two sockets that questions come from.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::budget::Limits;
use crate::cache::Answer;
use crate::guest::Guest;
use crate::judge::{Mode, Verdict, Why, judge};
use crate::message::{FromResolver, Opening};
use crate::question::{Asked, Read, read};
use crate::sift::sift;
use crate::upstream::Upstreams;

/// Questions that are under way at once, of all guests; what comes beyond waits in the socket, and is lost there.
const MOST_QUESTIONS: usize = 1024;
/// Streams of all guests, and of one.
const MOST_STREAMS: usize = 256;
const MOST_STREAMS_OF_GUEST: usize = 8;
/// A stream that says nothing for so long is closed.
const SILENCE: Duration = Duration::from_secs(10);
/// How long a wish to open addresses waits for the daemon. The guest has given up by then.
const OPENING: Duration = Duration::from_secs(5);
/// Between two looks at the upstreams.
const LOOK: Duration = Duration::from_secs(5);
/// How long a negative or unlimited answer in `nat` is kept.
const NEGATIVE_SECONDS: u32 = 5;
const MOST_FORWARDED_SECONDS: u32 = 300;

/// Everything that answers.
#[derive(Debug)]
pub(crate) struct Resolver {
    limits: Limits,
    bridge: Ipv4Addr,
    upstreams: Upstreams,
    guests: Mutex<HashMap<Ipv4Addr, Guest>>,
    epochs: AtomicU64,
    wishes: Mutex<HashMap<u64, oneshot::Sender<Opening>>>,
    ids: AtomicU64,
    /// Why a question got no answer, since it was looked at last.
    doubt: Mutex<Option<String>>,
    daemon: mpsc::UnboundedSender<FromResolver>,
}

impl Resolver {
    pub(crate) fn new(
        limits: Limits,
        bridge: Ipv4Addr,
        upstreams: Upstreams,
        daemon: mpsc::UnboundedSender<FromResolver>,
    ) -> Self {
        Self {
            limits,
            bridge,
            upstreams,
            guests: Mutex::default(),
            epochs: AtomicU64::new(0),
            wishes: Mutex::default(),
            ids: AtomicU64::new(0),
            doubt: Mutex::default(),
            daemon,
        }
    }

    pub(crate) fn admit(&self, address: Ipv4Addr, names: Option<Vec<String>>) {
        let epoch = self.epochs.fetch_add(1, Ordering::Relaxed);
        let guest = Guest::new(names, self.limits, epoch, Instant::now());
        lock(&self.guests).insert(address, guest);
    }

    pub(crate) fn forget(&self, address: Ipv4Addr) {
        lock(&self.guests).remove(&address);
    }

    pub(crate) fn opened(&self, id: u64, outcome: Opening) {
        if let Some(wish) = lock(&self.wishes).remove(&id) {
            // Whoever wished may have given up.
            let _ = wish.send(outcome);
        }
    }

    /// Whom it asks; the daemon is told.
    pub(crate) fn tell_upstreams(&self, failing: Option<String>) {
        self.say(FromResolver::Upstreams {
            list: self.upstreams.list(),
            failing,
        });
    }

    fn say(&self, message: FromResolver) {
        // Without a daemon the process ends in a moment.
        let _ = self.daemon.send(message);
    }

    /// The answer to what a guest sent. `None`: silence.
    async fn answer(&self, from: Ipv4Addr, bytes: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
        let asked = match read(bytes) {
            Read::Nothing => return None,
            // Nothing but a question costs more than its answer, and a guest only ever answers itself.
            Read::Answer(answer) => return Some(answer),
            Read::Asked(asked) => asked,
        };
        let most = if over_tcp { u16::MAX } else { asked.fits };
        if !lock(&self.guests).contains_key(&from) {
            // The daemon has begun anew and will say in a moment what it may: it asks again then.
            return None;
        }
        let answer = self.answer_to(from, &asked).await;
        let (code, records, authorities) = match &answer {
            Ok(answer) => (
                answer.code,
                answer.records.as_slice(),
                answer.authorities.as_slice(),
            ),
            Err(code) => (*code, [].as_slice(), [].as_slice()),
        };
        asked
            .reply(code, records, authorities, most)
            .or_else(|| asked.reply(ResponseCode::ServFail, &[], &[], most))
    }

    async fn answer_to(&self, from: Ipv4Addr, asked: &Asked) -> Result<Answer, ResponseCode> {
        let (epoch, known) = match self.consider(from, asked)? {
            Considered::Answer(answer) => return Ok(answer),
            Considered::Known(answer, seconds, epoch) => (epoch, Some((answer, seconds))),
            Considered::Ask(epoch) => (epoch, None),
        };
        let (answer, seconds) = match known {
            Some(known) => known,
            None => {
                let asking = self.upstreams.ask(&asked.name, asked.kind, asked.dnssec).await;
                if let Some(guest) = lock(&self.guests)
                    .get_mut(&from)
                    .filter(|guest| guest.epoch == epoch)
                {
                    guest.end();
                }
                let message = asking.map_err(|reason| self.nobody_answers(reason))?;
                self.accept(from, asked, epoch, &message)?
            }
        };
        if answer.addresses.is_empty() {
            return Ok(answer);
        }
        let outcome = self.open((from, epoch), asked, &answer.addresses, seconds).await;
        // Meanwhile the guest may have become another one, for whom nothing was opened.
        let mut guests = lock(&self.guests);
        match (
            outcome,
            guests.get_mut(&from).filter(|guest| guest.epoch == epoch),
        ) {
            (Opening::Open, Some(_)) => Ok(answer),
            (Opening::Own, Some(guest)) => {
                self.deny(guest, from, asked, Why::PrivateAnswer, Instant::now());
                Err(ResponseCode::NXDomain)
            }
            (Opening::Open | Opening::Own | Opening::Closed, _) => Err(ResponseCode::ServFail),
        }
    }

    /// What can be said without asking anybody.
    fn consider(&self, from: Ipv4Addr, asked: &Asked) -> Result<Considered, ResponseCode> {
        let now = Instant::now();
        let mut guests = lock(&self.guests);
        let guest = guests.get_mut(&from).ok_or(ResponseCode::Refused)?;
        let refuse = |guest: &mut Guest, why, code| {
            self.deny(guest, from, asked, why, now);
            Err(code)
        };
        if let Err(why) = guest.budget.question(now) {
            return refuse(guest, why, ResponseCode::Refused);
        }
        let free_labels = match judge(&guest.mode, &asked.domain, asked.kind) {
            Verdict::Ask { free_labels } => free_labels,
            Verdict::Empty => return Ok(Considered::Answer(Answer::empty(ResponseCode::NoError))),
            Verdict::NoSuchName(why) => return refuse(guest, why, ResponseCode::NXDomain),
            Verdict::Refused(why) => return refuse(guest, why, ResponseCode::Refused),
        };
        if let Some((mut answer, seconds)) = guest.cache.find(&asked.domain, asked.kind, now) {
            respell(&mut answer.records, asked);
            return Ok(Considered::Known(answer, seconds, guest.epoch));
        }
        if let Err(why) = guest.budget.name(&asked.domain, free_labels, now) {
            return refuse(guest, why, ResponseCode::NXDomain);
        }
        if !guest.begin() {
            return refuse(guest, Why::QuestionRate, ResponseCode::Refused);
        }
        Ok(Considered::Ask(guest.epoch))
    }

    /// What of an upstream's answer the guest gets, and for how many seconds it is good.
    fn accept(
        &self,
        from: Ipv4Addr,
        asked: &Asked,
        epoch: u64,
        message: &Message,
    ) -> Result<(Answer, u32), ResponseCode> {
        let now = Instant::now();
        let code = message.metadata.response_code;
        if !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
            return Err(ResponseCode::ServFail);
        }
        let mut guests = lock(&self.guests);
        // While the question was under way the guest may have become another one.
        let guest = guests
            .get_mut(&from)
            .filter(|guest| guest.epoch == epoch)
            .ok_or(ResponseCode::ServFail)?;
        let (answer, seconds) = if guest.mode == Mode::Forward {
            forwarded(asked, message)
        } else {
            let (least, most) = self.limits.answer_seconds;
            match sift(&asked.name, message, &[self.bridge], least..=most) {
                Ok(sifted) => {
                    let answer = Answer {
                        code: sifted.code,
                        records: sifted.records,
                        authorities: Vec::new(),
                        addresses: sifted.addresses,
                    };
                    (answer, sifted.seconds)
                }
                Err(why) => {
                    self.deny(guest, from, asked, why, now);
                    return Err(ResponseCode::NXDomain);
                }
            }
        };
        let lasts = Duration::from_secs(u64::from(seconds.saturating_add(self.limits.grace_seconds)));
        if let Err(why) = guest.budget.addresses(&answer.addresses, lasts, now) {
            self.deny(guest, from, asked, why, now);
            return Err(ResponseCode::NXDomain);
        }
        guest
            .cache
            .keep(asked.domain.clone(), asked.kind, answer.clone(), seconds, now);
        Ok((answer, seconds))
    }

    /// Returns once the addresses are open. Asked for each answer, also one that was given before: whatever became of
    /// the policy meanwhile, the addresses are open when the guest reads of them.
    async fn open(
        &self,
        (guest, epoch): (Ipv4Addr, u64),
        asked: &Asked,
        addresses: &[Ipv4Addr],
        seconds: u32,
    ) -> Opening {
        let names = match lock(&self.guests).get(&guest) {
            Some(known) if known.epoch == epoch => known.mode.entries(&asked.domain),
            Some(_) | None => return Opening::Closed,
        };
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let (wish, outcome) = oneshot::channel();
        lock(&self.wishes).insert(id, wish);
        self.say(FromResolver::Open {
            id,
            guest,
            names,
            addresses: addresses.to_vec(),
            seconds: seconds.saturating_add(self.limits.grace_seconds),
        });
        let outcome = timeout(OPENING, outcome).await;
        lock(&self.wishes).remove(&id);
        match outcome {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => Opening::Closed,
        }
    }

    fn deny(&self, guest: &mut Guest, from: Ipv4Addr, asked: &Asked, why: Why, now: Instant) {
        if guest.tells(why, now) {
            let name: String = asked.domain.to_string().chars().take(128).collect();
            self.say(FromResolver::Denied {
                guest: from,
                question: format!("{name} {}", asked.kind),
                why,
            });
        }
    }

    /// Whether nobody answers at all is found out apart: a guest knows names that nobody answers for.
    fn nobody_answers(&self, reason: String) -> ResponseCode {
        lock(&self.doubt).get_or_insert(reason);
        ResponseCode::ServFail
    }
}

/// Looks now and then whether the host has other upstreams, and, when one did not answer, whether any does. Never ends.
pub(crate) async fn look_after_upstreams(resolver: Arc<Resolver>) {
    let mut told = (resolver.upstreams.list(), None);
    loop {
        tokio::time::sleep(LOOK).await;
        let list = resolver.upstreams.list();
        let doubt = lock(&resolver.doubt).take();
        let failing = match doubt.or_else(|| told.1.clone()) {
            None => None,
            Some(reason) => {
                let root = Name::root();
                let asking = resolver.upstreams.ask(&root, RecordType::NS, false);
                asking.await.is_err().then_some(reason)
            }
        };
        let now = (list, failing);
        if now != told {
            resolver.tell_upstreams(now.1.clone());
            told = now;
        }
    }
}

enum Considered {
    Answer(Answer),
    /// From the cache, good for so many seconds.
    Known(Answer, u32, u64),
    Ask(u64),
}

impl Answer {
    fn empty(code: ResponseCode) -> Self {
        Self {
            code,
            records: Vec::new(),
            authorities: Vec::new(),
            addresses: Vec::new(),
        }
    }
}

/// An upstream's answer for a guest in `nat`.
fn forwarded(asked: &Asked, message: &Message) -> (Answer, u32) {
    let mut answer = Answer {
        code: message.metadata.response_code,
        records: message.answers.clone(),
        authorities: message.authorities.clone(),
        addresses: Vec::new(),
    };
    respell(&mut answer.records, asked);
    let least = answer.records.iter().map(|record| record.ttl).min();
    (
        answer,
        least.unwrap_or(NEGATIVE_SECONDS).clamp(1, MOST_FORWARDED_SECONDS),
    )
}

/// Gives the asked name the letters the guest wrote: the upstream's are those it was asked with.
fn respell(records: &mut [Record], asked: &Asked) {
    for record in records.iter_mut().filter(|record| record.name == asked.name) {
        record.name = asked.name.clone();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers datagrams, for ever.
pub(crate) async fn serve_udp(resolver: Arc<Resolver>, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let mut running = JoinSet::new();
    let mut buffer = vec![0; 4096];
    loop {
        tokio::select! {
            received = socket.recv_from(&mut buffer), if running.len() < MOST_QUESTIONS => {
                let Ok((length, from)) = received else {
                    // Out of memory, at worst: it passes.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                let (IpAddr::V4(address), Some(bytes)) = (from.ip(), buffer.get(..length)) else {
                    continue;
                };
                let (resolver, socket, bytes) = (Arc::clone(&resolver), Arc::clone(&socket), bytes.to_vec());
                running.spawn(async move {
                    if let Some(answer) = resolver.answer(address, &bytes, false).await {
                        // A guest that is gone has no way for it.
                        let _ = socket.send_to(&answer, from).await;
                    }
                });
            }
            Some(_) = running.join_next() => {}
        }
    }
}

/// Answers streams, for ever.
pub(crate) async fn serve_tcp(resolver: Arc<Resolver>, listener: TcpListener) {
    let mut running: JoinSet<Ipv4Addr> = JoinSet::new();
    let mut streams: HashMap<Ipv4Addr, usize> = HashMap::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if running.len() < MOST_STREAMS => {
                let Ok((stream, from)) = accepted else {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                let IpAddr::V4(address) = from.ip() else { continue };
                let of_guest = streams.entry(address).or_default();
                if *of_guest >= MOST_STREAMS_OF_GUEST {
                    continue;
                }
                *of_guest += 1;
                let resolver = Arc::clone(&resolver);
                running.spawn(async move {
                    // Its end is the guest's business.
                    let _ = converse(&resolver, address, stream).await;
                    address
                });
            }
            Some(ended) = running.join_next() => match ended {
                Ok(address) => {
                    if let Some(count) = streams.get_mut(&address) {
                        *count -= 1;
                        if *count == 0 {
                            streams.remove(&address);
                        }
                    }
                }
                // A panic is not told whose it was: all are counted anew, none too often.
                Err(_) => streams.clear(),
            },
        }
    }
}

async fn converse(resolver: &Resolver, from: Ipv4Addr, mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let question = timeout(SILENCE, async {
            let length = stream.read_u16().await?;
            let mut question = vec![0; usize::from(length)];
            stream.read_exact(&mut question).await?;
            std::io::Result::Ok(question)
        })
        .await??;
        let Some(answer) = resolver.answer(from, &question, true).await else {
            return Ok(());
        };
        let length = u16::try_from(answer.len()).map_err(std::io::Error::other)?;
        let frame = [&length.to_be_bytes(), answer.as_slice()].concat();
        timeout(SILENCE, stream.write_all(&frame)).await??;
    }
}
