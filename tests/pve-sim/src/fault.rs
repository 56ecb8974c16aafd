//! What goes wrong, chosen by a seed: the same seed, the same calls, the same faults.

use std::time::Duration;

use crate::access::Identity;
use crate::audit::{Origin, origin_of};
use crate::locks::Mode;
use crate::random::Random;

/// How often each fault strikes, in 1000 chances. Only calls of clients are hit, never the operator's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// A call is answered late.
    pub delay: u32,
    /// 595, 596 or 599, and nothing was done.
    pub gateway_before: u32,
    /// 595, 596 or 599, and it was done.
    pub gateway_after: u32,
    /// The connection breaks before anything is done.
    pub drop_before: u32,
    /// The connection breaks after it was done.
    pub drop_after: u32,
    /// A right token is refused after 3 s.
    pub unauthorized: u32,
    /// A lock on a machine is not had in time.
    pub lock_timeout: u32,
    /// A worker fails before it does anything.
    pub task_error: u32,
    /// A worker ends well, with warnings.
    pub task_warning: u32,
    /// A worker that clones dies in the middle and cleans nothing up.
    pub half_done_clone: u32,
}

impl Rates {
    /// Hardly anything works.
    #[must_use]
    pub fn worst_day() -> Self {
        Self {
            delay: 200,
            gateway_before: 50,
            gateway_after: 80,
            drop_before: 50,
            drop_after: 80,
            unauthorized: 30,
            lock_timeout: 80,
            task_error: 100,
            task_warning: 200,
            half_done_clone: 80,
        }
    }

    /// A bad day: every kind, each rare enough that work still gets done.
    #[must_use]
    pub fn bad_day() -> Self {
        Self {
            delay: 60,
            gateway_before: 10,
            gateway_after: 15,
            drop_before: 10,
            drop_after: 15,
            unauthorized: 5,
            lock_timeout: 10,
            task_error: 15,
            task_warning: 40,
            half_done_clone: 10,
        }
    }
}

/// Every kind of trouble there is, as [`crate::Audit`] counts it: what a plan draws, and what an operator does.
pub const FAULTS: &[&str] = &[
    "late answer",
    "595 before the effect",
    "596 before the effect",
    "599 before the effect",
    "595 after the effect",
    "596 after the effect",
    "599 after the effect",
    "connection broken before the effect",
    "connection broken after the effect",
    "401",
    "lock not had in time",
    "task failed",
    "task with warnings",
    "clone died half way",
    "machine stopped",
    "machine destroyed",
    "machine renamed",
    "machine locked",
    "notes changed",
    "quorum lost",
    "node lost",
    "clock jumped",
    "foreign machine on a number",
];

#[derive(Debug)]
pub(crate) struct Faults {
    rates: Rates,
    random: Random,
}

#[derive(Debug)]
pub(crate) enum CallFault {
    None,
    Delay(Duration),
    Before(u16),
    After(u16),
    DropBefore,
    DropAfter,
    Unauthorized,
}

impl CallFault {
    /// As [`FAULTS`] has it.
    pub(crate) fn name(&self) -> Option<&'static str> {
        Some(match self {
            Self::None => return None,
            Self::Delay(_) => "late answer",
            Self::Before(595) => "595 before the effect",
            Self::Before(596) => "596 before the effect",
            Self::Before(_) => "599 before the effect",
            Self::After(595) => "595 after the effect",
            Self::After(596) => "596 after the effect",
            Self::After(_) => "599 after the effect",
            Self::DropBefore => "connection broken before the effect",
            Self::DropAfter => "connection broken after the effect",
            Self::Unauthorized => "401",
        })
    }
}

#[derive(Debug)]
pub(crate) enum WorkerFault {
    None,
    Fails(String),
    Warns,
    KilledAfter(Duration),
}

impl Faults {
    pub(crate) fn none() -> Self {
        Self::new(0, Rates::default())
    }

    pub(crate) fn new(seed: u64, rates: Rates) -> Self {
        Self {
            rates,
            random: Random::new(seed),
        }
    }

    pub(crate) fn for_call(&mut self, who: &Identity) -> CallFault {
        if self.rates == Rates::default() || origin_of(who) == Origin::Foreign {
            return CallFault::None;
        }
        let rates = self.rates;
        if self.random.happens(rates.unauthorized) {
            return CallFault::Unauthorized;
        }
        if self.random.happens(rates.gateway_before) {
            return CallFault::Before(self.status());
        }
        if self.random.happens(rates.gateway_after) {
            return CallFault::After(self.status());
        }
        if self.random.happens(rates.drop_before) {
            return CallFault::DropBefore;
        }
        if self.random.happens(rates.drop_after) {
            return CallFault::DropAfter;
        }
        if self.random.happens(rates.delay) {
            return CallFault::Delay(Duration::from_millis(self.random.below(20_000)));
        }
        CallFault::None
    }

    fn status(&mut self) -> u16 {
        match self.random.below(3) {
            0 => 595,
            1 => 596,
            _ => 599,
        }
    }

    pub(crate) fn for_worker(&mut self, who: &Identity, kind: &str) -> WorkerFault {
        if self.rates == Rates::default() || origin_of(who) == Origin::Foreign {
            return WorkerFault::None;
        }
        let rates = self.rates;
        if kind == "qmclone" && self.random.happens(rates.half_done_clone) {
            return WorkerFault::KilledAfter(Duration::from_millis(self.random.below(500)));
        }
        if self.random.happens(rates.task_error) {
            return WorkerFault::Fails("command '/usr/bin/false' failed: exit code 1".into());
        }
        if self.random.happens(rates.task_warning) {
            return WorkerFault::Warns;
        }
        WorkerFault::None
    }

    pub(crate) fn lock_times_out(&mut self, mode: Mode) -> bool {
        mode == Mode::Exclusive && self.random.happens(self.rates.lock_timeout)
    }
}
