//! Problem bodies of RFC 9457 with a stable `code`, the `stage` it happened in and a `hint`.

use serde::{Deserialize, Serialize};

/// What went wrong, stable across versions: programs match on it, people read `detail`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request body is not what the route takes.
    MalformedRequest,
    /// A field has a value it may not have; `errors` names it.
    InvalidValue,
    /// The caller is not known.
    Unauthenticated,
    /// The caller is known and may not do this.
    Forbidden,
    /// No such thing.
    NotFound,
    /// No such route, or not with this method.
    NoSuchRoute,
    /// No profile of that name.
    UnknownProfile,
    /// A bundle lacks what a profile names, or cannot be read.
    SecretsUnavailable,
    /// The template a profile names is absent or unusable.
    TemplateUnavailable,
    /// The state of the thing does not allow the request.
    StateConflict,
    /// The same idempotency key came with another body.
    IdempotencyConflict,
    /// The body is larger than allowed.
    TooLarge,
    /// A bound on what may exist at once, or on disk, is reached.
    LimitReached,
    /// The hypervisor refused or failed.
    BackendFailed,
    /// The hypervisor could not be reached, so nothing is known.
    BackendUnreachable,
    /// The packet policy could not be enforced.
    NetworkUnenforced,
    /// A step that makes the VM did not end in time; its guest had not begun.
    ProvisioningTimeout,
    /// The guest did not answer in time.
    GuestSilent,
    /// The repository could not be fetched; `detail` holds git's words.
    RepositoryUnavailable,
    /// The agent ended with a non-zero status.
    AgentFailed,
    /// The agent was still running at its deadline.
    AgentTimeout,
    /// The guest's kernel killed processes for want of memory.
    OutOfMemory,
    /// The guest's disk is full.
    GuestDiskFull,
    /// What the profile orders could not be enforced in the guest, so nothing was begun.
    PolicyUnenforced,
    /// The repository's origin did not take the agent's commits; `detail` holds git's words.
    PushRefused,
    /// The workspace's file system cannot be used in the guest; nothing was begun on another disk instead.
    WorkspaceUnusable,
    /// The VM, or the runner in it, went away under a running job.
    SandboxLost,
    /// An operator cancelled it.
    Cancelled,
    /// The daemon is stopping.
    ShuttingDown,
    /// Said by clients only: no daemon answered.
    DaemonUnreachable,
    /// A defect of ours.
    Internal,
}

impl ErrorCode {
    /// The HTTP status the daemon answers with.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::MalformedRequest => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::NotFound | Self::NoSuchRoute => 404,
            Self::StateConflict | Self::Cancelled => 409,
            Self::TooLarge => 413,
            Self::InvalidValue | Self::UnknownProfile | Self::IdempotencyConflict => 422,
            Self::LimitReached => 429,
            Self::Internal
            | Self::AgentFailed
            | Self::AgentTimeout
            | Self::OutOfMemory
            | Self::GuestDiskFull
            | Self::PolicyUnenforced
            | Self::PushRefused
            | Self::WorkspaceUnusable
            | Self::SandboxLost
            | Self::RepositoryUnavailable => 500,
            Self::BackendFailed | Self::NetworkUnenforced => 502,
            Self::TemplateUnavailable
            | Self::SecretsUnavailable
            | Self::BackendUnreachable
            | Self::ShuttingDown
            | Self::DaemonUnreachable => 503,
            Self::ProvisioningTimeout | Self::GuestSilent => 504,
        }
    }

    /// The text form, as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MalformedRequest => "malformed_request",
            Self::InvalidValue => "invalid_value",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::NoSuchRoute => "no_such_route",
            Self::UnknownProfile => "unknown_profile",
            Self::TemplateUnavailable => "template_unavailable",
            Self::SecretsUnavailable => "secrets_unavailable",
            Self::StateConflict => "state_conflict",
            Self::IdempotencyConflict => "idempotency_conflict",
            Self::TooLarge => "too_large",
            Self::LimitReached => "limit_reached",
            Self::BackendFailed => "backend_failed",
            Self::BackendUnreachable => "backend_unreachable",
            Self::NetworkUnenforced => "network_unenforced",
            Self::ProvisioningTimeout => "provisioning_timeout",
            Self::GuestSilent => "guest_silent",
            Self::RepositoryUnavailable => "repository_unavailable",
            Self::AgentFailed => "agent_failed",
            Self::AgentTimeout => "agent_timeout",
            Self::OutOfMemory => "out_of_memory",
            Self::GuestDiskFull => "guest_disk_full",
            Self::PolicyUnenforced => "policy_unenforced",
            Self::PushRefused => "push_refused",
            Self::WorkspaceUnusable => "workspace_unusable",
            Self::SandboxLost => "sandbox_lost",
            Self::Cancelled => "cancelled",
            Self::ShuttingDown => "shutting_down",
            Self::DaemonUnreachable => "daemon_unreachable",
            Self::Internal => "internal",
        }
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One field of a request that cannot stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldError {
    /// JSON Pointer (RFC 6901) to the field.
    pub pointer: String,
    /// What is wrong with it.
    pub detail: String,
}

/// Body of every error answer (`application/problem+json`, RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `urn:agentlab:problem:<code>`.
    #[serde(rename = "type")]
    pub type_uri: String,
    /// The code in words.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What happened, where and why, with the back end's or git's own words.
    pub detail: String,
    /// Stable code.
    pub code: ErrorCode,
    /// The step it happened in, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Fields at fault.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

impl Problem {
    /// A problem with the code's own status and title.
    #[must_use]
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self {
            type_uri: format!("urn:agentlab:problem:{code}"),
            title: code.as_str().replace('_', " "),
            status: code.status(),
            detail: detail.into(),
            code,
            stage: None,
            hint: None,
            errors: Vec::new(),
        }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the step it happened in.
    #[must_use]
    pub fn with_stage(mut self, stage: impl Into<String>) -> Self {
        self.stage = Some(stage.into());
        self
    }

    /// Adds a field at fault.
    #[must_use]
    pub fn with_field(mut self, pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        self.errors.push(FieldError {
            pointer: pointer.into(),
            detail: detail.into(),
        });
        self
    }
}

/// An error with all its causes on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
