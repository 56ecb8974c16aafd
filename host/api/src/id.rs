//! Identifiers that refuse what they cannot be.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Why a text is not an identifier. The message names the text, escaped and cut short, and the form expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not a Proxmox VMID.
    #[error("`{0}` is not a VMID: expected a whole number from 100 to 999999999")]
    Vmid(String),
    /// Not a job id.
    #[error("`{0}` is not a job id: expected `job_` and twelve characters of 0-9 a-z")]
    Job(String),
    /// Not a sandbox id.
    #[error("`{0}` is not a sandbox id: expected a UUID")]
    Sandbox(String),
    /// Not a workspace id.
    #[error("`{0}` is not a workspace id: expected a UUID")]
    Workspace(String),
}

fn shown(text: &str) -> String {
    text.escape_debug().take(80).collect()
}

/// The number a hypervisor knows a VM by. Proxmox VE accepts 100 to 999999999.
///
/// A VMID is recycled by hypervisors; [`SandboxId`] never is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vmid(u32);

impl Vmid {
    /// The lowest number Proxmox VE accepts.
    pub const MIN: Self = Self(100);
    /// The highest number Proxmox VE accepts.
    pub const MAX: Self = Self(999_999_999);
}

impl TryFrom<u32> for Vmid {
    type Error = IdError;

    fn try_from(raw: u32) -> Result<Self, IdError> {
        if (Self::MIN.0..=Self::MAX.0).contains(&raw) {
            Ok(Self(raw))
        } else {
            Err(IdError::Vmid(raw.to_string()))
        }
    }
}

impl From<Vmid> for u32 {
    fn from(vmid: Vmid) -> Self {
        vmid.0
    }
}

impl From<Vmid> for i64 {
    fn from(vmid: Vmid) -> Self {
        Self::from(vmid.0)
    }
}

impl FromStr for Vmid {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        text.parse::<u32>()
            .ok()
            .and_then(|raw| Self::try_from(raw).ok())
            // `+100` and `0100` are numbers too, and would be second names of the same directory.
            .filter(|vmid| vmid.to_string() == text)
            .ok_or_else(|| IdError::Vmid(shown(text)))
    }
}

impl fmt::Display for Vmid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identity of one sandbox for all time; the VMID is only an attribute of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SandboxId(Uuid);

impl SandboxId {
    /// A new identity, sortable by time of creation (UUID version 7, RFC 9562).
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    /// The sixteen bytes as they stand in a seed.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// From the sixteen bytes of a seed.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl FromStr for SandboxId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Uuid::parse_str(text)
            .map(Self)
            .map_err(|_| IdError::Sandbox(shown(text)))
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identity of one job: `job_` and twelve characters, 60 random bits, short enough to type.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(String);

const JOB_PREFIX: &str = "job_";
const JOB_ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const JOB_LENGTH: usize = 12;

impl JobId {
    /// A new random id. Fails only where the kernel gives no random bytes.
    ///
    /// # Errors
    /// The kernel's random source could not be read.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = [0u8; JOB_LENGTH];
        getrandom::fill(&mut bytes)?;
        let body: String = bytes
            .iter()
            .map(|byte| char::from(JOB_ALPHABET[usize::from(byte & 31)]))
            .collect();
        Ok(Self(format!("{JOB_PREFIX}{body}")))
    }

    /// The whole text, prefix included.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for JobId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let body = text
            .strip_prefix(JOB_PREFIX)
            .ok_or_else(|| IdError::Job(shown(text)))?;
        let fits = body.len() == JOB_LENGTH
            && body
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase());
        if fits {
            Ok(Self(text.into()))
        } else {
            Err(IdError::Job(shown(text)))
        }
    }
}

impl TryFrom<String> for JobId {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> Self {
        id.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vmid_refuses_what_proxmox_refuses() {
        for text in [
            "0",
            "99",
            "1000000000",
            "-1",
            "",
            "1e3",
            "4294967296",
            "+100",
            "0100",
            " 100",
        ] {
            assert!(text.parse::<Vmid>().is_err(), "{text}");
        }
        assert_eq!("100".parse::<Vmid>().unwrap(), Vmid::MIN);
        assert!(serde_json::from_str::<Vmid>("99").is_err());
    }

    #[test]
    fn a_job_id_survives_its_text() {
        let id = JobId::generate().unwrap();
        assert_eq!(id.as_str().parse::<JobId>().unwrap(), id);
        for text in [
            "job_",
            "job_0123456789a",
            "job_0123456789AB",
            "0123456789ab",
            "job_0123456789abc",
        ] {
            assert!(text.parse::<JobId>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_refusal_carries_no_control_character_and_no_long_text() {
        let text = "\u{1b}[31m".repeat(1000);
        for message in [
            text.parse::<Vmid>().unwrap_err(),
            text.parse::<SandboxId>().unwrap_err(),
            text.parse::<JobId>().unwrap_err(),
        ]
        .map(|error| error.to_string())
        {
            assert!(!message.contains('\u{1b}') && message.len() < 200, "{message}");
        }
    }

    #[test]
    fn a_sandbox_id_survives_its_bytes_and_text() {
        let id = SandboxId::generate();
        assert_eq!(SandboxId::from_bytes(*id.as_bytes()), id);
        assert_eq!(id.to_string().parse::<SandboxId>().unwrap(), id);
    }
}
