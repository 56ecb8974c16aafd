//! `agentlab job artifacts`.

use std::path::{Path, PathBuf};

use agentlab_api::{ArtifactView, JobId};
use agentlab_client::{ClientError, digest};
use clap::{Args, Subcommand};

use super::job_bundle;
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
    /// Also replace files that are there already and are others
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    which: Which,
}

/// Which files; all of them when nothing is said.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct Which {
    /// Only the one with this path, such as files/report/index.html
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// Only the one whose path ends in this name
    #[arg(long, short, value_name = "NAME")]
    name: Option<String>,
    /// Only the one that arrived last
    #[arg(long)]
    latest: bool,
    /// Each of them, which is the default
    #[arg(long)]
    all: bool,
    /// All of them as one file, JOB.tar.gz, the same bytes each time [default directory: this one]
    #[arg(long)]
    bundle: bool,
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
    async fn bundle(self, context: &Context, artifacts: &[ArtifactView]) -> CommandResult {
        if artifacts.is_empty() {
            return Err(CommandError::NotFound {
                message: format!("{} left no artifacts", self.job),
                hint: None,
            });
        }
        let landing = Landing::open(self.out.as_deref().unwrap_or(Path::new(".")))?;
        let (place, bytes) = job_bundle::download(context, &self.job, artifacts, &landing).await?;
        let path = landing.shown(&place).display().to_string();
        if context.printer.json() {
            let document = serde_json::json!({ "path": path, "size_bytes": bytes, "artifacts": artifacts });
            context.printer.document(&document)?;
        } else {
            context
                .printer
                .line(&escape(&format!("{path}  {}", size(bytes))))?;
        }
        Ok(ExitStatus::Success)
    }

    async fn run(self, context: &Context) -> CommandResult {
        let artifacts = context.client.artifacts(&self.job).await?;
        if self.which.bundle {
            return self.bundle(context, &artifacts).await;
        }
        let artifacts = chosen(&self.which, artifacts, &self.job)?;
        let out = self.out.unwrap_or_else(|| PathBuf::from(self.job.as_str()));
        let mut fetched = Vec::new();
        // All names before the first byte: one that is refused must not leave half of the others.
        let places = Place::of_all(artifacts.iter().map(|one| one.name.as_str()))?;
        let landing = if artifacts.is_empty() {
            None
        } else {
            Some(Landing::open(&out)?)
        };
        if let Some(landing) = landing.as_ref().filter(|_| !self.force) {
            refuse_replacing(landing, &artifacts, &places).await?;
        }
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

/// Those that are asked for.
fn chosen(
    which: &Which,
    artifacts: Vec<ArtifactView>,
    job: &JobId,
) -> Result<Vec<ArtifactView>, CommandError> {
    if which.latest {
        let latest = artifacts.into_iter().max_by_key(|one| one.created_at);
        let absent = || CommandError::NotFound {
            message: format!("{job} left no artifacts"),
            hint: None,
        };
        return Ok(vec![latest.ok_or_else(absent)?]);
    }
    let (asked, fits): (&str, fn(&str, &str) -> bool) = match (&which.path, &which.name) {
        (Some(path), _) => (path, |name, path| name == path),
        (None, Some(name)) => (name, |whole, name| {
            whole == name || whole.rsplit('/').next() == Some(name)
        }),
        (None, None) => return Ok(artifacts),
    };
    let (found, others): (Vec<_>, Vec<_>) = artifacts.into_iter().partition(|one| fits(&one.name, asked));
    let names = |of: &[ArtifactView]| of.iter().map(|one| one.name.clone()).collect::<Vec<_>>();
    match found.len() {
        1 => Ok(found),
        0 => Err(CommandError::NotFound {
            message: format!("{job} left no artifact `{asked}`"),
            hint: Some(format!("it left {}", listed(&names(&others)))),
        }),
        _ => Err(
            CommandError::usage(format!("{job} left several artifacts named `{asked}`"))
                .with_hint(format!("choose one with --path: {}", listed(&names(&found)))),
        ),
    }
}

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

/// The client knows an artifact's name, and not where it is written to.
fn unwritten(error: ClientError, path: &Path) -> CommandError {
    if let ClientError::File { action, source, .. } = error {
        let path = path.display().to_string();
        CommandError::File { action, path, source }
    } else {
        error.into()
    }
}

/// Files of the operator's own are not replaced unasked: the names were a guest's to choose. What was fetched before may be
/// fetched again.
async fn refuse_replacing(
    landing: &Landing,
    artifacts: &[ArtifactView],
    places: &[Place],
) -> Result<(), CommandError> {
    for (artifact, place) in artifacts.iter().zip(places) {
        let path = landing.shown(place);
        if std::fs::symlink_metadata(&path).is_err() {
            continue;
        }
        // Nothing else is opened: of some kinds one would wait for ever.
        let is_file = std::fs::metadata(&path).is_ok_and(|seen| seen.is_file());
        let is_same = is_file
            && digest(&path)
                .await
                .is_ok_and(|(sha256, _)| sha256 == artifact.sha256);
        if !is_same {
            return Err(CommandError::Refused {
                message: format!(
                    "{} is there already and is another one; nothing was written",
                    path.display()
                ),
                hint: Some("`--out DIR` writes elsewhere, `--force` replaces it".to_owned()),
            });
        }
    }
    Ok(())
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
    let path = landing.shown(place);
    context
        .client
        .download(job, artifact, &mut file)
        .await
        .map_err(|error| unwritten(error, &path))?;
    arriving.finish()?;
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
