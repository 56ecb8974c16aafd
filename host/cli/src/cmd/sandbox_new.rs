//! `agentlab sandbox new`.

use agentlab_api::{SandboxRequest, SandboxState, SandboxView};
use clap::Args;

use super::sandbox::show;
use super::workspace_wait::patiently;
use super::{job_run, workspace};
use crate::error::CommandError;
use crate::printer::{BOLD, DIM};
use crate::terminal::escape;
use crate::{CommandResult, Context, ExitStatus};

/// `sandbox new`.
#[derive(Debug, Args)]
pub(crate) struct New {
    /// Profile to make it from
    #[arg(long, short, value_name = "NAME")]
    profile: String,
    /// Name, also the guest's host name [default: sandbox-VMID]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// How long it may live, in whole minutes rounded up [default: the profile's]
    #[arg(long, value_name = "TIME", value_parser = job_run::seconds)]
    ttl: Option<u32>,
    /// Workspace to have at /work, which outlives the VM; `new:NAME` makes it first
    #[arg(long, value_name = "NAME")]
    workspace: Option<String>,
    /// Size of a workspace that is made
    #[arg(long, value_name = "SIZE", default_value = "80G", value_parser = workspace::gibibytes)]
    workspace_size: u32,
    /// Wait so long, an hour at most, for a workspace that another sandbox has, instead of refusing
    #[arg(long, value_name = "TIME", value_parser = job_run::seconds, requires = "workspace")]
    workspace_wait: Option<u32>,
    /// Print its VMID and exit, while it is being made
    #[arg(long, short)]
    detach: bool,
}

impl New {
    pub(crate) async fn run(self, context: &Context) -> CommandResult {
        let workspace = workspace::named(context, self.workspace, self.workspace_size).await?;
        let request = SandboxRequest {
            profile: self.profile,
            name: self.name,
            ttl_minutes: self.ttl.map(|seconds| seconds.div_ceil(60)),
            workspace,
            workspace_wait_seconds: None,
        };
        let printer = &context.printer;
        let ask = async |workspace_wait_seconds| {
            let request = SandboxRequest {
                workspace_wait_seconds,
                ..request.clone()
            };
            Ok(context.client.create_sandbox(&request).await?)
        };
        let view = patiently(context, self.workspace_wait, ask).await?;
        if self.detach {
            if printer.json() {
                printer.document(&view)?;
            } else {
                printer.line(&view.vmid.to_string())?;
            }
            return Ok(ExitStatus::Success);
        }
        *context.farewell.borrow_mut() = Some(format!(
            "sandbox {} goes on; `agentlab sandbox destroy {}` ends it",
            view.vmid, view.vmid
        ));
        let view = until_running(context, view).await?;
        if printer.json() {
            printer.document(&view)?;
        } else {
            show(context, &view)?;
            printer.line(&format!("{DIM}Come in:{DIM:#}  agentlab attach {}", view.vmid))?;
        }
        Ok(ExitStatus::Success)
    }
}

/// Shows the steps, until it runs or will not.
pub(super) async fn until_running(context: &Context, view: SandboxView) -> Result<SandboxView, CommandError> {
    let id = view.id.to_string();
    let mut events = context.client.follow_sandbox_events(&id, None).await?;
    loop {
        let now = context.client.sandbox(&id).await?;
        match now.state {
            SandboxState::Running => return Ok(now),
            SandboxState::Requested
            | SandboxState::Provisioning
            | SandboxState::Booting
            | SandboxState::Ready => {}
            SandboxState::Suspended
            | SandboxState::Stopped
            | SandboxState::Timeout
            | SandboxState::Destroyed
            | SandboxState::Failed => {
                let why = now
                    .failure
                    .map_or_else(String::new, |failure| format!(": {failure}"));
                return Err(CommandError::Refused {
                    message: format!("Sandbox {} is {}{why}", now.vmid, now.state),
                    hint: Some(format!("`agentlab sandbox logs {id}` says how it came to that")),
                });
            }
        }
        match events.next().await? {
            Some(event) if !context.printer.json() => {
                let line = format!("{BOLD}{}{BOLD:#}  {}", now.vmid, escape(&event.message));
                context.printer.transient(&line)?;
            }
            Some(_) => {}
            None => {
                return Err(CommandError::Refused {
                    message: format!("Sandbox {} came to an end", now.vmid),
                    hint: None,
                });
            }
        }
    }
}
