//! The lease clock. What is stored is wall time, so that a lease survives a restart; what is waited for is the time
//! left when the driver began, so that a clock set forward while the daemon runs never destroys anything.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// How long before its end a warning is given.
pub(crate) const WARNING: Duration = Duration::from_secs(300);

/// Over for longer than this when a process begins, and the clock is doubted rather than the lease.
const DOUBT: Duration = Duration::from_secs(24 * 3600);

/// One sandbox's lease.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lease {
    ends_at: Option<Instant>,
    /// When to warn; absent once that is done.
    warn_at: Option<Instant>,
    /// Nobody is warned, and nothing ends, until it is taken up again.
    is_idle: bool,
    /// Its end is believed only if the wall clock says the same by then.
    is_doubtful: bool,
}

/// What the clock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    Warn { left: Duration },
    Expired,
}

impl Lease {
    pub(crate) fn begin(expires_at: Option<Timestamp>, warned: bool, wall: Timestamp, now: Instant) -> Self {
        let ends_at = expires_at.map(|end| now + until(wall, end));
        let before = |end: Instant| end.checked_sub(WARNING).unwrap_or(end);
        Self {
            ends_at,
            warn_at: ends_at.filter(|_| !warned).map(before),
            is_idle: false,
            is_doubtful: false,
        }
    }

    /// Of a sandbox that an earlier process left. Hosts boot with clocks that are years off and are set soon after: nothing
    /// lasts longer than it was made for, and what has been over for very long ends after a warning, if it is still over.
    pub(crate) fn resume(
        expires_at: Option<Timestamp>,
        warned: bool,
        made_at: Timestamp,
        wall: Timestamp,
        now: Instant,
    ) -> Self {
        if expires_at.is_some_and(|end| until(end, wall) > DOUBT) {
            return Self {
                ends_at: Some(now + WARNING),
                warn_at: Some(now),
                is_idle: false,
                is_doubtful: true,
            };
        }
        Self::begin(expires_at, warned, wall.max(made_at), now)
    }

    /// Whether [`Self::confirm`] has to be asked before it ends anything.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.is_doubtful
    }

    /// The clock had time to be set: over it is, or it has as long as there is left.
    pub(crate) fn confirm(&mut self, expires_at: Option<Timestamp>, wall: Timestamp, now: Instant) {
        *self = Self::begin(expires_at, false, wall, now);
    }

    /// When to look again.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        let end = self.ends_at.filter(|_| !self.is_idle)?;
        Some(self.warn_at.map_or(end, |warn| warn.min(end)))
    }

    pub(crate) fn due(&self, now: Instant) -> Due {
        let Some(end) = self.ends_at.filter(|_| !self.is_idle) else {
            return Due::Nothing;
        };
        let left = end.saturating_duration_since(now);
        if left.is_zero() {
            Due::Expired
        } else if self.warn_at.is_some_and(|warn| warn <= now) {
            Due::Warn { left }
        } else {
            Due::Nothing
        }
    }

    /// The warning is recorded.
    pub(crate) fn warned(&mut self) {
        self.warn_at = None;
    }

    /// It could not be recorded.
    pub(crate) fn warn_later(&mut self, wait: Duration) {
        self.warn_at = Some(Instant::now() + wait);
    }

    /// Its end could not be acted upon; it comes again.
    pub(crate) fn put_off(&mut self, wait: Duration) {
        self.ends_at = Some(Instant::now() + wait);
    }

    /// Nothing is left for it to end.
    pub(crate) fn rest(&mut self) {
        self.is_idle = true;
    }

    /// A record is left that it ends, without a warning.
    pub(crate) fn take_up(&mut self) {
        self.is_idle = false;
        self.warn_at = None;
    }
}

/// From one wall time to another, zero when it is past.
pub(crate) fn until(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_warns_once_and_then_ends() {
        let mut lease = Lease::begin(Some(at(1000)), false, at(0), Instant::now());
        assert_eq!(lease.due(Instant::now()), Due::Nothing);
        tokio::time::sleep_until(lease.wake_at().unwrap()).await;
        assert_eq!(lease.due(Instant::now()), Due::Warn { left: WARNING });
        lease.warned();
        assert_eq!(lease.due(Instant::now()), Due::Nothing);
        tokio::time::sleep_until(lease.wake_at().unwrap()).await;
        assert_eq!(lease.due(Instant::now()), Due::Expired);
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_lease_warns_at_once_and_a_past_one_is_over() {
        let lease = Lease::begin(Some(at(60)), false, at(0), Instant::now());
        assert_eq!(
            lease.due(Instant::now()),
            Due::Warn {
                left: Duration::from_secs(60)
            }
        );
        assert_eq!(
            Lease::begin(Some(at(5)), false, at(9), Instant::now()).due(Instant::now()),
            Due::Expired
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_years_off_when_a_process_begins_ends_nothing() {
        const YEARS: i64 = 10 * 365 * 86_400;
        let resume = |wall| Lease::resume(Some(at(9000)), true, at(1800), at(wall), Instant::now());
        let mut lease = resume(YEARS);
        assert_eq!(lease.due(Instant::now()), Due::Warn { left: WARNING });
        lease.warned();
        tokio::time::sleep_until(lease.wake_at().unwrap()).await;
        assert_eq!(
            (lease.due(Instant::now()), lease.is_doubtful()),
            (Due::Expired, true)
        );

        // The clock was set, and then was not.
        lease.confirm(Some(at(9000)), at(5400), Instant::now());
        let left = lease.wake_at().unwrap() - Instant::now();
        assert_eq!(
            (left, lease.is_doubtful()),
            (Duration::from_secs(3600) - WARNING, false)
        );
        lease.confirm(Some(at(9000)), at(YEARS), Instant::now());
        assert_eq!(lease.due(Instant::now()), Due::Expired);

        let left = resume(-YEARS).wake_at().unwrap() - Instant::now();
        assert_eq!(left, Duration::from_secs(7200));
        assert_eq!(resume(9001).due(Instant::now()), Due::Expired);
    }

    #[tokio::test(start_paused = true)]
    async fn no_lease_never_ends() {
        let lease = Lease::begin(None, false, at(0), Instant::now());
        assert_eq!(lease.wake_at(), None);
        assert_eq!(
            lease.due(Instant::now() + Duration::from_secs(1 << 30)),
            Due::Nothing
        );
    }
}
