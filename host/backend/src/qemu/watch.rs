//! Looks after one running machine: gives its turn to start back, cuts its logs, reaps it, says why it ended.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::process::Process;
use super::record::MachineDir;
use super::vsock::Door;
use super::{Vm, log};
use crate::turns::Turn;

/// A booting guest takes a whole core under TCG; more of them than cores only wait for each other. The turn is
/// held until the guest's runner opens its channel, or for this long where there is no runner.
const BOOT_WINDOW: Duration = Duration::from_secs(20);
const WHILE_BOOTING: Duration = Duration::from_millis(250);
const AFTERWARDS: Duration = Duration::from_secs(2);
const ASK_DEADLINE: Duration = Duration::from_secs(1);

pub(super) struct Watched {
    pub(super) vm: Arc<Vm>,
    pub(super) machine: MachineDir,
    pub(super) process: Process,
    pub(super) turn: Option<Turn>,
    /// Where its connections over vsock arrive, if they come by a socket.
    pub(super) vsock: Option<Door>,
}

impl Watched {
    pub(super) async fn run(mut self) {
        let started = Instant::now();
        let door = self.vsock.take();
        let arrivals = async {
            if let Some(door) = &door {
                door.serve().await;
            }
            std::future::pending::<Infallible>().await
        };
        let mut arrivals = std::pin::pin!(arrivals);
        let mut tick = interval(if self.turn.is_some() {
            WHILE_BOOTING
        } else {
            AFTERWARDS
        });
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                ended = self.process.ended() => {
                    self.farewell(ended).await;
                    return;
                }
                never = arrivals.as_mut() => match never {},
                _ = tick.tick() => {}
            }
            if self.turn.is_some() && self.has_booted(started).await {
                self.turn = None;
                tick = interval(AFTERWARDS);
                tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            }
            self.cut_logs().await;
        }
    }

    async fn has_booted(&self, started: Instant) -> bool {
        started.elapsed() >= BOOT_WINDOW
            || self
                .vm
                .monitor
                .guest_listens(&self.machine, ASK_DEADLINE)
                .await
                .unwrap_or(false)
    }

    async fn cut_logs(&self) {
        let paths = [self.machine.console_path(), self.machine.stderr_path()];
        let cut = tokio::task::spawn_blocking(move || paths.iter().try_for_each(|path| log::cut(path)));
        if let Ok(Err(error)) = cut.await {
            tracing::warn!(vmid = %self.machine.record.vmid, %error, "a log could not be cut");
        }
    }

    async fn farewell(&self, ended: std::io::Result<()>) {
        let vmid = self.machine.record.vmid;
        let reason = self
            .vm
            .monitor
            .last_words()
            .await
            .unwrap_or_else(|| "unknown".to_owned());
        self.vm.channel.cut_from(&self.process.identity);
        match ended {
            Ok(()) => tracing::info!(%vmid, pid = self.process.identity.pid, reason, "machine ended"),
            Err(error) => tracing::warn!(%vmid, %error, "machine can no longer be watched"),
        }
    }
}
