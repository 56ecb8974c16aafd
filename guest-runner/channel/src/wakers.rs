//! Three tasks may wait for one line: a stream's reader, its writer, and the acceptor. The line itself remembers
//! only who polled last, so it is always polled with a waker that wakes all three.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

/// Who waits.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Waiter {
    Reader,
    Writer,
    Acceptor,
}

#[derive(Debug, Default)]
struct Slots {
    reader: Option<Waker>,
    writer: Option<Waker>,
    acceptor: Option<Waker>,
}

#[derive(Debug, Default)]
pub(crate) struct Wakers {
    slots: Mutex<Slots>,
}

impl Wakers {
    /// To be called before the line is polled: a wake-up between poll and registration would be lost.
    pub(crate) fn register(&self, waiter: Waiter, waker: &Waker) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = match waiter {
            Waiter::Reader => &mut slots.reader,
            Waiter::Writer => &mut slots.writer,
            Waiter::Acceptor => &mut slots.acceptor,
        };
        match slot {
            Some(standing) => standing.clone_from(waker),
            None => *slot = Some(waker.clone()),
        }
    }

    pub(crate) fn wake_all(&self) {
        let taken = std::mem::take(&mut *self.slots.lock().unwrap_or_else(PoisonError::into_inner));
        for waker in [taken.reader, taken.writer, taken.acceptor].into_iter().flatten() {
            waker.wake();
        }
    }
}

impl Wake for Wakers {
    fn wake(self: Arc<Self>) {
        self.wake_all();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_all();
    }
}
