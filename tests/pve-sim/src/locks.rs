//! Locks as the hypervisor takes them: by name, shared or exclusive, with a wait that ends.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use crate::timeline::{Timeline, lock};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Shared,
    Exclusive,
}

#[derive(Default)]
struct Holders {
    shared: usize,
    exclusive: bool,
}

type Table = Arc<Mutex<HashMap<String, Holders>>>;

#[derive(Clone)]
pub(crate) struct Locks {
    table: Table,
    timeline: Timeline,
}

/// Held until dropped.
pub(crate) struct Guard {
    table: Table,
    timeline: Timeline,
    name: String,
    mode: Mode,
}

impl Locks {
    pub(crate) fn new(timeline: Timeline) -> Self {
        Self {
            table: Table::default(),
            timeline,
        }
    }

    /// `None` when it could not be had in time.
    pub(crate) async fn take(&self, name: &str, mode: Mode, wait: Duration) -> Option<Guard> {
        let over = self.timeline.sleep(wait);
        poll_fn(|_| {
            if let Some(guard) = self.try_take(name, mode) {
                return Poll::Ready(Some(guard));
            }
            if over.is_over() {
                Poll::Ready(None)
            } else {
                Poll::Pending
            }
        })
        .await
    }

    fn try_take(&self, name: &str, mode: Mode) -> Option<Guard> {
        let mut table = lock(&self.table);
        let holders = table.entry(name.to_owned()).or_default();
        if holders.exclusive || (mode == Mode::Exclusive && holders.shared > 0) {
            return None;
        }
        match mode {
            Mode::Shared => holders.shared += 1,
            Mode::Exclusive => holders.exclusive = true,
        }
        Some(Guard {
            table: Arc::clone(&self.table),
            timeline: self.timeline.clone(),
            name: name.to_owned(),
            mode,
        })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(holders) = lock(&self.table).get_mut(&self.name) {
            match self.mode {
                Mode::Shared => holders.shared = holders.shared.saturating_sub(1),
                Mode::Exclusive => holders.exclusive = false,
            }
        }
        self.timeline.touch();
    }
}
