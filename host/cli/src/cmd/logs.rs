//! `agentlab logs`: of whatever the name names.

use agentlab_api::JobId;
use clap::Args;

use super::{job, sandbox};
use crate::{CommandResult, Context};

/// `logs`.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Id of a job; or VMID, name or UUID of a sandbox
    name: String,
    /// Go on as things happen
    #[arg(long, short)]
    follow: bool,
}

impl Logs {
    pub(crate) async fn run(self, context: &Context) -> CommandResult {
        if let Ok(job) = self.name.parse::<JobId>() {
            let logs = job::Logs {
                job,
                follow: self.follow,
                plain: false,
            };
            return logs.run(context).await;
        }
        let logs = sandbox::Logs {
            sandbox: self.name,
            follow: self.follow,
            console: false,
        };
        logs.run(context).await
    }
}
