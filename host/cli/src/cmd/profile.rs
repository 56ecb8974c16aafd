//! `agentlab profile`.

use std::path::PathBuf;

use agentlab_api::{AllowEntry, ArtifactRules, Profile, ProfileList};
use clap::{Args, Subcommand};

use crate::output::{Fields, Table, cell, minutes, size, span};
use crate::printer::Printer;
use crate::terminal::escape;
use crate::{CommandResult, Context, ExitStatus};

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum ProfileCommand {
    /// Profiles the daemon has loaded
    #[command(visible_alias = "ls")]
    List,
    /// One profile, defaults filled in
    Show {
        /// Its name
        name: String,
    },
    /// Check profile files without a daemon: every fault with file, line and column
    Validate(Validate),
}

/// `profile validate`.
#[derive(Debug, Args)]
pub(crate) struct Validate {
    /// Files of one or more profiles; names must be unique over all of them
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

impl Validate {
    pub(crate) fn run(&self, printer: &Printer) -> CommandResult {
        let loaded = agentlab_config::load_profile_files(&self.files)?;
        if printer.json() {
            printer.document(&ProfileList {
                profiles: loaded.into_iter().map(|one| one.profile).collect(),
            })?;
            return Ok(ExitStatus::Success);
        }
        for one in &loaded {
            printer.line(&escape(&format!(
                "{}:{}: {} is valid",
                one.file, one.line, one.profile.name
            )))?;
        }
        if loaded.is_empty() {
            printer.warning("these files hold no profile");
        }
        Ok(ExitStatus::Success)
    }
}

impl ProfileCommand {
    pub(crate) async fn run(self, context: &Context) -> CommandResult {
        let printer = &context.printer;
        match self {
            Self::List => {
                let list = context.client.profiles().await?;
                if printer.json() {
                    printer.document(&list)?
                } else {
                    printer.write(&table(&list.profiles))?
                }
            }
            Self::Show { name } => {
                let profile = context.client.profile(&name).await?;
                if printer.json() {
                    printer.document(&profile)?
                } else {
                    printer.write(&fields(&profile))?
                }
            }
            // Run before: it needs no daemon.
            Self::Validate(validate) => return validate.run(printer),
        }
        Ok(ExitStatus::Success)
    }
}

fn table(profiles: &[Profile]) -> String {
    let mut table = Table::new(&[
        "NAME", "TEMPLATE", "AGENT", "NETWORK", "CORES", "MEMORY", "LEASE", "DEADLINE",
    ]);
    for one in profiles {
        table.row([
            cell(&one.name),
            cell(one.template_vmid),
            cell(one.agent()),
            cell(one.network.mode),
            cell(one.resources.cores),
            cell(format!("{} MiB", one.resources.memory_mb)),
            cell(minutes(one.behavior.ttl_minutes_default)),
            cell(span(one.behavior.deadline_seconds_default)),
        ]);
    }
    table.render()
}

/// Entries of an allowlist that are shown; the document has all of them.
const MOST_SHOWN: usize = 20;

fn allowed(list: &[AllowEntry]) -> String {
    let mut shown: Vec<String> = list.iter().take(MOST_SHOWN).map(ToString::to_string).collect();
    if list.len() > MOST_SHOWN {
        shown.push(format!("and {} more", list.len() - MOST_SHOWN));
    }
    shown.join(", ")
}

fn fields(profile: &Profile) -> String {
    let Profile {
        network,
        resources,
        storage,
        behavior,
        artifacts,
        ..
    } = profile;
    let mut fields = Fields::default();
    fields
        .add("name", &profile.name)
        .add("template", profile.template_vmid)
        .add("agent", profile.agent())
        .add("its mode", format!("{:?}", behavior.mode).to_lowercase())
        .add_some("its command", joined(&behavior.agent_command, " "))
        .add_some("further arguments", joined(&behavior.agent_args, " "))
        .add_some("may push to", joined(&behavior.push, ", "))
        .add("network", network.mode)
        .add_some(
            "allowed",
            (!network.allow.is_empty()).then(|| allowed(&network.allow)),
        )
        .add_some("bridge", network.bridge.as_ref())
        .add_some(
            "channels",
            network
                .channels
                .as_ref()
                .map(|channels| format!("{channels:?}").to_lowercase()),
        )
        .add("cores", resources.cores)
        .add("memory", format!("{} MiB", resources.memory_mb))
        .add_some(
            "processor time",
            resources.cpu_limit_percent.map(|percent| format!("{percent} %")),
        )
        .add_some("processors", resources.cpulist.as_ref())
        .add_some(
            "memory kept",
            resources.balloon.map(|least| format!("{least} MiB")),
        )
        .add_some(
            "root disk",
            storage.root_size_gb.map(|size| format!("{size} GiB")),
        )
        .add("lease", minutes(behavior.ttl_minutes_default))
        .add(
            "idle stop",
            match behavior.idle_stop_minutes_default {
                None => "as the daemon is told".to_owned(),
                Some(0) => "never".to_owned(),
                Some(idle) => format!("after {}", minutes(idle)),
            },
        )
        .add("deadline", span(behavior.deadline_seconds_default))
        .add("keepalive", behavior.keepalive_default)
        .add_some("submodules", behavior.submodules.then_some("brought in"))
        .add(
            "inner sandbox",
            format!("{:?}", behavior.inner_sandbox).to_lowercase(),
        )
        .add_some("its arguments", joined(&behavior.inner_sandbox_args, " "))
        .add_some("secrets", joined(&profile.secrets, ", "))
        .add_some("of bundle", profile.secrets_bundle.as_ref())
        .add("artifacts", kept(artifacts));
    fields.render()
}

/// Nothing for an empty list.
fn joined<T: ToString>(list: &[T], between: &str) -> Option<String> {
    let texts: Vec<String> = list.iter().map(ToString::to_string).collect();
    (!texts.is_empty()).then(|| texts.join(between))
}

fn kept(artifacts: &ArtifactRules) -> String {
    let bounds = format!(
        "at most {} files, {} each, {} together",
        artifacts.max_files,
        size(artifacts.max_file_bytes),
        size(artifacts.max_total_bytes)
    );
    match artifacts.retention_days {
        None => bounds,
        Some(0) => format!("{bounds}; kept for ever"),
        Some(days) => format!("{bounds}; kept for {days} days"),
    }
}
