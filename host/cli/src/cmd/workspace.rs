//! `agentlab workspace`.

use std::time::Duration;

use agentlab_api::{WorkspaceFork, WorkspaceRebind, WorkspaceRequest, WorkspaceState, WorkspaceView};
use clap::{Args, Subcommand};

use super::job_run;
use super::workspace_check::{Adopt, Check};
use crate::error::CommandError;
use crate::output::{Cell, Fields, Table, ago, cell};
use crate::printer::{BOLD, CAUTION, DIM, GOOD};
use crate::terminal::escape;
use crate::{CommandResult, Context, ExitStatus};

/// Between two looks at a workspace that changes hands.
const LOOK: Duration = Duration::from_millis(500);

/// Verbs. A workspace is named by its name or its UUID; it is mounted at /work of the one sandbox that has it.
#[derive(Debug, Subcommand)]
pub(crate) enum WorkspaceCommand {
    /// Make an empty workspace
    Create(Create),
    /// Workspaces, by name
    #[command(visible_alias = "ls")]
    List,
    /// One workspace
    Show {
        /// Name or UUID
        workspace: String,
    },
    /// Compare workspaces with what the hypervisor has, and find volumes that belong to none
    Check(Check),
    /// Make a workspace of a volume that belongs to none
    Adopt(Adopt),
    /// Remove a workspace that nobody has, with everything on it
    #[command(visible_aliases = ["rm", "destroy"])]
    Delete {
        /// Name or UUID
        workspace: String,
        /// Everything on it and its snapshots may go
        #[arg(long, short)]
        yes: bool,
    },
    /// Make a workspace larger, from when a sandbox has it next
    Resize {
        /// Name or UUID
        workspace: String,
        /// New size, such as 120G; never smaller than it is
        #[arg(value_name = "SIZE", value_parser = gibibytes)]
        size: u32,
    },
    /// Give a workspace to a stopped sandbox, from its next start on
    Attach {
        /// Name or UUID
        workspace: String,
        /// VMID, name or UUID of a stopped sandbox
        sandbox: String,
    },
    /// Take a workspace from the stopped sandbox that has it
    Detach {
        /// Name or UUID
        workspace: String,
    },
    /// Keep states of a workspace that nobody has, and go back to them
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Make a workspace that holds what another does
    Fork(Fork),
    /// Take a workspace that nobody has to another storage
    Move {
        /// Name or UUID
        workspace: String,
        /// Storage of the hypervisor's, as `pvesm status` lists it
        storage: String,
    },
    /// Make a new sandbox and hand the workspace of another to it, which then goes
    Rebind(Rebind),
}

/// `workspace create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Name: lower-case letters, digits and hyphens
    #[arg(value_name = "NAME", required_unless_present = "name_option")]
    name: Option<String>,
    /// Same as NAME
    #[arg(long = "name", value_name = "NAME", conflicts_with = "name", hide = true)]
    name_option: Option<String>,
    /// Size, such as 80G; only what is written takes room where the storage can do that
    #[arg(long, value_name = "SIZE", default_value = "80G", value_parser = gibibytes)]
    size: u32,
}

/// `workspace fork`.
#[derive(Debug, Args)]
pub(crate) struct Fork {
    /// Name or UUID of the workspace to copy, which nobody has
    workspace: String,
    /// Name of the new one
    #[arg(value_name = "NAME", required_unless_present = "name_option")]
    name: Option<String>,
    /// Same as NAME
    #[arg(long = "name", value_name = "NAME", conflicts_with = "name", hide = true)]
    name_option: Option<String>,
    /// Copy it as it was at this snapshot
    #[arg(long, value_name = "SNAPSHOT")]
    from_snapshot: Option<String>,
}

/// `workspace rebind`.
#[derive(Debug, Args)]
#[command(
    after_help = "The new sandbox has booted before the old one is stopped; the old one is destroyed last. Whatever goes \
                  wrong puts the workspace back and starts the old one again."
)]
pub(crate) struct Rebind {
    /// Name or UUID of a workspace that a sandbox without a job has
    workspace: String,
    /// Profile to make the new sandbox from
    #[arg(long, short, value_name = "NAME")]
    profile: String,
    /// How long the new one may live, in whole minutes rounded up [default: the profile's]
    #[arg(long, value_name = "TIME", value_parser = job_run::seconds)]
    ttl: Option<u32>,
    /// Leave the old sandbox stopped instead of destroying it
    #[arg(long)]
    keep_old: bool,
    /// Do not wait until it is done
    #[arg(long, short)]
    detach: bool,
}

/// `workspace snapshot`.
#[derive(Debug, Subcommand)]
pub(crate) enum Snapshot {
    /// Keep its state
    Create {
        /// Name or UUID
        workspace: String,
        /// Name of the snapshot
        name: String,
    },
    /// Its snapshots, oldest first
    #[command(visible_alias = "ls")]
    List {
        /// Name or UUID
        workspace: String,
    },
    /// Go back to a snapshot, which stays; what was written since is lost
    Restore {
        /// Name or UUID
        workspace: String,
        /// Name of the snapshot
        name: String,
    },
    /// Remove a snapshot
    #[command(visible_alias = "rm")]
    Delete {
        /// Name or UUID
        workspace: String,
        /// Name of the snapshot
        name: String,
    },
}

impl WorkspaceCommand {
    pub(crate) async fn run(self, context: &Context) -> CommandResult {
        let client = &context.client;
        match self {
            Self::Create(create) => {
                let request = WorkspaceRequest {
                    name: create.name.or(create.name_option).unwrap_or_default(),
                    size_gb: create.size,
                };
                changed(context, &client.create_workspace(&request).await?)
            }
            Self::List => list(context).await,
            Self::Show { workspace } => {
                show(context, &client.workspace(&workspace).await?)?;
                Ok(ExitStatus::Success)
            }
            Self::Check(check) => check.run(context).await,
            Self::Adopt(adopt) => adopt.run(context).await,
            Self::Delete { workspace, yes } => delete(context, &workspace, yes).await,
            Self::Resize { workspace, size } => {
                changed(context, &client.resize_workspace(&workspace, size).await?)
            }
            Self::Attach { workspace, sandbox } => {
                changed(context, &client.attach_workspace(&workspace, &sandbox).await?)
            }
            Self::Detach { workspace } => changed(context, &client.detach_workspace(&workspace).await?),
            Self::Snapshot(snapshot) => snapshot.run(context).await,
            Self::Fork(fork) => {
                let wanted = WorkspaceFork {
                    name: fork.name.or(fork.name_option).unwrap_or_default(),
                    from_snapshot: fork.from_snapshot,
                };
                changed(context, &client.fork_workspace(&fork.workspace, &wanted).await?)
            }
            Self::Move { workspace, storage } => {
                changed(context, &client.move_workspace(&workspace, &storage).await?)
            }
            Self::Rebind(rebind) => rebind.run(context).await,
        }
    }
}

impl Snapshot {
    async fn run(self, context: &Context) -> CommandResult {
        let client = &context.client;
        match self {
            Self::Create { workspace, name } => {
                changed(context, &client.snapshot_workspace(&workspace, &name).await?)
            }
            Self::List { workspace } => {
                let view = client.workspace(&workspace).await?;
                if context.printer.json() {
                    let snapshots = serde_json::json!({ "snapshots": view.snapshots });
                    context.printer.document(&snapshots)?;
                    return Ok(ExitStatus::Success);
                }
                let mut table = Table::new(&["NAME", "TAKEN"]);
                for one in &view.snapshots {
                    table.row([cell(&one.name), cell(ago(one.created_at))]);
                }
                context.printer.write(&table.render())?;
                Ok(ExitStatus::Success)
            }
            Self::Restore { workspace, name } => {
                changed(context, &client.restore_workspace(&workspace, &name).await?)
            }
            Self::Delete { workspace, name } => changed(
                context,
                &client.delete_workspace_snapshot(&workspace, &name).await?,
            ),
        }
    }
}

impl Rebind {
    async fn run(self, context: &Context) -> CommandResult {
        let wanted = WorkspaceRebind {
            profile: self.profile,
            ttl_minutes: self.ttl.map(|seconds| seconds.div_ceil(60)),
            keep_old: self.keep_old,
        };
        let client = &context.client;
        let mut view = client.rebind_workspace(&self.workspace, &wanted).await?;
        let new = view.moving_to;
        if self.detach {
            return changed(context, &view);
        }
        *context.farewell.borrow_mut() = Some(format!(
            "it goes on; `agentlab workspace show {}` says how far it is",
            view.name
        ));
        while view.moving_to.is_some() {
            tokio::time::sleep(LOOK).await;
            view = client.workspace(&view.id.to_string()).await?;
        }
        show(context, &view)?;
        // Undone, it is where it was, and its trouble says why.
        Ok(if view.sandbox == new {
            ExitStatus::Success
        } else {
            ExitStatus::Failure
        })
    }
}

async fn list(context: &Context) -> CommandResult {
    let list = context.client.workspaces().await?;
    if context.printer.json() {
        context.printer.document(&list)?;
        return Ok(ExitStatus::Success);
    }
    let mut table = Table::new(&["NAME", "STATE", "SIZE", "SANDBOX", "SNAPSHOTS", "CREATED"]);
    for one in &list.workspaces {
        let style = match one.state {
            WorkspaceState::Attached => GOOD,
            WorkspaceState::Detached => DIM,
            WorkspaceState::Creating | WorkspaceState::Busy => BOLD,
            WorkspaceState::Deleting => CAUTION,
        };
        table.row([
            cell(&one.name),
            Cell::styled(one.state, style),
            cell(format!("{} GiB", one.size_gb)),
            cell(one.vmid.map_or_else(|| "-".to_owned(), |vmid| vmid.to_string())),
            cell(one.snapshots.len()),
            cell(ago(one.created_at)),
        ]);
    }
    context.printer.write(&table.render())?;
    if list.workspaces.is_empty() {
        context
            .printer
            .hint("there is none; `agentlab workspace create NAME` makes one");
    }
    Ok(ExitStatus::Success)
}

/// The workspace of `--workspace`: `new:NAME` makes one first, which is then there for others too.
pub(super) async fn named(
    context: &Context,
    text: Option<String>,
    size_gb: u32,
) -> Result<Option<String>, CommandError> {
    let Some(name) = text.as_deref().and_then(|text| text.strip_prefix("new:")) else {
        return Ok(text);
    };
    let request = WorkspaceRequest {
        name: name.to_owned(),
        size_gb,
    };
    let made = context.client.create_workspace(&request).await?;
    Ok(Some(made.name))
}

/// There is no way back from it.
async fn delete(context: &Context, workspace: &str, yes: bool) -> CommandResult {
    let view = context.client.workspace(workspace).await?;
    if !yes {
        let text = format!(
            "Workspace {} would be removed with everything on it and its snapshots",
            view.name
        );
        return Err(CommandError::usage(text).with_hint("say so with --yes"));
    }
    let gone = context.client.delete_workspace(&view.id.to_string()).await?;
    if context.printer.json() {
        context.printer.document(&gone)?;
    } else {
        let text = match &gone.trouble {
            Some(trouble) => format!("{} is being removed: {trouble}", gone.name),
            None => format!("{} is gone", gone.name),
        };
        context.printer.line(&escape(&text))?;
    }
    Ok(ExitStatus::Success)
}

/// What became of a request.
pub(super) fn changed(context: &Context, view: &WorkspaceView) -> CommandResult {
    show(context, view)?;
    let under_way = matches!(
        view.state,
        WorkspaceState::Creating | WorkspaceState::Busy | WorkspaceState::Deleting
    );
    if under_way {
        context.printer.hint(&format!(
            "it goes on; `agentlab workspace show {}` says how far it is",
            view.name
        ));
    }
    Ok(ExitStatus::Success)
}

fn show(context: &Context, view: &WorkspaceView) -> Result<(), CommandError> {
    if context.printer.json() {
        return context.printer.document(view);
    }
    let snapshots: Vec<&str> = view.snapshots.iter().map(|one| one.name.as_str()).collect();
    let mut fields = Fields::default();
    fields
        .add("id", view.id)
        .add("name", &view.name)
        .add("state", view.state)
        .add("size", format!("{} GiB", view.size_gb))
        .add_some("volume", view.volume.as_ref())
        .add(
            "file system",
            if view.formatted {
                "ext4"
            } else {
                "none yet: the first sandbox that has it makes one"
            },
        )
        .add_some("sandbox", view.vmid)
        .add_some("moving to", view.moving_to)
        .add_some("snapshots", (!snapshots.is_empty()).then(|| snapshots.join("\n")))
        .add_some("trouble", view.trouble.as_ref())
        .add_time("created", view.created_at)
        .add_time("updated", view.updated_at);
    context.printer.write(&fields.render())
}

/// Clap's parser of sizes: `80G`, `80 GiB`, `1T`; a bare number is GiB.
pub(super) fn gibibytes(text: &str) -> Result<u32, String> {
    let wrong = || "write a size such as 80G or 1T".to_owned();
    let text = text.trim();
    let digits = text
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits).ok_or_else(wrong)?;
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "g" | "gb" | "gib" => 1,
        "t" | "tb" | "tib" => 1024,
        _ => return Err(wrong()),
    };
    let size = number
        .parse::<u32>()
        .ok()
        .and_then(|number| number.checked_mul(factor));
    size.filter(|size| *size > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, wanted) in [
            ("80G", 80),
            ("80", 80),
            (" 80 GiB", 80),
            ("1t", 1024),
            ("2TB", 2048),
        ] {
            assert_eq!(gibibytes(text), Ok(wanted), "{text}");
        }
        for text in ["", "0", "G", "-1G", "80M", "1.5G", "4294967295T"] {
            assert!(gibibytes(text).is_err(), "{text}");
        }
    }
}
