//! Turns that are taken first come, first served, by machines of which one can say how many are before it.
//!
//! ```text
//!   take ──► behind all who wait ──► a permit is free ──► Turn (out of the line) ──► dropped: the next
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agentlab_api::Vmid;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// So many at once.
#[derive(Debug)]
pub(crate) struct Turns {
    permits: Arc<Semaphore>,
    line: Mutex<VecDeque<Vmid>>,
}

/// Held for as long as it lasts.
#[derive(Debug)]
pub(crate) struct Turn {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Turns {
    pub(crate) fn new(at_once: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(at_once)),
            line: Mutex::default(),
        }
    }

    /// Waits for as long as it takes; whoever gives up leaves the line.
    pub(crate) async fn take(&self, vmid: Vmid) -> Turn {
        self.line().push_back(vmid);
        let _waiting = Waiting { turns: self, vmid };
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        Turn {
            // Never closed.
            _permit: permit.ok(),
        }
    }

    /// How many wait before this one; `None` when it does not wait.
    pub(crate) fn before(&self, vmid: Vmid) -> Option<usize> {
        self.line().iter().position(|waiting| *waiting == vmid)
    }

    fn line(&self) -> MutexGuard<'_, VecDeque<Vmid>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the line.
struct Waiting<'a> {
    turns: &'a Turns,
    vmid: Vmid,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut line = self.turns.line();
        if let Some(place) = line.iter().position(|waiting| *waiting == self.vmid) {
            line.remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn vmid(number: u32) -> Vmid {
        number.try_into().unwrap()
    }

    #[tokio::test]
    async fn who_waits_knows_how_many_are_before_it_and_who_gives_up_leaves_the_line() {
        let turns = Turns::new(1);
        let first = turns.take(vmid(1000)).await;
        assert_eq!(turns.before(vmid(1000)), None);
        let mut second = Box::pin(turns.take(vmid(1001)));
        let mut third = Box::pin(turns.take(vmid(1002)));
        for waiting in [second.as_mut(), third.as_mut()] {
            assert!(timeout(Duration::ZERO, waiting).await.is_err());
        }
        assert_eq!(
            (turns.before(vmid(1001)), turns.before(vmid(1002))),
            (Some(0), Some(1))
        );

        drop(second);
        assert_eq!(turns.before(vmid(1002)), Some(0));
        drop(first);
        let _third = third.await;
        assert_eq!(turns.before(vmid(1002)), None);
    }
}
