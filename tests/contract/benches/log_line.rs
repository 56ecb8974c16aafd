//! How late a line is that an agent prints: from its own clock to the output of `agentlab job logs --follow`, against
//! the same lines through a pipe and nothing else.
//!
//! ```text
//!   sh in bubblewrap ─► agent-runner ─TLS─► daemon ─► agentlab job logs --follow ─► here
//!   sh ───────────────────────────────────────────────────────────────────────────► here
//! ```
//! The runner is the static program, in a bubblewrap of its own: it ends every process of its agent's user, and empties
//! directories that the host may have too. All of it is in a network namespace where the sandbox's address is the one
//! that connections of loopback come from. Needs root, `agentlabd-fake` and `agentlab` beside this program, and what
//! `packaging/build-runner` makes.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agentlab_protocol::seed::{Seed, SeedChannel};
use agentlab_testkit::{root_tier, runner_path};
use agentlab_tests_contract::{Lab, run};
use anyhow::{Context as _, Result, ensure};
use tokio::time::timeout;

/// Tells this program that it is in its namespace.
const INSIDE: &str = "--inside";
const LINES: usize = 200;
/// Some lines come right behind another, which is on its way already, and some alone.
const SCRIPT: &str = "for line in $(seq 200); do date +%s%N; sleep 0.0$((line % 5)); done";
const PATIENCE: Duration = Duration::from_secs(60);
/// A machine as the template makes one, of which nothing is on this one's disk.
const MACHINE: &str = "--die-with-parent --unshare-pid --cap-add ALL --tmpfs / --ro-bind /usr /usr --ro-bind /etc /etc \
    --symlink usr/bin /bin --symlink usr/sbin /sbin --symlink usr/lib /lib --symlink usr/lib64 /lib64 --proc /proc \
    --dev /dev --tmpfs /run --perms 1777 --tmpfs /tmp --perms 1777 --dir /var/tmp --dir /work --dir /var/lib \
    --perms 0777 --dir /home/agent";

#[expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
fn main() -> Result<()> {
    if !root_tier() {
        return Ok(());
    }
    if !std::env::args().any(|argument| argument == INSIDE) {
        let mut again = Command::new("unshare");
        again
            .args(["--net", "--"])
            .arg(std::env::current_exe()?)
            .arg(INSIDE);
        ensure!(again.status()?.success(), "{again:?} failed");
        return Ok(());
    }
    ip("link set lo up")?;
    let mut pipe = Command::new("sh");
    pipe.args(["-c", SCRIPT]).stdin(Stdio::null());
    let pipe = Late::of(&mut pipe)?;
    let followed = followed()?;
    println!("log line of {LINES}, from the agent's clock to who follows, TLS on loopback:");
    println!("  plain pipe              {pipe}");
    println!("  agentlab job logs -f    {followed}   budget 50 ms");
    Ok(())
}

/// Lines of an agent, in the hands of who follows its job.
fn followed() -> Result<Late> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let _entered = runtime.enter();
    let mut lab = Lab::prepare()?;
    lab.flags(&["--loopback"]);
    let visitors = lab.visitors()?;
    lab.start()?;
    let ran = lab.agentlab(&lab.job(SCRIPT, &["--detach"])?)?;
    ensure!(ran.code() == Some(0), "{ran:?}\n{}", lab.log());
    let booted = runtime.block_on(async { timeout(PATIENCE, visitors.next()).await });
    let (mut seed, _line) = booted.context("no machine was powered on")??;
    seed.channels = vec![SeedChannel::Tls];
    let _guest = Guest::boot(&lab, &seed)?;
    let job = ran.stdout.trim();
    let mut follow = lab.command(&["job", "logs", "--follow", "--plain", job]);
    Late::of(&mut follow).with_context(|| {
        let console = fs::read_to_string(lab.path("console")).unwrap_or_default();
        let shown = lab.agentlab(&["job", "show", job]);
        format!("{shown:?}\n{console}\n{}", lab.log())
    })
}

fn ip(words: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(words.split(' '));
    let ran = run(command)?;
    ensure!(ran.code() == Some(0), "ip {words}: {}", ran.stderr);
    Ok(())
}

/// The runner as a process; ends when dropped.
struct Guest(Child);

impl Guest {
    fn boot(lab: &Lab, seed: &Seed) -> Result<Self> {
        ip(&format!(
            "route replace local 127.0.0.1 dev lo table local src {}",
            seed.address
        ))?;
        let carrier = lab.path("carrier");
        fs::create_dir(&carrier)?;
        fs::write(carrier.join("seed"), seed.encode()?)?;
        let runner = runner_path();
        ensure!(
            runner.exists(),
            "{} does not exist: packaging/build-runner makes it",
            runner.display()
        );
        let bind = |way: &'static str, from: &Path, to: &'static str| [way.into(), from.into(), to.into()];
        let no_swap = lab.path("no-swap");
        fs::write(&no_swap, "")?;
        let binds: [[OsString; 3]; 3] = [
            bind("--ro-bind", &no_swap, "/proc/swaps"),
            bind("--bind", &carrier, "/carrier"),
            bind("--ro-bind", &runner, "/agent-runner"),
        ];
        let console = fs::File::create(lab.path("console"))?;
        let child = Command::new("bwrap")
            .args(MACHINE.split_ascii_whitespace())
            .args(binds.into_iter().flatten())
            .args([
                "--",
                "/agent-runner",
                "--no-machine-setup",
                "--seed",
                "/carrier/seed",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(console)
            .spawn()
            .context("bwrap")?;
        Ok(Self(child))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It goes away whether or not it was still there.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How late each line was, the least first.
struct Late(Vec<Duration>);

impl Late {
    /// Reads a program to its end. A line that is no time is not the agent's.
    fn of(program: &mut Command) -> Result<Self> {
        let mut child = program.stdout(Stdio::piped()).spawn()?;
        let output = BufReader::new(child.stdout.take().context("stdout")?);
        let mut late = Vec::with_capacity(LINES);
        for line in output.lines() {
            let line = line?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
            if let Ok(printed) = line.trim().parse() {
                late.push(now.saturating_sub(Duration::from_nanos(printed)));
            }
        }
        let status = child.wait()?;
        ensure!(
            status.success() && late.len() == LINES,
            "{program:?} ended with {status} after {} of {LINES} lines",
            late.len()
        );
        late.sort_unstable();
        Ok(Self(late))
    }

    fn milliseconds(&self, percent: usize) -> f64 {
        self.0[self.0.len() * percent / 100].as_secs_f64() * 1e3
    }
}

impl std::fmt::Display for Late {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "p50 {:6.2} ms   p99 {:6.2} ms",
            self.milliseconds(50),
            self.milliseconds(99)
        )
    }
}
