//! One large artifact, hashed and handed over by a process of its own over TLS on loopback to a host that hashes and stores
//! it, against `cp` and `sha256sum` of the same file; and how much memory that process takes.
//!
//! The host is the one of the tests, not the daemon: what is measured is the runner's side.

#[path = "../tests/link/host.rs"]
#[allow(
    dead_code,
    clippy::unwrap_used,
    reason = "the host of the tests, which can do more than this needs"
)]
mod host;

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agent_runner::link::Ways;
use agent_runner::remains::{self, Keeper, Remains};
use agentlab_protocol::message::ArtifactRole;
use agentlab_protocol::seed::Seed;
use anyhow::{Context as _, Result, ensure};
use host::Host;
use sha2::{Digest as _, Sha256};

const BYTES: u64 = 1 << 30;
const ROUNDS: usize = 3;
/// First argument of the process that uploads.
const UPLOAD: &str = "--upload";

#[expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()?;
    if let [_, first, seed, file] = words.as_slice()
        && first == UPLOAD
    {
        return runtime.block_on(upload(Path::new(seed), Path::new(file)));
    }
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("large");
    fill(&file)?;
    let (mut plain, mut handed, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        plain.push(copied(&file, &dir.path().join("copy"))?);
        let (took, kib) = runtime.block_on(once(dir.path(), &file))?;
        handed.push(took);
        memory.push(kib);
    }
    plain.sort();
    handed.sort();
    memory.sort_unstable();
    let speed = |took: Duration| 1024.0 / took.as_secs_f64();
    let (plain, handed) = (plain[ROUNDS / 2], handed[ROUNDS / 2]);
    println!("artifact of 1 GiB, median of {ROUNDS}:");
    println!("  cp and sha256sum        {:8.0} MiB/s", speed(plain));
    println!("  hashed and handed over  {:8.0} MiB/s", speed(handed));
    println!(
        "  ratio                   {:8.2}      budget 0.70",
        speed(handed) / speed(plain)
    );
    println!(
        "  peak RSS of the sender  {:8.2} MB   budget 12 MB",
        f64::from(memory[ROUNDS / 2]) / 1024.0
    );
    Ok(())
}

/// Not zeros: those are cheap on some disks.
fn fill(path: &Path) -> Result<()> {
    let mut file = std::fs::File::create(path)?;
    let mut piece = vec![0u8; 1 << 20];
    getrandom::fill(&mut piece).map_err(std::io::Error::other)?;
    for number in 0..BYTES >> 20 {
        piece[..8].copy_from_slice(&number.to_le_bytes());
        file.write_all(&piece)?;
    }
    Ok(())
}

fn copied(from: &Path, to: &Path) -> Result<Duration> {
    let begun = Instant::now();
    for (program, arguments) in [("cp", &[from, to][..]), ("sha256sum", &[to])] {
        let status = Command::new(program)
            .args(arguments)
            .stdout(Stdio::null())
            .status()?;
        ensure!(status.success(), "{program} failed");
    }
    let took = begun.elapsed();
    std::fs::remove_file(to)?;
    Ok(took)
}

async fn once(dir: &Path, file: &Path) -> Result<(Duration, u32)> {
    let host = Host::start().await;
    host.store_artifacts(&dir.join("stored"));
    let seed = dir.join("seed");
    std::fs::write(&seed, host.seed.encode()?)?;
    let begun = Instant::now();
    let output = tokio::process::Command::new(std::env::current_exe()?)
        .arg(UPLOAD)
        .args([&seed, file])
        .output()
        .await?;
    let took = begun.elapsed();
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok((took, said.trim().parse()?))
}

/// What a runner does with one artifact; prints its peak memory in KiB.
#[expect(clippy::print_stdout, reason = "read by the process that started it")]
async fn upload(seed: &Path, file: &Path) -> Result<()> {
    let seed = Seed::decode(&std::fs::read(seed)?)?;
    let ways = Ways::new(&seed, None)?;
    let mut remains = Remains::first(&seed)?;
    let (link, _) = remains::session(&mut remains, &Keeper::nowhere(), ways).await?;
    let hashed = file.to_owned();
    let sum = tokio::task::spawn_blocking(move || sum(&hashed)).await??;
    let name = "files/large".parse()?;
    link.put_artifact(&name, ArtifactRole::File, file, BYTES, &sum)
        .await?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    println!("{}", line.context("no VmHWM")?.trim().trim_end_matches(" kB"));
    Ok(())
}

fn sum(path: &Path) -> Result<String> {
    let mut file = std::fs::File::open(path)?;
    let (mut hash, mut piece) = (Sha256::new(), vec![0u8; 128 << 10]);
    loop {
        let count = file.read(&mut piece)?;
        if count == 0 {
            return Ok(hex::encode(hash.finalize()));
        }
        hash.update(&piece[..count]);
    }
}
