//! How long to wait before the next try.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// 100 ms, doubling to 5 s; up to half of it is taken away at random, so that a hundred guests that lost the same
/// daemon do not come back in step.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { next: FIRST }
    }

    pub(crate) fn delay(&mut self) -> Duration {
        let mut random = [0u8; 1];
        // Without random bytes the delay is merely not spread.
        let _ = getrandom::fill(&mut random);
        let whole = self.next;
        self.next = (whole * 2).min(LONGEST);
        whole - whole * u32::from(random[0]) / 512
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_five_seconds_and_keep_at_least_half() {
        let mut backoff = Backoff::new();
        for whole in [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000u64] {
            let whole = Duration::from_millis(whole);
            let delay = backoff.delay();
            assert!(delay <= whole && delay >= whole / 2, "{delay:?} of {whole:?}");
        }
    }
}
