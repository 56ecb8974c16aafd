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
use agentlab_config::{BackendKind, Config, TlsTrust, load_config};

use crate::init::look::Node;
use crate::init::privilege::{Reach, Release};
use crate::init::programs::Programs;
use crate::init::rows::quorum;
use crate::init::settings::{self, NodeArguments, OfTemplates};
use crate::init::{TokenName, look_at};
use ask::{Answer, Question, Way};
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
                .unwrap_or_else(|| "run it as root; `agentlabd --check` says the same".to_owned());
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
    let token = TokenWay {
        arguments,
        path,
        client,
        programs,
    };
    let has_token = config.backend == BackendKind::Proxmox;
    let looked = if programs.find("pvesh").is_some() {
        look_at(programs, &arguments.user).await
    } else {
        Err("this host is no Proxmox VE node".to_owned())
    };
    match looked {
        Ok(node) => {
            let looked = pve::Looked {
                arguments,
                config,
                node: &node,
                quorum: quorum(node.quorate, node.nodes),
                client,
                way: Way::Root(programs),
            };
            let (mut rows, of_templates) = pve::rows(looked).await;
            if has_token {
                rows.extend(token.rows(Some((&node, of_templates))).await);
            }
            rows
        }
        Err(reason) => {
            let mut rows = Vec::new();
            if !has_token || programs.find("pvesh").is_some() {
                rows.push(Row::unknown(
                    "node",
                    format!("what only root sees was not looked at: {reason}"),
                    "run `agentlab doctor` as root on the node",
                ));
            }
            if has_token {
                rows.extend(token.rows(None).await);
            }
            rows
        }
    }
}

/// A machine that the token must not reach: one that is there, or else a number that is nobody's.
fn stranger(config: &Config, reach: &Reach, node: &Node) -> Vmid {
    let ours = config.vmid_first..=config.vmid_last;
    let is_strange = |vmid: &Vmid| {
        !ours.contains(vmid) && !reach.templates.contains(vmid) && reach.volume_owner != Some(*vmid)
    };
    let real = node.machines.keys();
    real.copied()
        .find(|vmid| is_strange(vmid))
        .or_else(|| {
            (100..)
                .filter_map(|number| Vmid::try_from(number).ok())
                .find(is_strange)
        })
        .unwrap_or(Vmid::MAX)
}

/// The API with the daemon's token.
struct TokenWay<'a> {
    arguments: &'a NodeArguments,
    path: &'a Path,
    client: &'a Client,
    programs: &'a Programs,
}

/// What was answered first.
struct Greeting {
    token: TokenName,
    version: String,
    permissions: Permissions,
    /// Of [`TokenWay::greet`]'s questions.
    answers: Vec<Answer>,
    clock_ahead: Option<i64>,
}

impl TokenWay<'_> {
    /// What the token may do. Where root has not looked at the node, the token looks at it too, as far as it may.
    async fn rows(&self, by_root: Option<(&Node, OfTemplates)>) -> Vec<Row> {
        let read = match settings::read(self.path) {
            Ok(read) => read,
            Err(error) => return vec![Row::fail("token", error.to_string(), "agentlab init")],
        };
        let greeting = match self.greet().await {
            Ok(greeting) => greeting,
            Err(row) => return vec![row],
        };
        let Greeting { token, version, .. } = &greeting;
        let accepted = format!("{} is accepted by Proxmox VE {version}", token.full());
        let mut rows = vec![
            Row::ok("token", accepted),
            believed(&read.config),
            host::clock(greeting.clock_ahead),
        ];
        let Some(release) = Release::of_version(version) else {
            let seen = format!("Proxmox VE {version} is older than 8");
            rows.push(Row::fail("proxmox", seen, "upgrade the node"));
            return rows;
        };
        let known = by_root.as_ref().map(|(node, _)| *node);
        let name = node_name(&read.config, known, &greeting.answers);
        let by_token;
        let (node, of_templates) = match by_root {
            Some(looked) => looked,
            None => {
                by_token = self.node(&name, version).await;
                let looked = pve::Looked {
                    arguments: self.arguments,
                    config: &read.config,
                    node: &by_token,
                    quorum: quorum_of(greeting.answers.get(2)),
                    client: self.client,
                    way: self.way(),
                };
                let (more, of_templates) = pve::rows(looked).await;
                rows.extend(more);
                (&by_token, of_templates)
            }
        };
        match settings::reach(self.arguments, &read, release, &of_templates) {
            Some(reach) => {
                rows.extend(token::missing(&reach, &greeting.permissions, token));
                rows.extend(token::surplus(&reach, &greeting.permissions, token));
                let stranger = stranger(&read.config, &reach, node);
                let template = reach.templates.first().copied().unwrap_or(stranger);
                rows.extend(
                    self.probe(token::probes(&name, stranger, template, token), token)
                        .await,
                );
            }
            None => rows.push(Row::unknown(
                "privileges",
                "no storage is named, so that what is needed is not known",
                "name one with `proxmox_storage` in config.yaml",
            )),
        }
        rows
    }

    /// Who the token is, and what it may.
    async fn greet(&self) -> Result<Greeting, Row> {
        let first = [
            Question::get("/version"),
            Question::get("/access/permissions"),
            Question::get("/cluster/status"),
            Question::get("/nodes"),
        ];
        let answers = ask::ask(self.programs, self.path, &first)
            .await
            .map_err(|reason| {
                Row::unknown(
                    "token",
                    format!("it could not be tried: {reason}"),
                    "install the package agentlabd, and run this as root",
                )
            })?;
        let said = |index: usize| match answers.answers.get(index) {
            Some(Answer::Said {
                status: 200, data, ..
            }) => Some(data),
            Some(_) | None => None,
        };
        let (Some(version), Some(permissions)) = (said(0), said(1)) else {
            return Err(unanswered(&answers.token, &answers.answers));
        };
        let nameless = || TokenName {
            user: self.arguments.user.clone(),
            id: String::new(),
        };
        Ok(Greeting {
            token: TokenName::parse(&answers.token).unwrap_or_else(nameless),
            version: crate::init::look::text(version, "version").unwrap_or_default(),
            permissions: Permissions::of(permissions),
            clock_ahead: answers.clock_ahead,
            answers: answers.answers,
        })
    }

    async fn probe(&self, probes: Vec<token::Probe>, token: &TokenName) -> Vec<Row> {
        let questions: Vec<Question> = probes.iter().map(|probe| probe.question.clone()).collect();
        match ask::ask(self.programs, self.path, &questions).await {
            Ok(answers) => token::judge(&probes, &answers.answers, token),
            Err(reason) => vec![Row::unknown("reach", reason, "run it again")],
        }
    }

    fn way(&self) -> Way<'_> {
        Way::Token {
            programs: self.programs,
            config: self.path,
        }
    }

    /// As the token sees it: only what it may.
    async fn node(&self, name: &str, version: &str) -> Node {
        let machines = self.way().ask("/cluster/resources", &[("type", "vm")]).await;
        Node::seen_by_token(name, version, &machines.unwrap_or_default())
    }
}

fn quorum_of(status: Option<&Answer>) -> Row {
    match status {
        Some(Answer::Said {
            status: 200, data, ..
        }) => {
            let nodes = crate::init::look::list(data).count();
            quorum(crate::init::look::here(data).1, nodes.saturating_sub(1))
        }
        Some(_) | None => Row::unknown(
            "quorum",
            "the token may not see it",
            "pvecm status, as root on the node",
        ),
    }
}

/// Why the certificate was believed: it was, or nothing would have been answered.
fn believed(config: &Config) -> Row {
    match &config.proxmox.trust {
        TlsTrust::Fingerprint(_) => Row::ok("certificate", "the one that is pinned"),
        TlsTrust::CaFile(path) => Row::ok(
            "certificate",
            format!("signed by an authority of {}", path.display()),
        ),
        TlsTrust::System => Row::ok("certificate", "signed by an authority that this system trusts"),
        TlsTrust::Unverified => Row::warn(
            "certificate",
            "it is not looked at",
            "agentlab init pins it; take `proxmox_tls_insecure` out of config.yaml",
        ),
    }
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
        Some(Answer::Lost { error }) if error.contains("fingerprint") => Row::fail(
            "certificate",
            error.clone(),
            "`agentlab init --apply`, as root on the node, pins its certificate",
        ),
        Some(Answer::Lost { error }) => Row::fail(
            "api",
            error.clone(),
            "systemctl status pveproxy; see `proxmox_api_url`",
        ),
        None => Row::unknown("token", "nothing was answered", "run it again"),
    }
}
