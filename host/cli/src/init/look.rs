//! What is there, asked of a node as root and read leniently: PVE says 1, "1" and true for the same.

use std::collections::{BTreeMap, BTreeSet};

use agentlab_api::Vmid;
use serde_json::Value;

use super::plan::{FoundGrant, FoundRole, FoundToken};
use super::privilege::Release;
use super::programs::{ProgramError, Programs};
use super::step::TokenName;

/// A node, as root sees it.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) version: String,
    /// `None`: older than any that is known here.
    pub(crate) release: Option<Release>,
    /// Without a quorum nothing can be changed.
    pub(crate) quorate: bool,
    pub(crate) nodes: usize,
    /// Of the certificate its API shows: its own where it has one (`pveproxy-ssl.pem`), else the cluster's.
    pub(crate) fingerprint: Option<String>,
    pub(crate) roles: BTreeMap<String, FoundRole>,
    pub(crate) pools: BTreeSet<String>,
    pub(crate) users: BTreeMap<String, bool>,
    pub(crate) tokens: BTreeMap<String, FoundToken>,
    pub(crate) grants: BTreeSet<FoundGrant>,
    pub(crate) machines: BTreeMap<Vmid, Machine>,
    pub(crate) storages: BTreeMap<String, Storage>,
}

/// A VM of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) node: String,
    pub(crate) pool: Option<String>,
    pub(crate) template: bool,
}

/// A storage as this node has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Storage {
    pub(crate) kind: String,
    pub(crate) content: BTreeSet<String>,
    pub(crate) shared: bool,
    pub(crate) usable: bool,
    pub(crate) free: u64,
}

/// Asks a node everything; nothing is changed by it.
pub(crate) async fn look(programs: &Programs, token: &TokenName) -> Result<Node, ProgramError> {
    let (version, status, nodes, users) = tokio::try_join!(
        programs.ask("/version", &[]),
        programs.ask("/cluster/status", &[]),
        programs.ask("/nodes", &[]),
        programs.ask("/access/users", &[]),
    )?;
    let (roles, pools, acl, machines) = tokio::try_join!(
        programs.json(&["pveum", "role", "list"]),
        programs.ask("/pools", &[]),
        programs.ask("/access/acl", &[]),
        programs.ask("/cluster/resources", &["--type", "vm"]),
    )?;
    let users = self::users(&users);
    let tokens = if users.contains_key(&token.user) {
        programs
            .json(&["pveum", "user", "token", "list", &token.user])
            .await?
    } else {
        Value::Null
    };
    let (name, quorate) = here(&status);
    let storages = programs.ask(&format!("/nodes/{name}/storage"), &[]).await?;
    let version = text(&version, "version").unwrap_or_default();
    Ok(Node {
        release: Release::of_version(&version),
        version,
        quorate,
        nodes: list(&nodes).count(),
        fingerprint: list(&nodes)
            .find(|entry| text(entry, "node").as_ref() == Some(&name))
            .and_then(|entry| text(entry, "ssl_fingerprint")),
        roles: self::roles(&roles),
        pools: list(&pools).filter_map(|pool| text(pool, "poolid")).collect(),
        users,
        tokens: self::tokens(&tokens),
        grants: grants(&acl),
        machines: self::machines(&machines),
        storages: self::storages(&storages),
        name,
    })
}

impl Node {
    /// Of which only name, version and some machines are known.
    pub(crate) fn seen_by_token(name: &str, version: &str, resources: &Value) -> Self {
        Self {
            name: name.to_owned(),
            version: version.to_owned(),
            release: Release::of_version(version),
            quorate: true,
            nodes: 0,
            fingerprint: None,
            roles: BTreeMap::new(),
            pools: BTreeSet::new(),
            users: BTreeMap::new(),
            tokens: BTreeMap::new(),
            grants: BTreeSet::new(),
            machines: machines(resources),
            storages: BTreeMap::new(),
        }
    }
}

/// This node's name, and whether its cluster has a quorum. One that is in no cluster always has.
pub(crate) fn here(status: &Value) -> (String, bool) {
    let local = list(status).find(|entry| is_true(entry.get("local")));
    let cluster = list(status).find(|entry| text(entry, "type").as_deref() == Some("cluster"));
    (
        local.and_then(|entry| text(entry, "name")).unwrap_or_default(),
        cluster.is_none_or(|entry| is_true(entry.get("quorate"))),
    )
}

fn roles(answer: &Value) -> BTreeMap<String, FoundRole> {
    let role = |entry: &Value| {
        let role = FoundRole {
            privileges: words(&text(entry, "privs").unwrap_or_default()),
            built_in: is_true(entry.get("special")),
        };
        Some((text(entry, "roleid")?, role))
    };
    list(answer).filter_map(role).collect()
}

fn users(answer: &Value) -> BTreeMap<String, bool> {
    // Without the key a user is enabled.
    let user = |entry: &Value| {
        let enabled = entry.get("enable").is_none_or(|enable| is_true(Some(enable)));
        Some((text(entry, "userid")?, enabled))
    };
    list(answer).filter_map(user).collect()
}

fn tokens(answer: &Value) -> BTreeMap<String, FoundToken> {
    let token = |entry: &Value| {
        let token = FoundToken {
            separated: entry.get("privsep").is_none_or(|privsep| is_true(Some(privsep))),
            comment: text(entry, "comment").unwrap_or_default().trim().to_owned(),
        };
        Some((text(entry, "tokenid")?, token))
    };
    list(answer).filter_map(token).collect()
}

fn grants(answer: &Value) -> BTreeSet<FoundGrant> {
    let grant = |entry: &Value| {
        let is_of_group = text(entry, "type").as_deref() == Some("group");
        (!is_of_group).then_some(FoundGrant {
            path: text(entry, "path")?,
            role: text(entry, "roleid")?,
            holder: text(entry, "ugid")?,
        })
    };
    list(answer).filter_map(grant).collect()
}

fn machines(answer: &Value) -> BTreeMap<Vmid, Machine> {
    let machine = |entry: &Value| {
        let machine = Machine {
            node: text(entry, "node").unwrap_or_default(),
            pool: text(entry, "pool").filter(|pool| !pool.is_empty()),
            template: is_true(entry.get("template")),
        };
        Some((text(entry, "vmid")?.parse().ok()?, machine))
    };
    list(answer).filter_map(machine).collect()
}

fn storages(answer: &Value) -> BTreeMap<String, Storage> {
    let storage = |entry: &Value| {
        let storage = Storage {
            kind: text(entry, "type").unwrap_or_default(),
            content: words(&text(entry, "content").unwrap_or_default()),
            shared: is_true(entry.get("shared")),
            usable: is_true(entry.get("enabled")) && is_true(entry.get("active")),
            free: text(entry, "avail")
                .and_then(|bytes| bytes.parse().ok())
                .unwrap_or(0),
        };
        Some((text(entry, "storage")?, storage))
    };
    list(answer).filter_map(storage).collect()
}

/// Storages that a VM's disks are on, ISO images and cloud-init drives aside.
pub(crate) fn disk_storages(config: &Value) -> BTreeSet<String> {
    disks(config).map(|(_, storage, _)| storage).collect()
}

/// A VM's disks: the key, the storage and the whole value.
pub(crate) fn disks(config: &Value) -> impl Iterator<Item = (String, String, String)> + '_ {
    let is_disk = |key: &str| {
        let bus = key.trim_end_matches(|letter: char| letter.is_ascii_digit());
        matches!(bus, "scsi" | "virtio" | "sata" | "ide" | "efidisk" | "tpmstate") && bus != key
    };
    let entries = config.as_object().into_iter().flatten();
    entries
        .filter(move |(key, _)| is_disk(key))
        .filter_map(|(key, value)| {
            let value = value.as_str()?;
            let (storage, volume) = value.split_once(':')?;
            let is_medium = value.contains("media=cdrom") || volume.contains("cloudinit");
            (!is_medium).then(|| (key.clone(), storage.to_owned(), value.to_owned()))
        })
}

/// The NICs of a VM: the key and the whole value.
pub(crate) fn nics(config: &Value) -> impl Iterator<Item = (&str, &str)> {
    let entries = config.as_object().into_iter().flatten();
    entries
        .filter(|(key, _)| {
            key.strip_prefix("net")
                .is_some_and(|rest| rest.parse::<u8>().is_ok())
        })
        .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
}

/// One option of `a=b,c=d`.
pub(crate) fn option<'a>(value: &'a str, key: &str) -> Option<&'a str> {
    value
        .split(',')
        .find_map(|part| part.strip_prefix(key)?.strip_prefix('='))
}

pub(crate) fn list(answer: &Value) -> impl Iterator<Item = &Value> {
    answer.as_array().into_iter().flatten()
}

/// A text, or a number as one.
pub(crate) fn text(entry: &Value, key: &str) -> Option<String> {
    match entry.get(key)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(_) | Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

pub(crate) fn is_true(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Bool(yes)) => *yes,
        Some(Value::Number(number)) => number.as_i64() != Some(0),
        Some(Value::String(text)) => !matches!(text.as_str(), "" | "0"),
        Some(Value::Null | Value::Array(_) | Value::Object(_)) | None => false,
    }
}

fn words(text: &str) -> BTreeSet<String> {
    text.split([',', ' ', ';'])
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}
