//! Everything on a host that can spoil a sandbox, looked at and never changed.
//!
//! ```text
//!   token     /access/permissions against what is needed; probes that must be refused   (agentlabd asks, with the token)
//!   pve       quorum, storages, templates, leftovers, firewall                          (pvesh, as root on the node)
//!   host      bridge and policy, chains of others, clock, room, vsock                   (this host)
//!   daemon    what it says itself                                                       (its socket)
//! ```
//! What cannot be looked at is said to be unknown; nothing is concluded from it.

mod ask;
mod daemon;
mod host;
mod pve;
mod row;
pub(crate) mod template;
mod token;

pub(crate) use row::{Row, State, passed, render};

use std::path::Path;

use agentlab_api::Vmid;
use agentlab_client::Client;
use agentlab_config::{BackendKind, Config, load_config};

use crate::init::look::Node;
use crate::init::privilege::{Reach, Release};
use crate::init::programs::Programs;
use crate::init::settings::{self, NodeArguments, OfTemplates};
use crate::init::{TokenName, look_at};
use ask::{Answer, Question};
use token::Permissions;

/// Looks at everything.
pub(crate) async fn examine(
    arguments: &NodeArguments,
    path: &Path,
    client: &Client,
    programs: &Programs,
) -> Vec<Row> {
    let config = match load_config(path) {
        Ok(loaded) => loaded.value,
        Err(error) => {
            let next = error
                .hint()
                .unwrap_or_else(|| "agentlabd --check says the same".to_owned());
            return vec![Row::fail("config", error.to_string(), next)];
        }
    };
    let kind = match config.backend {
        BackendKind::Qemu => "qemu",
        BackendKind::Proxmox => "proxmox",
        BackendKind::Shell => "shell",
    };
    let mut rows = vec![Row::ok("config", format!("{}, back end {kind}", path.display()))];
    let status = client.status().await;
    rows.extend(daemon::rows(&status, config.backend));
    if config.backend != BackendKind::Qemu {
        rows.extend(of_node(arguments, path, &config, client, programs).await);
    }
    rows.extend(host::rows(&config, programs).await);
    rows
}

async fn of_node(
    arguments: &NodeArguments,
    path: &Path,
    config: &Config,
    client: &Client,
    programs: &Programs,
) -> Vec<Row> {
    let user = arguments.user.clone();
    let node = if programs.find("pvesh").is_some() {
        look_at(programs, &user).await
    } else {
        Err("this host is no Proxmox VE node".to_owned())
    };
    let mut rows = Vec::new();
    let mut of_templates = OfTemplates::default();
    match &node {
        Ok(node) => {
            rows.extend(pve::rows(arguments, config, node, client, programs, &mut of_templates).await)
        }
        Err(reason) => rows.push(Row::unknown(
            "node",
            format!("storages, templates and leftovers were not looked at: {reason}"),
            "run `agentlab doctor` as root on the node too",
        )),
    }
    if config.backend == BackendKind::Proxmox {
        let node = node.as_ref().ok();
        rows.extend(of_token(arguments, path, node, &of_templates, programs).await);
    }
    rows
}

/// A machine that the token must not reach: one that is there, or else a number that is nobody's.
fn stranger(config: &Config, reach: &Reach, node: Option<&Node>) -> Vmid {
    let ours = config.vmid_first..=config.vmid_last;
    let is_strange = |vmid: &Vmid| {
        !ours.contains(vmid) && !reach.templates.contains(vmid) && reach.volume_owner != Some(*vmid)
    };
    let real = node.into_iter().flat_map(|node| node.machines.keys());
    real.copied()
        .find(|vmid| is_strange(vmid))
        .or_else(|| {
            (100..)
                .filter_map(|number| Vmid::try_from(number).ok())
                .find(is_strange)
        })
        .unwrap_or(Vmid::MAX)
}

async fn of_token(
    arguments: &NodeArguments,
    path: &Path,
    node: Option<&Node>,
    of_templates: &OfTemplates,
    programs: &Programs,
) -> Vec<Row> {
    let read = match settings::read(path) {
        Ok(read) => read,
        Err(error) => return vec![Row::fail("token", error.to_string(), "agentlab init")],
    };
    let first = [
        Question::get("/version"),
        Question::get("/access/permissions"),
        Question::get("/cluster/status"),
        Question::get("/nodes"),
    ];
    let answers = match ask::ask(programs, path, &first).await {
        Ok(answers) => answers,
        Err(reason) => {
            return vec![Row::unknown(
                "token",
                format!("it could not be tried: {reason}"),
                "install the package agentlabd, and run this as root",
            )];
        }
    };
    let (version, permissions) = match answers.answers.as_slice() {
        [
            Answer::Said {
                status: 200,
                data: version,
                ..
            },
            Answer::Said {
                status: 200,
                data: permissions,
                ..
            },
            ..,
        ] => (
            crate::init::look::text(version, "version").unwrap_or_default(),
            Permissions::of(permissions),
        ),
        all => return vec![unanswered(&answers.token, all)],
    };
    let token = TokenName::parse(&answers.token).unwrap_or(TokenName {
        user: arguments.user.clone(),
        id: String::new(),
    });
    let mut rows = vec![Row::ok(
        "token",
        format!("{} is accepted by Proxmox VE {version}", token.full()),
    )];
    rows.push(host::clock(answers.clock_ahead));
    let Some(release) = Release::of_version(&version) else {
        rows.push(Row::fail(
            "proxmox",
            format!("Proxmox VE {version} is older than 8"),
            "upgrade the node",
        ));
        return rows;
    };
    let name = node_name(&read.config, node, &answers.answers);
    let Some(reach) = settings::reach(arguments, &read, release, of_templates) else {
        rows.push(Row::unknown(
            "privileges",
            "no storage is named, so that what is needed is not known",
            "name one with `proxmox_storage` in config.yaml",
        ));
        return rows;
    };
    rows.extend(token::missing(&reach, &permissions, &token));
    rows.extend(token::surplus(&reach, &permissions, &token));
    let probes = token::probes(&name, stranger(&read.config, &reach, node));
    let questions: Vec<Question> = probes.iter().map(|probe| probe.question.clone()).collect();
    match ask::ask(programs, path, &questions).await {
        Ok(answers) => rows.extend(token::judge(&probes, &answers.answers, &token)),
        Err(reason) => rows.push(Row::unknown("reach", reason, "run it again")),
    }
    rows
}

fn node_name(config: &Config, node: Option<&Node>, answers: &[Answer]) -> String {
    let said = |index: usize| match answers.get(index) {
        Some(Answer::Said { data, .. }) => Some(data),
        Some(Answer::Lost { .. }) | None => None,
    };
    let local = said(2)
        .map(|status| crate::init::look::here(status).0)
        .filter(|name| !name.is_empty());
    let first = || crate::init::look::text(crate::init::look::list(said(3)?).next()?, "node");
    let known = config
        .proxmox
        .node
        .clone()
        .or_else(|| node.map(|node| node.name.clone()));
    known
        .or(local)
        .or_else(first)
        .unwrap_or_else(|| "localhost".to_owned())
}

fn unanswered(token: &str, answers: &[Answer]) -> Row {
    match answers
        .iter()
        .find(|answer| !matches!(answer, Answer::Said { status: 200, .. }))
    {
        Some(Answer::Said { status: 401, .. }) => Row::fail(
            "token",
            format!("{token} is not accepted: unknown, expired, disabled, or its secret is another one"),
            "agentlab init --apply --rotate",
        ),
        Some(Answer::Said { status, reason, .. }) => Row::fail(
            "token",
            format!("{token}: {status} {reason}"),
            "systemctl status pveproxy pvedaemon",
        ),
        // It names the fingerprint that was seen, and how to pin it.
        Some(Answer::Lost { error }) => Row::fail(
            "token",
            error.clone(),
            "`agentlab init --apply` pins this node's certificate",
        ),
        None => Row::unknown("token", "nothing was answered", "run it again"),
    }
}
