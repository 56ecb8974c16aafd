//! What a service manager is told (sd_notify(3)), and the sign of life it waits for.
//!
//! ```text
//!   READY ─► STATUS (whenever the counts change) ─► STOPPING
//!            WATCHDOG, twice per WatchdogSec, for as long as engine and store answer
//!            RELOADING ─► READY
//! ```
//! Without a service manager all of it goes nowhere.

use std::sync::Arc;
use std::time::Duration;

use agentlab_api::{JobState, SandboxState};
use agentlab_engine::{Engine, Summary};
use sd_notify::NotifyState;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

/// Between two looks at the counts, however much happens.
const CALM: Duration = Duration::from_secs(1);

/// Serving: the counts follow.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready, NotifyState::Status("Serving")]);
}

/// VMs go on running.
pub(crate) fn stopping() {
    tell(&[
        NotifyState::Stopping,
        NotifyState::Status("Stopping; sandboxes go on running"),
    ]);
}

/// The configuration is being read again; [`ready`] says when it has been.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "The service manager was not told of the reload"),
    }
}

/// It has been read, or was refused; the counts show alarms.
pub(crate) async fn reloaded(engine: &Engine) {
    match engine.summary().await {
        Ok(summary) => tell(&[NotifyState::Ready, NotifyState::Status(&words(&summary))]),
        Err(_) => ready(),
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "The service manager was not told");
    }
}

/// Shows life and counts until dropped.
pub(crate) async fn attend(engine: Arc<Engine>) {
    tokio::join!(watchdog(&engine), show_counts(&engine));
}

async fn watchdog(engine: &Engine) {
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) else {
        return;
    };
    let mut tick = interval(limit / 2);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let asked = Instant::now();
        match timeout(limit / 4, engine.pulse()).await {
            Ok(Ok(())) => tell(&[NotifyState::Watchdog]),
            Ok(Err(reason)) => tracing::error!(%reason, "No sign of life was given to the watchdog"),
            Err(_) => {
                let seconds = asked.elapsed().as_secs();
                tracing::error!(
                    seconds,
                    "The engine does not answer, so the watchdog is not told of life"
                );
            }
        }
    }
}

async fn show_counts(engine: &Engine) {
    let mut news = engine.store().watch_events();
    let mut shown = String::new();
    loop {
        news.borrow_and_update();
        if let Ok(summary) = engine.summary().await {
            let words = words(&summary);
            if words != shown {
                tell(&[NotifyState::Status(&words)]);
                shown = words;
            }
        }
        if news.changed().await.is_err() {
            return;
        }
        sleep(CALM).await;
    }
}

/// `Serving: 2 of 3 sandboxes RUNNING, 1 job queued, 1 alarm`.
fn words(summary: &Summary) -> String {
    let sandboxes = |state: SandboxState| summary.counts.sandboxes.get(state.as_str()).copied().unwrap_or(0);
    let jobs = |state: JobState| summary.counts.jobs.get(state.as_str()).copied().unwrap_or(0);
    let living = SandboxState::ALL
        .into_iter()
        .filter(|state| *state != SandboxState::Destroyed);
    let mut words = match living.map(sandboxes).sum::<u64>() {
        0 => "Serving: no sandbox".to_owned(),
        all => format!(
            "Serving: {} of {all} sandboxes RUNNING",
            sandboxes(SandboxState::Running)
        ),
    };
    let alarms = u64::try_from(summary.alarms).unwrap_or(u64::MAX);
    for (count, one, many) in [
        (jobs(JobState::Running), "job running", "jobs running"),
        (jobs(JobState::Queued), "job queued", "jobs queued"),
        (alarms, "alarm", "alarms"),
    ] {
        match count {
            0 => {}
            1 => words += &format!(", 1 {one}"),
            _ => words += &format!(", {count} {many}"),
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use agentlab_store::Counts;

    use super::*;

    #[test]
    fn the_status_line_counts_what_lives() {
        let of = |sandboxes: &[(SandboxState, u64)], jobs: &[(JobState, u64)], alarms| {
            let counts = Counts {
                sandboxes: sandboxes
                    .iter()
                    .map(|(state, count)| (state.to_string(), *count))
                    .collect(),
                jobs: jobs
                    .iter()
                    .map(|(state, count)| (state.to_string(), *count))
                    .collect(),
            };
            words(&Summary { counts, alarms })
        };
        assert_eq!(
            of(&[(SandboxState::Destroyed, 7)], &[(JobState::Completed, 7)], 0),
            "Serving: no sandbox"
        );
        assert_eq!(
            of(
                &[(SandboxState::Running, 2), (SandboxState::Failed, 1)],
                &[(JobState::Running, 1), (JobState::Queued, 3)],
                1
            ),
            "Serving: 2 of 3 sandboxes RUNNING, 1 job running, 3 jobs queued, 1 alarm"
        );
    }
}
