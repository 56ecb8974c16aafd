//! What the inner sandbox adds to the start of a program: `/bin/true` within it against `/bin/true` alone.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agent_runner::job::Layout;
use agent_runner::job::sandbox::{InnerSandbox, arguments};
use anyhow::{Context as _, Result, ensure};

const ROUNDS: usize = 50;
/// What it may add.
const BUDGET: Duration = Duration::from_millis(15);
const PROGRAM: &str = "/bin/true";

#[expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
fn main() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let layout = layout(dir.path())?;
    let alone = median(|| Command::new(PROGRAM))?;
    println!("inner sandbox, median of {ROUNDS}:");
    println!("  {PROGRAM}, alone        {:8.2} ms", alone.as_secs_f64() * 1e3);
    for kind in [InnerSandbox::Bubblewrap, InnerSandbox::Hardened] {
        let within = median(|| {
            let mut command = Command::new("bwrap");
            command.args(arguments(kind, &layout, &[])).arg(PROGRAM);
            command
        })?;
        println!(
            "  {PROGRAM}, {:<10}   {:8.2} ms, ratio {:.1}, adds {:.2} ms (budget {} ms)",
            kind.as_str(),
            within.as_secs_f64() * 1e3,
            within.as_secs_f64() / alone.as_secs_f64(),
            within.saturating_sub(alone).as_secs_f64() * 1e3,
            BUDGET.as_millis(),
        );
    }
    Ok(())
}

/// The places of a job, of which only those that are bound must exist.
fn layout(dir: &Path) -> Result<Layout> {
    let mut layout = Layout {
        work: dir.join("work"),
        run: dir.join("run"),
        ..Layout::default()
    };
    layout.user.home = dir.join("home");
    for path in [
        &layout.work.join("repo"),
        &layout.work.join("artifacts"),
        &layout.run,
        &layout.user.home,
    ] {
        fs::create_dir_all(path)?;
    }
    Ok(layout)
}

fn median(command: impl Fn() -> Command) -> Result<Duration> {
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let mut command = command();
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let begun = Instant::now();
        let status = command
            .status()
            .context("bubblewrap is not installed: `make setup`")?;
        ensure!(status.success(), "{command:?} ended with {status}");
        times.push(begun.elapsed());
    }
    times.sort();
    times.get(ROUNDS / 2).copied().context("no rounds")
}
