//! What PVE says instead of yes, sorted.
//!
//! PVE uses no 404, 409 or 423: whatever dies inside it becomes a 500 with a sentence, a task's `exitstatus`, or a line
//! on the standard error of `qm`, and the sentence is the same in all three. So one table of sentences decides for all
//! of them. They are those of 8.4 and 9.2, which have the same.

use serde_json::Value;

use super::answer::text;
use super::told::shown;
use crate::BackendError;
use agentlab_api::Vmid;

/// What kind of no it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// No such VM on the node that was asked.
    NoMachine,
    /// The VMID is in use.
    Taken,
    /// Somebody holds a lock; PVE waited itself, and gave up.
    LockTimeout,
    /// The machine's configuration says that somebody works on it: `backup`, `clone`, `snapshot` ...
    Locked(String),
    /// A worker of PVE's is making it, and says when it is done.
    BeingMade,
    /// The configuration was changed since it was read.
    Digest,
    /// A privilege is missing. Path and privileges where PVE names them, `|` between alternatives.
    Permission(Option<(String, String)>),
    /// Token, user or secret is wrong, expired or disabled: PVE does not say which.
    Unauthenticated,
    /// Only the user root@pam itself may, and no token of it.
    RootOnly,
    NoPool,
    NoStorage,
    StorageFull,
    NoSnapshot,
    SnapshotTaken,
    NoQuorum,
    NoNode,
    NoTask,
    AgentDown,
    AgentAbsent,
    AlreadyRunning,
    NotRunning,
    /// A destroy of a machine that runs.
    Running,
    Protected,
    BaseInUse,
    NoLinkedClone,
    /// The storage copies no snapshots.
    NoFullClone,
    /// The storage takes no snapshots of such a disk.
    CannotSnapshot,
    /// The storage goes back to the newest snapshot only.
    NotNewest,
    /// The template's disk is on another node's own storage.
    LocalTemplate,
    IsTemplate,
    /// The machine wants KVM, and the node has none.
    NoKvm,
    /// A volume or file of that name exists.
    VolumeTaken,
    /// Parameters that PVE does not take, by name.
    Invalid(Vec<(String, String)>),
    /// The call was never made.
    Unreached,
    /// Its task still ran after all of our patience, which was so many seconds.
    Unfinished(u64),
    /// The call was made, and whether it took effect is not known: 595, 596, 599, a lost connection, an answer that
    /// cannot be read.
    Unknown,
    Other,
}

/// A no, in PVE's own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) kind: Kind,
    pub(crate) words: String,
}

/// Sentences and what they mean; all parts must occur, the first row that fits decides.
const SENTENCES: &[(&[&str], Kind)] = &[
    (&["can't lock file", "got timeout"], Kind::LockTimeout),
    (&["got lock request timeout"], Kind::LockTimeout),
    (&["-locked command timed out"], Kind::LockTimeout),
    (&["no quorum"], Kind::NoQuorum),
    // Its own file system is read-only then, also for root.
    (&["/etc/pve/", "Permission denied"], Kind::NoQuorum),
    (&["/etc/pve/", "Read-only file system"], Kind::NoQuorum),
    (&["checksum mismatch (file change by other user?)"], Kind::Digest),
    (&["detected modified configuration"], Kind::Digest),
    (&["config file already exists"], Kind::Taken),
    (&["unable to create VM", "already exists"], Kind::Taken),
    (&["Configuration file 'nodes/", "does not exist"], Kind::NoMachine),
    (&["unable to find configuration file for VM"], Kind::NoMachine),
    (&["no such VM"], Kind::NoMachine),
    (&["snapshot name '", "already used"], Kind::SnapshotTaken),
    (&["Snapshot with name '", "already exists"], Kind::SnapshotTaken),
    (&["snapshot '", "' does not exist"], Kind::NoSnapshot),
    (&["pool '", "' does not exist"], Kind::NoPool),
    (&["storage '", "' does not exist"], Kind::NoStorage),
    (&["storage '", "is not available"], Kind::NoStorage),
    (&["storage '", "is not online"], Kind::NoStorage),
    (&["storage '", "is disabled"], Kind::NoStorage),
    (&["storage '", "is not activated"], Kind::NoStorage),
    (&["unable to activate storage '"], Kind::NoStorage),
    (&["No space left on device"], Kind::StorageFull),
    (&["not enough free space"], Kind::StorageFull),
    (&["insufficient free space"], Kind::StorageFull),
    (&["out of space"], Kind::StorageFull),
    (
        &["Cannot create new thin volume, free space in thin pool"],
        Kind::StorageFull,
    ),
    (&["disk image '", "already exists"], Kind::VolumeTaken),
    (
        &["Logical Volume", "already exists in volume group"],
        Kind::VolumeTaken,
    ),
    (&["cannot create '", "dataset already exists"], Kind::VolumeTaken),
    (&["rbd create", "File exists"], Kind::VolumeTaken),
    (&["only root can set"], Kind::RootOnly),
    (&["Only root may use this option"], Kind::RootOnly),
    (&["Only root can pass arbitrary filesystem paths"], Kind::RootOnly),
    (&["QEMU guest agent is not running"], Kind::AgentDown),
    (&["No QEMU guest agent configured"], Kind::AgentAbsent),
    (&["is running - destroy failed"], Kind::Running),
    (&["protection mode enabled"], Kind::Protected),
    (&["is still in use by linked clone"], Kind::BaseInUse),
    (&["Linked clone feature is not supported"], Kind::NoLinkedClone),
    (&["Full clone feature is not supported"], Kind::NoFullClone),
    (&["snapshot feature is not available"], Kind::CannotSnapshot),
    (&["is not most recent snapshot"], Kind::NotNewest),
    (
        &["can't clone VM to node", "uses local storage"],
        Kind::LocalTemplate,
    ),
    (&["you can't start a vm if it's a template"], Kind::IsTemplate),
    (&["KVM virtualisation configured, but not available"], Kind::NoKvm),
    (&["already running"], Kind::AlreadyRunning),
    (&["is not running"], Kind::NotRunning),
    (&["VM ", " not running"], Kind::NotRunning),
    (&["no such task"], Kind::NoTask),
    (&["unable to parse worker upid"], Kind::NoTask),
    (&["hostname lookup '", "failed"], Kind::NoNode),
    (&["no such cluster node"], Kind::NoNode),
    (&["ipcc_send_rec["], Kind::Unreached),
];

impl Refusal {
    pub(crate) fn new(kind: Kind, words: impl AsRef<str>) -> Self {
        Self {
            kind,
            words: shown(words.as_ref()),
        }
    }

    /// From an HTTP answer other than 200.
    #[cfg_attr(
        not(feature = "proxmox"),
        expect(dead_code, reason = "only REST is answered so")
    )]
    pub(crate) fn answered(status: u16, reason: &str, body: &[u8]) -> Self {
        let body: Option<Value> = serde_json::from_slice(body).ok();
        let part = |key: &str| body.as_ref().and_then(|body| body.get(key));
        let message = part("message").and_then(text).unwrap_or_default();
        let errors: Vec<(String, String)> = match part("errors") {
            Some(Value::Object(errors)) => errors
                .iter()
                .map(|(key, value)| (key.clone(), text(value).unwrap_or_default().trim().to_owned()))
                .collect(),
            Some(_) | None => Vec::new(),
        };
        let said = if message.trim().is_empty() {
            reason
        } else {
            &message
        };
        let mut words = said.trim().to_owned();
        for (key, error) in &errors {
            words.push_str(&format!(" {key}: {error}."));
        }
        let kind = match status {
            // The latter three are of a proxy in front of PVE's own.
            595 | 596 | 599 | 502 | 503 | 504 => Kind::Unknown,
            401 => Kind::Unauthenticated,
            _ => sort(&words, errors),
        };
        let words = match status {
            595 | 596 | 599 if words.is_empty() => format!("{status}: PVE's own proxy got no answer in time"),
            400 | 403 | 500 if !words.is_empty() => words,
            _ => format!("{status} {words}"),
        };
        Self::new(kind, words)
    }

    /// From the end of a task that is neither `OK` nor `WARNINGS: n`.
    #[cfg_attr(
        not(feature = "proxmox"),
        expect(dead_code, reason = "only REST follows tasks")
    )]
    pub(crate) fn task(exit_status: &str, log: &[String]) -> Self {
        // Its worker was killed, or its log is gone: how far it came is not known.
        let is_lost = exit_status == "unexpected status" || exit_status.starts_with("unable to read tail");
        let kind = if is_lost {
            Kind::Unknown
        } else {
            sort(exit_status, Vec::new())
        };
        let before: Vec<&str> = log
            .iter()
            .map(|line| line.trim())
            .filter(|line| !line.is_empty() && !line.starts_with("TASK ERROR"))
            .collect();
        let words = match before.as_slice() {
            [] => exit_status.trim().to_owned(),
            lines => format!("{}; its log: {}", exit_status.trim(), lines.join(" / ")),
        };
        Self::new(kind, words)
    }

    /// From a command that ended with another status than 0.
    #[cfg(feature = "shell")]
    pub(crate) fn command(stderr: &str) -> Self {
        // Perl's own complaints come first, and the reason for the end comes last.
        let lines: Vec<&str> = stderr
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !is_noise(line))
            .collect();
        let named = |line: &&str| {
            let (key, words) = line.split_once(": ")?;
            // Versions differ in the options that their programs know.
            Some(if key == "Unknown option" {
                (words.to_owned(), key.to_owned())
            } else {
                (key.to_owned(), words.to_owned())
            })
        };
        let is_invalid = lines.iter().any(|line| line.starts_with("400 "));
        let errors = lines
            .iter()
            .filter(|line| is_invalid && !line.starts_with("400 "))
            .filter_map(named)
            .collect();
        let words = lines.join(" ");
        Self::new(sort(&words, errors), words)
    }

    /// The call was not made.
    pub(crate) fn unreached(words: impl AsRef<str>) -> Self {
        Self::new(Kind::Unreached, words)
    }

    /// Nobody knows whether it took effect.
    pub(crate) fn unknown(words: impl AsRef<str>) -> Self {
        Self::new(Kind::Unknown, words)
    }

    /// Whether nobody can say what effect the call had, or will have.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.kind, Kind::Unknown | Kind::Unfinished(_))
    }

    /// Whether it passes when whoever holds the lock is done.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(
            self.kind,
            Kind::LockTimeout | Kind::Locked(_) | Kind::BeingMade | Kind::Digest | Kind::Running
        )
    }

    /// As the engine understands it.
    pub(crate) fn into_error(self, backend: &'static str, action: &'static str, vmid: Vmid) -> BackendError {
        let hint = self.hint_for(vmid);
        match self.kind {
            Kind::NoMachine => BackendError::NoSuchMachine { vmid },
            Kind::Taken => BackendError::Conflict {
                vmid,
                reason: self.words,
            },
            Kind::LockTimeout | Kind::Locked(_) | Kind::BeingMade | Kind::Digest => BackendError::Busy {
                action,
                vmid,
                reason: self.words,
                hint,
            },
            // PVE says so now and then of a token that is right, after 3 s; of one that is wrong it says so again.
            Kind::Unauthenticated => self.into_unreachable(backend, action),
            Kind::Unreached | Kind::Unknown | Kind::NoNode => self.into_unreachable(backend, action),
            Kind::Unfinished(seconds) => BackendError::TimedOut {
                action,
                vmid,
                seconds,
            },
            Kind::NoQuorum => BackendError::Unreachable {
                backend,
                action,
                reason: format!("the cluster is not quorate: {}", self.words),
            },
            Kind::Permission(_)
            | Kind::RootOnly
            | Kind::NoPool
            | Kind::NoStorage
            | Kind::StorageFull
            | Kind::NoSnapshot
            | Kind::SnapshotTaken
            | Kind::NoTask
            | Kind::AgentDown
            | Kind::AgentAbsent
            | Kind::AlreadyRunning
            | Kind::NotRunning
            | Kind::Running
            | Kind::Protected
            | Kind::BaseInUse
            | Kind::NoLinkedClone
            | Kind::NoFullClone
            | Kind::CannotSnapshot
            | Kind::NotNewest
            | Kind::LocalTemplate
            | Kind::IsTemplate
            | Kind::NoKvm
            | Kind::VolumeTaken
            | Kind::Invalid(_)
            | Kind::Other => BackendError::Refused {
                action,
                vmid,
                reason: self.words,
                hint,
            },
        }
    }

    /// For a question that is about no machine.
    pub(crate) fn into_unreachable(self, backend: &'static str, action: &'static str) -> BackendError {
        let reason = match self.hint() {
            Some(hint) => format!("{}; {hint}", self.words),
            None => self.words,
        };
        BackendError::Unreachable {
            backend,
            action,
            reason,
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.words)
    }
}

fn sort(words: &str, errors: Vec<(String, String)>) -> Kind {
    // In `VM 9000 already exists` of nextid nothing but the key tells what exists.
    let is_taken = |(key, error): &(String, String)| {
        (key == "vmid" || key == "newid") && error.contains("already exists")
    };
    if errors.iter().any(is_taken) {
        return Kind::Taken;
    }
    if let Some(lock) = between(words, "VM is locked (", ")") {
        return Kind::Locked(lock.to_owned());
    }
    let fits = |(parts, _): &&(&[&str], Kind)| parts.iter().all(|part| words.contains(part));
    if let Some((_, kind)) = SENTENCES.iter().find(fits) {
        return kind.clone();
    }
    if words.contains("Permission check failed") {
        let missing = between(words, "Permission check failed (", ")");
        let missing = missing.and_then(|missing| missing.split_once(", "));
        return Kind::Permission(missing.map(|(path, needs)| (path.to_owned(), needs.to_owned())));
    }
    if errors.is_empty() {
        Kind::Other
    } else {
        Kind::Invalid(errors)
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    Some(rest.split_once(after)?.0)
}

/// What `qm` says on standard error besides the reason for its end.
#[cfg(feature = "shell")]
fn is_noise(line: &str) -> bool {
    line.starts_with("Use of uninitialized value")
        || line.starts_with("unable to get memory stat for")
        || line.starts_with("perl: warning:")
        || (line.starts_with("qm ") || line.starts_with("pvesm ") || line.starts_with("pvesh "))
            && line.contains("[OPTIONS]")
}

#[cfg(test)]
#[cfg(all(feature = "proxmox", feature = "shell"))]
#[path = "refusal_tests.rs"]
mod tests;
