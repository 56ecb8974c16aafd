//! The guest of a story: what it knows, and what it says, in order. What it could not say it says again.

use std::time::Duration;

use agentlab_backend::fake::Fake;
use agentlab_backend::{Power, Stamp};
use agentlab_protocol::message::{LogBatch, LogPiece, Order, Phase, Stream};
use agentlab_protocol::secret::Secret32;
use agentlab_protocol::seed::Seed;
use agentlab_store::JobRecord;
use tokio::time::sleep;

use super::lab::{Guest, Lab, vmid};
use super::story::{Memory, PACE, Story};
use super::workspace;
use crate::{GuestOrigin, GuestRefusal};

/// Between two signs of life of a guest that works on.
const WORKING: Duration = Duration::from_secs(5);

/// What one guest knows; another power-on makes another guest.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Which power-on of which machine it came with, and the seed it read then.
    power_on: Option<(Stamp, u32)>,
    seed: Option<Seed>,
    /// What it is to work on.
    order: Option<String>,
    session: Option<Secret32>,
    /// Its next word.
    pub(super) next: usize,
    /// Why it has given up.
    gave_up: Option<GuestRefusal>,
}

/// What a guest says, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Redeem,
    Acknowledge,
    Beat(Phase),
    FirstLog,
    SecondLog,
    Upload(&'static str),
    Report,
}

const WORDS: [Word; 10] = [
    Word::Redeem,
    Word::Acknowledge,
    Word::Beat(Phase::Agent),
    Word::FirstLog,
    Word::SecondLog,
    Word::Beat(Phase::Upload),
    Word::Upload("files/a"),
    Word::Upload("work.bundle"),
    Word::Beat(Phase::Report),
    Word::Report,
];
pub(super) const LINES: [&str; 3] = ["one\n", "two\n", "three\n"];

/// The seed of the guest that runs.
fn seed_of(backend: &Fake, memory: &Memory) -> Option<Seed> {
    let mut vmids = backend.vmids().into_iter();
    let vmid = vmids.find(|vmid| backend.power(*vmid) == Some(Power::Running))?;
    let power_on = (backend.stamp(vmid).unwrap(), backend.power_ons(vmid));
    if memory.guest.borrow().power_on.as_ref() != Some(&power_on) {
        let bytes = backend.booted_with(vmid).unwrap();
        memory.guest.replace(Known {
            power_on: Some(power_on),
            seed: Some(Seed::decode(&bytes).unwrap()),
            ..Known::default()
        });
    }
    memory.guest.borrow().seed.clone()
}

pub(super) async fn guest(lab: &Lab, story: Story, memory: &Memory) {
    loop {
        sleep(PACE).await;
        let Some(seed) = seed_of(&lab.backend, memory).filter(|_| story != Story::BootFails) else {
            continue;
        };
        let next = memory.guest.borrow().next;
        let told_to_end = story != Story::Cancelled || lab_says_cancelled(lab, memory).await;
        let word = match WORDS.get(next) {
            Some(Word::Beat(Phase::Report) | Word::Report) if story.reports().is_none() || !told_to_end => {
                Word::Beat(Phase::Agent)
            }
            Some(Word::Redeem | Word::Acknowledge) => WORDS[next],
            // Nobody gave it work.
            Some(_) if memory.guest.borrow().order.is_none() => Word::Beat(Phase::Idle),
            Some(word) => *word,
            None => continue,
        };
        let mut guest = Guest {
            origin: GuestOrigin::Address(seed.address),
            seed,
            key: [9; 32],
            session: memory.guest.borrow().session.clone(),
            runner_version: "0.1.0",
        };
        match say(&mut guest, lab, story, memory, word).await {
            Ok(()) => {
                let is_next = WORDS.get(next) == Some(&word);
                {
                    let mut known = memory.guest.borrow_mut();
                    known.session = guest.session;
                    known.next += usize::from(is_next);
                }
                if !is_next {
                    sleep(WORKING).await;
                }
            }
            Err(GuestRefusal::Unavailable(_)) => {}
            Err(refusal) => {
                // A runner that is turned away ends, and its machine with it.
                if memory.guest.borrow_mut().gave_up.replace(refusal).is_none() {
                    lab.backend.stop(vmid(guest.seed.vmid));
                }
            }
        }
    }
}

async fn lab_says_cancelled(lab: &Lab, memory: &Memory) -> bool {
    let id = memory.job.borrow().as_ref().map(|job| job.id.clone());
    match id {
        Some(id) => lab
            .store
            .job(&id)
            .await
            .unwrap()
            .is_some_and(|job: JobRecord| job.cancel_requested),
        None => false,
    }
}

async fn say(
    guest: &mut Guest,
    lab: &Lab,
    story: Story,
    memory: &Memory,
    word: Word,
) -> Result<(), GuestRefusal> {
    match word {
        Word::Redeem => {
            let answer = guest.redeem(lab).await?;
            if let Order::Job(order) = answer.order {
                memory.guest.borrow_mut().order = Some(order.job);
            }
            Ok(())
        }
        Word::Acknowledge => {
            let session = guest.authenticate(lab).await?;
            lab.engine().acknowledge(&session).await
        }
        Word::Beat(phase) if story.has_workspace() => workspace::beat(guest, lab, phase).await,
        Word::Beat(phase) => guest.beat(lab, phase).await.map(drop),
        Word::FirstLog => logs(guest, lab, 0, &LINES[..2]).await,
        // Begins before what is known, as a runner does whose answer was lost.
        Word::SecondLog => logs(guest, lab, 1, &LINES[1..]).await,
        Word::Upload(name) => guest.upload(lab, name, b"bytes").await,
        Word::Report => {
            let order = memory.guest.borrow().order.clone();
            let Some((order, (status, code))) = order.zip(story.reports()) else {
                return Ok(());
            };
            let job = lab.job(&order.parse().unwrap()).await;
            guest.report(lab, &job, status, Some(code)).await
        }
    }
}

async fn logs(guest: &Guest, lab: &Lab, first: u64, texts: &[&str]) -> Result<(), GuestRefusal> {
    let session = guest.authenticate(lab).await?;
    let piece = |text: &&str| LogPiece {
        stream: Stream::Stdout,
        text: (*text).to_owned(),
    };
    let batch = LogBatch {
        first,
        pieces: texts.iter().map(piece).collect(),
    };
    lab.engine().guest_logs(&session, batch).await
}
