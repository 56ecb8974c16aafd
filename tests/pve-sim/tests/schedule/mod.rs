//! Engine and REST back end on the stand-in, while everything goes wrong that can, as a seed says.
//!
//! ```text
//!   storm    calls and workers fail, an operator is at the machines, quorum and node come and go, the daemon is
//!            killed and begins again
//!   calm     the same daemon, or the next one, brings everything to its end
//!   judge    every job ended and says why, nothing is left, nothing foreign was touched, nobody ran unbound
//! ```
//!
//! `AGENTLAB_SEEDS=10000` runs so many, `AGENTLAB_SEED=17` only that one.

mod crowd;
mod guests;
mod wires;
mod world;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use agentlab_api::{JobRequest, JobState, JobView, RepositorySource, SandboxState};
use agentlab_store::EventFilter;
use jiff::Timestamp;
use pve_sim::{FAULTS, Rates, Version};
use tokio::time::{sleep, timeout};

use world::{Daemon, World};

/// How often guests, operators and we look.
const PACE: Duration = Duration::from_millis(500);
/// How long things go wrong.
const STORM: Duration = Duration::from_secs(240);
/// Longest life of a world, in its own time.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// How many seeds are tried when nobody asks for more, and in how many parts.
const SEEDS: u64 = 2000;
const PARTS: u64 = 4;

/// Numbers that are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// What the world remembers over all daemons.
struct Schedule {
    seed: u64,
    dice: RefCell<Dice>,
    world: World,
    /// In so many looks somebody does something once.
    calmness: u64,
    jobs: RefCell<Vec<Option<JobView>>>,
    is_calm: RefCell<bool>,
    /// Why a job was not taken last.
    refused: RefCell<String>,
}

impl Schedule {
    fn new(seed: u64) -> Self {
        let version = if seed.is_multiple_of(2) {
            Version::V8
        } else {
            Version::V9
        };
        let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        for _ in 0..8 {
            dice.below(2);
        }
        let jobs = 1 + dice.below(3);
        let world = World::new(version, seed);
        let rates = [Rates::bad_day(), Rates::default(), Rates::worst_day()];
        let rates = rates[usize::try_from(dice.below(3)).unwrap()];
        world.sim.plan_faults(seed, rates);
        let calmness = 8 + dice.below(60);
        Self {
            seed,
            dice: RefCell::new(dice),
            world,
            calmness,
            jobs: RefCell::new((0..jobs).map(|_| None).collect()),
            is_calm: RefCell::new(false),
            refused: RefCell::default(),
        }
    }

    /// Nothing goes wrong, and nobody dies.
    fn fair(version: Version, jobs: usize) -> Self {
        Self {
            seed: 0,
            dice: RefCell::new(Dice(0)),
            world: World::new(version, 0),
            calmness: u64::MAX,
            jobs: RefCell::new((0..jobs).map(|_| None).collect()),
            is_calm: RefCell::new(true),
            refused: RefCell::default(),
        }
    }

    fn roll(&self, end: u64) -> u64 {
        self.dice.borrow_mut().below(end)
    }

    fn live(&self) {
        for _ in 0..self.roll(4) {
            let span = Duration::from_millis(self.roll(90_000));
            if self
                .world
                .process(Some(span), async |daemon| self.whole(daemon).await)
            {
                return;
            }
        }
        let finished = self.world.process(None, async |daemon| self.whole(daemon).await);
        assert!(finished);
    }

    async fn whole(&self, daemon: &Daemon) {
        let life = async {
            tokio::select! {
                () = self.client(daemon) => {}
                () = self.surroundings(daemon) => {}
            }
        };
        let ended = timeout(PATIENCE, life).await;
        if ended.is_err() {
            for record in daemon.store.sandboxes(true).await.unwrap() {
                println!("{record:#?}");
                println!("open: {:?}", daemon.store.open_intents(record.id).await);
            }
            for event in daemon
                .store
                .events(&EventFilter::default(), 0, 1000)
                .await
                .unwrap()
            {
                println!("{} {}: {}", event.time, event.kind, event.message);
            }
            let (jobs, refused, left) = (self.jobs.borrow(), self.refused.borrow(), self.world.sim.left());
            panic!(
                "seed {}: no end: {jobs:#?}\n{refused}\n{left:?}\n{}",
                self.seed,
                self.history()
            );
        }
        self.judge(daemon).await;
    }

    /// Whoever asks for jobs, and takes failed sandboxes away.
    async fn client(&self, daemon: &Daemon) {
        let count = self.jobs.borrow().len();
        for at in 0..count {
            loop {
                if self.jobs.borrow()[at].is_some() {
                    break;
                }
                let made = daemon
                    .engine
                    .create_job(request(), Some(format!("key-{at}")))
                    .await;
                match made {
                    Ok(job) => self.jobs.borrow_mut()[at] = Some(job),
                    Err(problem) => {
                        *self.refused.borrow_mut() = format!("{problem:?}");
                        sleep(PACE).await;
                    }
                }
            }
        }
        while !*self.is_calm.borrow() {
            sleep(PACE).await;
        }
        loop {
            let jobs: Vec<JobView> = self.jobs.borrow().iter().flatten().cloned().collect();
            let mut all_gone = true;
            for (at, job) in jobs.iter().enumerate() {
                let Ok(now) = daemon.engine.job(&job.id).await else {
                    all_gone = false;
                    continue;
                };
                let is_final = now.state.is_final();
                all_gone &= is_final && self.is_gone(daemon, &now).await;
                self.jobs.borrow_mut()[at] = Some(now);
            }
            if all_gone {
                // Gives reconciliation its turn.
                sleep(Duration::from_secs(120)).await;
                return;
            }
            sleep(PACE * 4).await;
        }
    }

    async fn is_gone(&self, daemon: &Daemon, job: &JobView) -> bool {
        let Some(id) = job.sandbox else {
            return true;
        };
        let Ok(Some(record)) = daemon.store.sandbox(id).await else {
            return false;
        };
        if record.state == SandboxState::Failed && (!record.unwinding || record.cursor.is_empty()) {
            drop(daemon.engine.destroy_sandbox(&id.to_string(), false).await);
        }
        record.state == SandboxState::Destroyed
    }

    /// Guests, the operator, and the weather.
    async fn surroundings(&self, daemon: &Daemon) {
        let operator = self.world.sim.operator();
        loop {
            sleep(PACE).await;
            operator.let_time_pass();
            let now = self.world.sim.elapsed();
            self.world.guests.speak(now, &daemon.engine, &operator).await;
            let unbound = self.world.guests.unbound(&operator.clients_machines());
            assert!(
                unbound.is_empty(),
                "seed {}: {unbound:?}\n{}",
                self.seed,
                self.history()
            );
            if now < STORM {
                if self.calmness < u64::MAX {
                    self.mischief(&operator);
                }
            } else if !self.is_calm.replace(true) {
                self.world.sim.plan_faults(0, Rates::default());
                self.clear_up(&operator);
                operator.clear_half_done();
            }
        }
    }

    /// Now and then somebody does something.
    fn mischief(&self, operator: &pve_sim::Operator) {
        if self.roll(self.calmness) != 0 {
            return;
        }
        let machines = operator.clients_machines();
        let pick = |roll: u64| {
            machines
                .get(usize::try_from(roll).unwrap() % machines.len().max(1))
                .copied()
        };
        let chosen = pick(self.roll(1 << 20));
        match (self.roll(10), chosen) {
            (0, Some(vmid)) => operator.stop(vmid),
            (1, Some(vmid)) => operator.destroy(vmid),
            (2, Some(vmid)) => operator.configure(vmid, "name", Some("renamed")),
            (3, Some(vmid)) => operator.configure(vmid, "lock", Some("backup")),
            (4, Some(vmid)) => operator.configure(vmid, "description", Some("mine now")),
            (5, _) => operator.set_quorate(false),
            (6, _) => operator.set_online(self.world.sim.node(), false),
            (7, _) => operator.jump_clock(3600 * (i64::try_from(self.roll(49)).unwrap() - 24)),
            (8, _) => drop(operator.create_foreign(1000 + u32::try_from(self.roll(6)).unwrap())),
            _ => self.clear_up(operator),
        }
    }

    /// What an operator did for a while is over.
    fn clear_up(&self, operator: &pve_sim::Operator) {
        operator.set_quorate(true);
        operator.set_online(self.world.sim.node(), true);
        for vmid in operator.clients_machines() {
            let held = operator
                .config(vmid)
                .and_then(|config| config.get("lock").cloned());
            if held.as_deref() == Some("backup") {
                operator.configure(vmid, "lock", None);
            }
        }
    }

    /// Every change of anything on the node, in order.
    fn history(&self) -> String {
        self.world.sim.audit().changes.join("\n")
    }

    async fn judge(&self, daemon: &Daemon) {
        let seed = self.seed;
        for job in self.jobs.borrow().iter().flatten() {
            assert!(job.state.is_final(), "seed {seed}: {job:#?}");
            let says_why = job
                .failure
                .as_ref()
                .is_some_and(|failure| !failure.message.is_empty());
            assert!(
                job.state == JobState::Completed || says_why,
                "seed {seed}: {job:#?}"
            );
        }
        let left = self.world.sim.left();
        assert!(left.is_empty(), "seed {seed}: {left:?}\n{}", self.history());
        let touched = self.world.sim.audit().foreign_touched;
        assert!(
            touched.is_empty(),
            "seed {seed}: {touched:#?}\n{}",
            self.history()
        );
        assert_eq!(self.world.wires.ports(), [], "seed {seed}");
        let tokens = daemon.store.live_tokens(Timestamp::MIN).await.unwrap();
        assert_eq!(tokens, 0, "seed {seed}: tokens");
        for record in daemon.store.sandboxes(true).await.unwrap() {
            assert_eq!(record.left_behind, Vec::<String>::new(), "seed {seed}");
            assert_eq!(
                daemon.store.open_intents(record.id).await.unwrap(),
                [],
                "seed {seed}"
            );
        }
    }
}

fn request() -> JobRequest {
    JobRequest {
        repository: RepositorySource::Url {
            url: "https://example.org/a.git".into(),
        },
        reference: None,
        task: "true".into(),
        profile: "demo".into(),
        agent: None,
        deadline_seconds: Some(60),
        ttl_minutes: None,
        keepalive: None,
        workspace: None,
        workspace_wait_seconds: None,
        push: None,
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// One part of all seeds. Each is a test of its own, so that a machine with several cores is done sooner.
fn play(part: u64) {
    // What a daemon thought, for whoever plays a seed again: `RUST_LOG=agentlab_engine=debug`.
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_default_env() {
        drop(tracing_subscriber::fmt().with_env_filter(filter).try_init());
    }
    let only = number("AGENTLAB_SEED");
    let seeds = number("AGENTLAB_SEEDS").unwrap_or(SEEDS);
    let chosen = |seed: &u64| seed % PARTS == part && only.is_none_or(|only| only == *seed);
    let mut ends = BTreeMap::<String, usize>::new();
    let mut struck: BTreeMap<&str, u64> = FAULTS.iter().map(|fault| (*fault, 0)).collect();
    for seed in (0..seeds.max(only.map_or(0, |only| only + 1))).filter(chosen) {
        println!("seed {seed}");
        let schedule = Schedule::new(seed);
        schedule.live();
        for job in schedule.jobs.borrow().iter().flatten() {
            *ends.entry(format!("{:?}", job.state)).or_default() += 1;
        }
        for (fault, times) in schedule.world.sim.audit().struck {
            *struck.entry(fault).or_default() += times;
        }
    }
    println!("{ends:?}");
    println!("{struck:#?}");
    let never: Vec<_> = struck.iter().filter(|(_, times)| **times == 0).collect();
    assert!(
        only.is_some() || seeds < SEEDS || never.is_empty(),
        "{seeds} seeds never drew {never:?}"
    );
}

macro_rules! parts {
    ($($name:ident: $part:literal,)*) => {
        $(#[test]
        fn $name() {
            play($part);
        })*
    };
}

parts! {
    whatever_goes_wrong_every_job_ends_and_nothing_is_left_0: 0,
    whatever_goes_wrong_every_job_ends_and_nothing_is_left_1: 1,
    whatever_goes_wrong_every_job_ends_and_nothing_is_left_2: 2,
    whatever_goes_wrong_every_job_ends_and_nothing_is_left_3: 3,
}
