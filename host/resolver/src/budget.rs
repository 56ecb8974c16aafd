//! How much a guest may ask. Every name that leaves the host carries what the guest wrote into it, so what is new is
//! paid for: once per name, and by the byte. Told the time, never asking for it.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::domain::Domain;
use crate::judge::Why;

/// Names a guest paid for that are remembered; the oldest are paid for again.
const MOST_SEEN: usize = 4096;

/// What refills with time, up to a size.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Allowance {
    /// When full, and at the start.
    pub size: f64,
    /// In a second.
    pub refill: f64,
}

/// Limits of one guest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Questions in `allowlist`.
    pub questions: Allowance,
    /// Questions in `nat`.
    pub questions_forwarded: Allowance,
    /// Different names below wildcards.
    pub new_names: Allowance,
    /// Bytes of the labels that the guest chose in them.
    pub new_bytes: Allowance,
    /// Addresses open at once.
    pub addresses: usize,
    /// Least and most seconds that an answer is good for.
    pub answer_seconds: (u32, u32),
    /// Seconds that an address stays open beyond its answer: whoever was told it may still be about to call.
    pub grace_seconds: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            questions: Allowance {
                size: 200.0,
                refill: 50.0,
            },
            questions_forwarded: Allowance {
                size: 500.0,
                refill: 200.0,
            },
            new_names: Allowance {
                size: 256.0,
                refill: 0.5,
            },
            new_bytes: Allowance {
                size: 4096.0,
                refill: 8.0,
            },
            addresses: 4096,
            answer_seconds: (30, 3600),
            grace_seconds: 60,
        }
    }
}

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn has(&mut self, of: Allowance, wanted: f64, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * of.refill).min(of.size);
        self.at = now;
        self.left >= wanted
    }
}

/// What one guest has left.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    questions: Bucket,
    names: Bucket,
    bytes: Bucket,
    seen: HashSet<Domain>,
    open: HashMap<Ipv4Addr, Instant>,
}

impl Budget {
    /// Full.
    #[must_use]
    pub fn new(limits: Limits, forwards: bool, now: Instant) -> Self {
        let bucket = |of: Allowance| Bucket {
            left: of.size,
            at: now,
        };
        let questions = if forwards {
            limits.questions_forwarded
        } else {
            limits.questions
        };
        Self {
            questions: bucket(questions),
            names: bucket(limits.new_names),
            bytes: bucket(limits.new_bytes),
            limits: Limits { questions, ..limits },
            seen: HashSet::new(),
            open: HashMap::new(),
        }
    }

    /// Takes a question.
    ///
    /// # Errors
    /// Too many for the moment.
    pub fn question(&mut self, now: Instant) -> Result<(), Why> {
        if !self.questions.has(self.limits.questions, 1.0, now) {
            return Err(Why::QuestionRate);
        }
        self.questions.left -= 1.0;
        Ok(())
    }

    /// Takes a name of which the guest chose so many labels. A name it has paid for is free.
    ///
    /// # Errors
    /// Too many new ones.
    pub fn name(&mut self, domain: &Domain, free_labels: usize, now: Instant) -> Result<(), Why> {
        if free_labels == 0 || self.seen.contains(domain) {
            return Ok(());
        }
        let chosen: usize = domain.labels().take(free_labels).map(<[u8]>::len).sum();
        let bytes = f64::from(u32::try_from(chosen).unwrap_or(u32::MAX));
        if !self.names.has(self.limits.new_names, 1.0, now)
            || !self.bytes.has(self.limits.new_bytes, bytes, now)
        {
            return Err(Why::NewNames);
        }
        self.names.left -= 1.0;
        self.bytes.left -= bytes;
        if self.seen.len() >= MOST_SEEN {
            self.seen.clear();
        }
        self.seen.insert(domain.clone());
        Ok(())
    }

    /// Takes addresses that are to be open for so long.
    ///
    /// # Errors
    /// Too many are open.
    pub fn addresses(&mut self, addresses: &[Ipv4Addr], lasts: Duration, now: Instant) -> Result<(), Why> {
        let fresh = addresses
            .iter()
            .filter(|address| !self.open.contains_key(address))
            .count();
        if self.open.len() + fresh > self.limits.addresses {
            self.open.retain(|_, until| *until > now);
        }
        if self.open.len() + fresh > self.limits.addresses {
            return Err(Why::NewAddresses);
        }
        self.open
            .extend(addresses.iter().map(|address| (*address, now + lasts)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(now: Instant) -> Budget {
        let limits = Limits {
            questions: Allowance {
                size: 3.0,
                refill: 1.0,
            },
            new_names: Allowance {
                size: 10.0,
                refill: 0.5,
            },
            new_bytes: Allowance {
                size: 20.0,
                refill: 1.0,
            },
            addresses: 2,
            ..Limits::default()
        };
        Budget::new(limits, false, now)
    }

    #[test]
    fn questions_come_back_with_time_and_never_beyond_the_size() {
        let now = Instant::now();
        let mut budget = budget(now);
        let asked = |budget: &mut Budget, at: u64| {
            (0..10)
                .filter(|_| budget.question(now + Duration::from_secs(at)).is_ok())
                .count()
        };
        assert_eq!(
            (
                asked(&mut budget, 0),
                asked(&mut budget, 2),
                asked(&mut budget, 1000)
            ),
            (3, 2, 3)
        );
    }

    #[test]
    fn new_names_are_paid_by_the_byte_and_known_ones_are_free() {
        let now = Instant::now();
        let mut budget = budget(now);
        let name = |text: &str| Domain::plain(text);
        assert_eq!(budget.name(&name("0123456789.a.org"), 1, now), Ok(()));
        assert_eq!(budget.name(&name("abcdefghij.a.org"), 1, now), Ok(()));
        assert_eq!(budget.name(&name("x.a.org"), 1, now), Err(Why::NewNames));
        assert_eq!(budget.name(&name("abcdefghij.a.org"), 1, now), Ok(()), "paid for");
        assert_eq!(budget.name(&name("named.org"), 0, now), Ok(()), "on the list");
        assert_eq!(
            budget.name(&name("x.a.org"), 1, now + Duration::from_secs(1)),
            Ok(())
        );
    }

    #[test]
    fn addresses_are_counted_while_they_are_open() {
        let now = Instant::now();
        let mut budget = budget(now);
        let minute = Duration::from_secs(60);
        let address = |last| Ipv4Addr::new(1, 1, 1, last);
        assert_eq!(budget.addresses(&[address(1), address(2)], minute, now), Ok(()));
        assert_eq!(
            budget.addresses(&[address(3)], minute, now),
            Err(Why::NewAddresses)
        );
        assert_eq!(budget.addresses(&[address(2)], minute, now), Ok(()));
        assert_eq!(budget.addresses(&[address(3)], minute, now + 2 * minute), Ok(()));
    }
}
