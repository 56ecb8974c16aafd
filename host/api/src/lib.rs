//! Words on the wire: identifiers, request and response bodies, error codes and the route table.
//!
//! Nothing here does I/O or decides anything, so that the CLI, the daemon, the engine and a
//! client written by somebody else can all depend on it.
//!
//! ```text
//!   agentlab (CLI) ──┐                         ┌── agentlabd (HTTP edge)
//!                    ├──► agentlab-api ◄───────┤
//!   your own client ─┘   (this crate)          └── agentlab-engine, agentlab-store
//! ```

mod allow;
mod artifact;
mod command;
mod error;
mod event;
mod id;
mod job;
mod log;
mod profile;
mod route;
mod sandbox;
mod secret;
mod status;
mod template;
mod workspace;

pub use allow::{AllowEntry, AllowError, AllowPorts, MOST_PORTS_OF_NAME};
pub use artifact::{ArtifactKind, ArtifactView};
pub use command::{CommandRequest, CommandTerminal, CommandUser, CommandView};
pub use error::{ErrorCode, FieldError, Problem, chain};
pub use event::{Event, EventKind};
pub use id::{IdError, JobId, SandboxId, Vmid};
pub use job::{
    ExposedSecret, JobFailure, JobList, JobOutcome, JobPruneRequest, JobPruneView, JobRequest, JobState,
    JobView, PrunedJob, PushOutcome, PushTarget, RepositorySource, UploadedBundle,
};
pub use log::{LogRecord, LogStream};
pub use profile::{
    AGENTS, AgentMode, ArtifactRules, Behavior, ChannelKind, InnerSandbox, Network, NetworkMode, Profile,
    ProfileList, Resources, Storage, WorkspaceUse,
};
pub use route::{Method, Permission, ROUTES, Route};
pub use sandbox::{
    Failure, IdleView, LeaseRequest, PruneRequest, PruneView, SandboxList, SandboxRequest, SandboxState,
    SandboxView, StepView,
};
pub use secret::{SSH_KEY_TYPES, SecretName, SecretNameError, is_environment_name, is_ssh_key_name};
pub use status::{BackendStatus, BackendTrouble, BackendTroubleKind, StatusView, TemplateView};
pub use template::{device_of_host, is_agent_enabled};
pub use workspace::{
    WorkspaceAdopt, WorkspaceAttach, WorkspaceCheck, WorkspaceFinding, WorkspaceFindingKind, WorkspaceFork,
    WorkspaceId, WorkspaceList, WorkspaceMove, WorkspaceRebind, WorkspaceRequest, WorkspaceResize,
    WorkspaceSnapshotRequest, WorkspaceSnapshotView, WorkspaceState, WorkspaceView,
};
