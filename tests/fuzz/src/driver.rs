//! The driver for every toolchain: mutates, remembers inputs whose outcome nobody had before, and keeps what fails.
//!
//! The input being run stands in `running-<pid>` meanwhile. A target that kills the process (stack, memory) or is
//! killed because it hangs leaves it there, and the next run begins with it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use agentlab_protocol::session::sha256;
use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::limits::{Cost, check};
use crate::mutate::{Pantry, mutate};
use crate::panics::caught;
use crate::random::Random;
use crate::{Outcome, Target};

/// Interesting inputs remembered; the first ones stay.
const MAX_CORPUS: usize = 2_000;
/// For making a failing input smaller.
const SHRINKING: Duration = Duration::from_secs(10);
/// What a thread of the daemon's has; deep input must not need more.
const STACK: usize = 2 << 20;
/// Beyond its time, before a run counts as hanging.
const GRACE: Duration = Duration::from_secs(60);
/// Address space of the process: who asks for more dies, and not the machine.
const MAX_MEMORY: u64 = 8 << 30;

/// When to stop: at whichever comes first.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Mutated inputs.
    pub inputs: u64,
    /// Time.
    pub time: Duration,
}

/// What a run did.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The target.
    pub target: &'static str,
    /// Inputs run.
    pub inputs: u64,
    /// Of those, accepted by the parser.
    pub accepted: u64,
    /// Different outcomes met.
    pub outcomes: usize,
    /// The most that any input cost.
    pub dearest: Cost,
    /// How long it took.
    pub elapsed: Duration,
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:<14} {:>10} inputs in {:>6.1} s, {:>9} accepted, {:>5} outcomes, at most {:>6} KiB and {:>4} ms",
            self.target,
            self.inputs,
            self.elapsed.as_secs_f64(),
            self.accepted,
            self.outcomes,
            self.dearest.bytes / 1024,
            self.dearest.cpu.as_millis()
        )
    }
}

/// An input that broke a property.
#[derive(Debug, thiserror::Error)]
#[error(
    "{target}: {words}\n  input of {length} bytes: {}\n  fix it, and keep the input in tests/fuzz/regressions/{target}/",
    path.display()
)]
pub struct Broken {
    /// The target.
    pub target: &'static str,
    /// Where the input is.
    pub path: PathBuf,
    /// Its length.
    pub length: usize,
    /// The panic.
    pub words: String,
}

/// `target/fuzz` of the workspace.
#[must_use]
pub fn default_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz")
}

/// Inputs that failed once.
///
/// # Errors
/// The directory cannot be read.
pub fn regressions(target: &Target) -> Result<Vec<Vec<u8>>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("regressions")
        .join(target.name);
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| dir.display().to_string())?,
    };
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    paths
        .iter()
        .map(|path| fs::read(path).with_context(|| path.display().to_string()))
        .collect()
}

/// As [`fuzz`], in a thread with a daemon's stack, and not for ever: an input that hangs ends the process, and stays in
/// its file. Memory is limited for the whole process.
///
/// # Errors
/// As [`fuzz`].
///
/// # Panics
/// The driver itself panicked.
pub fn guarded(target: &'static Target, budget: Budget, seed: u64, dir: &Path) -> Result<Summary> {
    let limit = Rlimit {
        current: Some(MAX_MEMORY),
        maximum: Some(MAX_MEMORY),
    };
    setrlimit(Resource::As, limit)?;
    let (report, done) = channel();
    let at = dir.to_owned();
    let thread = std::thread::Builder::new()
        .name(target.name.to_owned())
        .stack_size(STACK)
        .spawn(move || report.send(fuzz(target, budget, seed, &at)))?;
    match done.recv_timeout(budget.time + GRACE) {
        Ok(result) => {
            drop(thread.join());
            result
        }
        Err(RecvTimeoutError::Timeout) => hung(target, dir),
        Err(RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(_) => unreachable!("ended without a report"),
        },
    }
}

#[expect(clippy::print_stderr, reason = "last words")]
fn hung(target: &Target, dir: &Path) -> ! {
    let path = running_path(&dir.join(target.name));
    eprintln!("error: {} hangs; its input is {}", target.name, path.display());
    // Nothing else ends a thread that does not return.
    std::process::abort()
}

fn running_path(dir: &Path) -> PathBuf {
    dir.join(format!("running-{}", std::process::id()))
}

/// Fuzzes one target, with its files in `dir`. The same `seed` and number of inputs make the same inputs.
///
/// # Errors
/// [`Broken`] when a property does not hold; otherwise `dir` cannot be used.
pub fn fuzz(target: &'static Target, budget: Budget, seed: u64, dir: &Path) -> Result<Summary> {
    let mut run = Run::new(target, &dir.join(target.name))?;
    for input in run.interrupted()? {
        run.one(&input)?;
    }
    for input in regressions(target)?.into_iter().chain((target.seeds)()) {
        run.one(&input)?;
        run.remember(input);
    }
    let mut random = Random::new(seed);
    let mut done = 0;
    while done < budget.inputs && run.begun.elapsed() < budget.time {
        // What was accepted leads further than what was refused at once.
        let from = if random.below(4) == 0 || run.good.is_empty() {
            &run.corpus
        } else {
            &run.good
        };
        let mut input = random.pick(from).cloned().unwrap_or_default();
        let pantry = Pantry {
            corpus: &run.corpus,
            words: target.words,
            longest: target.longest,
        };
        mutate(&mut input, &pantry, &mut random);
        if run.one(&input)? {
            run.remember(input);
        }
        done += 1;
    }
    run.finish()
}

struct Run {
    dir: PathBuf,
    running_path: PathBuf,
    running: File,
    corpus: Vec<Vec<u8>>,
    /// Those of the corpus that were accepted.
    good: Vec<Vec<u8>>,
    was_accepted: bool,
    known: HashSet<u64>,
    begun: Instant,
    target: &'static Target,
    summary: Summary,
}

impl Run {
    fn new(target: &'static Target, dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let running_path = running_path(dir);
        let running = File::create(&running_path).with_context(|| running_path.display().to_string())?;
        Ok(Self {
            dir: dir.to_owned(),
            running_path,
            running,
            corpus: Vec::new(),
            good: Vec::new(),
            was_accepted: false,
            known: HashSet::new(),
            begun: Instant::now(),
            target,
            summary: Summary {
                target: target.name,
                inputs: 0,
                accepted: 0,
                outcomes: 0,
                dearest: Cost::default(),
                elapsed: Duration::ZERO,
            },
        })
    }

    /// Inputs during which an earlier run ended.
    fn interrupted(&self) -> Result<Vec<Vec<u8>>> {
        let mut inputs = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let pid = path
                .file_name()
                .and_then(|name| name.to_str()?.strip_prefix("running-"))
                .filter(|pid| !Path::new("/proc").join(pid).exists());
            if pid.is_some() {
                inputs.push(fs::read(&path)?);
                fs::remove_file(&path)?;
            }
        }
        Ok(inputs)
    }

    /// Runs one input; whether its outcome is new.
    fn one(&mut self, input: &[u8]) -> Result<bool> {
        self.running.write_all_at(input, 0)?;
        self.running.set_len(u64::try_from(input.len())?)?;
        let target = self.target;
        match caught(|| check(target, input)) {
            Ok((outcome, cost)) => {
                let summary = &mut self.summary;
                self.was_accepted = outcome.accepted;
                summary.inputs += 1;
                summary.accepted += u64::from(outcome.accepted);
                summary.dearest.bytes = summary.dearest.bytes.max(cost.bytes);
                summary.dearest.cpu = summary.dearest.cpu.max(cost.cpu);
                Ok(self.known.insert(fingerprint(&outcome)))
            }
            Err(words) => Err(self.broken(input, &words)),
        }
    }

    /// Keeps the input that was run last, to mutate it.
    fn remember(&mut self, input: Vec<u8>) {
        if self.corpus.len() < MAX_CORPUS {
            if self.was_accepted {
                self.good.push(input.clone());
            }
            self.corpus.push(input);
        }
    }

    fn broken(&self, input: &[u8], words: &str) -> anyhow::Error {
        let (input, words) = self.shrunk(input, words);
        let path = self.dir.join(hex::encode(&sha256(&input)[..8]));
        if let Err(error) = fs::write(&path, &input).and_then(|()| fs::remove_file(&self.running_path)) {
            return anyhow::Error::new(error).context(format!("{} for: {words}", path.display()));
        }
        Broken {
            target: self.target.name,
            path,
            length: input.len(),
            words,
        }
        .into()
    }

    /// A smaller input that fails in the same place.
    fn shrunk(&self, input: &[u8], words: &str) -> (Vec<u8>, String) {
        let mut best = (input.to_vec(), words.to_owned());
        let place = |words: &str| words.lines().next().map(str::to_owned);
        let mut piece = input.len() / 2;
        let begun = Instant::now();
        while piece > 0 {
            let mut from = 0;
            while from < best.0.len() && begun.elapsed() < SHRINKING {
                let mut smaller = best.0.clone();
                smaller.drain(from..(from + piece).min(smaller.len()));
                match caught(|| check(self.target, &smaller)) {
                    Err(words) if place(&words) == place(&best.1) => best = (smaller, words),
                    Ok(_) | Err(_) => from += piece,
                }
            }
            piece /= 2;
        }
        best
    }

    fn finish(mut self) -> Result<Summary> {
        fs::remove_file(&self.running_path)?;
        self.summary.outcomes = self.known.len();
        self.summary.elapsed = self.begun.elapsed();
        Ok(self.summary)
    }
}

/// Outcomes that differ in quoted words and numbers only are one. What is quoted may hold quotes itself: all between
/// the first and the last is left out.
fn fingerprint(outcome: &Outcome) -> u64 {
    let mut hasher = DefaultHasher::new();
    outcome.accepted.hash(&mut hasher);
    for part in outcome.words.lines() {
        let before = part.split(['`', '"']).next().unwrap_or_default();
        let after = part.rsplit(['`', '"']).next().unwrap_or_default();
        for letter in before
            .chars()
            .chain(after.chars())
            .filter(|c| !c.is_ascii_digit())
        {
            letter.hash(&mut hasher);
        }
    }
    hasher.finish()
}
