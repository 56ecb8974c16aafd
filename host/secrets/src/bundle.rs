//! What a bundle holds, version 1.

use std::collections::BTreeMap;
use std::fmt;

use agentlab_api::{SSH_KEY_TYPES, is_environment_name, is_ssh_key_name};
use agentlab_protocol::secret::SecretText;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::SecretsError;
use crate::identity::Identities;
use crate::read::{Reader, below};
use crate::tree::{self, Kind, Node, Value};

/// Everything one bundle holds. Only its secrets are secret; all of it is wiped when dropped but names.
#[derive(Debug, Clone, Default)]
pub struct Bundle {
    /// Whatever its owner wants to keep beside it; never given out.
    pub(crate) metadata: Option<Node>,
    /// For git.
    pub git: Git,
    /// Environment of agents.
    pub env: BTreeMap<String, SecretText>,
    /// Settings of Claude Code, a JSON object.
    pub claude: Option<SecretText>,
    /// Endpoint and token of an artifact store; never given out.
    pub artifact: (Option<SecretText>, Option<SecretText>),
    /// Public keys that may log in, by name.
    pub ssh_keys: BTreeMap<String, SshKey>,
    /// For Tailscale.
    pub tailscale: Tailscale,
}

/// For git.
#[derive(Debug, Clone, Default)]
pub struct Git {
    /// Goes with the token.
    pub username: Option<SecretText>,
    /// Token.
    pub token: Option<SecretText>,
    /// OpenSSH private key.
    pub ssh_private_key: Option<SecretText>,
    /// Its public half.
    pub ssh_public_key: Option<SecretText>,
    /// Hosts it may be shown to.
    pub known_hosts: Option<SecretText>,
}

/// A public key that may log in.
#[derive(Clone, PartialEq, Eq)]
pub struct SshKey {
    /// As in `authorized_keys`, without options.
    pub line: String,
}

impl fmt::Debug for SshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

/// For Tailscale. A sandbox whose profile names it is given what joins a tailnet, and never the key of the admin API.
#[derive(Debug, Clone, Default)]
pub struct Tailscale {
    /// Key that lets a node join.
    pub authkey: Option<SecretText>,
    /// Name of such a node.
    pub hostname_template: Option<SecretText>,
    /// Tags of such a node.
    pub tags: Vec<String>,
    /// More arguments of `tailscale up`.
    pub extra_args: Vec<String>,
    /// Key of the admin API.
    pub admin_api_key: Option<SecretText>,
    /// Which tailnet.
    pub tailnet: Option<SecretText>,
}

/// One secret, without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Name, as a profile writes it where it may.
    pub name: String,
    /// [`Identities::fingerprint`] of the value.
    pub fingerprint: String,
    /// Whether a profile may name it.
    pub given: bool,
}

const TOP: &[&str] = &[
    "version",
    "metadata",
    "git",
    "env",
    "claude",
    "artifact",
    "ssh",
    "tailscale",
];
pub(crate) const GIT: &[&str] = &[
    "username",
    "token",
    "ssh_private_key",
    "ssh_public_key",
    "known_hosts",
];
const TAILSCALE: &[&str] = &[
    "authkey",
    "hostname_template",
    "tags",
    "extra_args",
    "admin_api_key",
    "tailnet",
];

impl Bundle {
    /// Reads YAML or JSON.
    ///
    /// # Errors
    /// It is no bundle: every fault with its key and place, none with a value.
    pub fn parse(text: &[u8], label: &str) -> Result<Self, SecretsError> {
        Self::from_tree(tree::read(text, label)?, label)
    }

    pub(crate) fn from_tree(root: Node, label: &str) -> Result<Self, SecretsError> {
        if let Some(place) = root.overlong_key() {
            let most = tree::LONGEST_KEY;
            return Err(SecretsError::Damaged {
                label: label.to_owned(),
                reason: format!("holds a key of more than {most} bytes, at {place}"),
            });
        }
        let mut reader = Reader::default();
        let bundle = read(&mut reader, root);
        if reader.faults.is_empty() {
            Ok(bundle)
        } else {
            Err(SecretsError::Faults {
                label: label.to_owned(),
                faults: reader.faults,
            })
        }
    }

    /// How many things [`Bundle::listing`] names.
    #[must_use]
    pub fn count(&self) -> usize {
        self.values().len() + self.ssh_keys.len()
    }

    /// Every secret's name with what identifies its value to who has the key.
    #[must_use]
    pub fn listing(&self, identities: &Identities) -> Vec<Listed> {
        let keys = self.ssh_keys.iter().map(|(name, key)| Listed {
            name: format!("ssh.keys.{name}"),
            fingerprint: identities.fingerprint(&SecretText::new(key.line.clone())),
            given: true,
        });
        let values = self.values().into_iter().map(|(name, value, given)| Listed {
            name,
            fingerprint: identities.fingerprint(value),
            given,
        });
        values.chain(keys).collect()
    }

    /// Every value with its name, and whether profiles may name it.
    pub(crate) fn values(&self) -> Vec<(String, &SecretText, bool)> {
        let mut all: Vec<(String, &SecretText, bool)> = Vec::new();
        let git = &self.git;
        let scale = &self.tailscale;
        let single = [
            ("git.username", &git.username, true),
            ("git.token", &git.token, true),
            ("git.ssh_private_key", &git.ssh_private_key, true),
            ("git.ssh_public_key", &git.ssh_public_key, false),
            ("git.known_hosts", &git.known_hosts, true),
            ("claude", &self.claude, true),
            ("artifact.endpoint", &self.artifact.0, false),
            ("artifact.token", &self.artifact.1, false),
            ("tailscale.authkey", &scale.authkey, false),
            ("tailscale.hostname_template", &scale.hostname_template, false),
            ("tailscale.admin_api_key", &scale.admin_api_key, false),
            ("tailscale.tailnet", &scale.tailnet, false),
        ];
        for (name, value, given) in single {
            if let Some(value) = value {
                all.push((name.to_owned(), value, given));
            }
        }
        for (name, value) in &self.env {
            all.push((format!("env.{name}"), value, true));
        }
        all
    }
}

fn read(reader: &mut Reader, root: Node) -> Bundle {
    let mut top = reader.known(root, "", TOP);
    if let Some(version) = top.remove("version") {
        let fits = matches!(&version.value, Value::Scalar(Kind::Integer, text) if matches!(text.expose(), "0" | "1"));
        if !fits {
            reader.fault("version", version.place, "must be 1, the only version there is");
        }
    }
    let mut bundle = Bundle {
        metadata: top.remove("metadata"),
        ..Bundle::default()
    };
    if let Some(node) = top.remove("git") {
        bundle.git = git(reader, node);
    }
    if let Some(node) = top.remove("env") {
        bundle.env = environment(reader, node);
    }
    if let Some(node) = top.remove("claude") {
        bundle.claude = claude(reader, node);
    }
    if let Some(node) = top.remove("artifact") {
        let mut fields = reader.known(node, "artifact", &["endpoint", "token"]);
        let endpoint = reader.line(fields.remove("endpoint"), "artifact.endpoint");
        bundle.artifact = (endpoint, reader.line(fields.remove("token"), "artifact.token"));
    }
    if let Some(node) = top.remove("ssh") {
        let keys = reader.known(node, "ssh", &["keys"]).remove("keys");
        bundle.ssh_keys = keys.map(|node| ssh_keys(reader, node)).unwrap_or_default();
    }
    if let Some(node) = top.remove("tailscale") {
        bundle.tailscale = tailscale(reader, node);
    }
    bundle
}

fn git(reader: &mut Reader, node: Node) -> Git {
    let mut fields = reader.known(node, "git", GIT);
    let key_place = fields
        .get("ssh_private_key")
        .map(|node| node.place)
        .unwrap_or_default();
    let git = Git {
        username: reader.line(fields.remove("username"), "git.username"),
        token: reader.line(fields.remove("token"), "git.token"),
        ssh_private_key: reader.text(fields.remove("ssh_private_key"), "git.ssh_private_key"),
        ssh_public_key: reader.line(fields.remove("ssh_public_key"), "git.ssh_public_key"),
        known_hosts: reader.text(fields.remove("known_hosts"), "git.known_hosts"),
    };
    if let Some(Err(reason)) = git.ssh_private_key.as_ref().map(private_key) {
        reader.fault("git.ssh_private_key", key_place, reason);
    }
    git
}

/// Whether this can be a private key that ssh reads with nobody there to type a passphrase.
pub(crate) fn private_key(text: &SecretText) -> Result<(), &'static str> {
    let text = text.expose().trim();
    let framed =
        text.starts_with("-----BEGIN ") && text.contains("PRIVATE KEY-----") && text.contains("-----END ");
    if !framed {
        return Err("is no private key in PEM or OpenSSH form");
    }
    if text.contains("ENCRYPTED") || is_locked_openssh(text) {
        return Err("is protected by a passphrase, which nobody is there to type");
    }
    Ok(())
}

/// OpenSSH's own form says in its first words with what it is encrypted.
fn is_locked_openssh(text: &str) -> bool {
    const UNLOCKED: &[u8] = b"openssh-key-v1\0\0\0\0\x04none";
    let Some(body) = text.strip_prefix("-----BEGIN OPENSSH PRIVATE KEY-----") else {
        return false;
    };
    let start: String = body.chars().filter(|c| !c.is_whitespace()).take(32).collect();
    let start = Zeroizing::new(STANDARD.decode(start).unwrap_or_default());
    start.starts_with(b"openssh-key-v1\0") && start.get(..UNLOCKED.len()) != Some(UNLOCKED)
}

fn environment(reader: &mut Reader, node: Node) -> BTreeMap<String, SecretText> {
    let mut environment = BTreeMap::new();
    for entry in reader.entries(node, "env") {
        if !is_environment_name(&entry.key) {
            let reason = "holds a name that no shell can export: letters, digits and underscores only";
            reader.fault("env", entry.place, reason);
            continue;
        }
        let path = below("env", &entry.key);
        let value = match entry.node.value {
            Value::Scalar(Kind::Text | Kind::Integer | Kind::Bool, text) => text,
            Value::Null => SecretText::new(String::new()),
            Value::Scalar(Kind::Float, _) => {
                reader.fault(&path, entry.node.place, "is not text; put it into quotes");
                continue;
            }
            Value::List(_) | Value::Map(_) => {
                reader.fault(&path, entry.node.place, "must be text");
                continue;
            }
        };
        if value.expose().contains('\0') {
            reader.fault(
                &path,
                entry.node.place,
                "holds a NUL character, which no environment can",
            );
            continue;
        }
        environment.insert(entry.key, value);
    }
    environment
}

fn claude(reader: &mut Reader, node: Node) -> Option<SecretText> {
    let mut fields = reader.known(node, "claude", &["settings", "settings_json"]);
    let (tree, json) = (fields.remove("settings"), fields.remove("settings_json"));
    if let (Some(_), Some(json)) = (&tree, &json) {
        reader.fault(
            "claude",
            json.place,
            "has both `settings` and `settings_json`; one of them is enough",
        );
    }
    if let Some(tree) = tree {
        if !matches!(tree.value, Value::Map(_)) {
            reader.fault("claude.settings", tree.place, "must hold keys and values");
            return None;
        }
        return Some(SecretText::new(json_of(&tree).to_string()));
    }
    let place = json.as_ref().map(|node| node.place).unwrap_or_default();
    let text = reader.text(json, "claude.settings_json")?;
    match settings(&text) {
        Ok(text) => Some(text),
        Err(reason) => {
            reader.fault("claude.settings_json", place, reason);
            None
        }
    }
}

/// Settings of Claude Code, as short as JSON goes.
pub(crate) fn settings(text: &SecretText) -> Result<SecretText, &'static str> {
    match serde_json::from_str::<serde_json::Value>(text.expose()) {
        Ok(value) if value.is_object() => Ok(SecretText::new(value.to_string())),
        Ok(_) | Err(_) => Err("is no JSON object"),
    }
}

fn json_of(node: &Node) -> serde_json::Value {
    use serde_json::Value as Json;
    match &node.value {
        Value::Null => Json::Null,
        Value::Scalar(Kind::Text, text) => Json::String(text.expose().to_owned()),
        // What a number or a truth value was written as is JSON, with the exception of what JSON has no word for.
        Value::Scalar(_, text) => serde_json::from_str(text.expose()).unwrap_or(Json::Null),
        Value::List(items) => Json::Array(items.iter().map(json_of).collect()),
        Value::Map(entries) => {
            let pairs = entries
                .iter()
                .map(|entry| (entry.key.clone(), json_of(&entry.node)));
            Json::Object(pairs.collect())
        }
    }
}

fn ssh_keys(reader: &mut Reader, node: Node) -> BTreeMap<String, SshKey> {
    let mut keys = BTreeMap::new();
    for entry in reader.entries(node, "ssh.keys") {
        if !is_ssh_key_name(&entry.key) {
            let reason = "holds a name that is not made of letters, digits and `_-.@`";
            reader.fault("ssh.keys", entry.place, reason);
            continue;
        }
        let path = below("ssh.keys", &entry.key);
        let place = entry.node.place;
        let mut fields = reader.known(entry.node, &path, &["key", "type", "comment"]);
        let key = reader.line(fields.remove("key"), &below(&path, "key"));
        let kind = reader.line(fields.remove("type"), &below(&path, "type"));
        let comment = reader.line(fields.remove("comment"), &below(&path, "comment"));
        let words = [&kind, &key, &comment].map(|part| part.as_ref().map_or("", SecretText::expose));
        match public_key(words) {
            Ok(key) => {
                keys.insert(entry.key, key);
            }
            Err(reason) => reader.fault(&path, place, reason),
        }
    }
    keys
}

/// A public key of its type, itself and its comment, or of the whole line as the second of them.
pub(crate) fn public_key([kind, key, comment]: [&str; 3]) -> Result<SshKey, &'static str> {
    if key.contains("PRIVATE KEY") {
        return Err("is a private key; here belongs the public one, which may log in");
    }
    let mut words = key.split_whitespace();
    let first = words.next().ok_or("has no `key`")?;
    let (kind, body, rest) = if SSH_KEY_TYPES.contains(&first) {
        (
            first,
            words.next().unwrap_or(""),
            words.collect::<Vec<_>>().join(" "),
        )
    } else {
        (kind, first, words.collect::<Vec<_>>().join(" "))
    };
    if !SSH_KEY_TYPES.contains(&kind) {
        return Err("is no public key as in authorized_keys, without options, and has no known `type`");
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
    if body.len() < 40 || !body.bytes().all(plain) {
        return Err("is no public key: its middle part is no base64");
    }
    let comment = if comment.is_empty() {
        rest.as_str()
    } else {
        comment
    };
    Ok(SshKey {
        line: format!("{kind} {body} {comment}").trim_end().to_owned(),
    })
}

fn tailscale(reader: &mut Reader, node: Node) -> Tailscale {
    let mut fields = reader.known(node, "tailscale", TAILSCALE);
    let place = fields
        .get("extra_args")
        .map(|node| node.place)
        .unwrap_or_default();
    let extra_args = reader.lines(fields.remove("extra_args"), "tailscale.extra_args");
    if extra_args.iter().any(|argument| brings_key(argument)) {
        let reason =
            "holds a key, which anybody in the guest could read there; it belongs into `tailscale.authkey`";
        reader.fault("tailscale.extra_args", place, reason);
    }
    let mut line =
        |reader: &mut Reader, key: &'static str| reader.line(fields.remove(key), &below("tailscale", key));
    let (authkey, hostname_template) = (line(reader, "authkey"), line(reader, "hostname_template"));
    let (admin_api_key, tailnet) = (line(reader, "admin_api_key"), line(reader, "tailnet"));
    Tailscale {
        authkey,
        hostname_template,
        tags: reader.lines(fields.remove("tags"), "tailscale.tags"),
        extra_args,
        admin_api_key,
        tailnet,
    }
}

/// Whether an argument of `tailscale up` is one that a key comes with, in it or behind it, and not only the name of a file
/// that holds one.
fn brings_key(argument: &str) -> bool {
    let option = argument.trim_start_matches('-');
    let (name, value) = option.split_once('=').unwrap_or((option, ""));
    argument.starts_with('-')
        && ["auth-key", "authkey", "client-secret", "id-token"].contains(&name)
        && !value.starts_with("file:")
}
