//! `agentlab job apply`.

use std::path::PathBuf;

use agentlab_api::{ArtifactKind, JobId, JobState, JobView};
use clap::Args;
use serde::Serialize;

use super::job_review;
use crate::error::CommandError;
use crate::git::apply;
use crate::git::gate::Risk;
use crate::printer::{BOLD, DIM};
use crate::terminal::escape;
use crate::{CommandResult, Context, ExitStatus};

/// `job apply`.
#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// Id of the job
    job: JobId,
    /// Repository to fetch into
    #[arg(long, value_name = "DIR", default_value = ".")]
    repo: PathBuf,
    /// Also make this branch at the job's last commit; it must not exist
    #[arg(long, value_name = "NAME")]
    branch: Option<String>,
    /// Take out what the exit gate finds: one more commit, in which those files are as they were here
    #[arg(long)]
    strict: bool,
    /// Also bring the checked out branch and its files to it: only forward, only where nothing is changed, and only when
    /// the exit gate finds nothing or --strict takes it out
    #[arg(long)]
    merge: bool,
    /// Also when a secret that the agent was given stands in its commits, or they were not searched for one
    #[arg(long)]
    allow_secrets: bool,
    /// Also when the job is not COMPLETED
    #[arg(long)]
    force: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Applied<'a> {
    job: &'a JobId,
    reference: &'a str,
    commit: &'a str,
    commits: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    branch: Option<&'a str>,
    /// What the exit gate found.
    risks: &'a [Risk],
    /// Whether that was taken out.
    stripped: bool,
    /// Whether the checkout is at it.
    merged: bool,
}

impl Apply {
    pub(crate) async fn run(self, context: &Context) -> CommandResult {
        let job = context.client.job(&self.job).await?;
        self.gate(&job)?;
        self.keep_secrets_out(&job)?;
        let path = bundle(context, &job).await?;
        let expected = job
            .outcome
            .as_ref()
            .and_then(|outcome| outcome.head_commit.as_deref());
        let work = apply::Work {
            job: &self.job,
            bundle: &path,
            expected,
            branch: self.branch.as_deref(),
            strict: self.strict,
            merge: self.merge,
        };
        let fetched = apply::fetch(&self.repo, &work).await?;
        if context.printer.json() {
            context.printer.document(&Applied {
                job: &self.job,
                reference: &fetched.reference,
                commit: &fetched.commit,
                commits: fetched.subjects.len(),
                branch: self.branch.as_deref(),
                risks: &fetched.risks,
                stripped: self.strict && !fetched.risks.is_empty(),
                merged: self.merge,
            })?;
        } else {
            self.print(context, &fetched)?;
        }
        Ok(ExitStatus::Success)
    }

    /// Work of a job that did not end well is not taken by accident.
    fn gate(&self, job: &JobView) -> Result<(), CommandError> {
        if job.state == JobState::Completed || (self.force && job.state.is_final()) {
            return Ok(());
        }
        let refused = CommandError::Refused {
            message: format!("{} is {}, not COMPLETED", job.id, job.state),
            hint: None,
        };
        Err(if job.state.is_final() {
            refused.with_hint("`--force` fetches what it left all the same")
        } else {
            refused.with_hint(format!("`agentlab job logs -f {}` waits for its end", job.id))
        })
    }

    /// Commits are pushed on sooner or later, and a secret in one of them cannot be taken out by another commit.
    fn keep_secrets_out(&self, job: &JobView) -> Result<(), CommandError> {
        let mut committed = job_review::exposed_secrets(job)
            .iter()
            .filter(|one| !one.uncommitted);
        if self.allow_secrets {
            return Ok(());
        }
        let refused = |message, hint| {
            Err(CommandError::Refused {
                message,
                hint: Some(hint),
            })
        };
        if let Some(first) = committed.next() {
            return refused(
                format!(
                    "the commits of {} hold a secret that the agent was given: {first}",
                    job.id
                ),
                format!(
                    "`agentlab job review {}` names all of them; `--allow-secrets` fetches the commits all the same, to be \
                     rewritten before they go anywhere",
                    job.id
                ),
            );
        }
        let Some(reason) = job_review::unsearched(job) else {
            return Ok(());
        };
        refused(
            format!(
                "the commits of {} were not searched to their end for secrets that the agent was given: {reason}",
                job.id
            ),
            format!(
                "`agentlab job review {}` shows them; `--allow-secrets` fetches the commits all the same, to be looked \
                 through before they go anywhere",
                job.id
            ),
        )
    }

    fn print(&self, context: &Context, fetched: &apply::Fetched) -> Result<(), CommandError> {
        let printer = &context.printer;
        let count = fetched.subjects.len();
        let plural = if count == 1 { "commit" } else { "commits" };
        printer.line(&format!(
            "{BOLD}{}{BOLD:#} has {count} {plural} that HEAD does not have",
            fetched.reference
        ))?;
        for subject in &fetched.subjects {
            printer.line(&format!("  {}", escape(subject)))?;
        }
        if let Some(branch) = &self.branch {
            printer.line(&format!("Branch `{}` is at it", escape(branch)))?;
        }
        if self.strict && !fetched.risks.is_empty() {
            printer.line("Taken out, in a commit of its own:")?;
        }
        job_review::print_risks(printer, &fetched.risks)?;
        if self.merge {
            return printer.line(&format!("{DIM}The checkout is at it; nothing was run{DIM:#}"));
        }
        let git = match self.repo.to_str() {
            Some(".") => "git".to_owned(),
            _ => format!("git -C {}", escape(&self.repo.display().to_string())),
        };
        printer.line(&format!(
            "{DIM}Nothing was checked out or run. Look at it, then take it:{DIM:#}"
        ))?;
        printer.line(&format!("  {git} log -p HEAD..{}", fetched.reference))?;
        printer.line(&format!("  {git} merge --ff-only {}", fetched.reference))
    }
}

/// The job's commits, in a file that goes with the returned path.
pub(super) async fn bundle(context: &Context, job: &JobView) -> Result<tempfile::TempPath, CommandError> {
    let artifacts = context.client.artifacts(&job.id).await?;
    let bundle = artifacts
        .into_iter()
        .find(|one| one.kind == ArtifactKind::Bundle)
        .ok_or_else(|| no_commits(job))?;
    let temporary = tempfile::NamedTempFile::new().map_err(|source| CommandError::File {
        action: "Making",
        path: "a temporary file".to_owned(),
        source,
    })?;
    let (file, path) = temporary.into_parts();
    let mut file = tokio::fs::File::from_std(file);
    context.client.download(&job.id, &bundle, &mut file).await?;
    Ok(path)
}

fn no_commits(job: &JobView) -> CommandError {
    let uncommitted = job.outcome.as_ref().is_some_and(|outcome| outcome.uncommitted);
    let message = format!("{} left no commits", job.id);
    let hint = if uncommitted {
        format!(
            "it left uncommitted changes: `agentlab job artifacts download {} --name uncommitted.diff`",
            job.id
        )
    } else {
        format!("`agentlab job artifacts {}` lists what it left", job.id)
    };
    CommandError::NotFound {
        message,
        hint: Some(hint),
    }
}
