//! All targets.

mod artifact_name;
mod bundle;
mod channel;
mod config;
mod dns;
mod frame;
mod message;
mod profile;
mod qmp;
mod recipe;
mod redactor;
mod seed;
mod stamp;

/// One parser with the properties it must have.
#[derive(Debug)]
pub struct Target {
    /// Its name: of its module, its directory of regressions and its libFuzzer harness.
    pub name: &'static str,
    /// Small real inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Words of its language, put into inputs as they are.
    pub words: &'static [&'static str],
    /// Runs one input; panics when a property does not hold.
    pub run: fn(&[u8]) -> Outcome,
    /// Longest input that is made.
    pub longest: usize,
    /// Memory allowed whatever the input.
    pub base_bytes: u64,
    /// Memory allowed for each byte of input besides.
    pub bytes_per_byte: u64,
    /// Inputs in CI: about two seconds without optimisation.
    pub inputs: u64,
}

/// What became of an input that broke no property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// It was what the parser reads.
    pub accepted: bool,
    /// What it was, or why it was not: inputs with new words are worth mutating.
    pub words: String,
}

impl Outcome {
    fn accepted(words: impl Into<String>) -> Self {
        Self {
            accepted: true,
            words: words.into(),
        }
    }

    fn refused(words: impl Into<String>) -> Self {
        Self {
            accepted: false,
            words: words.into(),
        }
    }
}

/// Every target, by name.
pub const TARGETS: &[Target] = &[
    artifact_name::TARGET,
    bundle::TARGET,
    channel::TARGET,
    config::TARGET,
    dns::TARGET,
    frame::TARGET,
    message::TARGET,
    profile::TARGET,
    qmp::TARGET,
    recipe::TARGET,
    redactor::TARGET,
    seed::TARGET,
    stamp::TARGET,
];

/// The target of a name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
