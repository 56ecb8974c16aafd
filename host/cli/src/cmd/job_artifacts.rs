//! `agentlab job artifacts`.

use std::path::{Path, PathBuf};

use agentlab_api::{ArtifactView, JobId};
use clap::{Args, Subcommand};

use crate::error::CommandError;
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
        for artifact in &artifacts {
            let path = out.join(relative(&artifact.name)?);
            fetch(context, &self.job, artifact, &path).await?;
            if !context.printer.json() {
                let text = format!("{}  {}", path.display(), size(artifact.size_bytes));
                context.printer.line(&escape(&text))?;
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

/// Streams into a file beside its place and moves it there when it is whole, so that no half file has the name.
async fn fetch(
    context: &Context,
    job: &JobId,
    artifact: &ArtifactView,
    path: &Path,
) -> Result<(), CommandError> {
    let failed = |action| {
        move |source| CommandError::File {
            action,
            path: path.display().to_string(),
            source,
        }
    };
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).map_err(failed("Making the directory"))?;
    let temporary = tempfile::NamedTempFile::new_in(dir).map_err(failed("Writing"))?;
    let (file, temporary) = temporary.into_parts();
    let mut file = tokio::fs::File::from_std(file);
    context.client.download(job, artifact, &mut file).await?;
    file.sync_all().await.map_err(failed("Writing"))?;
    temporary
        .persist(path)
        .map_err(|error| failed("Writing")(error.error))?;
    Ok(())
}

/// The path a name stands for. The daemon checked it; a file outside the directory is bad enough to check again.
fn relative(name: &str) -> Result<PathBuf, CommandError> {
    let plain = !name.is_empty()
        && !name.chars().any(|c| c.is_control() || c == '\\')
        && name
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..");
    if plain {
        Ok(PathBuf::from(name))
    } else {
        Err(CommandError::Refused {
            message: format!(
                "Artifact name `{}` is not a plain relative path; it is not written",
                name.escape_debug()
            ),
            hint: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_below_the_directory() {
        for name in [
            "",
            "/etc/passwd",
            "../x",
            "files/../../x",
            "files//x",
            "./x",
            "x/",
            "a\\b",
            "a\nb",
        ] {
            assert!(relative(name).is_err(), "{name:?}");
        }
        assert_eq!(relative("files/out/a b").unwrap(), Path::new("files/out/a b"));
    }
}
