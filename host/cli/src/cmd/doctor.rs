//! `agentlab doctor`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::doctor::{examine, passed, render};
use crate::init::programs::Programs;
use crate::init::settings::NodeArguments;
use crate::{CommandResult, Context, ExitStatus};

/// Looks at everything on this host that can spoil a sandbox, and changes nothing. As root, or less is seen.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Configuration file of the daemon
    #[arg(long, value_name = "PATH", default_value = "/etc/agentlab/config.yaml")]
    config: PathBuf,
}

impl Doctor {
    /// Exit status 1 where something failed. What could not be looked at, or is just a warning, does not count.
    pub(crate) async fn run(self, context: &Context) -> CommandResult {
        let programs = Programs::of_system();
        let rows = examine(&NodeArguments::usual(), &self.config, &context.client, &programs).await;
        let passed = passed(&rows);
        if context.printer.json() {
            context
                .printer
                .document(&json!({ "passed": passed, "checks": rows }))?;
        } else {
            context.printer.write(&render(&rows))?;
        }
        Ok(if passed {
            ExitStatus::Success
        } else {
            ExitStatus::Failure
        })
    }
}
