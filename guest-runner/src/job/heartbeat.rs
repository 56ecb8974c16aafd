//! Tells the host what the runner is busy with, and hears whether to stop.

use std::convert::Infallible;
use std::time::Duration;

use agentlab_protocol::message::{Heartbeat, Phase};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::host::HostLink;

/// Beats at every change of `phase` and every `every`, for ever. Sets `cancel` once the host asks for it. A beat that
/// fails is only missed: the host judges silence, and the job is better finished than given up.
pub(crate) async fn beat<H: HostLink>(
    host: &H,
    every: Duration,
    mut phase: watch::Receiver<Phase>,
    cancel: &watch::Sender<bool>,
) -> Infallible {
    let every = every.max(Duration::from_secs(1));
    let mut since = Instant::now();
    let mut last = None;
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
        if let Ok(answer) = host.heartbeat(Heartbeat { phase: now, message }).await
            && answer.cancel
        {
            cancel.send_replace(true);
        }
        tokio::select! {
            Ok(()) = phase.changed() => {}
            () = sleep_until(next) => {}
        }
    }
}
