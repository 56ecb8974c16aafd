//! `agentlab workspace check` and `agentlab workspace adopt`.

use agentlab_api::{WorkspaceAdopt, WorkspaceCheck, WorkspaceId};
use clap::Args;

use super::workspace::changed;
use crate::error::CommandError;
use crate::output::{Cell, Table, cell};
use crate::printer::{BAD, DIM};
use crate::{CommandResult, Context, ExitStatus};

/// `workspace check`.
#[derive(Debug, Args)]
#[command(
    after_help = "Changes nothing. Exits with 1 when somebody has to do something about it: a volume is missing, is \
                  attached where it should not be, has another size, is not one of ours, or belongs to no workspace."
)]
pub(crate) struct Check {
    /// Name or UUID [default: all, and volumes that belong to none]
    workspace: Option<String>,
}

/// `workspace adopt`.
#[derive(Debug, Args)]
#[command(
    after_help = "For volumes that `agentlab workspace check` calls `orphan`, as after a database was restored from a \
                  backup. What is on one stays: no file system is ever made on it. A fork has the file system of what it \
                  was forked from; where the first sandbox refuses it for another UUID than expected, the same command \
                  with --file-system and the UUID that it named mends that. To be rid of it, adopt it and \
                  `agentlab workspace delete` it."
)]
pub(crate) struct Adopt {
    /// Name of the workspace that it becomes; of one whose own volume is gone, which then has it
    #[arg(value_name = "NAME")]
    name: String,
    /// The volume, as `agentlab workspace check` names it
    volume: String,
    /// UUID of the file system on it [default: that of the workspace it was made for]
    #[arg(long, value_name = "UUID")]
    file_system: Option<WorkspaceId>,
}

impl Check {
    pub(super) async fn run(self, context: &Context) -> CommandResult {
        let selector = self.workspace.as_deref().unwrap_or("-");
        let checked = context.client.check_workspaces(selector).await?;
        if context.printer.json() {
            context.printer.document(&checked)?;
        } else {
            show(context, &checked)?;
        }
        Ok(if checked.is_wrong() {
            ExitStatus::Failure
        } else {
            ExitStatus::Success
        })
    }
}

impl Adopt {
    pub(super) async fn run(self, context: &Context) -> CommandResult {
        let adopt = WorkspaceAdopt {
            volume: self.volume,
            file_system: self.file_system,
        };
        changed(
            context,
            &context.client.adopt_workspace(&self.name, &adopt).await?,
        )
    }
}

fn show(context: &Context, checked: &WorkspaceCheck) -> Result<(), CommandError> {
    let mut table = Table::new(&["WORKSPACE", "FOUND", "VOLUME", "WHAT"]);
    for one in &checked.findings {
        table.row([
            cell(one.workspace.as_deref().unwrap_or("-")),
            Cell::styled(one.kind.as_str(), if one.wrong { BAD } else { DIM }),
            cell(&one.volume),
            cell(&one.detail),
        ]);
    }
    if checked.findings.is_empty() {
        let count = match checked.compared {
            1 => "1 workspace is".to_owned(),
            count => format!("{count} workspaces are"),
        };
        context.printer.line(&format!("{count} as recorded"))?;
    } else {
        context.printer.write(&table.render())?;
    }
    for unread in &checked.unread {
        context.printer.warning(&format!("not looked at: {unread}"));
    }
    let mut told: Vec<&str> = Vec::new();
    for one in &checked.findings {
        if !told.contains(&one.hint.as_str()) {
            context.printer.hint(&one.hint);
            told.push(&one.hint);
        }
    }
    Ok(())
}
