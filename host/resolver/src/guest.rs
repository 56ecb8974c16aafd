//! One guest as the resolver knows it: what it may ask, what it has left, what it was told.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::budget::{Allowance, Budget, Limits};
use crate::cache::Cache;
use crate::domain::Allowed;
use crate::judge::{Mode, Why};

/// Questions of one guest that wait for an upstream at once: twenty guests together do not take every place there is.
const MOST_WAITING: usize = 48;
/// Denials of one guest that the daemon is told of.
const TOLD: Allowance = Allowance {
    size: 50.0,
    refill: 10.0,
};

/// A kind of denial that was not told for so long is told however many others are.
const QUIET: Duration = Duration::from_secs(10);

/// A guest that may ask.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) mode: Mode,
    pub(crate) budget: Budget,
    pub(crate) cache: Cache,
    /// Another one after every change: an answer that waited through it is not for this guest any more.
    pub(crate) epoch: u64,
    waiting: usize,
    told: (f64, Instant),
    /// When each kind of denial was told last.
    kinds: BTreeMap<Why, Instant>,
}

impl Guest {
    pub(crate) fn new(names: Option<Vec<String>>, limits: Limits, epoch: u64, now: Instant) -> Self {
        let mode = match names {
            None => Mode::Forward,
            Some(names) => Mode::Filter(Allowed::new(names.iter().map(String::as_str))),
        };
        Self {
            budget: Budget::new(limits, mode == Mode::Forward, now),
            mode,
            cache: Cache::default(),
            epoch,
            waiting: 0,
            told: (TOLD.size, now),
            kinds: BTreeMap::new(),
        }
    }

    pub(crate) fn begin(&mut self) -> bool {
        let fits = self.waiting < MOST_WAITING;
        self.waiting += usize::from(fits);
        fits
    }

    pub(crate) fn end(&mut self) {
        self.waiting = self.waiting.saturating_sub(1);
    }

    /// Whether the daemon is to be told of one more denial. Many of one kind must not hide another kind.
    pub(crate) fn tells(&mut self, why: Why, now: Instant) -> bool {
        let last = self.kinds.insert(why, now);
        if last.is_none_or(|last| now.saturating_duration_since(last) >= QUIET) {
            return true;
        }
        // Not told: the time of the last one that was stands.
        self.kinds.extend(last.map(|last| (why, last)));
        let passed = now.saturating_duration_since(self.told.1).as_secs_f64();
        let left = (self.told.0 + passed * TOLD.refill).min(TOLD.size);
        let tells = left >= 1.0;
        self.told = (if tells { left - 1.0 } else { left }, now);
        tells
    }
}
