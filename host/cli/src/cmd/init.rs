//! `agentlab init`.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use crate::doctor::{passed, render};
use crate::error::CommandError;
use crate::init::programs::Programs;
use crate::init::settings::NodeArguments;
use crate::init::{Survey, apply, survey};
use crate::{CommandResult, Context, ExitStatus};

/// Shows, or makes with `--apply`, what the daemon needs on a Proxmox VE node: as root on the node.
#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Make it so; without this, nothing is changed
    #[arg(long)]
    apply: bool,
    /// Replace a token that stands; whoever else uses it is locked out
    #[arg(long)]
    rotate: bool,
    /// Configuration file of the daemon, which gets the token
    #[arg(long, value_name = "PATH", default_value = "/etc/agentlab/config.yaml")]
    config: PathBuf,
    #[command(flatten)]
    node: NodeArguments,
}

impl Init {
    /// Exit status 1 where something is missing or failed, so that a script can ask.
    pub(crate) async fn run(self, context: &Context) -> CommandResult {
        let programs = Programs::of_system();
        if programs.find("pvesh").is_none() {
            return Err(CommandError::refused(
                "This is no Proxmox VE node: `pvesh` is neither in PATH nor in /usr/sbin or /usr/bin",
            )
            .with_hint(
                "run it as root on the node; a host with a QEMU of its own needs no such step, and `agentlab doctor` looks at it",
            ));
        }
        let mut seen = self.survey(self.rotate, &programs).await?;
        if !self.apply {
            return show(context, &seen, &[]);
        }
        let mut done = Vec::new();
        if let Ok(steps) = &seen.missing {
            let steps = steps.clone();
            if let Some(row) = seen
                .rows
                .iter()
                .find(|row| row.check == "quorum")
                .filter(|row| row.next.is_some())
            {
                return Err(CommandError::refused(row.seen.clone()).with_hint("pvecm status"));
            }
            apply(&steps, &programs, &self.config, |step| {
                done.push(step_document(step.says(), step.command()));
                if context.printer.json() {
                    return Ok(());
                }
                context
                    .printer
                    .line(&format!("done     {}", crate::terminal::escape(&step.says())))
            })
            .await?;
            if !steps.is_empty() {
                // A token that was just replaced is not to be replaced again.
                seen = self.survey(false, &programs).await?;
            }
        }
        show(context, &seen, &done)
    }

    async fn survey(&self, rotate: bool, programs: &Programs) -> Result<Survey, CommandError> {
        survey(&self.node, rotate, &self.config, programs).await
    }
}

fn step_document(says: String, command: Option<String>) -> Value {
    match command {
        Some(command) => json!({ "step": says, "command": command }),
        None => json!({ "step": says }),
    }
}

fn show(context: &Context, seen: &Survey, done: &[Value]) -> CommandResult {
    let (steps, refusals) = match &seen.missing {
        Ok(steps) => (steps.as_slice(), [].as_slice()),
        Err(refusals) => ([].as_slice(), refusals.as_slice()),
    };
    let ready = steps.is_empty() && refusals.is_empty() && passed(&seen.rows);
    let status = if ready {
        ExitStatus::Success
    } else {
        ExitStatus::Failure
    };
    if context.printer.json() {
        let missing: Vec<Value> = steps
            .iter()
            .map(|step| step_document(step.says(), step.command()))
            .collect();
        let refused: Vec<Value> = refusals
            .iter()
            .map(|refusal| json!({ "reason": refusal.reason, "next": refusal.next }))
            .collect();
        context.printer.document(&json!({
            "node": seen.node.name,
            "version": seen.node.version,
            "ready": ready,
            "checks": seen.rows,
            "done": done,
            "missing": missing,
            "refused": refused,
        }))?;
        return Ok(status);
    }
    context.printer.write(&render(&seen.rows))?;
    for step in steps {
        context
            .printer
            .line(&format!("missing  {}", crate::terminal::escape(&step.says())))?;
        if let Some(command) = step.command() {
            context
                .printer
                .line(&format!("         {}", crate::terminal::escape(&command)))?;
        }
    }
    for refusal in refusals {
        context
            .printer
            .line(&format!("refused  {}", crate::terminal::escape(&refusal.reason)))?;
        context.printer.hint(&refusal.next);
    }
    if !steps.is_empty() {
        context
            .printer
            .hint("`agentlab init --apply` does what is missing, in this order");
    } else if refusals.is_empty() && !done.is_empty() {
        context
            .printer
            .hint("`systemctl restart agentlabd` lets the daemon use it, and `agentlab doctor` proves it");
    }
    Ok(status)
}
