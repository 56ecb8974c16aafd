//! `agentlab sandbox start`, `stop`, `pause`, `resume`, `lease renew` and `prune`.

use agentlab_api::{PruneRequest, SandboxView};
use agentlab_client::SandboxChange;
use clap::{Args, Subcommand};

use super::job_run;
use super::sandbox_new::until_running;
use crate::error::CommandError;
use crate::output::{Cell, Table, ago, between, cell, duration, sandbox_style, time};
use crate::terminal::escape;
use crate::{CommandResult, Context, ExitStatus};

/// `sandbox start`.
#[derive(Debug, Args)]
pub(crate) struct Start {
    /// VMID, name or UUID
    sandbox: String,
    /// Do not wait until it runs
    #[arg(long, short)]
    detach: bool,
}

/// `sandbox stop`, `pause` and `resume`.
#[derive(Debug, Args)]
pub(crate) struct Change {
    /// VMIDs, names or UUIDs
    #[arg(required = true)]
    sandboxes: Vec<String>,
}

/// `sandbox lease`.
#[derive(Debug, Subcommand)]
pub(crate) enum Lease {
    /// Let a lease begin anew, from now on
    Renew(Renew),
}

/// `sandbox lease renew`.
#[derive(Debug, Args)]
pub(crate) struct Renew {
    /// VMID, name or UUID
    sandbox: String,
    /// How long it lives from now on, in whole minutes rounded up
    #[arg(long, value_name = "TIME", value_parser = job_run::seconds)]
    ttl: u32,
}

/// `sandbox prune`.
#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// Also those that are STOPPED, with their disks
    #[arg(long)]
    stopped: bool,
    /// Only show which
    #[arg(long)]
    dry_run: bool,
}

impl Start {
    pub(crate) async fn run(self, context: &Context) -> CommandResult {
        let view = context
            .client
            .change_sandbox(&self.sandbox, SandboxChange::Start)
            .await?;
        let view = if self.detach {
            view
        } else {
            *context.farewell.borrow_mut() = Some(format!("sandbox {} goes on starting", view.vmid));
            until_running(context, view).await?
        };
        tell(context, &view)?;
        Ok(ExitStatus::Success)
    }
}

impl Change {
    /// Each in turn; the first that refuses ends it, and is named by its problem.
    pub(crate) async fn run(self, context: &Context, change: SandboxChange) -> CommandResult {
        let mut views = Vec::new();
        for sandbox in &self.sandboxes {
            let view = context.client.change_sandbox(sandbox, change).await?;
            if context.printer.json() {
                views.push(view);
            } else {
                tell(context, &view)?;
            }
        }
        if context.printer.json() {
            match views.as_slice() {
                [view] => context.printer.document(view)?,
                views => context
                    .printer
                    .document(&serde_json::json!({ "sandboxes": views }))?,
            }
        }
        Ok(ExitStatus::Success)
    }
}

impl Lease {
    pub(crate) async fn run(self, context: &Context) -> CommandResult {
        let Self::Renew(Renew { sandbox, ttl }) = self;
        let view = context.client.renew_lease(&sandbox, ttl.div_ceil(60)).await?;
        if context.printer.json() {
            context.printer.document(&view)?;
        } else if let Some(end) = view.lease_expires_at {
            let left = duration(between(jiff::Timestamp::now(), end));
            let text = format!(
                "{} ({}) has a lease until {} ({left})",
                view.name,
                view.vmid,
                time(end)
            );
            context.printer.line(&escape(&text))?;
        }
        Ok(ExitStatus::Success)
    }
}

impl Prune {
    pub(crate) async fn run(self, context: &Context) -> CommandResult {
        let request = PruneRequest {
            stopped: self.stopped,
            dry_run: self.dry_run,
        };
        let pruned = context.client.prune_sandboxes(&request).await?;
        let printer = &context.printer;
        if printer.json() {
            printer.document(&pruned)?;
        } else {
            if !pruned.sandboxes.is_empty() {
                printer.write(&table(&pruned.sandboxes))?;
            }
            for refused in &pruned.refused {
                printer.hint(&escape(refused));
            }
            let what = match (pruned.dry_run, pruned.count) {
                (_, 0) => "nothing to prune".to_owned(),
                (true, count) => format!("{count} would go; without --dry-run they do"),
                (false, count) => format!("{count} being destroyed"),
            };
            printer.line(&what)?;
        }
        if pruned.refused.is_empty() {
            Ok(ExitStatus::Success)
        } else {
            Ok(ExitStatus::Failure)
        }
    }
}

fn table(sandboxes: &[SandboxView]) -> String {
    let mut table = Table::new(&["VMID", "NAME", "PROFILE", "STATE", "CREATED"]);
    for one in sandboxes {
        table.row([
            cell(one.vmid),
            cell(&one.name),
            cell(&one.profile),
            Cell::styled(one.state, sandbox_style(one.state)),
            cell(ago(one.created_at)),
        ]);
    }
    table.render()
}

fn tell(context: &Context, view: &SandboxView) -> Result<(), CommandError> {
    if context.printer.json() {
        return context.printer.document(view);
    }
    let text = format!("{} ({}) is {}", view.name, view.vmid, view.state);
    context.printer.line(&escape(&text))
}
