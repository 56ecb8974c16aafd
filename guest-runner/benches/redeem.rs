//! From exec of the static binary to its redemption arriving at a host, and its memory, against a program that does
//! nothing at all.

#[path = "../tests/link/host.rs"]
#[allow(
    dead_code,
    clippy::unwrap_used,
    reason = "the host of the tests, which can do more than this needs"
)]
mod host;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use host::Host;

const ROUNDS: usize = 20;
const LIMIT: Duration = Duration::from_secs(5);

#[expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
fn main() -> Result<()> {
    let runner = runner()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut nothing, mut redeem, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        ensure!(
            quiet(Path::new("/bin/true")).status()?.success(),
            "/bin/true failed"
        );
        nothing.push(begun.elapsed());
        let (took, kib) = runtime.block_on(once(&runner))?;
        redeem.push(took);
        memory.push(kib);
    }
    nothing.sort();
    redeem.sort();
    memory.sort_unstable();
    let (nothing, redeem) = (nothing[ROUNDS / 2], redeem[ROUNDS / 2]);
    println!("runner, median of {ROUNDS}, TLS on loopback:");
    println!("  /bin/true, whole        {:8.2} ms", nothing.as_secs_f64() * 1e3);
    println!(
        "  start to redeem seen    {:8.2} ms   budget 20 ms",
        redeem.as_secs_f64() * 1e3
    );
    println!(
        "  ratio                   {:8.2}",
        redeem.as_secs_f64() / nothing.as_secs_f64()
    );
    println!(
        "  peak RSS                {:8.2} MB   budget 6 MB",
        f64::from(memory[ROUNDS / 2]) / 1024.0
    );
    let kib = u32::try_from(std::fs::metadata(&runner)?.len().div_ceil(1024))?;
    println!(
        "  size, static            {:8.2} MB   budget 3 MB",
        f64::from(kib) / 1024.0
    );
    Ok(())
}

fn runner() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let target = exe
        .ancestors()
        .nth(3)
        .context("a benchmark lies in <target>/<profile>/deps")?;
    let runner = target.join("guest/agent-runner");
    ensure!(
        runner.exists(),
        "{} does not exist: packaging/build-runner makes it",
        runner.display()
    );
    Ok(runner)
}

fn quiet(program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

async fn once(runner: &Path) -> Result<(Duration, u32)> {
    let host = Host::start().await;
    let dir = tempfile::tempdir()?;
    let seed = dir.path().join("seed");
    std::fs::write(&seed, host.seed.encode()?)?;
    let begun = Instant::now();
    let mut child = quiet(runner)
        .arg("--no-machine-setup")
        .arg("--seed")
        .arg(&seed)
        .spawn()?;
    let seen = arrival(&host, begun).await;
    let memory = peak_kib(&child);
    child.kill()?;
    child.wait()?;
    Ok((seen?, memory?))
}

async fn arrival(host: &Host, begun: Instant) -> Result<Duration> {
    while begun.elapsed() < LIMIT {
        if let Some(first) = host.asked().first() {
            ensure!(
                first.path == agentlab_protocol::message::REDEEM_PATH,
                "the runner asked for {}",
                first.path
            );
            return Ok(first.at.duration_since(begun));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    anyhow::bail!("the runner did not redeem within {LIMIT:?}")
}

fn peak_kib(child: &Child) -> Result<u32> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
