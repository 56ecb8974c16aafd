//! Every target for a short while, and the driver against a parser with known faults.

use std::time::Duration;

use crate::driver::{Broken, Budget, Summary, fuzz, guarded, regressions};
use crate::{Outcome, TARGETS, Target, check, driver, find};

/// The same inputs at every run, so that a failure here is a failure everywhere.
const SEED: u64 = 0x1a6;
/// On a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(6);

fn brief(name: &str) {
    let target = find(name).unwrap();
    let budget = Budget {
        inputs: target.inputs,
        time: PATIENCE,
    };
    match guarded(target, budget, SEED, &driver::default_dir()) {
        Ok(summary) => println!("seed {SEED}: {summary}"),
        Err(error) => panic!("seed {SEED}: {error:#}"),
    }
}

/// One test for each target, so that they run side by side and fail by name.
macro_rules! fuzzed {
    ($($name:ident: $sentence:ident,)*) => {
        $(#[test]
        fn $sentence() {
            brief(stringify!($name));
        })*

        #[test]
        fn every_target_is_fuzzed() {
            let fuzzed = [$(stringify!($name)),*];
            let targets: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(fuzzed.as_slice(), targets);
        }
    };
}

fuzzed! {
    artifact_name: no_artifact_name_leaves_its_directory,
    bundle: no_bundle_is_half_read_or_refused_with_a_value,
    channel: no_noise_on_the_line_locks_out_the_next_guest,
    config: no_config_is_half_read_or_refused_without_a_place,
    dns: no_message_opens_what_its_name_does_not_stand_for,
    frame: no_bytes_swallow_the_frames_behind_them,
    message: no_message_changes_on_its_way_or_prints_a_secret,
    profile: no_profile_is_half_read_or_refused_without_a_place,
    qmp: no_qemu_makes_its_client_hang_or_grow,
    recipe: no_recipe_is_half_read_or_refused_without_a_place,
    redactor: no_secret_is_printed_however_it_is_cut,
    seed: no_seed_is_read_that_cannot_be_written,
    stamp: no_stamp_or_id_has_two_meanings,
}

/// A target whose parser refuses all its seeds would look at nothing but the first check.
#[test]
fn every_target_accepts_one_of_its_seeds_and_refuses_another() {
    for target in TARGETS {
        let inputs = (target.seeds)();
        let accepted = inputs
            .iter()
            .filter(|input| check(target, input).0.accepted)
            .count();
        assert!(accepted > 0, "{}: no seed is accepted", target.name);
        assert!(accepted < inputs.len(), "{}: no seed is refused", target.name);
    }
}

#[test]
fn every_regression_belongs_to_a_target() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    for entry in std::fs::read_dir(dir).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let target = find(&name).unwrap_or_else(|| panic!("regressions of `{name}`, which is no target"));
        assert!(!regressions(target).unwrap().is_empty(), "{name}");
    }
}

/// Fails on a word, on memory and on time: what the driver must find in a parser.
fn faulty(input: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(input);
    assert!(!text.contains("key: [256"), "a planted fault");
    if text.contains("hoard") {
        drop(vec![1u8; 8 << 20]);
    }
    Outcome {
        accepted: text.starts_with("key"),
        words: text.matches('[').count().to_string()
            + if text.contains("key: [") {
                "opened"
            } else {
                "closed"
            },
    }
}

const FAULTY: Target = Target {
    name: "faulty",
    seeds: || vec![b"key: 12".to_vec()],
    words: &["[", "]"],
    run: faulty,
    longest: 200,
    base_bytes: 4 << 10,
    bytes_per_byte: 16,
    inputs: 0,
};

static PLANTED: Target = FAULTY;
static GREEDY: Target = Target {
    words: &["hoard"],
    ..FAULTY
};

fn fault_of(target: &'static Target, dir: &std::path::Path) -> Broken {
    let budget = Budget {
        inputs: 200_000,
        time: Duration::from_secs(30),
    };
    let outcome: Result<Summary, anyhow::Error> = fuzz(target, budget, SEED, dir);
    outcome.unwrap_err().downcast::<Broken>().unwrap()
}

#[test]
fn the_driver_finds_a_planted_fault_and_keeps_a_small_input_that_repeats_it() {
    let dir = tempfile::tempdir().unwrap();
    let broken = fault_of(&PLANTED, dir.path());
    assert!(broken.words.contains("a planted fault"), "{broken}");
    assert_eq!(std::fs::read(&broken.path).unwrap(), b"key: [256", "{broken}");
    let left = std::fs::read_dir(dir.path().join("faulty")).unwrap().count();
    assert_eq!(left, 1, "the input that was running is still there");
}

#[test]
fn the_driver_finds_a_parser_that_takes_memory_out_of_proportion() {
    let dir = tempfile::tempdir().unwrap();
    let broken = fault_of(&GREEDY, dir.path());
    assert!(broken.words.contains("bytes of memory"), "{broken}");
}

#[test]
fn an_input_during_which_the_process_died_is_run_first_next_time() {
    let dir = tempfile::tempdir().unwrap();
    let of_target = dir.path().join("faulty");
    std::fs::create_dir(&of_target).unwrap();
    // No process has this number: it is above what the kernel gives.
    std::fs::write(of_target.join("running-99999999"), b"x key: [256 x").unwrap();
    let none = Budget {
        inputs: 0,
        time: Duration::ZERO,
    };
    let error = fuzz(&PLANTED, none, SEED, dir.path()).unwrap_err();
    assert!(
        error
            .downcast::<Broken>()
            .unwrap()
            .words
            .contains("a planted fault")
    );
    fuzz(&PLANTED, none, SEED, dir.path()).unwrap();
}
