//! A daemon that can be killed. A process is a runtime of its own: when it is dropped, every task ends at the
//! instruction where it waits, nothing is unwound in any order, and what is left is what a SIGKILL leaves: the files, the
//! hypervisor, the packet policy, and guests that know nothing of it.
//!
//! The clock is tokio's, paused: it moves when nobody has anything to do, and so a lease of an hour takes no time.

use std::future::pending;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentlab_store::StoreError;
use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::lab::Lab;
use crate::{Clock, Moment, Observer, Point};

/// What happens to a process at its commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// Nothing.
    Live,
    /// It ends at the n-th time it reaches this moment, counted from 0.
    Die { at: (Point, Moment), nth: usize },
    /// From this commit on, so many are refused, as a full disk would.
    Refuse { from: usize, times: usize },
    /// This commit is refused so many times.
    RefuseAt { point: Point, times: usize },
    /// The wall clock jumps by so many hours at every commit, there and back.
    Jump { hours: i64 },
}

/// Watches one process, and ends it.
#[derive(Debug)]
pub(super) struct Fate {
    plan: Plan,
    clock: WallClock,
    reached: Mutex<Vec<(Point, Moment)>>,
    is_dead: AtomicBool,
    died: Notify,
}

impl Fate {
    pub(super) fn new(plan: Plan, clock: &WallClock) -> Arc<Self> {
        Arc::new(Self {
            plan,
            clock: clock.clone(),
            reached: Mutex::default(),
            is_dead: AtomicBool::new(false),
            died: Notify::new(),
        })
    }

    pub(super) async fn died(&self) {
        self.died.notified().await;
    }

    pub(super) fn reached(&self) -> Vec<(Point, Moment)> {
        self.reached.lock().unwrap().clone()
    }
}

/// Each moment with how often it was reached before: where another process can be told to die.
pub(super) fn numbered(reached: &[(Point, Moment)]) -> Vec<((Point, Moment), usize)> {
    let before = |at: usize| {
        reached[..at]
            .iter()
            .filter(|moment| **moment == reached[at])
            .count()
    };
    (0..reached.len()).map(|at| (reached[at], before(at))).collect()
}

fn full_disk() -> StoreError {
    StoreError::File {
        action: "Writing",
        path: "agentlab.db".into(),
        source: io::ErrorKind::StorageFull.into(),
    }
}

#[async_trait]
impl Observer for Fate {
    async fn reached(&self, point: Point, moment: Moment) -> Result<(), StoreError> {
        if self.is_dead.load(Ordering::Relaxed) {
            pending::<()>().await;
        }
        let (before, commit) = {
            let mut reached = self.reached.lock().unwrap();
            let commit = reached.iter().filter(|(_, of)| *of == moment).count();
            let before = reached.iter().filter(|at| **at == (point, moment)).count();
            reached.push((point, moment));
            (before, commit)
        };
        let chosen = |from: usize, times: usize| (from..from + times).contains(&commit);
        match self.plan {
            Plan::Die { at, nth } if (at, nth) == ((point, moment), before) => {
                self.is_dead.store(true, Ordering::Relaxed);
                self.died.notify_one();
                pending().await
            }
            Plan::Refuse { from, times } if moment == Moment::Before && chosen(from, times) => {
                Err(full_disk())
            }
            Plan::RefuseAt { point: of, times }
                if (of, Moment::Before) == (point, moment) && before < times =>
            {
                Err(full_disk())
            }
            Plan::Jump { hours } if moment == Moment::Before => {
                let there = if commit % 2 == 0 { hours } else { 0 };
                self.clock.jump_to(SignedDuration::from_hours(there));
                Ok(())
            }
            Plan::Live
            | Plan::Die { .. }
            | Plan::Refuse { .. }
            | Plan::RefuseAt { .. }
            | Plan::Jump { .. } => Ok(()),
        }
    }
}

/// Wall time that goes with tokio's, over all processes of a world, unless somebody sets it.
#[derive(Debug, Clone)]
pub(super) struct WallClock(Arc<Mutex<Reading>>);

#[derive(Debug)]
struct Reading {
    /// When the present process began.
    base: Timestamp,
    began: Option<Instant>,
    off: SignedDuration,
}

impl WallClock {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Reading {
            base: Timestamp::now(),
            began: None,
            off: SignedDuration::ZERO,
        })))
    }

    pub(super) fn process_begins(&self) {
        self.0.lock().unwrap().began = Some(Instant::now());
    }

    pub(super) fn process_ends(&self) {
        let mut reading = self.0.lock().unwrap();
        if let Some(began) = reading.began.take() {
            reading.base += began.elapsed();
        }
    }

    pub(super) fn jump_to(&self, off: SignedDuration) {
        self.0.lock().unwrap().off = off;
    }
}

impl Clock for WallClock {
    fn now(&self) -> Timestamp {
        let reading = self.0.lock().unwrap();
        let ran = reading.began.map_or(Duration::ZERO, |began| began.elapsed());
        reading.base + ran + reading.off
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It was killed where its plan said.
    Killed,
    /// What it was to live through came to its end.
    Finished,
}

/// Everything that outlives a process.
pub(super) struct World {
    /// Of the last process; its engine is gone.
    last: Option<Lab>,
    clock: WallClock,
}

impl World {
    pub(super) fn new(change: impl FnOnce(&mut Lab)) -> Self {
        let clock = WallClock::new();
        let mut lab = runtime().block_on(Lab::stopped());
        lab.clock = Arc::new(clock.clone());
        lab.settings.reconcile_interval = Duration::from_secs(2);
        change(&mut lab);
        Self {
            last: Some(lab),
            clock,
        }
    }

    /// What the next process will find.
    pub(super) fn lab(&self) -> &Lab {
        self.last.as_ref().unwrap()
    }

    /// One process, from its start to its end or until `life` is over.
    pub(super) fn process(
        &mut self,
        plan: Plan,
        life: impl AsyncFnOnce(&Lab),
    ) -> (End, Vec<(Point, Moment)>) {
        self.process_until(plan, pending(), life)
    }

    /// The same, killed also when `killed` is ready.
    pub(super) fn process_until(
        &mut self,
        plan: Plan,
        killed: impl Future<Output = ()>,
        life: impl AsyncFnOnce(&Lab),
    ) -> (End, Vec<(Point, Moment)>) {
        let fate = Fate::new(plan, &self.clock);
        let last = self.last.take().unwrap();
        let runtime = runtime();
        let (mut lab, end) = runtime.block_on(async {
            self.clock.process_begins();
            let mut lab = last.next_process().await;
            lab.observer = Some(fate.clone());
            let whole = async {
                lab.start().await;
                life(&lab).await;
            };
            let end = tokio::select! {
                biased;
                () = fate.died() => End::Killed,
                () = killed => End::Killed,
                () = whole => End::Finished,
            };
            self.clock.process_ends();
            (lab, end)
        });
        // Every task of the process ends here, wherever it is.
        drop(runtime);
        lab.engine = None;
        self.last = Some(lab);
        (end, fate.reached())
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
}
