//! The sandboxes' resolver: a process of its own that may do nothing, started, watched and started again from here.
//!
//! ```text
//!   set_trust ──► admit, forget ──┐                     ┌──► agentlab-resolver (uid agentlab-dns, no capability)
//!                                 ├── attend ── line ───┤        │ UDP and TCP port 53 of the bridge address,
//!   policy thread ◄── open? ──────┘                     └────────┘ bound here, handed over
//! ```
//!
//! It reads what guests and strangers wrote, so nothing it says is believed: it asks for addresses to be opened, and
//! the policy's thread decides. When it dies, names are not resolved until the next one runs, which has the same
//! sockets; nothing opens meanwhile.

mod child;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agentlab_config::Config;
use agentlab_engine::port::Disturbance;
use agentlab_resolver::budget::Limits;
use agentlab_resolver::message::{FromResolver, ToResolver};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use self::child::{Child, Sockets};
use super::names::Wish;
use super::{Task, Watched};

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Between the end of one and the start of the next, doubled each time.
const LEAST_PAUSE: Duration = Duration::from_millis(250);
const MOST_PAUSE: Duration = Duration::from_secs(30);
/// One that ran for so long was no failure of starting it.
const RAN_WELL: Duration = Duration::from_secs(60);
/// How long a question whether names are resolved waits for one that is about to be.
const PATIENCE: Duration = Duration::from_secs(3);

/// How it is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Condition {
    /// It has not said anything yet.
    Starting,
    /// Names are resolved.
    Works,
    /// They would be, if those it asks answered.
    Failing(String),
    /// They are not, for now.
    Down(String),
    /// They never will be, with this configuration.
    Off,
}

/// The resolver as the policy knows it. Dropping the last one ends the process.
#[derive(Debug, Clone)]
pub(super) struct Resolver {
    guests: Arc<Mutex<Guests>>,
    condition: watch::Receiver<Condition>,
    commands: UnboundedSender<ToResolver>,
    _task: Arc<JoinSet<()>>,
}

/// Who may ask; names of its allowlist, or anything.
type Guests = BTreeMap<Ipv4Addr, Option<Vec<String>>>;

/// What every one of them is started with.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    pub(super) program: Result<PathBuf, String>,
    /// User and group; those of the daemon itself where it is not root.
    pub(super) account: Option<(u32, u32)>,
    pub(super) start: ToResolver,
    pub(super) bridge: Ipv4Addr,
}

impl Resolver {
    /// Begins to run it, and to run it again whenever it ends. `queue` is the policy's thread, `finder` is told how it is.
    pub(super) fn start(
        config: &Config,
        limits: Limits,
        queue: Sender<Task>,
        finder: UnboundedSender<Disturbance>,
    ) -> Self {
        let guests = Arc::new(Mutex::default());
        let (commands, received) = unbounded_channel();
        let (teller, condition) = watch::channel(Condition::Starting);
        let mut task = JoinSet::new();
        // Without a way out no level is given whose guests ask.
        if config.dns.enabled && config.uplink.is_some() {
            let bridge = config.bridge_address.address;
            let attendant = Attendant {
                setup: Setup {
                    program: child::program(),
                    account: child::account(config.qemu.uid_first),
                    start: ToResolver::Start {
                        limits,
                        upstreams: config.dns.upstreams.clone(),
                        resolv_conf: RESOLV_CONF.into(),
                        bridge,
                    },
                    bridge,
                },
                guests: Arc::clone(&guests),
                commands: received,
                condition: teller,
                queue,
                finder,
            };
            task.spawn(attendant.attend());
        } else {
            teller.send_replace(Condition::Off);
        }
        Self {
            guests,
            condition,
            commands,
            _task: Arc::new(task),
        }
    }

    /// Whether guests' names are resolved, or will be in a moment. `needed` when somebody else may do it.
    pub(super) async fn works(&self, needed: bool) -> Result<(), String> {
        let mut condition = self.condition.clone();
        let settled = condition.wait_for(|condition| {
            matches!(
                condition,
                Condition::Works | Condition::Failing(_) | Condition::Off
            )
        });
        // Not settled in time: what it is now says why.
        let _ = tokio::time::timeout(PATIENCE, settled).await.is_ok();
        let now = self.condition.borrow().clone();
        match now {
            Condition::Works | Condition::Failing(_) => Ok(()),
            Condition::Off if !needed => Ok(()),
            Condition::Off => Err(
                "`dns.enabled` is false in config.yaml, and only the daemon's own resolver filters".into(),
            ),
            Condition::Starting => Err("the resolver is still starting".into()),
            Condition::Down(reason) => Err(reason),
        }
    }

    /// Lets a guest ask from here on: what the names allow, or anything.
    pub(super) fn admit(&self, address: Ipv4Addr, names: Option<Vec<String>>) {
        lock(&self.guests).insert(address, names.clone());
        // Without an attendant nobody resolves.
        let _ = self.commands.send(ToResolver::Guest { address, names });
    }

    /// Ends that. One that was never admitted is fine.
    pub(super) fn forget(&self, address: Ipv4Addr) {
        if lock(&self.guests).remove(&address).is_some() {
            let _ = self.commands.send(ToResolver::Forget { address });
        }
    }
}

/// Runs the process, one after the other.
struct Attendant {
    setup: Setup,
    guests: Arc<Mutex<Guests>>,
    commands: UnboundedReceiver<ToResolver>,
    condition: watch::Sender<Condition>,
    queue: Sender<Task>,
    finder: UnboundedSender<Disturbance>,
}

impl Attendant {
    async fn attend(mut self) {
        let mut pause = LEAST_PAUSE;
        let mut sockets = None;
        loop {
            let begun = Instant::now();
            let reason = match self.run(&mut sockets).await {
                Ok(never) => match never {},
                Err(reason) => reason,
            };
            if begun.elapsed() >= RAN_WELL {
                pause = LEAST_PAUSE;
            }
            tracing::error!(%reason, again_in = ?pause, "The resolver of the sandboxes does not run");
            self.is(Condition::Down(reason));
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MOST_PAUSE);
        }
    }

    /// Runs one until it ends, which is always for a reason. The sockets stay here: what guests ask between two
    /// processes waits in them.
    async fn run(&mut self, sockets: &mut Option<Sockets>) -> Result<std::convert::Infallible, String> {
        let sockets = match sockets {
            Some(sockets) => sockets,
            None => sockets.insert(Sockets::bind(self.setup.bridge)?),
        };
        let mut child = Child::start(&self.setup, sockets)?;
        // Whatever was said to an earlier one is part of the books.
        while self.commands.try_recv().is_ok() {}
        let guests = lock(&self.guests).clone();
        for (address, names) in guests {
            child.say(ToResolver::Guest { address, names });
        }
        loop {
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => child.say(command),
                    None => return Err("the policy has ended".into()),
                },
                heard = child.hear() => self.heard(heard?, &child).await?,
            }
        }
    }

    /// Returns when it is done: one that asks without end waits, and fills nothing but its own line.
    async fn heard(&self, message: FromResolver, child: &Child) -> Result<(), String> {
        match message {
            FromResolver::Upstreams { list, failing } => {
                self.is(upstream_condition(&list, failing));
                Ok(())
            }
            FromResolver::Open {
                id,
                guest,
                names,
                addresses,
                seconds,
            } => {
                let wish = Wish {
                    guest,
                    names,
                    addresses,
                    seconds,
                };
                let outcome = self.on_policy(move |watched| watched.open(&wish)).await?;
                child.say(ToResolver::Opened { id, outcome });
                Ok(())
            }
            FromResolver::Denied { guest, question, why } => {
                self.on_policy(move |watched| watched.unanswered(guest, &question, why))
                    .await
            }
        }
    }

    async fn on_policy<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Watched) -> T + Send + 'static,
    ) -> Result<T, String> {
        let gone = || "the policy's thread has ended".to_owned();
        let (reply, answer) = oneshot::channel();
        let task: Task = Box::new(move |watched| {
            let _ = reply.send(work(watched));
        });
        self.queue.send(task).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }

    /// Notes how it is, and tells of a change.
    fn is(&self, now: Condition) {
        let before = self.condition.send_replace(now.clone());
        if before == now {
            return;
        }
        let told = match now {
            Condition::Down(reason) | Condition::Failing(reason) => Disturbance::Unresolved(reason),
            Condition::Works if before != Condition::Starting => Disturbance::Resolved,
            Condition::Works | Condition::Starting | Condition::Off => return,
        };
        // Nobody listens any more when the engine has stopped.
        let _ = self.finder.send(told);
    }
}

fn upstream_condition(list: &[std::net::SocketAddr], failing: Option<String>) -> Condition {
    if list.is_empty() {
        return Condition::Down(format!(
            "it has no upstream: name one in `dns.upstreams` of config.yaml, or a name server in {RESOLV_CONF}"
        ));
    }
    match failing {
        // What it says is what a stranger may have chosen.
        Some(reason) => Condition::Failing(format!(
            "no upstream answers: {}",
            reason.escape_debug().take(200).collect::<String>()
        )),
        None => {
            let upstreams: Vec<String> = list.iter().map(ToString::to_string).collect();
            tracing::info!(
                upstreams = upstreams.join(", "),
                "Names of sandboxes are resolved"
            );
            Condition::Works
        }
    }
}

fn lock(guests: &Mutex<Guests>) -> MutexGuard<'_, Guests> {
    guests.lock().unwrap_or_else(PoisonError::into_inner)
}
