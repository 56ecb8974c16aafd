//! From what is wanted and what is there to the steps that are missing. Pure: looks at nothing, changes nothing.
//!
//! ```text
//!   pool ─► roles ─► user ─► token ─► its secret into config.yaml ─► grants ─► the other keys of config.yaml
//! ```
//! Every step can be repeated, and after a crash between any two the next plan goes on from there. The one step that
//! cannot simply be repeated is the token: PVE says its secret once. So a new token carries a comment that its secret
//! is not stored yet. One that still has it was lost by a crash and is made again; one without it is in use, here or
//! by another daemon, and is left alone.

use std::collections::{BTreeMap, BTreeSet};

use agentlab_api::Vmid;

use super::privilege::{Reach, Role};
use super::step::{Step, TokenName};

/// A new token's comment.
pub(crate) const UNSTORED: &str = "agentlab init: secret not stored yet";

/// How things should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) reach: Reach,
    pub(crate) token: TokenName,
    /// Replace a token that stands.
    pub(crate) rotate: bool,
    /// Sandboxes' VMIDs; nothing else may be in the pool.
    pub(crate) vmids: (Vmid, Vmid),
    /// Keys of config.yaml and their values, but for the token.
    pub(crate) keys: BTreeMap<&'static str, String>,
}

/// A token as PVE lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundToken {
    pub(crate) separated: bool,
    pub(crate) comment: String,
}

/// A role as PVE lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundRole {
    pub(crate) privileges: BTreeSet<String>,
    pub(crate) built_in: bool,
}

/// Who has a grant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FoundGrant {
    pub(crate) path: String,
    pub(crate) role: String,
    /// A user, or a token by its full name.
    pub(crate) holder: String,
}

/// Which token config.yaml holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stored {
    None,
    /// Its full name.
    Token(String),
    /// It is in a file of its own, which we do not write.
    Elsewhere(String),
}

/// How things are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) roles: BTreeMap<String, FoundRole>,
    pub(crate) pools: BTreeSet<String>,
    /// Whether each is enabled.
    pub(crate) users: BTreeMap<String, bool>,
    /// Of our user.
    pub(crate) tokens: BTreeMap<String, FoundToken>,
    pub(crate) grants: BTreeSet<FoundGrant>,
    /// Machines and their pools.
    pub(crate) machines: BTreeMap<Vmid, Option<String>>,
    pub(crate) stored: Stored,
    /// What config.yaml says already.
    pub(crate) keys: BTreeMap<String, String>,
}

/// Why nothing will be changed, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: String,
    pub(crate) next: String,
}

/// The missing steps in their order; none when all is as wanted.
///
/// # Errors
/// Everything that stands in the way. Then nothing may be changed.
pub(crate) fn plan(wanted: &Wanted, found: &Found) -> Result<Vec<Step>, Vec<Refusal>> {
    let mut steps = Vec::new();
    let mut refusals = strangers(wanted, found);
    let reach = &wanted.reach;
    if !found.pools.contains(&reach.pool) {
        steps.push(Step::AddPool(reach.pool.clone()));
    }
    for role in reach.roles() {
        match role_step(&role, found.roles.get(role.name)) {
            Ok(step) => steps.extend(step),
            Err(refusal) => refusals.push(refusal),
        }
    }
    match found.users.get(&wanted.token.user) {
        Some(true) => {}
        Some(false) => refusals.push(Refusal {
            reason: format!("user {} is disabled", wanted.token.user),
            next: format!("pveum user modify {} --enable 1", wanted.token.user),
        }),
        None => steps.push(Step::AddUser(wanted.token.user.clone())),
    }
    let is_new = match token_steps(wanted, found) {
        Ok(found_steps) => {
            let is_new = found_steps.iter().any(|step| matches!(step, Step::MakeToken(_)));
            steps.extend(found_steps);
            is_new
        }
        Err(refusal) => {
            refusals.push(refusal);
            false
        }
    };
    steps.extend(grant_steps(wanted, found, is_new));
    let keys: BTreeMap<&'static str, String> = wanted
        .keys
        .iter()
        .filter(|(key, value)| found.keys.get(**key) != Some(*value))
        .map(|(key, value)| (*key, value.clone()))
        .collect();
    if !keys.is_empty() {
        steps.push(Step::SetKeys(keys));
    }
    if refusals.is_empty() {
        Ok(steps)
    } else {
        Err(refusals)
    }
}

/// Machines that the token would be able to end, and must not.
fn strangers(wanted: &Wanted, found: &Found) -> Vec<Refusal> {
    let reach = &wanted.reach;
    let mut refusals = Vec::new();
    let ours = wanted.vmids.0..=wanted.vmids.1;
    let in_pool = found
        .machines
        .iter()
        .filter(|(_, pool)| pool.as_ref() == Some(&reach.pool));
    let strange: Vec<String> = in_pool
        // The daemon makes one with the number of volumes, once it has to snapshot or copy one.
        .filter(|(vmid, _)| !ours.contains(*vmid) && reach.volume_owner != Some(**vmid))
        .map(|(vmid, _)| vmid.to_string())
        .collect();
    if !strange.is_empty() {
        refusals.push(Refusal {
            reason: format!(
                "pool {} holds machines that are no sandboxes ({}): the token could end them",
                reach.pool,
                strange.join(", ")
            ),
            next: format!(
                "take them out (pveum pool modify {} --delete 1 --vms {}), or name another pool with --pool",
                reach.pool,
                strange.join(",")
            ),
        });
    }
    let is_others = |owner: &Vmid| {
        let pool = found.machines.get(owner);
        pool.is_some_and(|pool| pool.as_ref() != Some(&reach.pool))
    };
    if let Some(owner) = reach.volume_owner.filter(is_others) {
        refusals.push(Refusal {
            reason: format!(
                "a machine of somebody else's has the number {owner}, which is to own the workspaces: it would take them \
                 along"
            ),
            next: "name a number that no machine has with --volume-vmid".to_owned(),
        });
    }
    refusals
}

fn role_step(role: &Role, found: Option<&FoundRole>) -> Result<Option<Step>, Refusal> {
    let Some(found) = found else {
        return Ok(Some(Step::AddRole(role.clone())));
    };
    if found.built_in || !role.may_be_ours(&found.privileges) {
        let strange: Vec<&str> = found
            .privileges
            .iter()
            .map(String::as_str)
            .filter(|privilege| !role.privileges.contains(privilege))
            .collect();
        return Err(Refusal {
            reason: format!(
                "role {} is there and not ours: it holds {}",
                role.name,
                strange.join(", ")
            ),
            next: format!(
                "give that role another name, or, when nothing needs it, delete it (pveum role delete {})",
                role.name
            ),
        });
    }
    let is_same = found
        .privileges
        .iter()
        .map(String::as_str)
        .eq(role.privileges.iter().copied());
    Ok((!is_same).then(|| Step::SetRole(role.clone())))
}

fn token_steps(wanted: &Wanted, found: &Found) -> Result<Vec<Step>, Refusal> {
    let name = wanted.token.full();
    let standing = found.tokens.get(&wanted.token.id);
    let make = |drop: bool| {
        let mut steps = Vec::new();
        if drop {
            steps.push(Step::DropToken(wanted.token.clone()));
        }
        steps.push(Step::MakeToken(wanted.token.clone()));
        steps.push(Step::MarkToken(wanted.token.clone()));
        Ok(steps)
    };
    match &found.stored {
        Stored::Elsewhere(path) => {
            return Err(Refusal {
                reason: format!(
                    "the token is in {path}, and `agentlab init` writes it into config.yaml only"
                ),
                next: "take `proxmox_api_token_path` out of config.yaml".to_owned(),
            });
        }
        Stored::Token(other) if *other != name && !wanted.rotate => {
            return Err(Refusal {
                reason: format!("config.yaml holds the token {other}, and not {name}"),
                next: "replace it with --rotate, or keep it and name it with --user and --token".to_owned(),
            });
        }
        Stored::Token(_) | Stored::None if wanted.rotate => return make(standing.is_some()),
        Stored::Token(_) | Stored::None => {}
    }
    let Some(standing) = standing else {
        return make(false);
    };
    let is_unstored = standing.comment == UNSTORED;
    if found.stored == Stored::None {
        if is_unstored {
            return make(true);
        }
        return Err(Refusal {
            reason: format!(
                "token {name} is there, and config.yaml does not hold it: PVE says a secret only once"
            ),
            next:
                "replace it with --rotate (whoever uses it is locked out), or name another one with --token"
                    .to_owned(),
        });
    }
    let mut steps = Vec::new();
    if !standing.separated {
        steps.push(Step::SeparateToken(wanted.token.clone()));
    }
    if is_unstored {
        steps.push(Step::MarkToken(wanted.token.clone()));
    }
    Ok(steps)
}

fn grant_steps(wanted: &Wanted, found: &Found, token_is_new: bool) -> Vec<Step> {
    let token = wanted.token.full();
    let has = |path: &str, role: &str, holder: &str| {
        found.grants.contains(&FoundGrant {
            path: path.to_owned(),
            role: role.to_owned(),
            holder: holder.to_owned(),
        })
    };
    wanted
        .reach
        .grants()
        .into_iter()
        .filter(|grant| {
            // With a token go its grants.
            token_is_new
                || !has(&grant.path, grant.role.name, &token)
                || !has(&grant.path, grant.role.name, &wanted.token.user)
        })
        .map(|grant| Step::Grant {
            path: grant.path,
            role: grant.role.name,
            token: wanted.token.clone(),
            purpose: grant.purpose,
        })
        .collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
