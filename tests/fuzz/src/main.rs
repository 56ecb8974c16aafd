//! Fuzzes targets for as long as somebody has time.
//!
//! ```text
//!   AGENTLAB_FUZZ_SECONDS=n agentlab-tests-fuzz [TARGET...]    each for n seconds (60), all by default
//!   AGENTLAB_FUZZ_SEED=n ...                                   the random numbers of an earlier run
//!   agentlab-tests-fuzz TARGET:FILE                            one input again
//!   agentlab-tests-fuzz --list                                 names of the targets
//!   agentlab-tests-fuzz --seeds DIR                            their seeds and regressions, for another driver
//! ```

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agentlab_tests_fuzz::driver::{Budget, default_dir, guarded, regressions};
use agentlab_tests_fuzz::{TARGETS, Target, check, find};
use anyhow::{Context, Result, ensure};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["--list"] => {
            TARGETS.iter().for_each(|target| say(target.name));
            Ok(())
        }
        ["--seeds", dir] => write_seeds(Path::new(dir)),
        orders => obey(orders),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "a command line tool that reports to a person")]
fn say(words: &str) {
    println!("{words}");
}

#[expect(clippy::print_stderr, reason = "a command line tool that reports to a person")]
fn complain(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}

fn obey(orders: &[&str]) -> Result<()> {
    let budget = Budget {
        inputs: u64::MAX,
        time: Duration::from_secs(number("AGENTLAB_FUZZ_SECONDS")?.unwrap_or(60)),
    };
    let clock = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let seed = number("AGENTLAB_FUZZ_SEED")?.unwrap_or(clock);
    say(&format!(
        "{} s for each target, AGENTLAB_FUZZ_SEED={seed}",
        budget.time.as_secs()
    ));
    let all: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    let mut broken = 0;
    for order in if orders.is_empty() { &all } else { orders } {
        if let Some((name, path)) = order.split_once(':') {
            let input = std::fs::read(path).with_context(|| path.to_owned())?;
            say(&format!("{:?}", check(named(name)?, &input)));
            continue;
        }
        match guarded(named(order)?, budget, seed, &default_dir()) {
            Ok(summary) => say(&summary.to_string()),
            Err(error) => {
                broken += 1;
                complain(&error);
            }
        }
    }
    ensure!(broken == 0, "{broken} targets are broken");
    Ok(())
}

fn named(name: &str) -> Result<&'static Target> {
    find(name).with_context(|| format!("no target `{name}`: --list names them"))
}

fn number(variable: &str) -> Result<Option<u64>> {
    std::env::var(variable)
        .ok()
        .map(|text| {
            text.parse()
                .with_context(|| format!("{variable} is `{text}`, and must be a number"))
        })
        .transpose()
}

fn write_seeds(dir: &Path) -> Result<()> {
    for target in TARGETS {
        let of_target = dir.join(target.name);
        std::fs::create_dir_all(&of_target).with_context(|| of_target.display().to_string())?;
        let inputs = (target.seeds)().into_iter().chain(regressions(target)?);
        for (index, input) in inputs.enumerate() {
            std::fs::write(of_target.join(format!("seed-{index}")), input)?;
        }
    }
    Ok(())
}
