//! `agentlab job artifacts`.

use std::path::PathBuf;

use agentlab_api::{ArtifactView, JobId};
use clap::{Args, Subcommand};

use crate::error::CommandError;
use crate::landing::{Landing, Place};
use crate::output::{Table, ago, cell, size};
use crate::terminal::escape;
use crate::{CommandResult, Context, ExitStatus};

/// `job artifacts`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Artifacts {
    /// Id of the job
    #[arg(required = true)]
    job: Option<JobId>,
    #[command(subcommand)]
    command: Option<ArtifactsCommand>,
}

#[derive(Debug, Subcommand)]
enum ArtifactsCommand {
    /// Fetch files, each held against the SHA-256 the daemon recorded
    Download(Download),
}

#[derive(Debug, Args)]
struct Download {
    /// Id of the job
    job: JobId,
    /// Directory to put them into, made if absent [default: one with the job's id as name]
    #[arg(long, short, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Only this one
    #[arg(long, short, value_name = "NAME")]
    name: Option<String>,
}

impl Artifacts {
    pub(crate) async fn run(self, context: &Context) -> CommandResult {
        match (self.command, self.job) {
            (Some(ArtifactsCommand::Download(download)), _) => download.run(context).await,
            (None, Some(job)) => list(context, &job).await,
            (None, None) => Err(CommandError::usage("No job is named")),
        }
    }
}

async fn list(context: &Context, job: &JobId) -> CommandResult {
    let artifacts = context.client.artifacts(job).await?;
    if context.printer.json() {
        context
            .printer
            .document(&serde_json::json!({ "artifacts": artifacts }))?;
        return Ok(ExitStatus::Success);
    }
    let mut table = Table::new(&["NAME", "KIND", "SIZE", "SHA-256", "ARRIVED"]);
    for one in &artifacts {
        table.row([
            cell(&one.name),
            cell(format!("{:?}", one.kind).to_lowercase()),
            cell(size(one.size_bytes)),
            cell(&one.sha256),
            cell(ago(one.created_at)),
        ]);
    }
    context.printer.write(&table.render())?;
    Ok(ExitStatus::Success)
}

impl Download {
    async fn run(self, context: &Context) -> CommandResult {
        let mut artifacts = context.client.artifacts(&self.job).await?;
        if let Some(name) = &self.name {
            let names: Vec<String> = artifacts.iter().map(|one| one.name.clone()).collect();
            artifacts.retain(|one| one.name == *name);
            if artifacts.is_empty() {
                let message = format!("{} left no artifact named `{name}`", self.job);
                return Err(CommandError::NotFound {
                    message,
                    hint: Some(format!("it left {}", listed(&names))),
                });
            }
        }
        let out = self.out.unwrap_or_else(|| PathBuf::from(self.job.as_str()));
        let mut fetched = Vec::new();
        // All names before the first byte: one that is refused must not leave half of the others.
        let places = Place::of_all(artifacts.iter().map(|one| one.name.as_str()))?;
        let landing = if artifacts.is_empty() {
            None
        } else {
            Some(Landing::open(&out)?)
        };
        for (artifact, place) in artifacts.iter().zip(&places) {
            if let Some(landing) = &landing {
                fetch(context, &self.job, artifact, landing, place).await?;
            }
            fetched.push(artifact);
        }
        if context.printer.json() {
            context
                .printer
                .document(&serde_json::json!({ "artifacts": fetched }))?;
        } else if fetched.is_empty() {
            context
                .printer
                .warning(&format!("{} left no artifacts", self.job));
        }
        Ok(ExitStatus::Success)
    }
}

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

async fn fetch(
    context: &Context,
    job: &JobId,
    artifact: &ArtifactView,
    landing: &Landing,
    place: &Place,
) -> Result<(), CommandError> {
    let arriving = landing.begin(place)?;
    let mut file = tokio::fs::File::from_std(arriving.file()?);
    context.client.download(job, artifact, &mut file).await?;
    arriving.finish()?;
    let path = landing.shown(place);
    if place.renamed() {
        context.printer.warning(&format!(
            "`{}` is written as {}: under its own name git could take its directory for a repository, and run what \
             the guest put there",
            artifact.name,
            path.display()
        ));
    }
    if !context.printer.json() {
        let text = format!("{}  {}", path.display(), size(artifact.size_bytes));
        context.printer.line(&escape(&text))?;
    }
    Ok(())
}
