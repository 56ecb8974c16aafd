//! What each sandbox was refused: counted, remembered a little, and told at a bounded rate. No clock of its own.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use agentlab_api::Vmid;
use agentlab_engine::port::Denied;
use agentlab_netpolicy::{Refusal, RefusedPacket};

/// Between two events about the same sandbox.
const QUIET: Duration = Duration::from_secs(10);
/// Different targets that are remembered of a sandbox; an agent that scans must not fill the daemon.
const REMEMBERED: usize = 32;

#[derive(Debug, Default)]
pub(super) struct Denials {
    sandboxes: BTreeMap<Vmid, OfSandbox>,
}

#[derive(Debug, Default)]
struct OfSandbox {
    /// Latest last.
    recent: VecDeque<Denied>,
    told: Option<Instant>,
    /// Refused since something was told.
    untold: u64,
}

impl Denials {
    /// Counts a refusal, and says whether it is time to tell.
    pub(super) fn count(
        &mut self,
        vmid: Vmid,
        packet: &RefusedPacket,
        why: Refusal,
        now: Instant,
    ) -> Option<Denied> {
        self.note(vmid, packet.target(), (why.word(), why.hint()), now)
    }

    /// The same for whatever else a sandbox was refused, with the rule and its hint.
    pub(super) fn note(
        &mut self,
        vmid: Vmid,
        target: String,
        (rule, hint): (&'static str, &'static str),
        now: Instant,
    ) -> Option<Denied> {
        let of = self.sandboxes.entry(vmid).or_default();
        let known = of.recent.iter().position(|denied| denied.target == target);
        let mut denied = known.and_then(|place| of.recent.remove(place)).unwrap_or(Denied {
            vmid,
            target,
            rule,
            hint,
            count: 0,
        });
        denied.count += 1;
        denied.rule = rule;
        denied.hint = hint;
        if of.recent.len() >= REMEMBERED {
            of.recent.pop_front();
        }
        of.recent.push_back(denied.clone());
        of.untold += 1;
        if of.told.is_some_and(|told| now.duration_since(told) < QUIET) {
            return None;
        }
        of.told = Some(now);
        let count = std::mem::take(&mut of.untold);
        Some(Denied { count, ..denied })
    }

    /// What a sandbox was refused lately, latest first.
    pub(super) fn of(&self, vmid: Vmid) -> Vec<Denied> {
        self.sandboxes
            .get(&vmid)
            .map(|of| of.recent.iter().rev().cloned().collect())
            .unwrap_or_default()
    }

    /// The next sandbox of this VMID inherits nothing.
    pub(super) fn forget(&mut self, vmid: Vmid) {
        self.sandboxes.remove(&vmid);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn packet(last: u8, port: u16) -> RefusedPacket {
        RefusedPacket {
            guest: Ipv4Addr::new(10, 77, 0, 11),
            destination: Ipv4Addr::new(192, 168, 1, last),
            protocol: 6,
            port: Some(port),
        }
    }

    #[test]
    fn a_sandbox_that_scans_is_told_of_rarely_and_remembered_little() {
        let (mut denials, start, vmid) = (Denials::default(), Instant::now(), Vmid::MIN);
        let mut told = Vec::new();
        for second in 0..25_u64 {
            for port in 0..100 {
                let now = start + Duration::from_secs(second);
                told.extend(denials.count(vmid, &packet(1, port), Refusal::PrivateNetwork, now));
            }
        }
        let counts: Vec<u64> = told.iter().map(|denied| denied.count).collect();
        assert_eq!(counts, [1, 1000, 1000]);
        assert_eq!(told[0].target, "tcp 192.168.1.1:0");
        let of = denials.of(vmid);
        assert_eq!(of.len(), REMEMBERED);
        assert_eq!(of[0].target, "tcp 192.168.1.1:99");
        assert!(denials.of(Vmid::MAX).is_empty());
        denials.forget(vmid);
        assert!(denials.of(vmid).is_empty());
    }

    #[test]
    fn the_same_target_is_one_entry_with_a_count() {
        let (mut denials, now) = (Denials::default(), Instant::now());
        for _ in 0..3 {
            denials.count(Vmid::MIN, &packet(1, 80), Refusal::PrivateNetwork, now);
            denials.count(Vmid::MIN, &packet(2, 80), Refusal::PrivateNetwork, now);
        }
        let of: Vec<_> = denials
            .of(Vmid::MIN)
            .into_iter()
            .map(|denied| denied.count)
            .collect();
        assert_eq!(of, [3, 3]);
    }
}
