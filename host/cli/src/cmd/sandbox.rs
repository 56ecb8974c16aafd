//! `agentlab sandbox`.

use agentlab_api::{Event, SandboxState, SandboxView};
use agentlab_client::SandboxChange;
use clap::{Args, Subcommand};

use super::sandbox_change;
use crate::error::CommandError;
use crate::output::{Cell, Fields, Table, ago, between, cell, duration, in_trouble, sandbox_style, time};
use crate::printer::DIM;
use crate::terminal::{escape, escape_lines};
use crate::{CommandResult, Context, ExitStatus};

/// Verbs. A sandbox is named by its VMID, its name or its UUID.
#[derive(Debug, Subcommand)]
pub(crate) enum SandboxCommand {
    /// Make a sandbox to work in, without a job, and wait until it runs
    New(super::sandbox_new::New),
    /// Sandboxes, newest first
    #[command(visible_alias = "ls")]
    List(List),
    /// One sandbox
    Show {
        /// VMID, name or UUID
        sandbox: String,
    },
    /// End a sandbox and remove everything of it
    #[command(visible_aliases = ["rm", "delete"])]
    Destroy(Destroy),
    /// Power a stopped sandbox on again, and wait until it runs
    Start(sandbox_change::Start),
    /// Power sandboxes off and keep their disks; a job in one ends as CANCELLED
    Stop(sandbox_change::Change),
    /// Freeze sandboxes in memory; deadlines of their jobs wait, leases do not
    Pause(sandbox_change::Change),
    /// Let paused sandboxes go on
    Resume(sandbox_change::Change),
    /// How long a sandbox may live
    #[command(subcommand)]
    Lease(sandbox_change::Lease),
    /// Destroy sandboxes whose lease has ended, and with --stopped those that are stopped
    Prune(sandbox_change::Prune),
    /// What happened to a sandbox, or what its VM wrote to its console
    #[command(visible_alias = "log")]
    Logs(Logs),
}

/// `sandbox list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Also those that are gone, the thousand newest at most
    #[arg(long, short)]
    all: bool,
    /// How many; all there are when absent
    #[arg(long, short = 'n', value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: Option<u32>,
    /// Where the page before ended
    #[arg(long)]
    cursor: Option<String>,
}

/// `sandbox destroy`.
#[derive(Debug, Args)]
pub(crate) struct Destroy {
    /// VMID, name or UUID
    sandbox: String,
    /// Also when its state asks for a second thought, as TIMEOUT does
    #[arg(long, short)]
    force: bool,
}

/// `sandbox logs`.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// VMID, name or UUID
    pub(super) sandbox: String,
    /// Go on as things happen; with --json one event a line
    #[arg(long, short, conflicts_with = "console")]
    pub(super) follow: bool,
    /// The end of the VM's serial console instead of events
    #[arg(long)]
    pub(super) console: bool,
}

impl SandboxCommand {
    pub(crate) async fn run(self, context: &Context) -> CommandResult {
        match self {
            Self::New(new) => new.run(context).await,
            Self::List(list) => list.run(context).await,
            Self::Show { sandbox } => {
                let view = context.client.sandbox(&sandbox).await?;
                show(context, &view)?;
                Ok(ExitStatus::Success)
            }
            Self::Destroy(destroy) => destroy.run(context).await,
            Self::Start(start) => start.run(context).await,
            Self::Stop(change) => change.run(context, SandboxChange::Stop).await,
            Self::Pause(change) => change.run(context, SandboxChange::Pause).await,
            Self::Resume(change) => change.run(context, SandboxChange::Resume).await,
            Self::Lease(lease) => lease.run(context).await,
            Self::Prune(prune) => prune.run(context).await,
            Self::Logs(logs) => logs.run(context).await,
        }
    }
}

impl List {
    pub(crate) async fn run(self, context: &Context) -> CommandResult {
        let ask = async |cursor: Option<&str>| context.client.sandboxes(self.all, cursor, self.limit).await;
        let mut list = ask(self.cursor.as_deref()).await?;
        // Those that live are few, and are shown to the last; those that are gone are without end.
        while !self.all
            && self.limit.is_none()
            && let Some(cursor) = list.next_cursor.take()
        {
            let next = ask(Some(&cursor)).await?;
            list.sandboxes.extend(next.sandboxes);
            list.next_cursor = next.next_cursor;
        }
        if context.printer.json() {
            context.printer.document(&list)?;
            return Ok(ExitStatus::Success);
        }
        let mut table = Table::new(&[
            "VMID", "NAME", "PROFILE", "STATE", "ADDRESS", "JOB", "LEASE", "CREATED",
        ]);
        for one in &list.sandboxes {
            table.row([
                cell(one.vmid),
                cell(&one.name),
                cell(&one.profile),
                Cell::styled(one.state, sandbox_style(one.state)),
                cell(one.address),
                cell(one.job.as_ref().map_or("-", |job| job.as_str())),
                cell(lease(one)),
                cell(ago(one.created_at)),
            ]);
        }
        context.printer.write(&table.render())?;
        if let Some(trouble) = &list.backend_trouble {
            context.printer.warning(&in_trouble(trouble));
        }
        if list.sandboxes.is_empty() && self.cursor.is_none() {
            context
                .printer
                .hint("there is none; `agentlab sandbox new` makes one, `agentlab job run` one for a job");
        }
        if let Some(cursor) = &list.next_cursor {
            let all = if self.all { " --all" } else { "" };
            context.printer.hint(&format!(
                "there are more: `agentlab sandbox list{all} --cursor {cursor}`"
            ));
        }
        Ok(ExitStatus::Success)
    }
}

impl Destroy {
    pub(crate) async fn run(self, context: &Context) -> CommandResult {
        // A VMID is given to the next sandbox once it is free: what is destroyed is what was shown.
        let found = context.client.sandbox(&self.sandbox).await?;
        let id = found.id.to_string();
        let view = context.client.destroy_sandbox(&id, self.force).await?;
        if context.printer.json() {
            context.printer.document(&view)?;
        } else if view.state == SandboxState::Destroyed {
            context
                .printer
                .line(&escape(&format!("{} ({}) is gone", view.name, view.vmid)))?;
        } else {
            let job = found.job.map_or_else(String::new, |job| format!(" of {job}"));
            let text = format!(
                "{} ({}){job} is being destroyed; `agentlab sandbox show {}` says how far it is",
                view.name, view.vmid, view.id
            );
            context.printer.line(&escape(&text))?;
        }
        Ok(ExitStatus::Success)
    }
}

impl Logs {
    pub(super) async fn run(self, context: &Context) -> CommandResult {
        let printer = &context.printer;
        if self.console {
            let bytes = context.client.console(&self.sandbox).await?;
            let text = String::from_utf8_lossy(&bytes);
            if printer.json() {
                printer.document(&serde_json::json!({ "console": text }))?;
            } else {
                let text = escape_lines(&text);
                printer.write(&text)?;
                printer.write(if text.is_empty() || text.ends_with('\n') {
                    ""
                } else {
                    "\n"
                })?;
            }
            return Ok(ExitStatus::Success);
        }
        if self.follow {
            let mut stream = context.client.follow_sandbox_events(&self.sandbox, None).await?;
            while let Some(event) = stream.next().await? {
                if printer.json() {
                    printer.document_line(&event)?
                } else {
                    printer.line(&event_line(&event))?
                }
            }
            return Ok(ExitStatus::Success);
        }
        let events = context.client.sandbox_events(&self.sandbox).await?;
        if printer.json() {
            printer.document(&serde_json::json!({ "events": events }))?;
        } else {
            for event in &events {
                printer.line(&event_line(event))?;
            }
        }
        Ok(ExitStatus::Success)
    }
}

fn event_line(event: &Event) -> String {
    format!(
        "{DIM}{}{DIM:#}  {:<16}  {}",
        time(event.time),
        escape(event.kind.as_str()),
        escape(&event.message)
    )
}

fn lease(view: &SandboxView) -> String {
    let now = jiff::Timestamp::now();
    match view.lease_expires_at {
        _ if view.state == SandboxState::Destroyed => "-".to_owned(),
        None => "none".to_owned(),
        Some(end) if end <= now => "over".to_owned(),
        Some(end) => duration(between(now, end)),
    }
}

pub(super) fn show(context: &Context, view: &SandboxView) -> Result<(), CommandError> {
    if context.printer.json() {
        return context.printer.document(view);
    }
    let mut fields = Fields::default();
    fields
        .add("id", view.id)
        .add("VMID", view.vmid)
        .add("name", &view.name)
        .add("profile", &view.profile)
        .add("state", view.state)
        .add("address", view.address)
        .add("network", view.network_mode)
        .add_some("job", view.job.as_ref())
        .add_some("workspace", view.workspace)
        .add("keepalive", view.keepalive)
        .add(
            "lease",
            match view.lease_expires_at {
                Some(end) if view.state != SandboxState::Destroyed => {
                    format!("until {} ({})", time(end), lease(view))
                }
                Some(_) | None => lease(view),
            },
        )
        .add_some(
            "idle",
            view.idle.map(|idle| {
                let now = jiff::Timestamp::now();
                let left = duration(between(now, idle.stop_at));
                format!("since {}; stopped in {left} if it stays so", time(idle.since))
            }),
        )
        .add_time("created", view.created_at)
        .add_time("updated", view.updated_at)
        .add_some("failure", view.failure.as_ref())
        .add_some(
            "hint",
            view.failure.as_ref().and_then(|failure| failure.hint.as_ref()),
        )
        .add_some(
            "left behind",
            (!view.left_behind.is_empty()).then(|| view.left_behind.join("\n")),
        )
        .add_some("back end", view.backend_trouble.as_ref().map(in_trouble));
    context.printer.write(&fields.render())
}
