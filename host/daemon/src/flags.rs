//! The command line. Help text and manual page are the doc comments.

use std::path::PathBuf;

use clap::Parser;

/// The AgentLab daemon: makes, guards and removes the sandboxes that agents work in.
#[derive(Debug, Parser)]
#[command(name = "agentlabd", version)]
pub struct Flags {
    /// Configuration file
    #[arg(long, value_name = "PATH", default_value = "/etc/agentlab/config.yaml")]
    pub config: PathBuf,

    /// Read the configuration and the profiles, say everything that is wrong in them, and start nothing
    #[arg(long)]
    pub check: bool,

    /// Ask Proxmox VE what standard input asks, with the token of the configuration, and start nothing: for
    /// `agentlab doctor`. No answer to it changes anything.
    #[arg(long, hide = true, conflicts_with = "check")]
    pub ask_proxmox: bool,
}
