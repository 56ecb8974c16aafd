//! Who changed what: the evidence that nothing foreign is ever touched.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::access::Identity;

/// Whose an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It was there before, or somebody else made it.
    Foreign,
    /// A client's token made it.
    Client,
}

/// What happened, for a test to judge.
#[derive(Debug, Clone, Default)]
pub struct Audit {
    /// Changes that a client made to objects that are not its own.
    pub foreign_touched: Vec<String>,
    /// Every change, in order.
    pub changes: Vec<String>,
    /// How often clients asked for each method.
    pub calls: BTreeMap<String, u64>,
    /// What clients were refused, as answers and as ends of tasks, and how often.
    pub refusals: BTreeMap<String, u64>,
    /// The most calls of clients that were under way at once (`call`), and the most workers of each kind.
    pub most: BTreeMap<String, usize>,
    /// How often each of [`crate::FAULTS`] struck.
    pub struck: BTreeMap<&'static str, u64>,
    under_way: BTreeMap<String, usize>,
}

impl Audit {
    pub(crate) fn strikes(&mut self, fault: &'static str) {
        *self.struck.entry(fault).or_default() += 1;
    }

    /// A call or a worker of a client's begins.
    pub(crate) fn begins(&mut self, kind: &str) {
        let now = self.under_way.entry(kind.to_owned()).or_default();
        *now += 1;
        let most = self.most.entry(kind.to_owned()).or_default();
        *most = (*most).max(*now);
    }

    /// It ends, with a refusal or without.
    pub(crate) fn ends(&mut self, kind: &str, refusal: Option<&str>) {
        if let Some(now) = self.under_way.get_mut(kind) {
            *now = now.saturating_sub(1);
        }
        if let Some(refusal) = refusal {
            *self.refusals.entry(refusal.to_owned()).or_default() += 1;
        }
    }

    pub(crate) fn change(
        &mut self,
        now: Duration,
        who: &Identity,
        object: &str,
        origin: Option<Origin>,
        what: &str,
    ) {
        let line = format!("{:>9.3} {} {what} {object}", now.as_secs_f64(), who.full());
        if origin == Some(Origin::Foreign) && origin_of(who) == Origin::Client {
            self.foreign_touched.push(line.clone());
        }
        self.changes.push(line);
    }
}

/// Whose an object is that this caller makes: root and its tokens are the operator.
pub(crate) fn origin_of(who: &Identity) -> Origin {
    if who.user == "root@pam" {
        Origin::Foreign
    } else {
        Origin::Client
    }
}
