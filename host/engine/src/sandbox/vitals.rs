//! What a guest's heartbeats say of its machine, and when that is worth an event. Pure. Nothing is decided on it: a guest
//! can say what it likes.

use std::time::Duration;

use agentlab_protocol::message::Vitals;

/// Less of a disk than this is little: a twentieth, or this much.
const LITTLE_DISK: u64 = 1 << 30;

/// Something people should know of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sign {
    /// Processes were killed for want of memory.
    OutOfMemory,
    /// The disk is nearly full.
    DiskLow,
    /// The agent does nothing that anybody could see.
    Stuck,
    /// It does something again.
    MovesAgain,
}

/// What was seen of one guest, and told.
#[derive(Debug, Default)]
pub(crate) struct Watchdog {
    /// As the first beat said: kills before it are not this job's.
    oom_kills: Option<u64>,
    disk_low: bool,
    stuck: bool,
}

impl Watchdog {
    /// Takes in one beat; each sign is given when it begins. An agent that was quiet for `stuck_after` is stuck.
    pub(crate) fn look(&mut self, vitals: &Vitals, stuck_after: Duration) -> Vec<Sign> {
        let mut signs = Vec::new();
        let before = self.oom_kills.replace(vitals.oom_kills);
        if before.is_some_and(|before| vitals.oom_kills > before) {
            signs.push(Sign::OutOfMemory);
        }
        let bound = LITTLE_DISK.min(vitals.disk_total_bytes / 20);
        let low = vitals.disk_total_bytes > 0 && vitals.disk_free_bytes < bound;
        if low && !self.disk_low {
            signs.push(Sign::DiskLow);
        }
        self.disk_low = low;
        let stuck = Duration::from_secs(vitals.quiet_seconds.into()) >= stuck_after;
        match (self.stuck, stuck) {
            (false, true) => signs.push(Sign::Stuck),
            (true, false) => signs.push(Sign::MovesAgain),
            (true, true) | (false, false) => {}
        }
        self.stuck = stuck;
        signs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn each_trouble_is_told_once_and_its_end_too() {
        let fine = Vitals {
            disk_total_bytes: 100 << 30,
            disk_free_bytes: 50 << 30,
            oom_kills: 3,
            ..Vitals::default()
        };
        let mut watchdog = Watchdog::default();
        assert_eq!(
            watchdog.look(&fine, LONG),
            [],
            "kills before the first beat are not the job's"
        );
        let bad = Vitals {
            disk_free_bytes: 1 << 20,
            oom_kills: 4,
            quiet_seconds: 601,
            ..fine
        };
        assert_eq!(
            watchdog.look(&bad, LONG),
            [Sign::OutOfMemory, Sign::DiskLow, Sign::Stuck]
        );
        assert_eq!(watchdog.look(&bad, LONG), []);
        let again = Vitals { oom_kills: 4, ..fine };
        assert_eq!(watchdog.look(&again, LONG), [Sign::MovesAgain]);
        assert_eq!(
            watchdog.look(&Vitals::default(), LONG),
            [],
            "a guest that says nothing has no disk"
        );
    }
}
