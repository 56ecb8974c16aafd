//! What the token may do, held against what it needs. Pure.
//!
//! `/access/permissions` gives what is effective for whoever asks, per path, and whether it holds below that path too. A
//! path that is named there says everything about itself; one that is not inherits from the nearest one above it.

use std::collections::{BTreeMap, BTreeSet};

use agentlab_api::Vmid;
use serde_json::Value;

use super::ask::{Answer, Question};
use super::row::Row;
use crate::init::TokenName;
use crate::init::look::is_true;
use crate::init::privilege::{Grant, Reach, SMBIOS};

/// Effective privileges per path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Permissions(BTreeMap<String, BTreeMap<String, bool>>);

impl Permissions {
    /// From the `data` of an answer.
    pub(crate) fn of(answer: &Value) -> Self {
        let privileges = |value: &Value| {
            let entries = value.as_object().into_iter().flatten();
            entries
                .map(|(privilege, propagates)| (privilege.clone(), is_true(Some(propagates))))
                .collect()
        };
        let paths = answer.as_object().into_iter().flatten();
        Self(
            paths
                .map(|(path, value)| (path.clone(), privileges(value)))
                .collect(),
        )
    }

    fn at(&self, path: &str) -> BTreeSet<&str> {
        if let Some(own) = self.0.get(path) {
            return own.keys().map(String::as_str).collect();
        }
        let mut above = path;
        while let Some((parent, _)) = above.rsplit_once('/') {
            let parent = if parent.is_empty() { "/" } else { parent };
            if let Some(privileges) = self.0.get(parent) {
                let inherited = privileges.iter().filter(|(_, propagates)| **propagates);
                return inherited.map(|(privilege, _)| privilege.as_str()).collect();
            }
            if parent == "/" {
                break;
            }
            above = parent;
        }
        BTreeSet::new()
    }
}

/// One row per path where something is missing, or one that says that nothing is.
pub(crate) fn missing(reach: &Reach, permissions: &Permissions, token: &TokenName) -> Vec<Row> {
    let mut rows = Vec::new();
    for grant in reach.grants() {
        let has = permissions.at(&grant.path);
        let lacks: Vec<&str> = grant
            .role
            .privileges
            .iter()
            .copied()
            .filter(|privilege| !has.contains(privilege))
            .collect();
        if lacks.is_empty() {
            continue;
        }
        let seen = format!(
            "{} lacks {} on {} ({})",
            token.full(),
            lacks.join(", "),
            grant.path,
            grant.purpose
        );
        let next = remedy(&grant, has.is_empty(), token);
        let seen = if lacks.contains(&SMBIOS) {
            format!(
                "{seen}: without {SMBIOS} only templates with a cloud-init drive can be given a seed, as a snippet \
                 (docs/proxmox.md, What is ours)"
            )
        } else {
            seen
        };
        rows.push(Row::fail("privileges", seen, next));
    }
    if rows.is_empty() {
        let count = reach.grants().len();
        rows.push(Row::ok(
            "privileges",
            format!("{} has what it needs on {count} paths", token.full()),
        ));
    }
    rows
}

fn remedy(grant: &Grant, is_absent: bool, token: &TokenName) -> String {
    let grant_it = format!(
        "pveum acl modify {} --roles {} --users {} --tokens '{}'",
        grant.path,
        grant.role.name,
        token.user,
        token.full()
    );
    if is_absent || grant.role.built_in {
        grant_it
    } else {
        let list = grant.role.list();
        format!("pveum role modify {} --privs {list}\n{grant_it}", grant.role.name)
    }
}

/// Privileges that nothing here asks for. What `Sys.Audit` on a node shows is harmless and useful.
pub(crate) fn surplus(reach: &Reach, permissions: &Permissions, token: &TokenName) -> Vec<Row> {
    let mut needed: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for grant in reach.grants() {
        needed
            .entry(grant.path)
            .or_default()
            .extend(grant.role.privileges);
    }
    // Whatever is in the pool may be done with its machines; the one of the workspaces' number is such a machine too.
    let in_pool = needed.get(&format!("/pool/{}", reach.pool)).cloned();
    let owner = reach.volume_owner.map(|owner| format!("/vms/{owner}"));
    let is_the_pools = |path: &String, privilege: &str, propagates: bool| {
        let is_member = path.starts_with("/vms/") && (!propagates || owner.as_ref() == Some(path));
        is_member && in_pool.as_ref().is_some_and(|pool| pool.contains(privilege))
    };
    let mut rows = Vec::new();
    for (path, privileges) in &permissions.0 {
        let needed = needed.get(path);
        let extra: Vec<&str> = privileges
            .iter()
            .filter(|(privilege, propagates)| !is_the_pools(path, privilege, **propagates))
            .map(|(privilege, _)| privilege.as_str())
            .filter(|privilege| !needed.is_some_and(|needed| needed.contains(privilege)))
            .filter(|privilege| !(path.starts_with("/nodes/") && *privilege == "Sys.Audit"))
            .filter(|privilege| !(*privilege == SMBIOS && needed.is_some() && path.starts_with("/pool/")))
            .collect();
        if extra.is_empty() {
            continue;
        }
        let is_volumes = extra == ["Datastore.Allocate"] && path.starts_with("/storage/");
        let seen = format!(
            "{} may do more than it needs on {path}: {}",
            token.full(),
            extra.join(", ")
        );
        rows.push(if is_volumes {
            Row::warn(
                "surplus",
                format!("{seen}, which deletes any volume there"),
                "fine for a storage that holds workspaces only",
            )
        } else {
            Row::warn(
                "surplus",
                seen,
                format!(
                    "pveum acl list; pveum acl delete {path} --tokens '{}' --roles ROLE",
                    token.full()
                ),
            )
        });
    }
    if rows.is_empty() {
        rows.push(Row::ok(
            "surplus",
            format!("{} may do nothing that it does not need", token.full()),
        ));
    }
    rows
}

/// Something that must be refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) question: Question,
    what: &'static str,
}

/// What a stolen token would be tried on first. None of it can have an effect, allowed or not.
pub(crate) fn probes(node: &str, stranger: Vmid, template: Vmid, token: &TokenName) -> Vec<Probe> {
    let probe = |question, what| Probe { question, what };
    let machine = |vmid: Vmid, what: &str| Question::probe(format!("/nodes/{node}/qemu/{vmid}/{what}"));
    vec![
        probe(
            Question::get(format!("/nodes/{node}/qemu/{stranger}/config")),
            "read the configuration of a VM that is not ours",
        ),
        probe(machine(stranger, "config"), "change it"),
        probe(machine(stranger, "status/start"), "start it"),
        probe(machine(stranger, "agent/exec"), "run programs in it"),
        probe(machine(template, "config"), "change the template"),
        probe(
            Question::probe(format!("/nodes/{node}/storage/agentlab-probe/content")),
            "put volumes on any storage",
        ),
        probe(
            Question::get("/cluster/firewall/options"),
            "read how the cluster's firewall is set",
        ),
        probe(Question::probe("/cluster/firewall/groups"), "change the firewall"),
        probe(Question::get("/access/users/root@pam"), "read who may log in"),
        probe(Question::probe("/access/roles"), "make roles"),
        probe(
            Question::probe(format!("/access/users/{}/token/agentlab-probe", token.user)),
            "make itself another token",
        ),
    ]
}

/// Whether each was refused.
pub(crate) fn judge(probes: &[Probe], answers: &[Answer], token: &TokenName) -> Vec<Row> {
    let mut rows = Vec::new();
    for (probe, answer) in probes.iter().zip(answers) {
        match answer {
            Answer::Said { status: 403, .. } => {}
            // The permission is looked at before parameters and before whether the thing is there.
            Answer::Said {
                status: 200 | 400 | 500,
                ..
            } => rows.push(Row::fail(
                "reach",
                format!("{} may {}", token.full(), probe.what),
                format!("pveum user token permissions {} {}", token.user, token.id),
            )),
            Answer::Said { status, reason, .. } => rows.push(Row::unknown(
                "reach",
                format!("whether it may {} is not known: {status} {reason}", probe.what),
                "run it again",
            )),
            Answer::Lost { error } => rows.push(Row::unknown(
                "reach",
                format!("whether it may {} is not known: {error}", probe.what),
                "run it again",
            )),
        }
    }
    if rows.is_empty() {
        let asked: Vec<&str> = probes.iter().map(|probe| probe.what).collect();
        rows.push(Row::ok(
            "reach",
            format!("refused, as it should be: {}", asked.join("; ")),
        ));
    }
    rows
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
