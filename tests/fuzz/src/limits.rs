//! Bounds that hold for every target: memory in proportion to the input, and time.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::{Outcome, Target};

/// Processor time for one input; ordinary ones take well under a millisecond.
const CPU: Duration = Duration::from_secs(2);

/// What one input cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Most bytes held at once.
    pub bytes: u64,
    /// Processor time of the thread.
    pub cpu: Duration,
}

/// Runs one input; both drivers call this.
///
/// # Panics
/// A property does not hold, or the input cost more than its target allows.
#[must_use]
pub fn check(target: &Target, input: &[u8]) -> (Outcome, Cost) {
    let mut outcome = None;
    let begun = cpu_time();
    let used = allocation_counter::measure(|| {
        // The counter must be left in order, also by a panic.
        outcome = Some(catch_unwind(AssertUnwindSafe(|| (target.run)(input))));
    });
    let cost = Cost {
        bytes: used.bytes_max,
        cpu: cpu_time().saturating_sub(begun),
    };
    let outcome = match outcome {
        Some(Ok(outcome)) => outcome,
        Some(Err(panic)) => resume_unwind(panic),
        None => unreachable!("measured, and not run"),
    };
    let length = u64::try_from(input.len()).unwrap_or(u64::MAX);
    let allowed = target
        .base_bytes
        .saturating_add(length.saturating_mul(target.bytes_per_byte));
    assert!(
        cost.bytes <= allowed,
        "an input of {length} bytes took {} bytes of memory, {allowed} are allowed",
        cost.bytes
    );
    assert!(
        cost.cpu <= CPU,
        "an input of {length} bytes took {:?} of processor time, {CPU:?} are allowed",
        cost.cpu
    );
    (outcome, cost)
}

fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}
