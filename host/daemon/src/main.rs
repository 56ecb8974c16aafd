//! `agentlabd`.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use agentlab_config::{Config, LogLevel, load_config};
use agentlabd::Flags;
use anyhow::Context as _;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

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
    // Nothing of ours is for others, whatever shell or unit started us.
    rustix::process::umask(rustix::fs::Mode::from_bits_truncate(0o027));
    let loaded = load_config(&flags.config)?;
    let config = loaded.value;
    if flags.check {
        return check(&config, &loaded.warnings);
    }
    log_to_stderr(config.log_level);
    for warning in loaded.warnings {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 4)))
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
        anyhow::Ok(agentlabd::run(&config, None, stop).await?)
    });
    // A blocking call that hangs on a dead disk must not hold the stop up.
    runtime.shutdown_timeout(Duration::from_millis(500));
    result
}

#[expect(
    clippy::print_stdout,
    reason = "the answer of --check is this program's output"
)]
fn check(config: &Config, warnings: &[String]) -> anyhow::Result<()> {
    let profiles = config.load_profiles()?;
    for warning in warnings {
        println!("warning: {warning}");
    }
    println!("The configuration and {} profiles can be used", profiles.len());
    Ok(())
}

/// Text on standard error; systemd keeps it in the journal, which has times of its own.
fn log_to_stderr(level: LogLevel) {
    let ours = level.as_str();
    let crates = [
        "agentlabd",
        "agentlab_backend",
        "agentlab_channel",
        "agentlab_engine",
        "agentlab_netpolicy",
    ];
    let mut directives = format!("warn,agentlab_store={ours}");
    for name in crates {
        directives += &format!(",{name}={ours}");
    }
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(directives));
    let stderr = std::io::stderr;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .compact();
    let builder = builder.with_ansi(stderr().is_terminal());
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        builder.without_time().init();
    } else {
        builder.init();
    }
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
}
