//! What a runner leaves for the one that is started when it was killed, in memory that never reaches a disk.
//!
//! ```text
//!   seed, key kept ─► redeem ─► answer kept ─► acknowledge ─► job ─► report ─► ended kept
//!         └ the same key again: the same answer      └ the same session: what the agent made is collected
//! ```
//!
//! Without it the next runner would come with another key, which is what a thief of the token would do.

use std::path::Path;

use agentlab_protocol::message::RedeemAnswer;
use agentlab_protocol::secret::{Secret32, SecretText};
use agentlab_protocol::seed::Seed;
use agentlab_protocol::session::{decode_secret, encode_secret};
use serde::{Deserialize, Serialize};

use crate::console::say;
use crate::link::{Link, LinkError, Ways};
use crate::secrets::SecretDir;

const FILE: &str = "remains";

/// All that is kept.
#[derive(Debug, Serialize, Deserialize)]
pub struct Remains {
    /// As text: its carrier may be gone by now.
    seed: SecretText,
    key: SecretText,
    /// Once the token is redeemed.
    pub answer: Option<RedeemAnswer>,
    /// The job's report is handed over.
    pub ended: bool,
    /// Runners that were killed.
    pub deaths: u32,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum RemainsError {
    /// The kernel gives no random bytes.
    #[error("No random bytes for the runner's key: {0}")]
    Random(String),
    /// Not a seed that could be written down.
    #[error("Seed cannot be kept")]
    Seed(#[from] agentlab_protocol::seed::SeedError),
    /// Not a key of ours.
    #[error("What an earlier runner left is damaged: {0}")]
    Damaged(&'static str),
    /// The host refused.
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl Remains {
    /// Of the first runner of a machine.
    ///
    /// # Errors
    /// No random bytes.
    pub fn first(seed: &Seed) -> Result<Self, RemainsError> {
        let mut key = [0u8; 32];
        getrandom::fill(&mut key).map_err(|error| RemainsError::Random(error.to_string()))?;
        Ok(Self {
            seed: SecretText::new(seed.to_text()?),
            key: encode_secret(&Secret32::new(key)),
            answer: None,
            ended: false,
            deaths: 0,
        })
    }

    /// The machine's seed.
    ///
    /// # Errors
    /// It is damaged.
    pub fn seed(&self) -> Result<Seed, RemainsError> {
        Ok(Seed::from_text(self.seed.expose())?)
    }

    /// The key that the token is, or was, redeemed with.
    ///
    /// # Errors
    /// It is damaged.
    pub fn key(&self) -> Result<Secret32, RemainsError> {
        decode_secret(self.key.expose()).ok_or(RemainsError::Damaged("its key is not 32 bytes of base64url"))
    }
}

/// Where it is kept: a directory that only root reads.
#[derive(Debug)]
pub struct Keeper(Option<SecretDir>);

impl Keeper {
    /// Keeps nothing.
    #[must_use]
    pub fn nowhere() -> Self {
        Self(None)
    }

    /// Where memory cannot be had nothing is kept, and a runner that is killed has lost its job.
    #[must_use]
    pub fn open(path: &Path) -> Self {
        match SecretDir::mount(path, 0, 0) {
            Ok(directory) => Self(Some(directory)),
            Err(error) => {
                say(format_args!(
                    "a runner that is killed will not be followed: {error}"
                ));
                Self(None)
            }
        }
    }

    /// What a runner left that was killed, with that death counted.
    #[must_use]
    pub fn found(&self) -> Option<Remains> {
        let bytes = self.0.as_ref()?.read(FILE).ok()??;
        match serde_json::from_slice::<Remains>(&bytes) {
            Ok(mut remains) => {
                remains.deaths = remains.deaths.saturating_add(1);
                Some(remains)
            }
            // Words of serde's may quote a value.
            Err(_) => {
                say("what an earlier runner left cannot be read");
                None
            }
        }
    }

    /// Keeps it from now on, in the place of what was kept. A failure is said on the console: the job goes on.
    pub fn keep(&self, remains: &Remains) {
        let Some(directory) = &self.0 else { return };
        let kept = match serde_json::to_vec(remains) {
            Ok(bytes) => directory.replace(FILE, &bytes).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = kept {
            say(format_args!(
                "a runner that is killed now will not be followed: {error}"
            ));
        }
    }
}

/// The machine's session: redeemed now, or by an earlier runner.
///
/// # Errors
/// The host refused.
pub async fn session(
    remains: &mut Remains,
    keeper: &Keeper,
    ways: Ways,
) -> Result<(Link, RedeemAnswer), RemainsError> {
    keeper.keep(remains);
    let (link, answer) = match remains.answer.clone() {
        Some(answer) => (Link::of(&answer, ways)?, answer),
        None => {
            let (link, answer) = Link::redeem(&remains.seed()?, &remains.key()?, ways).await?;
            remains.answer = Some(answer.clone());
            keeper.keep(remains);
            (link, answer)
        }
    };
    link.acknowledge().await?;
    Ok((link, answer))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::requirement::skipped_without_root;
    use crate::seed::example;

    #[test]
    fn the_next_runner_finds_seed_and_key_and_counts_the_death_of_the_last() {
        if skipped_without_root() {
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("runner");
        let keeper = Keeper::open(&path);
        assert!(keeper.found().is_none());
        let first = Remains::first(&example(1000)).unwrap();
        keeper.keep(&first);
        keeper.keep(&first);
        let meta = std::fs::metadata(path.join(FILE)).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o400, 0));

        let second = Keeper::open(&path).found().unwrap();
        assert_eq!((second.deaths, second.ended), (1, false));
        assert_eq!(second.seed().unwrap(), example(1000));
        assert_eq!(second.key().unwrap(), first.key().unwrap());
        assert!(!format!("{second:?}").contains(first.key.expose()));

        std::fs::remove_file(path.join(FILE)).unwrap();
        std::fs::write(path.join(FILE), "{").unwrap();
        assert!(Keeper::open(&path).found().is_none());
        rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH).unwrap();
        assert!(Keeper::nowhere().found().is_none());
    }
}
