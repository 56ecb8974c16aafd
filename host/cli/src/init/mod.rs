//! A Proxmox VE node made ready for the daemon: with the least that its token needs, and nothing by guesswork.
//!
//! ```text
//!   config.yaml ─► settings ─► Wanted ─┐
//!                                      ├─► plan (pure) ─► steps ─► shown, or with --apply performed one by one
//!   pvesh, pveum ─► look ────► Found ──┘
//! ```
//! Without `--apply` nothing is changed. With it, what is there is looked at once more in the end, and nothing may be
//! missing then.

pub(crate) mod file;
pub(crate) mod look;
mod perform;
mod plan;
pub(crate) mod privilege;
pub(crate) mod programs;
pub(crate) mod rows;
pub(crate) mod settings;
mod step;

pub(crate) use step::TokenName;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use agentlab_api::Vmid;
use serde_json::Value;

use crate::doctor::{Row, template};
use crate::error::CommandError;
use look::Node;
use perform::{StepError, perform};
use plan::{Refusal, Wanted};
use programs::Programs;
use settings::{NodeArguments, OfTemplates};
use step::Step;

/// What was found, and what is missing.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) node: Node,
    pub(crate) rows: Vec<Row>,
    /// Refusals where nothing may be changed.
    pub(crate) missing: Result<Vec<Step>, Vec<Refusal>>,
}

/// Looks at everything and changes nothing.
pub(crate) async fn survey(
    arguments: &NodeArguments,
    rotate: bool,
    config: &Path,
    programs: &Programs,
) -> Result<Survey, CommandError> {
    let read = settings::read(config)?;
    let node = look_at(programs, &arguments.user).await.map_err(|error| {
        CommandError::refused(format!("This node does not answer: {error}")).with_hint(
            "run it as root on the node itself; `systemctl status pve-cluster pvedaemon` says more",
        )
    })?;
    let templates = template_configs(settings::templates(arguments, &read.config), &node, programs).await;
    let of_templates = OfTemplates::of(templates.values().flatten(), &node, &arguments.user);
    let mut rows = rows::of_node(&node, &read.config);
    rows.extend(rows::private(config));
    let wanted = node
        .release
        .and_then(|release| settings::wanted(arguments, &read, &node, release, &of_templates));
    let pool = wanted
        .as_ref()
        .map_or("agentlab", |wanted| wanted.reach.pool.as_str());
    rows.extend(templates.iter().map(|(vmid, config)| {
        template::row(&template::Seen {
            vmid: *vmid,
            machine: node.machines.get(vmid),
            config: config.as_ref().map_err(Clone::clone),
            pool,
        })
    }));
    let missing = match wanted {
        Some(wanted) => {
            let wanted = Wanted { rotate, ..wanted };
            rows.extend(rows::of_wanted(&wanted, &node));
            plan::plan(&wanted, &settings::found(&read, &node)).and_then(|steps| writable(config, steps))
        }
        None => Err(vec![nowhere(&node)]),
    };
    rows.extend(rows::of_host(programs, &read.config).await);
    Ok(Survey { node, rows, missing })
}

/// A node as root sees it; otherwise why not.
pub(crate) async fn look_at(programs: &Programs, user: &str) -> Result<Node, String> {
    let user = TokenName {
        user: user.to_owned(),
        id: String::new(),
    };
    look::look(programs, &user)
        .await
        .map_err(|error| error.to_string())
}

/// The configurations of templates, or why they could not be read.
async fn template_configs(
    templates: BTreeSet<Vmid>,
    node: &Node,
    programs: &Programs,
) -> BTreeMap<Vmid, Result<Value, String>> {
    let mut configs = BTreeMap::new();
    for vmid in templates {
        let config = match node.machines.get(&vmid) {
            Some(machine) => programs
                .ask(&format!("/nodes/{}/qemu/{vmid}/config", machine.node), &[])
                .await
                .map_err(|error| error.to_string()),
            None => Err("there is none".to_owned()),
        };
        configs.insert(vmid, config);
    }
    configs
}

fn nowhere(node: &Node) -> Refusal {
    if node.release.is_none() {
        return Refusal {
            reason: format!(
                "Proxmox VE {} is older than 8, and its privileges are not known here",
                node.version
            ),
            next: "upgrade the node".to_owned(),
        };
    }
    let with_images = node
        .storages
        .iter()
        .filter(|(_, storage)| storage.content.contains("images"));
    let names: Vec<&str> = with_images.map(|(name, _)| name.as_str()).collect();
    Refusal {
        reason: "there is no template yet that says where disks are to go".to_owned(),
        next: format!(
            "make a template first, or name a storage with --storage; this node has {}",
            names.join(", ")
        ),
    }
}

/// Whether config.yaml could take what the steps would write: asked before the first of them is done, because PVE says
/// a secret only once.
fn writable(config: &Path, steps: Vec<Step>) -> Result<Vec<Step>, Vec<Refusal>> {
    let refused = |reason: String| {
        vec![Refusal {
            reason,
            next: format!("correct {} by hand, and run it again", config.display()),
        }]
    };
    let mut text = file::read(config).map_err(|error| refused(format!("{}: {error}", config.display())))?;
    for step in &steps {
        let keys: Vec<(&str, &str)> = match step {
            Step::MakeToken(_) => vec![("proxmox_api_token", "agentlab@pve!none=none")],
            Step::SetKeys(keys) => keys.iter().map(|(key, value)| (*key, value.as_str())).collect(),
            Step::AddPool(_)
            | Step::AddRole(_)
            | Step::SetRole(_)
            | Step::AddUser(_)
            | Step::DropToken(_)
            | Step::MarkToken(_)
            | Step::SeparateToken(_)
            | Step::Grant { .. } => Vec::new(),
        };
        for (key, value) in keys {
            text = file::set(&text, key, value)
                .map_err(|error| refused(format!("{}, {error}", config.display())))?;
        }
    }
    match agentlab_config::parse_config(&text, &config.display().to_string()) {
        Ok(_) => Ok(steps),
        Err(error) => Err(refused(format!("with what is to be written: {error}"))),
    }
}

/// Does the steps in their order and stops at the first that fails. Those before it need not be done again.
pub(crate) async fn apply(
    steps: &[Step],
    programs: &Programs,
    config: &Path,
    mut done: impl FnMut(&Step) -> Result<(), CommandError>,
) -> Result<(), CommandError> {
    for step in steps {
        perform(step, programs, config)
            .await
            .map_err(|error| failed(step, &error))?;
        done(step)?;
    }
    Ok(())
}

fn failed(step: &Step, error: &StepError) -> CommandError {
    CommandError::refused(format!("Could not {}: {error}", step.says()))
        .with_hint("what was done before stands; correct the cause and run `agentlab init --apply` again")
}
