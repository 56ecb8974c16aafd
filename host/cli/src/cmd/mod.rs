//! One file per noun. A command parses, calls, prints; what a job means is decided by the daemon.

mod attach;
mod completion;
mod cp;
mod cp_tree;
mod doctor;
mod exec;
mod init;
mod job;
mod job_apply;
mod job_artifacts;
mod job_bundle;
mod job_prune;
mod job_review;
mod job_run;
mod lease_watch;
mod logs;
mod profile;
mod program;
mod sandbox;
mod sandbox_change;
mod sandbox_new;
mod secrets;
mod secrets_set;
mod status;
mod workspace;
mod workspace_check;
mod workspace_wait;

use std::ffi::OsString;

use agentlab_client::SandboxChange;
use clap::Subcommand;

use crate::printer::Printer;
use crate::{CommandResult, Context};

/// What can be asked for.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// How the daemon is: hypervisor, templates, sandboxes, jobs, alarms
    Status,
    /// Run a task on a repository in a VM of its own, and look at what came of it
    #[command(subcommand)]
    Job(job::JobCommand),
    /// Make VMs, look at them, stop and start them, and end them
    #[command(subcommand)]
    Sandbox(sandbox::SandboxCommand),
    /// Disks that outlive sandboxes: make them, keep their states, hand them on
    #[command(subcommand)]
    Workspace(workspace::WorkspaceCommand),
    /// Run a command in a sandbox, through its guest channel
    Exec(exec::Exec),
    /// Copy a file or a directory into a sandbox or out of it
    Cp(cp::Cp),
    /// A shell in a sandbox, on this terminal
    Attach(attach::Attach),
    /// What a job's agent prints, or what happens to a sandbox
    Logs(logs::Logs),
    /// What sandboxes are made of and what they may do
    #[command(subcommand)]
    Profile(profile::ProfileCommand),
    /// What sandboxes are given to work with: bundles on this host, encrypted with age
    Secrets(secrets::Secrets),
    /// Show, or make with --apply, what the daemon needs on a Proxmox VE node
    Init(init::Init),
    /// Look at everything on this host that can spoil a sandbox, and change nothing
    Doctor(doctor::Doctor),
    /// Bridge and packet policy of this host (runs `agentlab-net`)
    #[command(disable_help_flag = true)]
    Net {
        /// Handed on as they are
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Template images (runs `agentlab-template`)
    #[command(disable_help_flag = true)]
    Template {
        /// Handed on as they are
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Print completions for a shell
    Completion(completion::Completion),
    /// Same as `sandbox new`
    #[command(name = "new", hide = true)]
    SandboxNew(sandbox_new::New),
    /// Same as `sandbox list`
    #[command(name = "ls", hide = true)]
    SandboxList(sandbox::List),
    /// Same as `sandbox destroy`
    #[command(name = "rm", hide = true)]
    SandboxDestroy(sandbox::Destroy),
    /// Same as `sandbox start`
    #[command(name = "start", hide = true)]
    SandboxStart(sandbox_change::Start),
    /// Same as `sandbox stop`
    #[command(name = "stop", hide = true)]
    SandboxStop(sandbox_change::Change),
}

impl Command {
    /// Runs what needs neither a daemon nor a runtime; `None` for the others.
    pub(crate) fn without_daemon(&self, printer: &Printer) -> Option<CommandResult> {
        match self {
            Self::Net { arguments } => Some(program::replace_process(
                "agentlab-net",
                arguments,
                printer.json(),
            )),
            Self::Template { arguments } => Some(program::replace_process(
                "agentlab-template",
                arguments,
                printer.json(),
            )),
            Self::Completion(completion) => Some(completion.run(printer)),
            Self::Secrets(secrets) => Some(secrets.run(printer)),
            Self::Profile(profile::ProfileCommand::Validate(validate)) => Some(validate.run(printer)),
            Self::Status
            | Self::Init(_)
            | Self::Doctor(_)
            | Self::Job(_)
            | Self::Sandbox(_)
            | Self::Workspace(_)
            | Self::Profile(_)
            | Self::Exec(_)
            | Self::Cp(_)
            | Self::Attach(_)
            | Self::Logs(_)
            | Self::SandboxNew(_)
            | Self::SandboxList(_)
            | Self::SandboxDestroy(_)
            | Self::SandboxStart(_)
            | Self::SandboxStop(_) => None,
        }
    }

    /// Runs the others.
    pub(crate) async fn run(self, context: &Context) -> CommandResult {
        match self {
            Self::Status => status::run(context).await,
            Self::Init(init) => init.run(context).await,
            Self::Doctor(doctor) => doctor.run(context).await,
            Self::Job(command) => command.run(context).await,
            Self::Sandbox(command) => command.run(context).await,
            Self::Workspace(command) => command.run(context).await,
            Self::Profile(command) => command.run(context).await,
            Self::Exec(exec) => exec.run(context).await,
            Self::Cp(cp) => cp.run(context).await,
            Self::Attach(attach) => attach.run(context).await,
            Self::Logs(logs) => logs.run(context).await,
            Self::SandboxNew(new) => new.run(context).await,
            Self::SandboxList(list) => list.run(context).await,
            Self::SandboxDestroy(destroy) => destroy.run(context).await,
            Self::SandboxStart(start) => start.run(context).await,
            Self::SandboxStop(stop) => stop.run(context, SandboxChange::Stop).await,
            Self::Net { .. } | Self::Template { .. } | Self::Completion(_) | Self::Secrets(_) => {
                Ok(crate::ExitStatus::Success)
            }
        }
    }
}
