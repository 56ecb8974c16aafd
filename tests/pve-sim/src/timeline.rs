//! The stand-in's own time, and what happens in it.
//!
//! Workers and synchronous calls are futures that this timeline polls itself, so that they go on when the caller is
//! gone: a daemon that dies with its runtime does not end a clone on the hypervisor. Whoever asks something first
//! brings the timeline up to the present; between two questions nobody can tell when something happened.
//!
//! ```text
//!   answer() ──► advance(now) ──► events in order: poll all, jump to the next timer, poll all, …
//!      ▲                                              │
//!      └── sleeps until the next timer ◄──────────────┘ while its own answer is not there
//! ```

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

type Process = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Locks whatever the last holder did: a panicking test must not hide behind a second panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Default)]
struct State {
    now: Duration,
    /// Where the caller's clock stood when it was last looked at.
    seen: Option<Instant>,
    timers: BinaryHeap<Reverse<Duration>>,
    spawned: Vec<Process>,
    /// Moves whenever something happened that another process may wait for.
    epoch: u64,
}

#[derive(Clone, Default)]
pub(crate) struct Timeline {
    state: Arc<Mutex<State>>,
    processes: Arc<Mutex<Vec<Process>>>,
}

impl Timeline {
    /// Time since the stand-in began.
    pub(crate) fn now(&self) -> Duration {
        lock(&self.state).now
    }

    pub(crate) fn spawn(&self, process: impl Future<Output = ()> + Send + 'static) {
        let mut state = lock(&self.state);
        state.spawned.push(Box::pin(process));
        state.epoch += 1;
    }

    /// Something changed that another process may wait for.
    pub(crate) fn touch(&self) {
        lock(&self.state).epoch += 1;
    }

    pub(crate) fn sleep(&self, span: Duration) -> Sleep {
        let mut state = lock(&self.state);
        let deadline = state.now + span;
        state.timers.push(Reverse(deadline));
        Sleep {
            state: Arc::clone(&self.state),
            deadline,
        }
    }

    /// Lets everything happen that is due by now, and says how long it is to the next timer.
    ///
    /// A caller's clock that stands before the one seen last is another runtime's: time goes on from here.
    pub(crate) fn advance(&self) -> Option<Duration> {
        let mut processes = lock(&self.processes);
        let until = {
            let mut state = lock(&self.state);
            let present = Instant::now();
            let passed = state
                .seen
                .replace(present)
                .map_or(Duration::ZERO, |seen| present.saturating_duration_since(seen));
            state.now + passed
        };
        loop {
            self.settle(&mut processes);
            let mut state = lock(&self.state);
            match state.timers.peek() {
                Some(&Reverse(due)) if due <= until => {
                    state.timers.pop();
                    state.now = state.now.max(due);
                }
                next => {
                    let next = next.map(|&Reverse(due)| due.saturating_sub(until));
                    state.now = until;
                    return next;
                }
            }
        }
    }

    fn settle(&self, processes: &mut Vec<Process>) {
        let mut context = Context::from_waker(Waker::noop());
        loop {
            let before = {
                let mut state = lock(&self.state);
                processes.append(&mut state.spawned);
                state.epoch
            };
            let living = processes.len();
            processes.retain_mut(|process| process.as_mut().poll(&mut context).is_pending());
            let state = lock(&self.state);
            if processes.len() == living && state.epoch == before && state.spawned.is_empty() {
                return;
            }
        }
    }
}

/// Ready once the timeline has reached its deadline.
pub(crate) struct Sleep {
    state: Arc<Mutex<State>>,
    deadline: Duration,
}

impl Sleep {
    pub(crate) fn is_over(&self) -> bool {
        lock(&self.state).now >= self.deadline
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<()> {
        if self.is_over() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}
