//! How far the hypervisor can be asked, and changed, at the moment. While it cannot, nothing is concluded from its
//! silence, and whoever asks about sandboxes is told since when and why.

use std::sync::Mutex;

use agentlab_api::{BackendTrouble, BackendTroubleKind};
use jiff::Timestamp;

use crate::shared::lock;

/// What is known of it. Everything is well until somebody has seen otherwise.
#[derive(Debug, Default)]
pub(crate) struct Condition(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    unreachable: Option<Since>,
    /// A cluster without quorum answers every question and takes no change.
    refusing: Option<Since>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Since {
    at: Timestamp,
    reason: String,
}

/// Notes a reason, which may change while the trouble lasts. Whether there is anything new about it.
fn note(slot: &mut Option<Since>, now: Timestamp, reason: &str) -> bool {
    let noted = Since {
        at: slot.as_ref().map_or(now, |since| since.at),
        reason: reason.to_owned(),
    };
    let is_news = slot.as_ref() != Some(&noted);
    *slot = Some(noted);
    is_news
}

impl Condition {
    /// It did not answer. Whether that, or the reason, is new.
    pub(crate) fn unreached(&self, now: Timestamp, reason: &str) -> bool {
        note(&mut lock(&self.0).unreachable, now, reason)
    }

    /// It answered. Whether it had not before.
    pub(crate) fn reached(&self) -> bool {
        lock(&self.0).unreachable.take().is_some()
    }

    /// It was asked for a change, and nobody knows what became of that.
    pub(crate) fn takes_no_changes(&self, now: Timestamp, reason: &str) {
        note(&mut lock(&self.0).refusing, now, reason);
    }

    /// It has made a change.
    pub(crate) fn takes_changes(&self) {
        lock(&self.0).refusing = None;
    }

    /// The worse of both.
    pub(crate) fn trouble(&self) -> Option<BackendTrouble> {
        let known = lock(&self.0);
        let told = |kind, since: &Since| BackendTrouble {
            kind,
            since: since.at,
            reason: since.reason.clone(),
        };
        let unreachable = known.unreachable.as_ref();
        let unreachable = unreachable.map(|since| told(BackendTroubleKind::Unreachable, since));
        unreachable.or_else(|| {
            let refusing = known.refusing.as_ref();
            refusing.map(|since| told(BackendTroubleKind::TakesNoChanges, since))
        })
    }

    /// One sentence for each.
    pub(crate) fn alarms(&self) -> Vec<String> {
        let known = lock(&self.0);
        let told = |words: &str, since: &Since| format!("{words}: {}", since.reason);
        let unreachable = known.unreachable.as_ref();
        let refusing = known.refusing.as_ref();
        unreachable
            .map(|since| told("The back end cannot be reached", since))
            .into_iter()
            .chain(refusing.map(|since| told("The back end takes no changes", since)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn trouble_is_told_since_when_with_its_latest_reason_and_the_worse_one_first() {
        let condition = Condition::default();
        assert_eq!((condition.trouble(), condition.reached()), (None, false));
        condition.takes_no_changes(at(1), "the cluster is not quorate");
        let trouble = condition.trouble().unwrap();
        assert_eq!(trouble.kind, BackendTroubleKind::TakesNoChanges);
        assert!(condition.unreached(at(2), "refused"));
        assert!(!condition.unreached(at(3), "refused"), "that is known");
        assert!(condition.unreached(at(4), "no route"));
        let expected = BackendTrouble {
            kind: BackendTroubleKind::Unreachable,
            since: at(2),
            reason: "no route".into(),
        };
        assert_eq!(condition.trouble(), Some(expected));
        assert_eq!(condition.alarms().len(), 2);
        assert!(condition.reached());
        assert_eq!(condition.trouble(), Some(trouble), "it still takes no changes");
        condition.takes_changes();
        assert_eq!((condition.trouble(), condition.alarms()), (None, Vec::new()));
    }
}
