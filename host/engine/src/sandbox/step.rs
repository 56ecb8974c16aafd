//! The named steps that make a sandbox, how each is undone, and what a restart does in the midst of one. Pure.
//!
//! ```text
//!   forward   Reserve ─ Clone ─ Configure ─ AttachWorkspace ─ BindNetwork ─ IssueToken ─ Seed ─ PowerOn ─ AwaitGuest
//!   undo      PowerOn (sealed first) ─ AttachWorkspace ─ Clone ─ BindNetwork ─ IssueToken ─ Seed ─ Reserve
//! ```
//!
//! The undo is not the mirror image: a port stays bound and sealed until its machine is gone for good, so that a
//! machine that refuses to die never gets an unbound cable.

use std::fmt;
use std::time::Duration;

use crate::settings::Settings;

/// One step. The order of the variants is the order of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// VMID, address and name are taken; nothing exists yet.
    Reserve,
    /// The machine is made, stamped.
    Clone,
    /// Processor, memory, disk and NIC are set.
    Configure,
    /// The workspace that was asked for, where one was, is attached and as large as it is to be.
    AttachWorkspace,
    /// The cable exists, bound and sealed.
    BindNetwork,
    /// A fresh token exists; earlier ones are dead.
    IssueToken,
    /// The seed lies where the guest will find it.
    Seed,
    /// The machine runs.
    PowerOn,
    /// The runner has redeemed the token.
    AwaitGuest,
}

impl Step {
    /// All steps, in order.
    pub const ALL: [Self; 9] = [
        Self::Reserve,
        Self::Clone,
        Self::Configure,
        Self::AttachWorkspace,
        Self::BindNetwork,
        Self::IssueToken,
        Self::Seed,
        Self::PowerOn,
        Self::AwaitGuest,
    ];

    /// Steps that leave something behind, in the order in which it is taken away.
    const UNDONE: [Self; 7] = [
        Self::PowerOn,
        Self::AttachWorkspace,
        Self::Clone,
        Self::BindNetwork,
        Self::IssueToken,
        Self::Seed,
        Self::Reserve,
    ];

    /// The word in records, events and failures.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reserve => "Reserve",
            Self::Clone => "Clone",
            Self::Configure => "Configure",
            Self::AttachWorkspace => "AttachWorkspace",
            Self::BindNetwork => "BindNetwork",
            Self::IssueToken => "IssueToken",
            Self::Seed => "Seed",
            Self::PowerOn => "PowerOn",
            Self::AwaitGuest => "AwaitGuest",
        }
    }

    /// Reverse of [`Self::as_str`].
    #[must_use]
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|step| step.as_str() == word)
    }

    /// The step after this one.
    #[must_use]
    pub fn next(self) -> Option<Self> {
        Self::ALL.into_iter().find(|step| *step > self)
    }

    /// What must be taken away, in order, when `self` was the last step begun. The step itself is included: it may
    /// have taken effect in part.
    #[must_use]
    pub fn undo_plan(self) -> Vec<Self> {
        Self::UNDONE.into_iter().filter(|step| *step <= self).collect()
    }

    /// Undos that must have succeeded before this one is tried.
    #[must_use]
    pub fn undo_after(self) -> &'static [Self] {
        match self {
            // Never pull a disk or a cable from a machine that may still run.
            Self::AttachWorkspace => &[Self::PowerOn],
            // What outlives the machine is not attached when that is destroyed.
            Self::Clone => &[Self::PowerOn, Self::AttachWorkspace],
            Self::BindNetwork => &[Self::PowerOn, Self::Clone],
            // A VMID is free once nothing carries it.
            Self::Reserve => &[Self::PowerOn, Self::Clone, Self::BindNetwork],
            Self::PowerOn | Self::Configure | Self::IssueToken | Self::Seed | Self::AwaitGuest => &[],
        }
    }

    /// How long one try of the step may take.
    #[must_use]
    pub fn deadline(self, settings: &Settings) -> Duration {
        match self {
            // Each may wait for its turn: a storage clones, and a host starts, few machines at a time, and one volume may be
            // copied before another is attached.
            Self::Clone | Self::AttachWorkspace | Self::PowerOn => settings.provisioning_timeout,
            Self::AwaitGuest => settings.boot_timeout,
            Self::Reserve | Self::Configure | Self::BindNetwork | Self::IssueToken | Self::Seed => {
                settings.provisioning_timeout.min(Duration::from_secs(60))
            }
        }
    }

    /// How long one try of the undo may take.
    #[must_use]
    pub fn undo_deadline(self, settings: &Settings) -> Duration {
        settings.provisioning_timeout.min(match self {
            Self::Clone => Duration::from_secs(180),
            Self::PowerOn => Duration::from_secs(60),
            Self::Reserve
            | Self::Configure
            | Self::AttachWorkspace
            | Self::BindNetwork
            | Self::IssueToken
            | Self::Seed
            | Self::AwaitGuest => Duration::from_secs(30),
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What the hypervisor shows of our machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It answered, and has none, or one of somebody else's under that number.
    Absent,
    /// Ours, off.
    Stopped,
    /// Ours, on or suspended.
    Running,
    /// A machine is there whose stamp cannot be read: it may be anybody's.
    Unreadable,
    /// It did not answer: nothing may be concluded.
    Unknown,
}

/// How an interrupted sandbox goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// From this step; it is safe to repeat.
    Run(Step),
    /// The machine runs and holds a good token: wait for it.
    Await,
    /// The machine that had been powered on is off: undo everything.
    Off,
    /// The machine is gone: undo what else there is.
    Gone,
    /// Not to be decided yet.
    LookAgain,
}

/// What a restart does with a sandbox that was being made. `open` tells whether the step's intent has no fact yet.
#[must_use]
pub fn resume(cursor: Step, open: bool, seen: Seen) -> Resume {
    match cursor {
        Step::Reserve | Step::Clone | Step::Configure | Step::AttachWorkspace | Step::BindNetwork => {
            Resume::Run(if open {
                cursor
            } else {
                cursor.next().unwrap_or(cursor)
            })
        }
        // The token's text died with the process that made it; only its hash is stored.
        Step::IssueToken | Step::Seed => Resume::Run(Step::IssueToken),
        Step::PowerOn => match seen {
            Seen::Running => Resume::Await,
            Seen::Stopped => Resume::Run(Step::IssueToken),
            Seen::Absent => Resume::Gone,
            Seen::Unreadable | Seen::Unknown => Resume::LookAgain,
        },
        Step::AwaitGuest => match seen {
            Seen::Running | Seen::Unreadable | Seen::Unknown => Resume::Await,
            Seen::Stopped => Resume::Off,
            Seen::Absent => Resume::Gone,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_was_begun_is_undone_and_nothing_that_was_not() {
        for step in Step::ALL {
            let plan = step.undo_plan();
            assert!(plan.iter().all(|undone| *undone <= step), "{step}");
            assert!(plan.contains(&Step::Reserve), "{step}");
        }
        assert_eq!(Step::Clone.undo_plan(), [Step::Clone, Step::Reserve]);
        assert_eq!(Step::AwaitGuest.undo_plan(), Step::UNDONE);
    }

    #[test]
    fn an_undo_comes_after_all_it_waits_for() {
        for (position, step) in Step::UNDONE.iter().enumerate() {
            for before in step.undo_after() {
                let earlier = Step::UNDONE.iter().position(|other| other == before);
                assert!(
                    earlier.is_some_and(|earlier| earlier < position),
                    "{step} after {before}"
                );
            }
        }
    }

    #[test]
    fn a_machine_that_may_have_read_its_seed_is_never_given_another() {
        for cursor in [Step::PowerOn, Step::AwaitGuest] {
            assert_eq!(resume(cursor, true, Seen::Running), Resume::Await);
        }
        for seen in [Seen::Unreadable, Seen::Unknown] {
            assert_eq!(resume(Step::PowerOn, true, seen), Resume::LookAgain);
        }
    }

    #[test]
    fn a_lost_token_is_replaced_before_power_on() {
        for (cursor, open) in [
            (Step::IssueToken, true),
            (Step::IssueToken, false),
            (Step::Seed, false),
        ] {
            assert_eq!(resume(cursor, open, Seen::Unknown), Resume::Run(Step::IssueToken));
        }
        assert_eq!(
            resume(Step::PowerOn, true, Seen::Stopped),
            Resume::Run(Step::IssueToken)
        );
    }

    #[test]
    fn every_word_names_its_step() {
        for step in Step::ALL {
            assert_eq!(Step::named(step.as_str()), Some(step));
        }
        assert_eq!(Step::named(""), None);
    }
}
