//! What a thousand sandboxes in the records cost: start, memory, lists. Every figure stands beside its budget and a
//! baseline from the same run; nothing here passes or fails.
//!
//! ```text
//!   the program      agentlabd in a network namespace, with a QEMU that only says its version: 0 rows, then 1000 that are
//!                    over (950 destroyed, 50 failed)
//!   a thousand live  this program once more, as a daemon on the hypervisor in memory: 1000 held by their operators
//! ```
//! Needs root for the namespace, and `agentlab` beside `agentlabd` for the whole command.

mod lab;
mod live;
#[path = "../../tests/edges/no_network.rs"]
mod no_network;
mod rows;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use lab::{Daemon, Lab, Policy};

const STARTS: usize = 15;
const REQUESTS: usize = 200;
const COMMANDS: usize = 60;
/// After which nothing goes on any more.
const QUIET: Duration = Duration::from_secs(2);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, directory] = arguments.as_slice()
        && flag == live::FLAG
    {
        return live::serve(Path::new(directory));
    }
    let load = std::fs::read_to_string("/proc/loadavg")?;
    say(&format!("load average before: {}", load.trim()));
    let baseline = median(COMMANDS, || run(Command::new("/bin/true")))?;
    figure("baseline: /bin/true, whole process", baseline, "");

    section("agentlabd, no rows");
    let lab = Lab::new()?;
    starts(&lab)?;
    let daemon = lab.start(Policy::Standing)?;
    settle();
    memory(&daemon, "RSS, idle", 12.0)?;
    let command = lab.command()?;
    if let Some(command) = &command {
        let start = median(COMMANDS, || run(with(command, &["--version"])))?;
        figure("CLI start (agentlab --version)", start, "<= 3 ms");
        figure("  above /bin/true", start.saturating_sub(baseline), "");
    }
    drop(daemon);

    section("agentlabd, 1000 rows that are over (950 destroyed, 50 failed)");
    rows::over(&lab)?;
    starts(&lab)?;
    let daemon = lab.start(Policy::Standing)?;
    measure(
        &daemon,
        "/v1/sandboxes?include_destroyed=true",
        command.as_deref(),
        &["sandbox", "list", "--all"],
    )?;
    drop(daemon);

    section("a thousand live, hypervisor in memory (its own memory included)");
    let lab = Lab::new()?;
    rows::live(&lab)?;
    let daemon = lab.start_live()?;
    measure(&daemon, "/v1/sandboxes", command.as_deref(), &["sandbox", "list"])?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    say(&format!("load average after: {}", load.trim()));
    Ok(())
}

fn measure(daemon: &Daemon, path: &str, command: Option<&Path>, arguments: &[&str]) -> Result<()> {
    settle();
    memory(daemon, "RSS, before anybody asks", 20.0)?;
    let nothing = median(REQUESTS, || daemon.ask("/v1/nothing").map(drop))?;
    figure(
        "baseline: an answer without content, over the socket",
        nothing,
        "",
    );
    let bytes = daemon.ask(path)?;
    say(&format!("  {path} has {} KiB", bytes >> 10));
    figure(
        "list of 1000, API",
        median(REQUESTS, || daemon.ask(path).map(drop))?,
        "<= 5 ms",
    );
    let status = median(REQUESTS, || daemon.ask("/v1/status").map(drop))?;
    figure("status, API", status, "");
    if let Some(command) = command {
        let socket = daemon.socket().display().to_string();
        let all = [&["--socket", &socket], arguments].concat();
        figure(
            "list of 1000, whole command",
            median(COMMANDS, || run(with(command, &all)))?,
            "<= 12 ms",
        );
    }
    memory(daemon, "RSS, after all of that", 20.0)
}

fn starts(lab: &Lab) -> Result<()> {
    // Makes the policy stand that the others find.
    drop(lab.start(Policy::Standing)?);
    for (policy, where_it_starts) in [
        (Policy::Standing, "policy stands"),
        (Policy::None, "fresh network"),
    ] {
        let mut served = Vec::new();
        let whole = median(STARTS, || {
            let daemon = lab.start(policy)?;
            served.push(daemon.milliseconds()?);
            Ok(())
        })?;
        served.sort_unstable();
        let middle = served.get(served.len() / 2).copied().unwrap_or_default();
        figure(
            &format!("start to serving, as the daemon logs it, {where_it_starts}"),
            Duration::from_millis(middle),
            "<= 30 ms",
        );
        figure("exec to READY=1, seen from outside", whole, "");
    }
    Ok(())
}

fn with(program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env("NO_COLOR", "1");
    command
}

fn run(mut command: Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("{command:?}"))?;
    anyhow::ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

fn median(rounds: usize, mut work: impl FnMut() -> Result<()>) -> Result<Duration> {
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let begun = Instant::now();
        work()?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    times.get(rounds / 2).copied().context("no rounds")
}

fn memory(daemon: &Daemon, what: &str, budget: f64) -> Result<()> {
    let kib = f64::from(daemon.rss_kib()?);
    say(&format!(
        "{what:<56} {:>9.2} MB    budget <= {budget} MB",
        kib / 1024.0
    ));
    Ok(())
}

fn figure(what: &str, time: Duration, budget: &str) {
    let budget = if budget.is_empty() {
        String::new()
    } else {
        format!("    budget {budget} p50")
    };
    say(&format!(
        "{what:<56} {:>9.2} ms{budget}",
        time.as_secs_f64() * 1000.0
    ));
}

fn section(title: &str) {
    say(&format!("\n-- {title}"));
}

#[expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
fn say(line: &str) {
    println!("{line}");
}

/// Lets a daemon that has just started come to rest.
#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark has nothing else to do meanwhile"
)]
fn settle() {
    std::thread::sleep(QUIET);
}
