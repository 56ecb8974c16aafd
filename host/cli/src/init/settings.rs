//! What config.yaml and the command line say together about a node.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use agentlab_api::Vmid;
use agentlab_config::{BackendKind, Config, TlsTrust, TokenSource, parse_config};

use serde_json::Value;

use super::file;
use super::look::{self, Node};
use super::plan::{Found, Stored, Wanted};
use super::privilege::{Reach, Release, VOLUMES_ROLE};
use super::step::TokenName;
use crate::error::CommandError;

/// Stands for the token while nobody has one: the file is judged with it before anything is changed.
const PLACEHOLDER: &str = "agentlab@pve!none=none";
/// Owns workspaces, where nothing else is said.
const USUAL_VOLUME_OWNER: u32 = 9999;

/// What the command line says.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct NodeArguments {
    /// Pool of the sandboxes [default: as config.yaml says, or agentlab]
    #[arg(long, value_name = "NAME")]
    pub(crate) pool: Option<String>,
    /// User the daemon acts as
    #[arg(long, value_name = "USER@REALM", default_value = "agentlab@pve")]
    pub(crate) user: String,
    /// Name of its token [default: as config.yaml says, or daemon-<node>]
    #[arg(long, value_name = "NAME")]
    pub(crate) token: Option<String>,
    /// Template to clone, also several [default: those of config.yaml and of the profiles]
    #[arg(long, value_name = "VMID")]
    pub(crate) template: Vec<Vmid>,
    /// Storage of machines' disks, also several [default: those of the templates]
    #[arg(long, value_name = "NAME")]
    pub(crate) storage: Vec<String>,
    /// Storage for workspaces and nothing else, where the token may delete volumes, all of them
    #[arg(long, value_name = "NAME")]
    pub(crate) volume_storage: Option<String>,
    /// Number that owns workspaces; no machine may have it [default: as config.yaml says, or 9999]
    #[arg(long, value_name = "VMID")]
    pub(crate) volume_vmid: Option<Vmid>,
    /// Leave out the privilege for seeds in SMBIOS (VM.Config.HWType); they go by cloud-init then, or not at all
    #[arg(long)]
    pub(crate) no_smbios_seed: bool,
}

impl NodeArguments {
    /// As without any option.
    pub(crate) fn usual() -> Self {
        Self {
            pool: None,
            user: "agentlab@pve".to_owned(),
            token: None,
            template: Vec::new(),
            storage: Vec::new(),
            volume_storage: None,
            volume_vmid: None,
            no_smbios_seed: false,
        }
    }
}

/// config.yaml, as it would be with a token.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) config: Config,
    pub(crate) stored: Stored,
    /// Which of the keys we set stand there.
    keys: BTreeMap<String, String>,
}

/// Reads config.yaml; a missing one is an empty one.
pub(crate) fn read(path: &Path) -> Result<Read, CommandError> {
    let text = file::read(path).map_err(|source| CommandError::File {
        action: "Reading",
        path: path.display().to_string(),
        source,
    })?;
    for (key, wanted) in [("backend", "proxmox"), ("proxmox_backend", "api")] {
        if let Some(said) = file::value(&text, key).filter(|said| *said != wanted && !said.is_empty()) {
            return Err(CommandError::refused(format!(
                "{} says `{key}: {said}`, and this would make it a Proxmox VE node with a token",
                path.display()
            ))
            .with_hint(format!("take that line out, or say `{key}: {wanted}`")));
        }
    }
    let is_there = |key| file::value(&text, key).is_some_and(|value| !value.is_empty());
    let has_token = is_there("proxmox_api_token") || is_there("proxmox_api_token_path");
    let judged = if has_token {
        Ok(text.clone())
    } else {
        file::set(&text, "proxmox_api_token", PLACEHOLDER)
    };
    let judged = judged.map_err(|error| CommandError::refused(format!("{}: {error}", path.display())))?;
    let config = parse_config(&judged, &path.display().to_string())?.value;
    let stored = match &config.proxmox.token {
        Some(TokenSource::Text(token)) if has_token => {
            let name = token.expose().split_once('=').map_or("", |(name, _)| name);
            Stored::Token(name.trim().to_owned())
        }
        Some(TokenSource::File(path)) => Stored::Elsewhere(path.display().to_string()),
        Some(TokenSource::Text(_)) | None => Stored::None,
    };
    let mut keys = BTreeMap::new();
    let mut say = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            keys.insert(key.to_owned(), value);
        }
    };
    let proxmox = &config.proxmox;
    say("backend", file::value(&text, "backend").map(str::to_owned));
    say("proxmox_node", proxmox.node.clone());
    say("proxmox_pool", proxmox.pool.clone());
    say("proxmox_storage", proxmox.storage.clone());
    say(
        "proxmox_volume_vmid",
        proxmox.volume_vmid.map(|vmid| vmid.to_string()),
    );
    say(
        "proxmox_tls_fingerprint",
        match &proxmox.trust {
            TlsTrust::Fingerprint(text) => Some(text.clone()),
            TlsTrust::System | TlsTrust::CaFile(_) | TlsTrust::Unverified => None,
        },
    );
    debug_assert_eq!(config.backend, BackendKind::Proxmox, "a token means it");
    Ok(Read { config, stored, keys })
}

/// The templates that are asked for: named, or all that config.yaml and the profiles name.
pub(crate) fn templates(arguments: &NodeArguments, config: &Config) -> BTreeSet<Vmid> {
    if !arguments.template.is_empty() {
        return arguments.template.iter().copied().collect();
    }
    let profiles = config.load_profiles().unwrap_or_default();
    let named: BTreeSet<Vmid> = profiles.iter().map(|profile| profile.template_vmid).collect();
    if named.is_empty() {
        BTreeSet::from([config.template_vmid])
    } else {
        named
    }
}

/// Storages and bridges of templates, as their configurations say; and what an earlier set-up gave to workspaces.
#[derive(Debug, Default)]
pub(crate) struct OfTemplates {
    pub(crate) storages: BTreeSet<String>,
    pub(crate) bridges: BTreeSet<String>,
    pub(crate) volume_storage: Option<String>,
}

impl OfTemplates {
    pub(crate) fn of<'a>(configs: impl IntoIterator<Item = &'a Value>, node: &Node, user: &str) -> Self {
        let mut all = Self {
            volume_storage: node
                .grants
                .iter()
                .filter(|grant| grant.role == VOLUMES_ROLE && grant.holder == user)
                .find_map(|grant| grant.path.strip_prefix("/storage/").map(str::to_owned)),
            ..Self::default()
        };
        for config in configs {
            all.storages.extend(look::disk_storages(config));
            // Where the memory of clones would go; PVE asks for room there before it makes one.
            all.storages.extend(look::text(config, "vmstatestorage"));
            let bridges = look::nics(config).filter_map(|(_, value)| look::option(value, "bridge"));
            all.bridges.extend(bridges.map(str::to_owned));
        }
        all
    }
}

/// Where the daemon works. `None` when nobody can say where disks are to go.
pub(crate) fn reach(
    arguments: &NodeArguments,
    read: &Read,
    release: Release,
    of_templates: &OfTemplates,
) -> Option<Reach> {
    let (config, proxmox) = (&read.config, &read.config.proxmox);
    let mut storages: BTreeSet<String> = arguments.storage.iter().cloned().collect();
    storages.extend(proxmox.storage.clone());
    storages.extend(of_templates.storages.iter().cloned());
    let volume_storage = arguments
        .volume_storage
        .as_ref()
        .or(of_templates.volume_storage.as_ref());
    storages.extend(volume_storage.cloned());
    let mut bridges = of_templates.bridges.clone();
    bridges.insert(config.bridge.clone());
    let usual_owner = || Vmid::try_from(USUAL_VOLUME_OWNER).ok();
    let pool = arguments.pool.clone().or_else(|| proxmox.pool.clone());
    (!storages.is_empty()).then(|| Reach {
        release,
        smbios_seed: !arguments.no_smbios_seed,
        pool: pool.unwrap_or_else(|| "agentlab".to_owned()),
        templates: templates(arguments, config),
        storages,
        volume_storage: volume_storage.cloned(),
        bridges,
        volume_owner: arguments.volume_vmid.or(proxmox.volume_vmid).or_else(usual_owner),
    })
}

/// How the node should be.
pub(crate) fn wanted(
    arguments: &NodeArguments,
    read: &Read,
    node: &Node,
    release: Release,
    of_templates: &OfTemplates,
) -> Option<Wanted> {
    let config = &read.config;
    let reach = reach(arguments, read, release, of_templates)?;
    let main = reach
        .volume_storage
        .as_ref()
        .or(config.proxmox.storage.as_ref())
        .or_else(|| arguments.storage.first())
        .or_else(|| reach.storages.first())?;
    let mut keys = BTreeMap::from([
        ("backend", "proxmox".to_owned()),
        ("proxmox_node", node.name.clone()),
        ("proxmox_pool", reach.pool.clone()),
        ("proxmox_storage", main.clone()),
    ]);
    if let Some(owner) = reach.volume_owner {
        keys.insert("proxmox_volume_vmid", owner.to_string());
    }
    if let Some(fingerprint) = node.fingerprint.clone().filter(|_| pins(config, &node.name)) {
        keys.insert("proxmox_tls_fingerprint", fingerprint);
    }
    Some(Wanted {
        token: token(arguments, &read.stored, &node.name),
        reach,
        rotate: false,
        vmids: (config.vmid_first, config.vmid_last),
        keys,
    })
}

/// Whether this node's certificate is the one to pin: the API is this node's, and nothing else is believed already.
pub(crate) fn pins(config: &Config, node: &str) -> bool {
    let authority = config.proxmox.url.trim_start_matches("https://");
    let host = authority.split(['/', '?']).next().unwrap_or_default();
    let host = if host.starts_with('[') {
        host.split(']').next().unwrap_or_default()
    } else {
        host.split(':').next().unwrap_or_default()
    };
    let is_here = ["localhost", "127.0.0.1", "[::1", node].contains(&host);
    is_here && matches!(config.proxmox.trust, TlsTrust::System | TlsTrust::Fingerprint(_))
}

/// The token of config.yaml where it is the user's own, so that a set-up made by hand is adopted.
fn token(arguments: &NodeArguments, stored: &Stored, node: &str) -> TokenName {
    let kept = match stored {
        Stored::Token(full) => TokenName::parse(full).filter(|token| token.user == arguments.user),
        Stored::None | Stored::Elsewhere(_) => None,
    };
    let id = arguments
        .token
        .clone()
        .or_else(|| kept.map(|token| token.id))
        .unwrap_or_else(|| format!("daemon-{node}"));
    TokenName {
        user: arguments.user.clone(),
        id,
    }
}

/// How it is, in the plan's words.
pub(crate) fn found(read: &Read, node: &Node) -> Found {
    Found {
        roles: node.roles.clone(),
        pools: node.pools.clone(),
        users: node.users.clone(),
        tokens: node.tokens.clone(),
        grants: node.grants.clone(),
        machines: node
            .machines
            .iter()
            .map(|(vmid, machine)| (*vmid, machine.pool.clone()))
            .collect(),
        stored: read.stored.clone(),
        keys: read.keys.clone(),
    }
}
