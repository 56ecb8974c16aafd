//! How fast output is searched for secrets: 100 MB of a build's log, and what is hardest to tell from a secret, against
//! `grep -F` looking for the bare values, and against copying.

use std::fs::File;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_runner::redact::{Needles, Redactor};
use anyhow::{Context as _, Result, ensure};

const BYTES: usize = 100_000_000;
const ROUNDS: usize = 5;
/// As the runner reads from a pipe.
const CHUNK: usize = 64 * 1024;
const LINES: [&str; 4] = [
    "   Compiling serde_json v1.0.154 (registry `crates-io`) [dev, debuginfo=2, opt-level=0]\n",
    "2026-01-01T00:00:00.123456Z  INFO engine::sandbox: step done sandbox=01930011-2233-7444 step=Clone\n",
    "test git::tests::work_arrives_in_its_own_reference_and_runs_nothing ... ok, sk-ant-api03-is-not-one\n",
    "AAAAC3NzaC1lZDI1NTE5AAAAIGvHkKJbDUZGgMyqqUwyO0gSYpyZxcM2vVzhzQ8rY3bkc2stYW50LWFwaTAzLQ==\n",
];

#[expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
fn main() -> Result<()> {
    let secrets = secrets();
    let needles = Arc::new(Needles::new(secrets.iter().map(String::as_str)));
    println!(
        "redaction of {} MB, {} values, median of {ROUNDS}:",
        BYTES / 1_000_000,
        secrets.len()
    );
    let log = repeated(&LINES.concat());
    // Every few bytes a value seems to begin.
    let hard = repeated("sk-ant-api03-c2stYW50LWFwaTAz\nsk-ant-api0736b2d616e742d\n");
    report("copy, log", median(|| Ok(copied(&log)))?);
    report("grep -F, log", median(|| grep(&log, &secrets))?);
    report("redact, log", median(|| Ok(redacted(&needles, &log)))?);
    report("redact, beginnings", median(|| Ok(redacted(&needles, &hard)))?);
    Ok(())
}

fn secrets() -> Vec<String> {
    let mut secrets: Vec<String> = (0..8_u32)
        .map(|at| {
            format!(
                "sk-ant-api03-{:064x}",
                u64::from(at).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            )
        })
        .collect();
    let line = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW";
    let body: String = (0..6).map(|at| format!("{line}{at}\n")).collect();
    secrets.push(format!(
        "-----BEGIN OPENSSH PRIVATE KEY-----\n{body}-----END OPENSSH PRIVATE KEY-----\n"
    ));
    secrets
}

fn repeated(text: &str) -> Vec<u8> {
    text.bytes().cycle().take(BYTES).collect()
}

fn copied(input: &[u8]) -> usize {
    let mut out = Vec::new();
    let mut written = 0;
    for chunk in input.chunks(CHUNK) {
        out.clear();
        out.extend_from_slice(std::hint::black_box(chunk));
        written += std::hint::black_box(&out).len();
    }
    written
}

fn redacted(needles: &Arc<Needles>, input: &[u8]) -> usize {
    let mut redactor = Redactor::new(Arc::clone(needles));
    let mut out = Vec::new();
    let mut written = 0;
    for chunk in input.chunks(CHUNK) {
        out.clear();
        redactor.push(chunk, &mut out);
        written += out.len();
    }
    redactor.finish(&mut out);
    written
}

fn grep(input: &[u8], secrets: &[String]) -> Result<usize> {
    let dir = tempfile::tempdir()?;
    let (log, list) = (dir.path().join("log"), dir.path().join("list"));
    std::fs::write(&log, input)?;
    std::fs::write(&list, secrets.join("\n"))?;
    let status = Command::new("grep")
        .args(["-c", "-F", "-f"])
        .arg(&list)
        .stdin(File::open(&log)?)
        .stdout(Stdio::null())
        .status()
        .context("grep is not installed")?;
    ensure!(
        status.code().is_some_and(|code| code < 2),
        "grep ended with {status}"
    );
    Ok(input.len())
}

fn median(run: impl Fn() -> Result<usize>) -> Result<Duration> {
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        ensure!(run()? > 0, "nothing was written");
        times.push(begun.elapsed());
    }
    times.sort();
    times.get(ROUNDS / 2).copied().context("no rounds")
}

#[expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
fn report(name: &str, took: Duration) {
    let bytes = u32::try_from(BYTES).unwrap_or(u32::MAX);
    println!(
        "  {name:<20} {:8.0} MB/s",
        f64::from(bytes) / 1e6 / took.as_secs_f64()
    );
}
