//! Profiles: one document each, several in a file, several files in a directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use agentlab_api::{AGENTS, AllowEntry, InnerSandbox, MOST_PORTS_OF_NAME, NetworkMode, Profile};

use crate::yaml::{self, Document, Node, Place, Read};
use crate::{ConfigError, Fault, file, refused, resources};

/// A profile and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedProfile {
    /// The profile, defaults filled in.
    pub profile: Profile,
    /// Its file.
    pub file: String,
    /// Line of its `name`.
    pub line: u64,
    /// Column of its `name`.
    pub column: u64,
}

/// Reads every `*.yaml` and `*.yml` of a directory, in the order of their names; not its subdirectories. A directory
/// without profiles gives none.
///
/// # Errors
/// The directory or a file cannot be read, a profile is not what it should be, or two have the same name. All files
/// are looked at before that is said.
pub fn load_profiles(dir: &Path) -> Result<Vec<LoadedProfile>, ConfigError> {
    let unreadable = |source: std::io::Error| {
        if source.kind() == std::io::ErrorKind::NotFound {
            ConfigError::Missing {
                what: "Profile directory",
                path: dir.to_owned(),
            }
        } else {
            ConfigError::Unreadable {
                path: dir.to_owned(),
                source,
            }
        }
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let extension = path
            .extension()
            .and_then(|extension| extension.to_str())
            .map(str::to_lowercase);
        if !hidden && matches!(extension.as_deref(), Some("yaml" | "yml")) {
            paths.push(path);
        }
    }
    paths.sort();
    load_profile_files(&paths)
}

/// Reads the profiles of these files; names must be unique over all of them.
///
/// # Errors
/// As [`load_profiles`].
pub fn load_profile_files(paths: &[PathBuf]) -> Result<Vec<LoadedProfile>, ConfigError> {
    let mut profiles = Vec::new();
    let mut faults = Vec::new();
    for path in paths {
        let (text, _) = file::read(path, "Profile")?;
        match read_text(&text, &path.display().to_string()) {
            Ok(mut more) => profiles.append(&mut more),
            Err(ConfigError::Invalid(mut more)) => faults.append(&mut more),
            Err(other) => return Err(other),
        }
    }
    faults.extend(duplicates(&profiles));
    if faults.is_empty() {
        Ok(profiles)
    } else {
        Err(ConfigError::Invalid(faults))
    }
}

/// Reads the profiles of one text; `label` stands for its path in messages.
///
/// # Errors
/// A profile is not what it should be, two have the same name, or there is none.
pub fn parse_profiles(text: &str, label: &str) -> Result<Vec<LoadedProfile>, ConfigError> {
    let profiles = read_text(text, label)?;
    let mut faults = duplicates(&profiles);
    if profiles.is_empty() {
        faults.push(Fault::new(label, Place::default(), "holds no profile"));
    }
    if faults.is_empty() {
        Ok(profiles)
    } else {
        Err(ConfigError::Invalid(faults))
    }
}

fn read_text(text: &str, label: &str) -> Result<Vec<LoadedProfile>, ConfigError> {
    let Read {
        documents,
        mut faults,
    } = yaml::documents::<Profile>(text, label, refused::in_profile)?;
    let mut profiles = Vec::new();
    for Document { value: profile, root } in documents {
        for (path, reason) in out_of_range(&profile, &root) {
            let place = root.place_of(&path);
            let message = format!("`{}` {reason}", path.join("."));
            faults.push(Fault::new(label, place, &message));
        }
        let place = root.place_of(&["name"]);
        profiles.push(LoadedProfile {
            profile,
            file: label.to_owned(),
            line: place.line,
            column: place.column,
        });
    }
    if faults.is_empty() {
        Ok(profiles)
    } else {
        Err(ConfigError::Invalid(yaml::sorted(faults)))
    }
}

fn duplicates(profiles: &[LoadedProfile]) -> Vec<Fault> {
    let mut first: BTreeMap<&str, &LoadedProfile> = BTreeMap::new();
    let mut faults = Vec::new();
    for loaded in profiles {
        let name = loaded.profile.name.as_str();
        match first.get(name) {
            None => {
                first.insert(name, loaded);
            }
            Some(earlier) => faults.push(Fault {
                file: loaded.file.clone(),
                line: loaded.line,
                column: loaded.column,
                message: format!(
                    "profile `{name}` stands already at {}:{}",
                    earlier.file, earlier.line
                ),
            }),
        }
    }
    faults
}

/// Entries of an allowlist. Each is a handful of elements in the kernel, for each sandbox of the profile.
const MOST_ALLOWED: usize = 1000;

type Range = (Vec<&'static str>, String);

/// What the schema cannot say: ranges, and values this build does not enforce.
fn out_of_range(profile: &Profile, root: &Node) -> Vec<Range> {
    let mut faults = Vec::new();
    let mut fault = |path: &[&'static str], reason: String| faults.push((path.to_vec(), reason));
    if !is_name(&profile.name) {
        fault(
            &["name"],
            format!(
                "is `{}`, and must be 1 to 63 lower-case letters, digits, `-` and `_`, beginning with a letter or digit",
                profile.name.escape_debug().take(80).collect::<String>()
            ),
        );
    }
    let mut between = |path: &[&'static str], value: u64, least: u64, most: u64| {
        if !(least..=most).contains(&value) {
            fault(path, format!("is {value}, and must be from {least} to {most}"));
        }
    };
    let Profile {
        storage,
        behavior,
        artifacts,
        ..
    } = profile;
    if let Some(size) = storage.root_size_gb {
        between(&["storage", "root_size_gb"], u64::from(size), 1, 65_536);
    }
    between(
        &["behavior", "ttl_minutes_default"],
        u64::from(behavior.ttl_minutes_default),
        1,
        527_040,
    );
    if let Some(minutes) = behavior.idle_stop_minutes_default {
        let path = ["behavior", "idle_stop_minutes_default"];
        between(&path, u64::from(minutes), 0, u64::from(crate::idle::MOST_MINUTES));
    }
    between(
        &["behavior", "deadline_seconds_default"],
        u64::from(behavior.deadline_seconds_default),
        1,
        604_800,
    );
    between(
        &["artifacts", "max_file_bytes"],
        artifacts.max_file_bytes,
        1,
        1 << 50,
    );
    between(
        &["artifacts", "max_total_bytes"],
        artifacts.max_total_bytes,
        1,
        1 << 50,
    );
    between(
        &["artifacts", "max_files"],
        u64::from(artifacts.max_files),
        1,
        1_000_000,
    );
    between(
        &["artifacts", "retention_days"],
        u64::from(artifacts.retention_days.unwrap_or_default()),
        0,
        36_500,
    );
    faults.extend(resources::faults(profile));
    faults.extend(agent_faults(profile));
    faults.extend(push_faults(profile));
    faults.extend(secrets_faults(profile));
    faults.extend(network_faults(profile));
    faults.extend(inner_sandbox_faults(profile, root));
    faults
}

/// As Proxmox VE names them.
fn is_security_group(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (2..=18).contains(&name.len())
        && name.bytes().all(is_plain)
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
}

fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= 63
        && name.bytes().next().is_some_and(plain)
        && name
            .bytes()
            .all(|byte| plain(byte) || byte == b'-' || byte == b'_')
}

/// A name that several entries give more ports than it may have.
fn crowded_name(list: &[AllowEntry]) -> Option<String> {
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    for entry in list {
        if let AllowEntry::Name {
            name,
            ports: Some(ports),
        } = entry
        {
            *counts.entry(name).or_default() += ports.count();
        }
    }
    let (name, count) = counts
        .into_iter()
        .find(|(_, count)| *count > MOST_PORTS_OF_NAME)?;
    Some(format!(
        "names {count} ports of `{name}`, and {MOST_PORTS_OF_NAME} are the most: name fewer, or none for every port"
    ))
}

fn network_faults(profile: &Profile) -> Vec<Range> {
    let mut faults = Vec::new();
    let network = &profile.network;
    let listed = network.allow.len();
    let path = vec!["network", "allow"];
    if network.mode != NetworkMode::Allowlist && listed > 0 {
        let reason = format!(
            "would be ignored: `network.mode` is `{}`, and only `allowlist` reads it",
            network.mode
        );
        faults.push((path, reason));
    } else if network.mode == NetworkMode::Allowlist && listed == 0 {
        let reason = "is `allowlist` without an entry in `network.allow`: name one, or use `off`".to_owned();
        faults.push((vec!["network", "mode"], reason));
    } else if listed > MOST_ALLOWED {
        let reason =
            format!("has {listed} entries, and at most {MOST_ALLOWED} are taken: name networks or wildcards");
        faults.push((path, reason));
    }
    faults.extend(crowded_name(&network.allow).map(|reason| (vec!["network", "allow"], reason)));
    if let Some(group) = &network.firewall_group {
        if !is_security_group(group) {
            faults.push((
                vec!["network", "firewall_group"],
                "must be 2 to 18 letters, digits, `-` and `_`, beginning with a letter".to_owned(),
            ));
        }
        if network.firewall == Some(false) {
            faults.push((
                vec!["network", "firewall"],
                "is false, and `firewall_group` has rules for it; leave one of them out".to_owned(),
            ));
        }
    }
    if network.model.as_deref().is_some_and(|model| model != "virtio") {
        faults.push((
            vec!["network", "model"],
            "must be `virtio`, the only model there is".to_owned(),
        ));
    }
    if let Some(channels) = &network.channels {
        let path = vec!["network", "channels"];
        if channels.is_empty() {
            faults.push((
                path.clone(),
                "is empty: the guest could not reach its host".to_owned(),
            ));
        }
        if channels
            .iter()
            .enumerate()
            .any(|(index, channel)| channels.iter().skip(index + 1).any(|c| c == channel))
        {
            faults.push((path, "names a channel twice".to_owned()));
        }
    }
    faults
}

/// What is said of a name that is none.
pub(crate) const NO_BUNDLE_NAME: &str =
    "is no name of a bundle: letters, digits, `.`, `_` and `-`, not beginning with a dot";

/// Whether a bundle may be called so.
pub(crate) fn is_bundle_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn secrets_faults(profile: &Profile) -> Vec<Range> {
    let mut faults = Vec::new();
    if let Some(name) = &profile.secrets_bundle {
        if !is_bundle_name(name) {
            faults.push((vec!["secrets_bundle"], NO_BUNDLE_NAME.to_owned()));
        } else if profile.secrets.is_empty() {
            let reason = "would be ignored: `secrets` names nothing of it".to_owned();
            faults.push((vec!["secrets_bundle"], reason));
        }
    }
    faults
}

fn agent_faults(profile: &Profile) -> Vec<Range> {
    let behavior = &profile.behavior;
    let mut faults = Vec::new();
    let named = [
        (vec!["agent"], Some(&profile.agent)),
        (vec!["behavior", "agent"], behavior.agent.as_ref()),
    ];
    for (path, name) in named {
        let Some(name) = name else { continue };
        if !AGENTS.contains(&name.as_str()) {
            let shown: String = name.escape_debug().take(80).collect();
            faults.push((path, format!("is `{shown}`; known here: {}", AGENTS.join(", "))));
        }
    }
    let takes_arguments = ["claude", "codex", "opencode"].contains(&profile.agent());
    let args = vec!["behavior", "agent_args"];
    if behavior.agent_args.iter().any(|word| word.contains('\0')) {
        faults.push((args, "holds a NUL".to_owned()));
    } else if !behavior.agent_args.is_empty() && !takes_arguments {
        let reason = format!("would be ignored: the agent is `{}`", profile.agent());
        faults.push((args, reason));
    }
    let command = vec!["behavior", "agent_command"];
    if behavior.agent_command.iter().any(|word| word.contains('\0'))
        || behavior.agent_command.first().is_some_and(String::is_empty)
    {
        faults.push((command, "begins with an empty word, or holds a NUL".to_owned()));
    } else if profile.agent() == "command" && behavior.agent_command.is_empty() {
        faults.push((
            command,
            "is empty: the agent `command` has nothing to run".to_owned(),
        ));
    }
    faults
}

fn push_faults(profile: &Profile) -> Vec<Range> {
    let fits = |pattern: &str| {
        let name = pattern.strip_suffix('*').unwrap_or(pattern);
        let bad = |c: char| c.is_whitespace() || c.is_control() || "~^:?*[\\".contains(c);
        !pattern.is_empty()
            && !name.chars().any(bad)
            && !name.contains("..")
            && !name.starts_with(['-', '/'])
            && !name.starts_with("refs/")
    };
    let wrong = profile.behavior.push.iter().find(|pattern| !fits(pattern));
    let fault = wrong.map(|pattern| {
        let shown: String = pattern.escape_debug().take(80).collect();
        let reason = format!(
            "names `{shown}`, and must name branches without `refs/heads/`, or prefixes that end in `*`"
        );
        (vec!["behavior", "push"], reason)
    });
    fault.into_iter().collect()
}

fn inner_sandbox_faults(profile: &Profile, root: &Node) -> Vec<Range> {
    let behavior = &profile.behavior;
    let path = vec!["behavior", "inner_sandbox_args"];
    let mut faults = Vec::new();
    let line = root.place_of(&["behavior", "inner_sandbox"]).line;
    if behavior.inner_sandbox == InnerSandbox::Hardened && !behavior.inner_sandbox_args.is_empty() {
        let reason = format!("would undo what `inner_sandbox: hardened` promises (line {line})");
        faults.push((path.clone(), reason));
    }
    if behavior.inner_sandbox == InnerSandbox::None && !behavior.inner_sandbox_args.is_empty() {
        faults.push((
            path.clone(),
            format!("would be ignored: `inner_sandbox` is `none` (line {line})"),
        ));
    }
    if behavior
        .inner_sandbox_args
        .iter()
        .any(|argument| argument.trim().is_empty() || argument.contains('\0'))
    {
        faults.push((path, "holds an empty argument".to_owned()));
    }
    faults
}

#[cfg(test)]
#[path = "profile_tests.rs"]
mod tests;
