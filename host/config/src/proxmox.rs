//! Which hypervisor, and the `proxmox_` keys: where a node is, who we are there, and what is believed of it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use agentlab_api::Vmid;
use agentlab_protocol::secret::SecretText;
use serde::Deserialize;

use crate::BackendKind;
use crate::check::Check;
use crate::raw::Raw;

/// The storage that every node has.
const LOCAL: &str = "local";

/// How templates are cloned on Proxmox VE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CloneMode {
    /// Linked where the storage can.
    #[default]
    Auto,
    /// Linked or not at all.
    Linked,
    /// Full.
    Full,
}

/// Where the API token is.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// In the configuration itself.
    Text(SecretText),
    /// In a file of its own, read at start.
    File(PathBuf),
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("[redacted]"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Why the API's certificate is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsTrust {
    /// This host's system trusts it.
    System,
    /// An authority of this PEM file has signed it.
    CaFile(PathBuf),
    /// It has this SHA-256 fingerprint.
    Fingerprint(String),
    /// It is not looked at; only where the API is on this host.
    Unverified,
}

/// The `proxmox_` keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxmoxConfig {
    /// `https://host:8006`.
    pub url: String,
    /// `user@realm!name=secret`; always there for the back end `proxmox`.
    pub token: Option<TokenSource>,
    /// Why the certificate is believed.
    pub trust: TlsTrust,
    /// Name of the node; found by this host's name when absent.
    pub node: Option<String>,
    /// Pool of every sandbox.
    pub pool: Option<String>,
    /// Storage of full clones and volumes.
    pub storage: Option<String>,
    /// Linked or full.
    pub clone_mode: CloneMode,
    /// How long a task of PVE may take.
    pub task_timeout: Duration,
    /// Calls that a node has to answer at once; one of them is kept free for looks.
    pub calls_per_node: usize,
    /// Clones that one storage makes at once.
    pub clones_per_storage: usize,
    /// VMID that owns volumes.
    pub volume_vmid: Option<Vmid>,
    /// Where seeds go that go by cloud-init; absent: all go by SMBIOS.
    pub snippets: Option<SnippetPlace>,
}

/// A storage that takes snippets, and its directory on this host: PVE's API takes none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnippetPlace {
    /// Directory.
    pub dir: PathBuf,
    /// Name of the storage.
    pub storage: String,
}

/// Which back end a file asks for. One that names none and has an API token, or the older `proxmox_backend`, means
/// Proxmox VE.
pub(crate) fn backend(raw: &Raw, check: &mut Check<'_>) -> BackendKind {
    let older = match given(raw.proxmox_backend.as_ref()) {
        None => None,
        Some("api") => Some(BackendKind::Proxmox),
        Some("shell") => Some(BackendKind::Shell),
        Some(_) => {
            check.fault(&["proxmox_backend"], "must be `api` or `shell`");
            None
        }
    };
    let has_token = given(raw.proxmox_api_token.as_ref().map(SecretText::expose)).is_some()
        || raw.proxmox_api_token_path.is_some();
    match (raw.backend.as_deref(), older) {
        (Some("qemu"), _) => BackendKind::Qemu,
        (Some("proxmox"), older) => older.unwrap_or(BackendKind::Proxmox),
        (Some("shell"), Some(BackendKind::Proxmox)) => {
            check.fault(&["proxmox_backend"], "is `api`, and `backend` is `shell`");
            BackendKind::Shell
        }
        (Some("shell"), _) => BackendKind::Shell,
        (Some(_), _) => {
            check.fault(&["backend"], "must be `qemu`, `proxmox` or `shell`");
            BackendKind::Qemu
        }
        (None, Some(kind)) => kind,
        (None, None) if has_token => BackendKind::Proxmox,
        (None, None) => BackendKind::Qemu,
    }
}

/// An empty text is no text: `proxmox_node: ""` always meant that it is found.
fn given<T: AsRef<str> + ?Sized>(text: Option<&T>) -> Option<&str> {
    text.map(AsRef::as_ref)
        .map(str::trim)
        .filter(|text| !text.is_empty())
}

impl ProxmoxConfig {
    pub(crate) fn of(raw: &Raw, kind: BackendKind, check: &mut Check<'_>) -> Self {
        refuse_idle_keys(raw, kind, check);
        let url = given(raw.proxmox_api_url.as_ref())
            .unwrap_or("https://localhost:8006")
            .to_owned();
        if !url.starts_with("https://") {
            check.fault(
                &["proxmox_api_url"],
                "must begin with https://, such as https://localhost:8006: a token is never sent in the clear",
            );
        }
        let trust = trust(raw, &url, check);
        Self {
            token: token(raw, kind, check),
            trust,
            node: name("proxmox_node", raw.proxmox_node.as_ref(), check),
            pool: name("proxmox_pool", raw.proxmox_pool.as_ref(), check),
            storage: name("proxmox_storage", raw.proxmox_storage.as_ref(), check),
            clone_mode: raw.proxmox_clone_mode.unwrap_or_default(),
            task_timeout: check.duration(
                "proxmox_command_timeout",
                raw.proxmox_command_timeout,
                120,
                (10, 86_400),
            ),
            calls_per_node: bound(
                "proxmox_calls_per_node",
                raw.proxmox_calls_per_node,
                3,
                (2, 64),
                check,
            ),
            clones_per_storage: bound(
                "proxmox_clones_per_storage",
                raw.proxmox_clones_per_storage,
                2,
                (1, 64),
                check,
            ),
            volume_vmid: volume_vmid(raw, check),
            snippets: snippets(raw, check),
            url,
        }
    }
}

/// A key that does nothing is worse than an error.
fn refuse_idle_keys(raw: &Raw, kind: BackendKind, check: &mut Check<'_>) {
    let of_api = [
        ("proxmox_api_url", given(raw.proxmox_api_url.as_ref()).is_some()),
        (
            "proxmox_api_token",
            given(raw.proxmox_api_token.as_ref().map(SecretText::expose)).is_some(),
        ),
        ("proxmox_api_token_path", raw.proxmox_api_token_path.is_some()),
        (
            "proxmox_tls_ca_path",
            given(raw.proxmox_tls_ca_path.as_ref()).is_some(),
        ),
        (
            "proxmox_tls_fingerprint",
            given(raw.proxmox_tls_fingerprint.as_ref()).is_some(),
        ),
        ("proxmox_tls_insecure", raw.proxmox_tls_insecure == Some(true)),
    ];
    let of_both = [
        ("proxmox_node", given(raw.proxmox_node.as_ref()).is_some()),
        ("proxmox_pool", given(raw.proxmox_pool.as_ref()).is_some()),
        ("proxmox_storage", given(raw.proxmox_storage.as_ref()).is_some()),
        ("proxmox_clone_mode", raw.proxmox_clone_mode.is_some()),
        ("proxmox_command_timeout", raw.proxmox_command_timeout.is_some()),
        ("proxmox_calls_per_node", raw.proxmox_calls_per_node.is_some()),
        (
            "proxmox_clones_per_storage",
            raw.proxmox_clones_per_storage.is_some(),
        ),
        ("proxmox_volume_vmid", raw.proxmox_volume_vmid.is_some()),
        ("snippets_dir", raw.snippets_dir.is_some()),
        ("snippet_storage", given(raw.snippet_storage.as_ref()).is_some()),
    ];
    let (idle, word): (Vec<_>, _) = match kind {
        BackendKind::Proxmox => return,
        BackendKind::Shell => (of_api.to_vec(), "shell"),
        BackendKind::Qemu => (of_api.into_iter().chain(of_both).collect(), "qemu"),
    };
    // Files that served both ways of the predecessor name a token beside `proxmox_backend: shell`.
    let tolerated = kind == BackendKind::Shell && raw.backend.is_none();
    for (key, _) in idle.into_iter().filter(|(_, is_given)| *is_given) {
        let message = format!("has no effect with `backend: {word}`");
        if tolerated {
            check.warnings.push(format!("`{key}` {message}"));
        } else {
            check.fault(&[key], message);
        }
    }
}

fn token(raw: &Raw, kind: BackendKind, check: &mut Check<'_>) -> Option<TokenSource> {
    let text = raw
        .proxmox_api_token
        .as_ref()
        .filter(|text| !text.expose().trim().is_empty());
    match (text, &raw.proxmox_api_token_path) {
        (Some(_), Some(_)) => {
            check.fault(
                &["proxmox_api_token_path"],
                "and `proxmox_api_token` exclude each other",
            );
            None
        }
        (Some(text), None) => {
            let text_ref = text.expose();
            if !(text_ref.contains('@') && text_ref.contains('!') && text_ref.contains('=')) {
                check.fault(
                    &["proxmox_api_token"],
                    "must be user@realm!name=secret, as `pveum user token add` prints its two parts",
                );
            }
            Some(TokenSource::Text(text.clone()))
        }
        (None, Some(path)) => {
            let path = check.path("proxmox_api_token_path", Some(path.clone()), PathBuf::new);
            Some(TokenSource::File(path))
        }
        (None, None) => {
            if kind == BackendKind::Proxmox {
                check.fault(
                    &["proxmox_api_token"],
                    "is missing: the back end `proxmox` needs it, or `proxmox_api_token_path`; docs/proxmox.md says how to make one",
                );
            }
            None
        }
    }
}

fn trust(raw: &Raw, url: &str, check: &mut Check<'_>) -> TlsTrust {
    let ca = given(raw.proxmox_tls_ca_path.as_ref()).map(PathBuf::from);
    let fingerprint = given(raw.proxmox_tls_fingerprint.as_ref());
    let insecure = raw.proxmox_tls_insecure == Some(true);
    match (ca, fingerprint, insecure) {
        (None, None, false) => TlsTrust::System,
        (Some(path), None, false) => {
            TlsTrust::CaFile(check.path("proxmox_tls_ca_path", Some(path), PathBuf::new))
        }
        (None, Some(text), false) => {
            let digits = text.chars().filter(|letter| *letter != ':');
            if digits.clone().count() != 64 || !digits.clone().all(|digit| digit.is_ascii_hexdigit()) {
                check.fault(
                    &["proxmox_tls_fingerprint"],
                    "must be a SHA-256 fingerprint, such as AA:BB:... with 32 bytes; `pvenode cert info` shows it",
                );
            }
            TlsTrust::Fingerprint(text.to_owned())
        }
        (None, None, true) => {
            let host = url.trim_start_matches("https://");
            let here = ["localhost", "127.0.0.1", "[::1]"];
            let is_here = here.iter().any(|name| {
                host.strip_prefix(name)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/']))
            });
            if is_here {
                check.warnings.push(
                    "`proxmox_tls_insecure`: the certificate of the API is not looked at; pin it with `proxmox_tls_fingerprint`"
                        .to_owned(),
                );
            } else {
                check.fault(
                    &["proxmox_tls_insecure"],
                    "would send the token to whoever answers; pin the certificate with `proxmox_tls_fingerprint` instead",
                );
            }
            TlsTrust::Unverified
        }
        (_, _, _) => {
            check.fault(
                &["proxmox_tls_fingerprint"],
                "`proxmox_tls_ca_path` and `proxmox_tls_insecure` exclude each other",
            );
            TlsTrust::System
        }
    }
}

/// How much of something may be under way at once.
fn bound(
    key: &'static str,
    given: Option<u32>,
    default: u32,
    range: (u32, u32),
    check: &mut Check<'_>,
) -> usize {
    usize::try_from(check.number(&[key], given, default, range)).unwrap_or(1)
}

/// Names of nodes, pools and storages stand in paths of the API and in arguments of its programs.
fn name(key: &str, text: Option<&String>, check: &mut Check<'_>) -> Option<String> {
    let text = given(text)?;
    let fits = text.len() <= 100
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte))
        && text.starts_with(|first: char| first.is_ascii_alphanumeric());
    if !fits {
        check.fault(&[key], "must be a name of letters, digits, `-`, `_` and `.`");
    }
    Some(text.to_owned())
}

/// Either key asks for snippets, and on the storage that every node has the other is known.
fn snippets(raw: &Raw, check: &mut Check<'_>) -> Option<SnippetPlace> {
    let storage = name("snippet_storage", raw.snippet_storage.as_ref(), check);
    if storage.is_none() && raw.snippets_dir.is_none() {
        return None;
    }
    let storage = storage.unwrap_or_else(|| LOCAL.to_owned());
    if storage != LOCAL && raw.snippets_dir.is_none() {
        check.fault(
            &["snippet_storage"],
            format!("is `{storage}`, and `snippets_dir` does not say where its snippets are, such as /mnt/pve/{storage}/snippets"),
        );
    }
    let usual = || PathBuf::from("/var/lib/vz/snippets");
    Some(SnippetPlace {
        dir: check.path("snippets_dir", raw.snippets_dir.clone(), usual),
        storage,
    })
}

fn volume_vmid(raw: &Raw, check: &mut Check<'_>) -> Option<Vmid> {
    let vmid = raw.proxmox_volume_vmid?;
    let first = raw.vmid_first.map_or(1000, u32::from);
    let last = raw.vmid_last.map_or(8999, u32::from);
    if (first..=last).contains(&u32::from(vmid)) {
        check.fault(
            &["proxmox_volume_vmid"],
            format!("is {vmid}, inside the sandboxes' own range {first} to {last}: a sandbox that ends takes volumes of its number along"),
        );
    }
    Some(vmid)
}

#[cfg(test)]
#[path = "proxmox_tests.rs"]
mod tests;
