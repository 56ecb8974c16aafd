//! `agentlab job review`.

use std::path::PathBuf;

use agentlab_api::{ExposedSecret, JobId, JobView};
use clap::Args;
use serde::Serialize;

use super::job_apply;
use crate::error::CommandError;
use crate::git::apply::Work;
use crate::git::gate::Risk;
use crate::git::review::{self, FileChange};
use crate::printer::{BOLD, CAUTION, DIM, Printer};
use crate::terminal::{escape, escape_lines};
use crate::{CommandResult, Context, ExitStatus};

/// `job review`.
#[derive(Debug, Args)]
#[command(
    after_help = "The work is compared with what HEAD of the repository has, whatever the guest says it began with. \
                  With --strict the exit code is 1 when there is any risk, or a secret of the agent's in its work, or \
                  when not all of it was searched for one."
)]
pub(crate) struct Review {
    /// Id of the job
    job: JobId,
    /// Repository to compare with
    #[arg(long, value_name = "DIR", default_value = ".")]
    repo: PathBuf,
    /// Without the difference itself
    #[arg(long)]
    no_diff: bool,
    /// Fail when anything of it would run here
    #[arg(long)]
    strict: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Reviewed<'a> {
    job: &'a JobId,
    commit: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<&'a str>,
    files: &'a [FileChange],
    risks: &'a [Risk],
    exposed_secrets: &'a [ExposedSecret],
    /// Why there may be more of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    secrets_unsearched: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    diff: Option<&'a str>,
    /// That was too long, and is the beginning.
    diff_is_cut: bool,
}

impl Review {
    pub(crate) async fn run(self, context: &Context) -> CommandResult {
        let job = context.client.job(&self.job).await?;
        let path = job_apply::bundle(context, &job).await?;
        let expected = job
            .outcome
            .as_ref()
            .and_then(|outcome| outcome.head_commit.as_deref());
        let work = Work {
            job: &self.job,
            bundle: &path,
            expected,
            branch: None,
            strict: false,
            merge: false,
        };
        let seen = review::review(&self.repo, &work).await?;
        if context.printer.json() {
            context.printer.document(&Reviewed {
                job: &self.job,
                commit: &seen.commit,
                base: seen.base.as_deref(),
                files: &seen.files,
                risks: &seen.risks,
                exposed_secrets: exposed_secrets(&job),
                secrets_unsearched: unsearched(&job),
                diff: (!self.no_diff).then_some(seen.patch.as_str()),
                diff_is_cut: seen.is_cut,
            })?;
        } else {
            self.print(&context.printer, &seen)?;
            print_secrets(&context.printer, &job)?;
        }
        let clean = seen.risks.is_empty() && exposed_secrets(&job).is_empty() && unsearched(&job).is_none();
        Ok(if self.strict && !clean {
            ExitStatus::Failure
        } else {
            ExitStatus::Success
        })
    }

    fn print(&self, printer: &Printer, seen: &review::Review) -> Result<(), CommandError> {
        if !self.no_diff && !seen.patch.is_empty() {
            printer.write(&escape_lines(&seen.patch))?;
            printer.line("")?;
            if seen.is_cut {
                printer.warning(
                    "the difference is longer than that; the exit gate names the files that are not in it",
                );
            }
        }
        let count = seen.files.len();
        let plural = if count == 1 { "file" } else { "files" };
        let base = match &seen.base {
            Some(base) => format!("against {}", base.get(..12).unwrap_or(base)),
            None => "with no commit in common".to_owned(),
        };
        printer.line(&format!("{BOLD}{count} {plural}{BOLD:#} {DIM}{base}{DIM:#}"))?;
        for file in &seen.files {
            let lines = match (file.added, file.removed) {
                (Some(added), Some(removed)) => format!("+{added} -{removed}"),
                _ => "binary".to_owned(),
            };
            let word = file.change.replace('_', " ");
            printer.line(&format!("  {word:<12} {lines:>12}  {}", escape(&file.path)))?;
        }
        print_risks(printer, &seen.risks)
    }
}

/// What the guest found of the agent's secrets in its work.
pub(super) fn exposed_secrets(job: &JobView) -> &[ExposedSecret] {
    job.outcome
        .as_ref()
        .map_or(&[], |outcome| outcome.exposed_secrets.as_slice())
}

/// Why there may be others that it did not find. `None` when it said that it looked everywhere, and for records from
/// before guests were asked.
pub(super) fn unsearched(job: &JobView) -> Option<&str> {
    match &job.outcome {
        Some(outcome) => outcome.secrets_unsearched.as_deref(),
        None => Some("its guest never reported"),
    }
}

/// Those, and that there may be more, loudly, or nothing.
fn print_secrets(printer: &Printer, job: &JobView) -> Result<(), CommandError> {
    let secrets = exposed_secrets(job);
    if !secrets.is_empty() {
        printer.line(&format!(
            "{CAUTION}SECRETS IN IT{CAUTION:#}: values that the agent was given stand in its work, which is not altered"
        ))?;
    }
    for one in secrets {
        printer.line(&format!("  {}", escape(&one.to_string())))?;
    }
    let Some(reason) = unsearched(job) else {
        return Ok(());
    };
    printer.line(&format!(
        "{CAUTION}NOT SEARCHED FOR SECRETS{CAUTION:#} to its end, so values that the agent was given may stand in it: {}",
        escape(reason)
    ))
}

/// The list, or that there is nothing on it.
pub(super) fn print_risks(printer: &Printer, risks: &[Risk]) -> Result<(), CommandError> {
    if risks.is_empty() {
        return printer.line("The exit gate found nothing that would run here by itself");
    }
    let count = risks.len();
    let plural = if count == 1 { "risk" } else { "risks" };
    printer.line(&format!(
        "{CAUTION}{count} {plural}{CAUTION:#}: files that would run here, or change what runs"
    ))?;
    for risk in risks {
        let detail = if risk.detail.is_empty() {
            String::new()
        } else {
            format!(" {DIM}({}){DIM:#}", escape(&risk.detail))
        };
        printer.line(&format!("  {}  {}{detail}", escape(&risk.path), risk.kind))?;
    }
    Ok(())
}
