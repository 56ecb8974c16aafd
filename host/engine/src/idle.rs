//! Stops sandboxes that nobody uses. One look at all of them now and then: two questions to the world, however many
//! there are. What cannot be told counts as use.
//!
//! ```text
//!   packet policy: who is logged in ─┐
//!   hypervisor: who computes ────────┼─► judge (pure) ─► each driver keeps its own clock, and stops when that is over
//!   commands of operators ───────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use agentlab_api::{SandboxId, Vmid, chain};
use agentlab_backend::Load;
use agentlab_store::SandboxRecord;
use tokio::time::{Instant, timeout};

use crate::engine::Engine;
use crate::sandbox::inbox::Message;
use crate::sandbox::machine::{Holder, State};
use crate::settings::{IdleRules, Settings};
use crate::shared::Shared;

/// How long one of the questions may take.
const PROBE: Duration = Duration::from_secs(20);

/// What a look makes of one sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Somebody uses it, or that cannot be told.
    InUse,
    /// Nobody was logged in, ran a command, or computed.
    Unused,
}

/// How long a sandbox may stand unused before it is stopped; `None` for one that is not stopped for that.
pub(crate) fn window(record: &SandboxRecord, settings: &Settings) -> Option<Duration> {
    let rules = settings.idle.as_ref()?;
    let held = match State::of(record) {
        State::Ready => false,
        State::Running {
            holder: Holder::Operator,
        } => false,
        State::Requested
        | State::Provisioning { .. }
        | State::Booting
        | State::Running {
            holder: Holder::Job(_),
        }
        | State::Suspended { .. }
        | State::Stopped
        | State::TimedOut
        | State::Unwinding { .. }
        | State::Failed { .. }
        | State::Destroyed => true,
    };
    let own = record.profile.behavior.idle_stop_minutes_default;
    let window = own.map_or(rules.window, |minutes| {
        Duration::from_secs(u64::from(minutes) * 60)
    });
    (!held && !window.is_zero()).then_some(window)
}

/// What was computed when, per sandbox: a hypervisor that tells totals is asked twice.
#[derive(Debug, Default)]
struct Samples(HashMap<SandboxId, (Instant, f64)>);

impl Samples {
    /// Share of its processors that a sandbox has used since it was looked at last; `None` at the first look.
    fn share(&mut self, record: &SandboxRecord, load: Load, now: Instant) -> Option<f64> {
        match load {
            Load::Share(share) => Some(share),
            Load::Worked(seconds) => {
                let (then, before) = self.0.insert(record.id, (now, seconds))?;
                let elapsed = now.saturating_duration_since(then).as_secs_f64();
                let cores = f64::from(record.profile.resources.cores.max(1));
                // Fewer than before: it was powered on anew, and has worked so long since.
                let worked = if seconds < before {
                    seconds
                } else {
                    seconds - before
                };
                (elapsed > 0.0).then(|| worked / (elapsed * cores))
            }
        }
    }

    /// Of those that are not looked at any more nothing is kept.
    fn retain(&mut self, candidates: &[Arc<SandboxRecord>]) {
        self.0
            .retain(|id, _| candidates.iter().any(|record| record.id == *id));
    }
}

/// What the world answered. `None` where it did not.
#[derive(Debug)]
struct Answers {
    reached: Option<BTreeSet<Vmid>>,
    loads: Option<BTreeMap<Vmid, Load>>,
}

/// What a look makes of one sandbox; `None` when it must be looked at once more to be judged.
fn judge(
    record: &SandboxRecord,
    occupied: bool,
    answers: &Answers,
    samples: &mut Samples,
    rules: &IdleRules,
) -> Option<Use> {
    let now = Instant::now();
    let load = answers.loads.as_ref().and_then(|loads| loads.get(&record.vmid));
    let share = match load {
        Some(load) => samples.share(record, *load, now),
        None => return Some(Use::InUse),
    };
    let reached = answers
        .reached
        .as_ref()
        .is_none_or(|reached| reached.contains(&record.vmid));
    match share {
        _ if occupied || reached => Some(Use::InUse),
        None => None,
        Some(share) if share > rules.cpu_share => Some(Use::InUse),
        Some(_) => Some(Use::Unused),
    }
}

/// Runs until the engine stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    let Some(rules) = shared.settings.idle.clone() else {
        return;
    };
    let mut samples = Samples::default();
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(rules.interval) => {}
        }
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = once(&shared, &rules, &mut samples) => {}
        }
    }
}

async fn once(shared: &Shared, rules: &IdleRules, samples: &mut Samples) {
    let mut candidates = shared.records();
    candidates.retain(|record| window(record, &shared.settings).is_some());
    samples.retain(&candidates);
    if candidates.is_empty() {
        return;
    }
    let (reached, loads) = tokio::join!(
        timeout(PROBE, shared.network.reached()),
        timeout(PROBE, shared.backend.loads()),
    );
    let late = || format!("no answer within {} s", PROBE.as_secs());
    let reached = reached.map_or_else(|_| Err(late()), |told| told.map_err(|error| error.to_string()));
    let loads = loads.map_or_else(|_| Err(late()), |told| told.map_err(|error| chain(&error)));
    for reason in [reached.as_ref().err(), loads.as_ref().err()]
        .into_iter()
        .flatten()
    {
        tracing::debug!(%reason, "who uses sandboxes cannot be told; none counts as idle");
    }
    let answers = Answers {
        reached: reached.ok(),
        loads: loads.ok(),
    };
    for record in candidates {
        let occupied = shared.is_occupied(record.id);
        if let Some(seen) = judge(&record, occupied, &answers, samples, rules)
            && let Some(handle) = shared.driver(record.id)
        {
            handle.order(Message::Used { seen });
        }
    }
}

/// Somebody works in a sandbox for as long as this lives.
pub struct Occupied {
    shared: Arc<Shared>,
    sandbox: SandboxId,
}

impl fmt::Debug for Occupied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Occupied").field(&self.sandbox).finish()
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        self.shared.vacate(self.sandbox);
        self.shared.used(self.sandbox);
    }
}

impl Engine {
    /// Keeps a sandbox from being stopped for want of use. Its clock begins anew when the answer is dropped.
    #[must_use]
    pub fn occupy(&self, sandbox: SandboxId) -> Occupied {
        self.shared.occupy(sandbox);
        self.shared.used(sandbox);
        Occupied {
            shared: self.shared.clone(),
            sandbox,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::machine::tests::record;

    const RULES: IdleRules = IdleRules {
        interval: Duration::from_secs(60),
        window: Duration::from_secs(1800),
        cpu_share: 0.05,
    };

    fn answers(reached: Option<&[u32]>, load: Option<Load>) -> Answers {
        let vmid = |raw: u32| Vmid::try_from(raw).unwrap();
        Answers {
            reached: reached.map(|vmids| vmids.iter().map(|raw| vmid(*raw)).collect()),
            loads: Some(load.into_iter().map(|load| (vmid(1000), load)).collect()),
        }
    }

    fn seen(occupied: bool, answers: &Answers) -> Option<Use> {
        judge(&record(), occupied, answers, &mut Samples::default(), &RULES)
    }

    #[test]
    fn only_what_is_told_by_both_to_be_unused_is_unused() {
        let idle = Some(Load::Share(0.01));
        assert_eq!(seen(false, &answers(Some(&[]), idle)), Some(Use::Unused));
        assert_eq!(seen(false, &answers(Some(&[1001]), idle)), Some(Use::Unused));
        let used = [
            (true, answers(Some(&[]), idle)),
            (false, answers(Some(&[1000]), idle)),
            (false, answers(Some(&[]), Some(Load::Share(0.06)))),
            // Not told.
            (false, answers(None, idle)),
            (false, answers(Some(&[]), None)),
            (
                false,
                Answers {
                    loads: None,
                    ..answers(Some(&[]), idle)
                },
            ),
        ];
        for (occupied, answers) in used {
            assert_eq!(seen(occupied, &answers), Some(Use::InUse), "{answers:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_total_is_a_share_from_the_second_look_on() {
        let mut samples = Samples::default();
        let mut look = |seconds| {
            let answers = answers(Some(&[]), Some(Load::Worked(seconds)));
            judge(&record(), false, &answers, &mut samples, &RULES)
        };
        assert_eq!(look(100.0), None, "it may have worked all the time, or never");
        tokio::time::advance(Duration::from_secs(60)).await;
        // Two processors: 6 s of 120.
        assert_eq!(look(105.9), Some(Use::Unused));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(look(112.1), Some(Use::InUse));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(look(1.0), Some(Use::Unused), "powered on anew");
    }

    #[test]
    fn a_profile_says_how_long_and_a_job_is_never_stopped() {
        let mut one = record();
        one.state = agentlab_api::SandboxState::Running;
        let minutes = |one: &SandboxRecord, settings: &Settings| {
            window(one, settings).map(|window| window.as_secs() / 60)
        };
        let on = Settings {
            idle: Some(RULES),
            ..Settings::default()
        };
        assert_eq!(minutes(&one, &on), Some(30));
        assert_eq!(
            minutes(
                &one,
                &Settings {
                    idle: None,
                    ..on.clone()
                }
            ),
            None
        );
        for (own, expected) in [(Some(5), Some(5)), (Some(0), None)] {
            one.profile.behavior.idle_stop_minutes_default = own;
            assert_eq!(minutes(&one, &on), expected);
        }
        one.profile.behavior.idle_stop_minutes_default = None;
        one.job = Some("job_0123456789ab".parse().unwrap());
        assert_eq!(minutes(&one, &on), None);
        one.job = None;
        one.state = agentlab_api::SandboxState::Suspended;
        assert_eq!(minutes(&one, &on), None);
    }
}
