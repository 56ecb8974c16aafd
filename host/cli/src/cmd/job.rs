//! `agentlab job`.

use agentlab_api::{JobId, JobView, LogStream};
use clap::{Args, Subcommand};

use super::{job_apply, job_artifacts, job_prune, job_review, job_run};
use crate::error::CommandError;
use crate::follow;
use crate::output::{Cell, Fields, Table, ago, between, cell, duration, job_style, span, time};
use crate::terminal::escape_lines;
use crate::{CommandResult, Context, ExitStatus};

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// Run a task on a repository in a VM of its own, and follow it
    Run(job_run::Run),
    /// Jobs, newest first
    #[command(visible_alias = "ls")]
    List(List),
    /// One job
    Show {
        /// Its id
        job: JobId,
    },
    /// What happened in a job and what its agent printed
    #[command(visible_alias = "log")]
    Logs(Logs),
    /// End a job; what it made so far is kept
    Cancel {
        /// Its id
        job: JobId,
    },
    /// Let go of jobs that were kept for long enough, with their output and files
    Prune(job_prune::Prune),
    /// Files a job left: list them, or `download` them
    Artifacts(job_artifacts::Artifacts),
    /// What a job changed, and what of it would run here: files, risks and the difference; nothing is written
    Review(job_review::Review),
    /// Fetch a job's commits into refs/agentlab/<job> of a repository; nothing is checked out or run
    Apply(job_apply::Apply),
}

/// `job list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// How many
    #[arg(long, short = 'n', default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
    limit: u32,
    /// Where the page before ended
    #[arg(long)]
    cursor: Option<String>,
}

/// `job logs`.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Its id
    pub(super) job: JobId,
    /// Go on until the job is over, then exit as `job run` does; with --json one log record a line
    #[arg(long, short)]
    pub(super) follow: bool,
    /// Only what the agent printed, without events and marks
    #[arg(long)]
    pub(super) plain: bool,
}

impl JobCommand {
    pub(crate) async fn run(self, context: &Context) -> CommandResult {
        match self {
            Self::Run(run) => run.run(context).await,
            Self::List(list) => list.run(context).await,
            Self::Show { job } => {
                let view = context.client.job(&job).await?;
                show(context, &view)?;
                Ok(ExitStatus::Success)
            }
            Self::Logs(logs) => logs.run(context).await,
            Self::Cancel { job } => cancel(context, &job).await,
            Self::Prune(prune) => prune.run(context).await,
            Self::Artifacts(artifacts) => artifacts.run(context).await,
            Self::Review(review) => review.run(context).await,
            Self::Apply(apply) => apply.run(context).await,
        }
    }
}

impl List {
    async fn run(self, context: &Context) -> CommandResult {
        let list = context
            .client
            .jobs(self.cursor.as_deref(), Some(self.limit))
            .await?;
        if context.printer.json() {
            context.printer.document(&list)?;
            return Ok(ExitStatus::Success);
        }
        context.printer.write(&table(&list.jobs))?;
        if list.jobs.is_empty() && self.cursor.is_none() {
            context
                .printer
                .hint("there is none; `agentlab job run` begins one");
        }
        if let Some(cursor) = &list.next_cursor {
            context
                .printer
                .hint(&format!("there are more: `agentlab job list --cursor {cursor}`"));
        }
        Ok(ExitStatus::Success)
    }
}

impl Logs {
    pub(super) async fn run(self, context: &Context) -> CommandResult {
        let printer = &context.printer;
        if self.follow && !printer.json() {
            let job = context.client.job(&self.job).await?;
            let job = follow::follow(
                context,
                job,
                if self.plain {
                    follow::Show::Output
                } else {
                    follow::Show::All
                },
            )
            .await?;
            return Ok(ExitStatus::of_job(&job));
        }
        if self.follow {
            let mut stream = context.client.follow_job_log(&self.job, None).await?;
            while let Some(record) = stream.next().await? {
                printer.document_line(&record)?;
            }
            return Ok(ExitStatus::of_job(&context.client.job(&self.job).await?));
        }
        let mut records = Vec::new();
        let mut next = 0;
        loop {
            let page = context.client.job_log(&self.job, next).await?;
            if page.records.is_empty() || page.next <= next {
                break;
            }
            records.extend(page.records);
            next = page.next;
        }
        if printer.json() {
            printer.document(&agentlab_client::LogPage { records, next })?;
        } else if self.plain {
            let agent = records.iter().filter(|record| record.stream != LogStream::Runner);
            let text: String = agent.map(|record| record.text.as_str()).collect();
            printer.write(&escape_lines(&text))?;
        } else {
            let job = context.client.job(&self.job).await?;
            let events = context.client.job_events(&self.job).await?;
            follow::replay(context, &job, events, records)?;
        }
        Ok(ExitStatus::Success)
    }
}

/// What came of each, so that one look in the morning says which to open.
fn table(jobs: &[JobView]) -> String {
    let mut table = Table::new(&[
        "ID",
        "STATE",
        "CAUSE",
        "EXIT",
        "COMMITS",
        "PROFILE",
        "TOOK",
        "CREATED",
        "REPOSITORY",
    ]);
    for job in jobs {
        let outcome = job.outcome.as_ref();
        table.row([
            cell(&job.id),
            Cell::styled(state(job), job_style(job.state)),
            or_dash(job.failure.as_ref().map(|failure| failure.code)),
            or_dash(outcome.and_then(|outcome| outcome.exit_code)),
            or_dash(outcome.map(|outcome| outcome.commits)),
            cell(&job.profile),
            or_dash(job.finished_at.map(|end| duration(between(job.created_at, end)))),
            cell(ago(job.created_at)),
            cell(&job.repository),
        ]);
    }
    table.render()
}

fn or_dash(value: Option<impl ToString>) -> Cell {
    value.map_or_else(|| cell("-"), cell)
}

/// `QUEUED, place 3` for one that waits for a sandbox.
fn state(job: &JobView) -> String {
    match job.queue_position {
        Some(position) => format!("{}, place {position}", job.state),
        None => job.state.to_string(),
    }
}

async fn cancel(context: &Context, id: &JobId) -> CommandResult {
    let job = context.client.cancel_job(id).await?;
    if context.printer.json() {
        context.printer.document(&job)?;
    } else if job.state.is_final() {
        context.printer.line(&format!("{id} is {}", job.state))?;
    } else {
        context.printer.line(&format!(
            "{id} is being cancelled; `agentlab job logs -f {id}` shows its end"
        ))?;
    }
    Ok(ExitStatus::Success)
}

fn show(context: &Context, job: &JobView) -> Result<(), CommandError> {
    if context.printer.json() {
        return context.printer.document(job);
    }
    let outcome = job.outcome.as_ref();
    let mut fields = Fields::default();
    fields
        .add("id", &job.id)
        .add("state", state(job))
        .add("repository", &job.repository)
        .add_some("ref", job.reference.as_ref())
        .add("task", &job.task)
        .add("profile", &job.profile)
        .add("agent", &job.agent)
        .add_some("push", follow::push(job))
        .add("deadline", span(job.deadline_seconds))
        .add_some("sandbox", job.sandbox)
        .add_some("VMID", job.vmid)
        .add_some(
            "channel",
            job.channel.map(|channel| format!("{channel:?}").to_lowercase()),
        )
        .add_some("exit code", outcome.and_then(|outcome| outcome.exit_code))
        .add_some("commits", outcome.map(follow::commits))
        .add_some("SECRETS IN IT", outcome.and_then(follow::secrets_in_it))
        .add_some(
            "agent ran",
            outcome.map(|outcome| duration(std::time::Duration::from_millis(outcome.agent_milliseconds))),
        )
        .add_some("failure", job.failure.as_ref())
        .add_some(
            "hint",
            job.failure.as_ref().and_then(|failure| failure.hint.as_ref()),
        )
        .add_time("created", job.created_at)
        .add_some("started", job.started_at.map(time))
        .add_some(
            "finished",
            job.finished_at
                .map(|end| format!("{}, after {}", time(end), duration(between(job.created_at, end)))),
        );
    context.printer.write(&fields.render())
}
