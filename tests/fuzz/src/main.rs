//! `AGENTLAB_FUZZ_SECONDS=n agentlab-tests-fuzz [target...]`: fuzzes each target for so long, all of them by default.
//! `AGENTLAB_FUZZ_SEED` repeats an earlier run. A file instead of a target's name is run as `target:file`.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agentlab_tests_fuzz::driver::{Budget, default_dir, guarded};
use agentlab_tests_fuzz::{TARGETS, Target, check, find};
use anyhow::{Context, Result};

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool that reports to a person"
)]
fn main() -> ExitCode {
    let mut is_good = true;
    let result = wanted().and_then(|orders| {
        let seconds = number("AGENTLAB_FUZZ_SECONDS")?.unwrap_or(60);
        let clock = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let seed = number("AGENTLAB_FUZZ_SEED")?.unwrap_or(clock);
        let budget = Budget {
            inputs: u64::MAX,
            time: Duration::from_secs(seconds),
        };
        println!("{seconds} s for each target, AGENTLAB_FUZZ_SEED={seed}");
        for order in orders {
            match order {
                Order::Fuzz(target) => match guarded(target, budget, seed, &default_dir()) {
                    Ok(summary) => println!("{summary}"),
                    Err(error) => {
                        is_good = false;
                        eprintln!("error: {error:#}");
                    }
                },
                Order::Repeat(target, input) => println!("{:?}", check(target, &input)),
            }
        }
        Ok(())
    });
    if let Err(error) = result {
        is_good = false;
        eprintln!("error: {error:#}");
    }
    if is_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

enum Order {
    Fuzz(&'static Target),
    Repeat(&'static Target, Vec<u8>),
}

fn wanted() -> Result<Vec<Order>> {
    let mut orders: Vec<Order> = std::env::args()
        .skip(1)
        .map(|word| {
            let (name, path) = word
                .split_once(':')
                .map_or((&*word, None), |(name, path)| (name, Some(path)));
            let known = || {
                TARGETS
                    .iter()
                    .map(|target| target.name)
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            let target = find(name).with_context(|| format!("no target `{name}`; there are {}", known()))?;
            Ok(match path {
                None => Order::Fuzz(target),
                Some(path) => Order::Repeat(target, std::fs::read(path).with_context(|| path.to_owned())?),
            })
        })
        .collect::<Result<_>>()?;
    if orders.is_empty() {
        orders = TARGETS.iter().map(Order::Fuzz).collect();
    }
    Ok(orders)
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
