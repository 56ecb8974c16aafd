//! Guests of the stand-in's machines: they read the seed their machine was started with, and follow a script. They
//! know nothing of daemons that die.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentlab_engine::{Engine, GuestOrigin, GuestRefusal};
use agentlab_protocol::message::{Heartbeat, Order, Phase, RedeemRequest, Report, ReportStatus};
use agentlab_protocol::secret::Secret32;
use agentlab_protocol::seed::Seed;
use agentlab_protocol::session::{decode_secret, encode_secret};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pve_sim::{Boot, Operator, Powered};

use super::wires::Wires;

/// From power-on to the first word.
const BOOT: Duration = Duration::from_secs(8);

/// Signs of life until its work is done.
const WORK: u32 = 60;

/// What one guest knows; another power-on makes another guest.
#[derive(Debug)]
struct Guest {
    since: Duration,
    seed: Option<Seed>,
    session: Option<Secret32>,
    order: Option<String>,
    acknowledged: bool,
    beats: u32,
    paused: bool,
    done: bool,
}

#[derive(Debug, Default)]
struct Inner {
    now: Duration,
    guests: BTreeMap<u32, Guest>,
    unbound: Vec<String>,
}

/// All guests. They outlive every daemon, as machines do.
#[derive(Debug, Clone, Default)]
pub(super) struct Guests {
    inner: Arc<Mutex<Inner>>,
    wires: Wires,
}

impl Boot for Guests {
    fn power_on(&self, machine: Powered) {
        let mut inner = self.inner.lock().unwrap();
        let text = machine
            .serial()
            .and_then(|serial| URL_SAFE_NO_PAD.decode(serial).ok());
        let seed = text.and_then(|bytes| Seed::decode(&bytes).ok());
        // A late call of a daemon that died may start what an operator has made his own meanwhile. No binding is ours to
        // hold for it then, and without one its port passes nothing.
        let is_ours = machine
            .value("description")
            .is_some_and(|description| description.contains("agentlab:"));
        if seed.is_some() && is_ours && !self.wires.is_bound(machine.vmid) {
            inner
                .unbound
                .push(format!("VM {} was started unbound", machine.vmid));
        }
        let guest = Guest {
            since: inner.now,
            seed,
            session: None,
            order: None,
            acknowledged: false,
            beats: 0,
            paused: false,
            done: false,
        };
        inner.guests.insert(machine.vmid, guest);
    }

    fn power_off(&self, vmid: u32) {
        self.inner.lock().unwrap().guests.remove(&vmid);
    }

    fn paused(&self, vmid: u32, paused: bool) {
        if let Some(guest) = self.inner.lock().unwrap().guests.get_mut(&vmid) {
            guest.paused = paused;
        }
    }

    fn destroyed(&self, vmid: u32) {
        self.power_off(vmid);
    }
}

/// What a guest wants to say next.
enum Word {
    Redeem(Seed),
    Acknowledge,
    Beat,
    Report(String, ReportStatus),
}

impl Guests {
    pub(super) fn new(wires: Wires) -> Self {
        Self {
            inner: Arc::default(),
            wires,
        }
    }

    /// Which of these machines run without a binding, and which were started so.
    pub(super) fn unbound(&self, ours: &[u32]) -> Vec<String> {
        let inner = self.inner.lock().unwrap();
        let now = inner
            .guests
            .iter()
            .filter(|(vmid, guest)| {
                guest.seed.is_some() && ours.contains(vmid) && !self.wires.is_bound(**vmid)
            })
            .map(|(vmid, _)| format!("VM {vmid} runs unbound"));
        inner.unbound.iter().cloned().chain(now).collect()
    }

    /// Everybody says one word.
    pub(super) async fn speak(&self, now: Duration, engine: &Engine, operator: &Operator) {
        let all: Vec<u32> = {
            let mut inner = self.inner.lock().unwrap();
            inner.now = now;
            inner.guests.keys().copied().collect()
        };
        for vmid in all {
            let Some((word, origin, session)) = self.next(vmid, now) else {
                continue;
            };
            let ended = matches!(word, Word::Report(..));
            match self.say(vmid, word, origin, session, engine).await {
                Ok(()) if ended => self.change(vmid, |guest| guest.done = true),
                Ok(()) | Err(GuestRefusal::Unavailable(_)) => {}
                // A runner that is turned away ends, and its machine with it.
                Err(_) => operator.stop(vmid),
            }
        }
    }

    fn change(&self, vmid: u32, change: impl FnOnce(&mut Guest)) {
        if let Some(guest) = self.inner.lock().unwrap().guests.get_mut(&vmid) {
            change(guest);
        }
    }

    fn next(&self, vmid: u32, now: Duration) -> Option<(Word, GuestOrigin, Option<Secret32>)> {
        let inner = self.inner.lock().unwrap();
        let guest = inner.guests.get(&vmid)?;
        let seed = guest.seed.as_ref()?;
        if guest.paused || guest.done || now < guest.since + BOOT {
            return None;
        }
        let address: Ipv4Addr = seed.address;
        let word = match (&guest.session, &guest.order) {
            (None, _) => Word::Redeem(seed.clone()),
            (Some(_), _) if !guest.acknowledged => Word::Acknowledge,
            (Some(_), Some(job)) if guest.beats >= WORK => Word::Report(job.clone(), ReportStatus::Completed),
            (Some(_), _) => Word::Beat,
        };
        Some((word, GuestOrigin::Address(address), guest.session.clone()))
    }

    async fn say(
        &self,
        vmid: u32,
        word: Word,
        origin: GuestOrigin,
        session: Option<Secret32>,
        engine: &Engine,
    ) -> Result<(), GuestRefusal> {
        if let Word::Redeem(seed) = &word {
            let request = RedeemRequest {
                vmid: seed.vmid,
                token: encode_secret(&seed.token),
                runner_key: encode_secret(&Secret32::new([9; 32])),
                runner_version: env!("CARGO_PKG_VERSION").into(),
            };
            let answer = engine.redeem(origin, request).await?;
            self.change(vmid, |guest| {
                guest.session = decode_secret(answer.session.expose());
                if let Order::Job(order) = &answer.order {
                    guest.order = Some(order.job.clone());
                }
            });
            return Ok(());
        }
        let Some(session) = session else {
            return Ok(());
        };
        let session = engine.authenticate(origin, &session).await?;
        match word {
            Word::Redeem(_) => Ok(()),
            Word::Acknowledge => {
                engine.acknowledge(&session).await?;
                self.change(vmid, |guest| guest.acknowledged = true);
                Ok(())
            }
            Word::Beat => {
                let cancelled = engine.heartbeat(&session, beat()).await?.cancel;
                self.change(vmid, |guest| guest.beats += if cancelled { WORK } else { 1 });
                Ok(())
            }
            Word::Report(job, status) => engine.report(&session, report(&job, status)).await,
        }
    }
}

/// Only what a runner must say; what else it may, has a default.
fn report(job: &str, status: ReportStatus) -> Report {
    let said = serde_json::json!({
        "version": 1, "job": job, "status": status, "exit_code": 0, "commits": 0, "uncommitted": false,
        "agent_milliseconds": 5, "artifacts": [], "left_out": [], "inner_sandbox": "bubblewrap",
    });
    serde_json::from_value(said).unwrap()
}

fn beat() -> Heartbeat {
    serde_json::from_value(serde_json::json!({ "phase": Phase::Agent, "message": "" })).unwrap()
}
