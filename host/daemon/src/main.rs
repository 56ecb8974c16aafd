//! `agentlabd`.

use std::process::ExitCode;
use std::time::Duration;

use agentlab_config::{Config, ConfigError, load_config};
use agentlabd::{Flags, Log, Reload, StartError, Surroundings};
use anyhow::Context as _;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
/// Nothing here computes for long; each thread more costs memory.
const WORKERS: usize = 2;

fn main() -> ExitCode {
    match run(&Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> anyhow::Result<()> {
    let control = agentlabd::take_control_socket().context("The control socket cannot be taken over")?;
    // Nothing of ours is for others, whatever shell or unit started us.
    rustix::process::umask(rustix::fs::Mode::from_bits_truncate(0o027));
    // Keys pass through this memory: no core file holds it, and others of our user do not look into it.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .context("Core dumps cannot be forbidden")?;
    let loaded = load_config(&flags.config)?;
    let config = loaded.value;
    if flags.check {
        return check(flags, &config, &loaded.warnings);
    }
    if flags.ask_proxmox {
        return ask(&config);
    }
    let log = Log::to_stderr(config.log_level);
    for warning in loaded.warnings {
        tracing::warn!("{warning}");
    }
    let surroundings = Surroundings {
        world: None,
        control,
        reload: Some(Reload {
            config_path: flags.config.clone(),
            log,
        }),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .context("The runtime cannot be started")?;
    let result = runtime.block_on(async {
        let (mut terminated, mut interrupted) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stop = async move {
            tokio::select! {
                _ = terminated.recv() => {}
                _ = interrupted.recv() => {}
            }
        };
        anyhow::Ok(agentlabd::run_in(&config, surroundings, stop).await?)
    });
    // A blocking call that hangs on a dead disk must not hold the stop up.
    runtime.shutdown_timeout(Duration::from_millis(500));
    result
}

#[expect(clippy::print_stdout, reason = "the answers are this program's output")]
fn ask(config: &Config) -> anyhow::Result<()> {
    let questions = std::io::read_to_string(std::io::stdin()).context("Standard input cannot be read")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("The runtime cannot be started")?;
    println!(
        "{}",
        runtime.block_on(agentlabd::ask_proxmox(config, &questions))?
    );
    Ok(())
}

#[expect(
    clippy::print_stdout,
    reason = "the answer of --check is this program's output"
)]
fn check(flags: &Flags, config: &Config, warnings: &[String]) -> anyhow::Result<()> {
    let profiles = config.load_profiles()?;
    for warning in warnings {
        println!("warning: {warning}");
    }
    let plural = if profiles.len() == 1 { "" } else { "s" };
    println!(
        "{} is valid, with {} profile{plural} in {}",
        flags.config.display(),
        profiles.len(),
        config.profiles_dir.display()
    );
    Ok(())
}

#[expect(
    clippy::print_stderr,
    reason = "the log may not be there yet, and this line must be"
)]
fn complain(error: &anyhow::Error) {
    eprintln!("error: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("caused by: {cause}");
    }
    let wrong_file = error.downcast_ref::<ConfigError>().and_then(ConfigError::hint);
    let refused = || error.downcast_ref::<StartError>().and_then(StartError::hint);
    if let Some(hint) = wrong_file.or_else(refused) {
        eprintln!("hint: {hint}");
    }
}
