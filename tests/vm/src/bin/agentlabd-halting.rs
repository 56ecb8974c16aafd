//! `agentlabd` that kills itself at a journal point: the whole daemon, its back end and its packet policy are the real
//! ones. The program that is shipped has no way to be asked for this.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use std::{path::PathBuf, thread};

use agentlab_config::load_config;
use agentlab_engine::{Moment, Observer, Point};
use agentlab_store::StoreError;
use anyhow::Result;
use async_trait::async_trait;
use clap::Parser;
use rustix::process::{Signal, getpid, kill_process};

/// agentlabd that kills itself, for tests.
#[derive(Debug, Parser)]
struct Flags {
    /// Configuration file
    #[arg(long, value_name = "PATH")]
    config: PathBuf,

    /// Where it ends: `before` or `after`, and a journal point's name
    #[arg(long, value_name = "MOMENT POINT")]
    halt_at: String,

    /// The how manieth time it gets there, counted from 0
    #[arg(long, default_value_t = 0)]
    nth: usize,

    /// So many milliseconds later, in the midst of what follows
    #[arg(long, default_value_t = 0)]
    later: u64,
}

struct Halt {
    at: String,
    nth: usize,
    later: Duration,
    reached: AtomicUsize,
}

#[async_trait]
impl Observer for Halt {
    async fn reached(&self, point: Point, moment: Moment) -> Result<(), StoreError> {
        let side = match moment {
            Moment::Before => "before",
            Moment::After => "after",
        };
        let now = format!("{side} {point}");
        tracing::info!("reached {now}");
        if now == self.at && self.reached.fetch_add(1, Ordering::Relaxed) == self.nth {
            let later = self.later;
            if later.is_zero() {
                kill_myself();
                std::future::pending::<()>().await;
            }
            thread::spawn(move || {
                sleep(later);
                kill_myself();
            });
        }
        Ok(())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a thread of its own, which nothing waits for"
)]
fn sleep(time: Duration) {
    thread::sleep(time);
}

fn kill_myself() {
    if let Err(error) = kill_process(getpid(), Signal::KILL) {
        tracing::error!(%error, "still alive");
    }
}

fn main() -> Result<()> {
    let flags = Flags::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .compact()
        .init();
    let config = load_config(&flags.config)?.value;
    agentlab_engine::observe(Arc::new(Halt {
        at: flags.halt_at,
        nth: flags.nth,
        later: Duration::from_millis(flags.later),
        reached: AtomicUsize::new(0),
    }));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(agentlabd::run(&config, None, std::future::pending()))?;
    Ok(())
}
