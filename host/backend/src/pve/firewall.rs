//! PVE's own firewall before a machine's NIC, for profiles that ask for it. It only ever takes away from what our policy
//! lets through: that filters the same NIC, by the name of the link that PVE then puts on our bridge in its tap's place.
//!
//! A clone has its template's rules and options. Those that stand here are put in their place, and read again before the
//! machine is powered on.

use agentlab_api::Vmid;

use super::change::{Change, FirewallEdit, Read, Values, pair};
use super::machines::Attempt;
use super::record::Record;
use super::{Fields, Kind, Pve, Refusal, Wire};
use crate::{BackendError, Firewall};

/// What stands of it in a machine's label.
pub(super) fn label_of(firewall: &Firewall) -> String {
    match &firewall.group {
        None => "on".to_owned(),
        Some(group) => format!("group:{group}"),
    }
}

/// From a label.
pub(super) fn of_label(text: &str) -> Firewall {
    Firewall {
        group: text.strip_prefix("group:").map(str::to_owned),
    }
}

/// Nothing comes in but what the group lets in, and nothing leaves with another's Ethernet address. Addresses are pinned
/// by our policy; `ipfilter` would need a list of them for each machine, and without one let nothing through.
fn options() -> Values {
    vec![
        pair("enable", 1),
        pair("policy_in", "DROP"),
        pair("policy_out", "ACCEPT"),
        pair("macfilter", 1),
        pair("ipfilter", 0),
        pair("dhcp", 0),
        pair("ndp", 0),
        pair("radv", 0),
    ]
}

fn has_options(found: &Fields) -> bool {
    options()
        .iter()
        .all(|(key, value)| found.text(key).as_ref() == Some(value))
}

/// The only rule there is, or none.
fn has_rules(found: &[Fields], group: Option<&str>) -> bool {
    match (found, group) {
        ([], None) => true,
        ([rule], Some(group)) => {
            rule.flag("enable")
                && rule.text("type").is_some_and(|kind| kind == "group")
                && rule.text("action").is_some_and(|action| action == group)
        }
        _ => false,
    }
}

impl<W: Wire> Pve<W> {
    async fn firewall_of(&self, record: &Record) -> Attempt<(Fields, Vec<Fields>)> {
        let at = format!("/nodes/{}/qemu/{}/firewall", record.node, record.vmid);
        let (options, rules) = (
            Read::new(format!("{at}/options")),
            Read::new(format!("{at}/rules")),
        );
        let (options, rules) = tokio::join!(self.wire.read(&options), self.wire.read(&rules));
        let options = Fields::of(options?).unwrap_or_default();
        let rules = Fields::list(rules?).ok_or_else(|| Refusal::unknown("the answer is no list"))?;
        Ok((options, rules))
    }

    /// Refuses unless it stands as the machine's label says.
    pub(super) async fn check_firewall(&self, action: &'static str, record: &Record) -> Attempt<()> {
        let Some(label) = record.label().and_then(|label| label.firewall) else {
            return Ok(());
        };
        let (options, rules) = self.firewall_of(record).await?;
        if has_options(&options) && has_rules(&rules, of_label(&label).group.as_deref()) {
            return Ok(());
        }
        Err(BackendError::Refused {
            action,
            vmid: record.vmid,
            reason: "its firewall in PVE is not as its profile asks for".to_owned(),
            hint: Some("somebody changed it: destroy the sandbox, and make another".to_owned()),
        }
        .into())
    }

    /// Sets it, and nothing that stands already.
    pub(super) async fn set_firewall(
        &self,
        action: &'static str,
        record: &Record,
        firewall: &Firewall,
    ) -> Attempt<()> {
        let group = firewall.group.as_deref();
        if let Some(group) = group {
            self.check_group(action, record.vmid, group).await?;
        }
        self.check_cluster(action, record.vmid).await?;
        let edit = |edit| Change::Firewall {
            vmid: record.vmid,
            edit,
        };
        let (found, rules) = self.firewall_of(record).await?;
        if !has_options(&found) {
            let change = edit(FirewallEdit::Options(options()));
            self.change(&record.node, change).await?;
        }
        if has_rules(&rules, group) {
            return Ok(());
        }
        // The last one first, so that the others keep their places.
        for position in (0..rules.len()).rev() {
            let change = edit(FirewallEdit::RemoveRule(position));
            self.change(&record.node, change).await?;
        }
        if let Some(group) = group {
            let rule = vec![pair("type", "group"), pair("action", group), pair("enable", 1)];
            let change = edit(FirewallEdit::AddRule(rule));
            self.change(&record.node, change).await?;
        }
        Ok(())
    }

    /// PVE takes a rule that names a group which is not there, and lets through what the group would not.
    async fn check_group(&self, action: &'static str, vmid: Vmid, group: &str) -> Attempt<()> {
        let answer = self.wire.read(&Read::new("/cluster/firewall/groups")).await?;
        let groups = Fields::list(answer).unwrap_or_default();
        let is_there = |line: &Fields| line.text("group").is_some_and(|found| found == group);
        if groups.iter().any(is_there) {
            return Ok(());
        }
        Err(BackendError::Refused {
            action,
            vmid,
            reason: format!("PVE has no security group `{group}`"),
            hint: Some(format!(
                "an administrator makes it: `pvesh create /cluster/firewall/groups --group {group}`"
            )),
        }
        .into())
    }

    /// Whether firewalls are on at all; a token without Sys.Audit may not ask, and `doctor` does instead.
    async fn check_cluster(&self, action: &'static str, vmid: Vmid) -> Attempt<()> {
        let found = match self.wire.read(&Read::new("/cluster/firewall/options")).await {
            Ok(answer) => Fields::of(answer).unwrap_or_default(),
            Err(refusal) if matches!(refusal.kind, Kind::Permission(_)) => return Ok(()),
            Err(refusal) => return Err(refusal.into()),
        };
        if found.flag("enable") {
            return Ok(());
        }
        let hint =
            "`pvesh set /cluster/firewall/options --enable 1`, or take `network.firewall` out of the profile";
        Err(BackendError::Refused {
            action,
            vmid,
            reason: "PVE's firewall is off for the whole cluster".to_owned(),
            hint: Some(hint.to_owned()),
        }
        .into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn fields(value: Value) -> Fields {
        Fields::of(value).unwrap()
    }

    #[test]
    fn it_stands_only_with_every_option_and_with_its_group_alone() {
        let stands = json!({
            "enable": 1, "policy_in": "DROP", "policy_out": "ACCEPT", "macfilter": "1", "ipfilter": 0, "dhcp": 0, "ndp": 0,
            "radv": "0", "log_level_in": "info",
        });
        assert!(has_options(&fields(stands.clone())));
        for (key, value) in [
            ("enable", json!(0)),
            ("policy_in", json!("ACCEPT")),
            ("macfilter", json!(0)),
            ("radv", json!(null)),
        ] {
            let mut less = stands.clone();
            less[key] = value;
            assert!(!has_options(&fields(less)), "{key}");
        }
        let rule =
            |action: &str, enable: u8| fields(json!({ "type": "group", "action": action, "enable": enable }));
        assert!(has_rules(&[rule("web", 1)], Some("web")) && has_rules(&[], None));
        for (rules, group) in [
            (vec![rule("web", 0)], Some("web")),
            (vec![rule("ssh", 1)], Some("web")),
            (vec![rule("web", 1), rule("ssh", 1)], Some("web")),
            (vec![], Some("web")),
            (vec![rule("web", 1)], None),
        ] {
            assert!(!has_rules(&rules, group), "{rules:?}");
        }
        for group in [None, Some("web".to_owned())] {
            let firewall = Firewall { group };
            assert_eq!(of_label(&label_of(&firewall)), firewall);
        }
    }
}
