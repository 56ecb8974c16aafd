//! `agentlab logs`: of whatever the name names.

use agentlab_api::JobId;
use clap::Args;

use super::exec::{Exec, User};
use super::{job, sandbox};
use crate::error::CommandError;
use crate::{CommandResult, Context};

/// Lines of a guest's journal that are shown before what follows.
const JOURNAL_LINES: &str = "--lines=200";

/// `logs`.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Id of a job; or VMID, name or UUID of a sandbox
    name: String,
    /// Go on as things happen
    #[arg(long, short)]
    follow: bool,
    /// The journal that the system in a sandbox keeps, through the guest channel, instead of the host's events
    #[arg(long)]
    guest: bool,
}

impl Logs {
    pub(crate) async fn run(self, context: &Context) -> CommandResult {
        if self.guest {
            return self.journal()?.run(context).await;
        }
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

    /// The command that reads the guest's journal.
    fn journal(self) -> Result<Exec, CommandError> {
        if self.name.parse::<JobId>().is_ok() {
            return Err(CommandError::usage("`--guest` takes a sandbox")
                .with_hint("`agentlab job show` names the sandbox of a job"));
        }
        let mut words = vec!["journalctl", "--no-pager", "--boot", JOURNAL_LINES];
        if self.follow {
            words.push("--follow");
        }
        Ok(Exec::of(self.name, User::Root, &words))
    }
}
