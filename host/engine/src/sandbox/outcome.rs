//! What a driver makes of a step that has ended: what it keeps, what it records, and what else it tries.

use std::collections::HashSet;
use std::time::Duration;

use agentlab_api::{ErrorCode, Vmid, chain};
use agentlab_store::{SandboxRecord, StoreError, TokenRecord, Write};
use tokio::time::Instant;

use super::driver::{Driver, intent};
use super::machine::Event;
use super::perform::{Produced, StepError, StepTrouble, failure};
use super::reserve::{TRIES, free_vmid};
use super::step::Step;
use crate::event::{self, StepEnd};
use crate::journal::Point;
use crate::port::Trust;
use crate::shared::Shared;

/// Numbers that are asked after one by one.
const MOST_ASKED: usize = 128;

/// VMIDs that the hypervisor has: those of its list, and before the first that is free also those of machines which it
/// does not list for us, because others may see them only.
pub(super) async fn occupied(shared: &Shared, record: &SandboxRecord) -> Result<HashSet<Vmid>, StepTrouble> {
    let machines = shared.backend.list().await?;
    let mut occupied: HashSet<Vmid> = machines.into_iter().map(|machine| machine.vmid).collect();
    let mut others = shared
        .store
        .sandboxes(false)
        .await
        .map_err(|error| StepTrouble::Own(chain(&error)))?;
    others.retain(|other| other.id != record.id);
    for _ in 0..MOST_ASKED {
        let Ok(next) = free_vmid(&shared.settings, &others, &occupied) else {
            break;
        };
        if shared.backend.inspect(next).await?.is_none() {
            break;
        }
        occupied.insert(next);
    }
    Ok(occupied)
}

impl Driver {
    pub(crate) async fn step_ended(
        &mut self,
        step: Step,
        took: Duration,
        result: Result<Produced, StepError>,
    ) {
        let fact = Write::Fact {
            sandbox: self.record.id,
            step: step.as_str().to_owned(),
            undo: false,
        };
        match result {
            Ok(Produced::Occupied(occupied)) => {
                self.choose_again(occupied, took).await;
            }
            Ok(produced) => {
                let mut extra = vec![fact, event::step(&self.record, step, false, took, &StepEnd::Done)];
                extra.extend(self.keep(step, produced));
                self.happen(&Event::StepDone(step), None, extra).await;
            }
            Err(StepError::Taken(failure)) if self.tried.len() < TRIES => {
                self.tried.insert(self.record.vmid);
                let failed = StepEnd::Failed(&failure.message);
                let extra = vec![fact, event::step(&self.record, step, false, took, &failed)];
                self.happen(&Event::VmidTaken, None, extra).await;
            }
            Err(StepError::Taken(failure) | StepError::Failed(failure)) => {
                tracing::warn!(sandbox = %self.record.id, %step, %failure, "step failed");
                let failed = StepEnd::Failed(&failure.message);
                let extra = vec![event::step(&self.record, step, false, took, &failed)];
                self.happen(&Event::StepFailed(failure), None, extra).await;
            }
        }
    }

    /// Keeps what a step made, and says what else must be recorded with it.
    fn keep(&mut self, step: Step, produced: Produced) -> Option<Write> {
        match produced {
            Produced::Tap(tap) => self.tap = tap,
            Produced::Token(token) => {
                // A new token means a new guest: what an earlier one said no longer counts.
                self.record.runner_key_sha256 = None;
                self.record.acknowledged = false;
                self.record.channel = None;
                self.token = Some(token);
                self.token_since = Some(Instant::now());
                return self.token_write();
            }
            Produced::Nothing if step == Step::PowerOn => {
                self.powered_on = Some(Instant::now());
                self.record.powered_on_at = Some(self.shared.now());
                self.enforced = Some(self.shared.deserved(Trust::BootstrapOnly, &self.record.profile));
                self.rebind = false;
                let again = self.token_write();
                if again.is_some() {
                    self.token_since = self.powered_on;
                }
                self.token = None;
                // The time to redeem counts from here; waiting for a turn to start must not eat it.
                return again;
            }
            Produced::Nothing | Produced::Occupied(_) => {}
        }
        None
    }

    fn token_write(&self) -> Option<Write> {
        let token = self.token.as_ref()?;
        Some(Write::Token(TokenRecord {
            sha256: hex::encode(agentlab_protocol::session::sha256(token.expose())),
            sandbox: self.record.id,
            expires_at: self.shared.now() + self.shared.settings.token_ttl,
        }))
    }

    /// Takes another VMID after the first turned out to be somebody else's.
    async fn choose_again(&mut self, occupied: HashSet<Vmid>, took: Duration) {
        let Some(transition) = self
            .state
            .event(&Event::StepDone(Step::Reserve), self.record.keepalive)
        else {
            return;
        };
        let mut taken = occupied;
        taken.extend(self.tried.iter().copied());
        let (settings, mut record, mut job) = (
            self.shared.settings.clone(),
            self.record.clone(),
            self.job.clone(),
        );
        let next = transition.next.clone();
        let chosen = self.shared.journal.reserve(Point::ReserveAgain, move |live| {
            let others: Vec<SandboxRecord> = live
                .iter()
                .filter(|other| other.id != record.id)
                .cloned()
                .collect();
            record.vmid = free_vmid(&settings, &others, &taken)?;
            next.write_to(&mut record);
            let mut writes = vec![
                Write::Sandbox(Box::new(record.clone())),
                Write::Fact {
                    sandbox: record.id,
                    step: Step::Reserve.as_str().to_owned(),
                    undo: false,
                },
                intent(&record, Step::Clone, false),
                event::step(&record, Step::Reserve, false, took, &StepEnd::Done),
            ];
            if let Some(job) = job.as_mut() {
                job.vmid = Some(record.vmid);
                writes.push(Write::Job(Box::new(job.clone())));
            }
            Ok(((record, job), writes))
        });
        match chosen.await {
            Ok((record, job)) => {
                self.adopt(record);
                self.job = job;
                self.state = transition.next;
                self.pending = true;
            }
            Err(StoreError::Conflict(reason)) => {
                let failure = failure(ErrorCode::LimitReached, Step::Reserve.as_str(), reason);
                self.happen(&Event::StepFailed(failure), None, Vec::new()).await;
            }
            Err(error) => self.store_failed(&error),
        }
    }
}
