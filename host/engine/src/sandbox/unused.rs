//! One sandbox's clock of not being used. What is recorded survives a restart; the time in which nobody looked does not
//! count.

use std::time::Duration;

use agentlab_store::{Idle, SandboxRecord, Write};
use tokio::time::Instant;

use super::driver::Driver;
use super::machine::{Request, Verdict};
use crate::event;
use crate::idle::{Use, window};
use crate::journal::Point;
use crate::lease::until;

/// The clock. It stands until a look has found nobody.
#[derive(Debug)]
pub(crate) struct Unused {
    since: Option<Instant>,
    /// What an earlier process had seen of it.
    carried: Duration,
}

impl Unused {
    /// Of a record that an earlier process kept, until its last word.
    pub(crate) fn begin(record: &SandboxRecord) -> Self {
        let carried = record
            .idle
            .map_or(Duration::ZERO, |idle| until(idle.since, record.updated_at));
        Self { since: None, carried }
    }

    /// Somebody is there.
    fn stop(&mut self) {
        self.since = None;
        self.carried = Duration::ZERO;
    }

    /// For how long nobody was.
    fn go_on(&mut self) -> Duration {
        let now = Instant::now();
        let since = *self
            .since
            .get_or_insert_with(|| now.checked_sub(self.carried).unwrap_or(now));
        now.saturating_duration_since(since)
    }
}

impl Driver {
    /// Takes in what a look has seen.
    pub(crate) async fn used(&mut self, seen: Use) {
        let window = window(&self.record, &self.shared.settings);
        let done = match (seen, window) {
            (Use::InUse, _) | (_, None) => self.in_use().await,
            (Use::Unused, Some(window)) => self.unused_for(window).await,
        };
        // The next look says the same.
        if let Err(error) = done {
            self.store_failed(&error);
        }
    }

    async fn in_use(&mut self) -> Result<(), agentlab_store::StoreError> {
        self.unused.stop();
        if self.record.idle.is_none() {
            return Ok(());
        }
        let mut record = self.record.clone();
        record.idle = None;
        let writes = vec![
            event::used_again(&record),
            Write::Sandbox(Box::new(record.clone())),
        ];
        self.shared.journal.commit(Point::Used, writes).await?;
        self.adopt(record);
        Ok(())
    }

    async fn unused_for(&mut self, window: Duration) -> Result<(), agentlab_store::StoreError> {
        let first = self.unused.since.is_none();
        let spent = self.unused.go_on();
        if spent >= window {
            if let Verdict::Moved(transition) = self.state.request(&Request::Stop) {
                let told = vec![event::idle_stopped(&self.record, spent)];
                self.enter(transition, None, told).await?;
            }
            return Ok(());
        }
        if !first {
            return Ok(());
        }
        let now = self.shared.now();
        let mut record = self.record.clone();
        let is_new = record.idle.is_none();
        let idle = Idle {
            since: now - spent,
            stop_at: now + (window - spent),
        };
        record.idle = Some(idle);
        let mut writes = vec![Write::Sandbox(Box::new(record.clone()))];
        if is_new {
            writes.push(event::unused(&record, window));
        }
        let recorded = self.shared.journal.commit(Point::Used, writes).await;
        if recorded.is_err() {
            self.unused.since = None;
        }
        recorded?;
        self.adopt(record);
        Ok(())
    }
}
