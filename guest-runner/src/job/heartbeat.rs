//! Tells the host what the runner is busy with, and hears whether to stop.

use std::convert::Infallible;
use std::time::Duration;

use agentlab_protocol::message::{Heartbeat, Phase, Vitals};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::host::HostLink;
use super::{JobLog, Layout};
use crate::{vitals, workspace};

/// Beats at every change of `phase` and every `every`, for ever. Sets `cancel` once the host asks for it. A beat that
/// fails is only missed: the host judges silence, and the job is better finished than given up.
pub(crate) async fn beat<H: HostLink>(
    host: &H,
    layout: &Layout,
    log: &JobLog,
    every: Duration,
    mut phase: watch::Receiver<Phase>,
    cancel: &watch::Sender<bool>,
) -> Infallible {
    let every = every.max(Duration::from_secs(1));
    let mut since = Instant::now();
    let mut last = None;
    let mut stillness = Stillness::new();
    loop {
        let next = Instant::now() + every;
        let now = *phase.borrow_and_update();
        if last != Some(now) {
            since = Instant::now();
            last = Some(now);
        }
        let message = match since.elapsed().as_secs() {
            0 => String::new(),
            seconds => format!("for {seconds} s"),
        };
        let quiet = stillness.seconds(now == Phase::Agent, log.written(), vitals::busy());
        let vitals = Some(Vitals {
            quiet_seconds: quiet,
            ..vitals::read(&layout.work)
        });
        let beat = Heartbeat {
            phase: now,
            message,
            vitals,
            workspace: None,
        };
        if let Ok(answer) = host.heartbeat(beat).await {
            if answer.cancel {
                cancel.send_replace(true);
            }
            if answer.release_workspace
                && let Some(news) = workspace::release(layout).await
            {
                workspace::tell(host, now, news).await;
            }
        }
        tokio::select! {
            Ok(()) = phase.changed() => {}
            () = sleep_until(next) => {}
        }
    }
}

/// How long the agent has done nothing that anybody could see.
#[derive(Debug)]
struct Stillness {
    since: Instant,
    looked: Instant,
    written: u64,
    busy: Duration,
}

/// Busier than this share of one processor is not still: what a machine does by itself is less.
const IDLE_SHARE: u32 = 20;

impl Stillness {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            since: now,
            looked: now,
            written: 0,
            busy: Duration::ZERO,
        }
    }

    /// Takes in how much was printed and computed so far; whole seconds of stillness.
    fn seconds(&mut self, counts: bool, written: u64, busy: Duration) -> u32 {
        let now = Instant::now();
        let computed = busy.saturating_sub(self.busy);
        let bound = now.duration_since(self.looked) / IDLE_SHARE;
        // Beats may follow each other at once; a share of nothing says nothing.
        let active = written != self.written || (computed > bound && now > self.looked);
        if !counts || active {
            self.since = now;
        }
        (self.looked, self.written, self.busy) = (now, written, busy);
        u32::try_from(now.duration_since(self.since).as_secs()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_agent_is_still_when_it_neither_prints_nor_computes() {
        let mut stillness = Stillness::new();
        let second = Duration::from_secs(1);
        let mut busy = Duration::ZERO;
        let step = async || tokio::time::advance(second * 10).await;
        step().await;
        assert_eq!(
            stillness.seconds(false, 5, busy),
            0,
            "another phase does not count"
        );
        step().await;
        busy += Duration::from_millis(400);
        assert_eq!(
            stillness.seconds(true, 5, busy),
            10,
            "4 % of a processor is nothing"
        );
        step().await;
        assert_eq!(stillness.seconds(true, 5, busy), 20);
        step().await;
        assert_eq!(stillness.seconds(true, 6, busy), 0, "it printed");
        step().await;
        busy += second;
        assert_eq!(stillness.seconds(true, 6, busy), 0, "it computed");
        step().await;
        assert_eq!(stillness.seconds(true, 6, busy), 10);
    }
}
