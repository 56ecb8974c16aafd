//! `agentlab job prune`.

use agentlab_api::JobPruneRequest;
use clap::Args;

use crate::output::{Table, ago, cell, size};
use crate::{CommandResult, Context, ExitStatus};

/// `job prune`.
#[derive(Debug, Args)]
#[command(
    after_help = "A job is kept for `artifacts.retention_days` of its profile, or else `retention_days` of config.yaml. The \
                  daemon lets go of what is older by itself, a little every quarter of an hour."
)]
pub(crate) struct Prune {
    /// Only say which
    #[arg(long)]
    dry_run: bool,
}

impl Prune {
    pub(crate) async fn run(self, context: &Context) -> CommandResult {
        let request = JobPruneRequest {
            dry_run: self.dry_run,
        };
        let view = context.client.prune_jobs(request).await?;
        let printer = &context.printer;
        if printer.json() {
            printer.document(&view)?;
            return Ok(ExitStatus::Success);
        }
        if !view.jobs.is_empty() {
            let mut table = Table::new(&["ID", "PROFILE", "ENDED", "FILES"]);
            for job in &view.jobs {
                table.row([
                    cell(&job.id),
                    cell(&job.profile),
                    cell(job.finished_at.map_or("-".to_owned(), ago)),
                    cell(size(job.size_bytes)),
                ]);
            }
            printer.write(&table.render())?;
        }
        if view.count == 0 {
            printer.line("nothing to prune")?;
            return Ok(ExitStatus::Success);
        }
        let verb = if view.dry_run { "would go" } else { "gone" };
        let jobs = if view.count == 1 { "job" } else { "jobs" };
        printer.line(&format!(
            "{} {jobs} with {} of files {verb}",
            view.count,
            size(view.size_bytes)
        ))?;
        Ok(ExitStatus::Success)
    }
}
