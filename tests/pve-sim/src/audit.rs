//! Who changed what: the evidence that nothing foreign is ever touched.

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
}

impl Audit {
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
