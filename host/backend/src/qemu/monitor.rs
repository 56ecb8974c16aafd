//! A machine's QMP connection, made when first needed and anew after every failure. QEMU serves one at a time, so
//! whoever asks waits for its turn, within the same deadline as the answer.

use std::time::Duration;

use agentlab_api::Vmid;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use super::qmp::{Event, Qmp, QmpError};
use super::record::{MachineDir, QMP_SOCKET};
use super::{command, sockets, unreachable};
use crate::{BackendError, Result};

/// Waiting for the last event of a QEMU that has ended: it is in the socket already, or never will be.
const LAST_EVENT: Duration = Duration::from_millis(100);

/// What QEMU says of its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// Started, not let go yet.
    Prelaunch,
    Running,
    /// Paused, by us or by an error that it cannot recover from by itself.
    Paused,
}

#[derive(Debug, Default)]
pub(super) struct Monitor(Mutex<Option<Qmp<UnixStream>>>);

fn failure(action: &'static str, vmid: Vmid, error: QmpError) -> BackendError {
    match error {
        QmpError::TimedOut { after, .. } => BackendError::TimedOut {
            action,
            vmid,
            seconds: after.as_secs(),
        },
        QmpError::Refused { reason, .. } => BackendError::Refused {
            action,
            vmid,
            reason,
            hint: None,
        },
        QmpError::Closed | QmpError::Garbage(_) => unreachable(action, error.to_string()),
        QmpError::Io(source) => unreachable(action, source.to_string()),
    }
}

impl Monitor {
    /// Asks one command. `action` names the caller's doing in errors.
    pub(super) async fn ask(
        &self,
        machine: &MachineDir,
        action: &'static str,
        question: (&str, Value),
        deadline: Duration,
    ) -> Result<Value> {
        let vmid = machine.record.vmid;
        let (command, arguments) = question;
        let until = Instant::now() + deadline;
        let attempt = async {
            let mut slot = self.0.lock().await;
            // Taken out for the time of the question: cut off half-way, the connection is dropped.
            if let Some(mut qmp) = slot.take() {
                match qmp.execute(command, arguments.clone(), deadline).await {
                    // From a QEMU that is gone; the one that is there now has not been asked.
                    Err(QmpError::Closed | QmpError::Io(_)) => {}
                    other => return keep(&mut slot, qmp, other),
                }
            }
            let stream = sockets::connect(machine.path(), QMP_SOCKET).await?;
            let mut qmp = Qmp::greet(stream, deadline).await?;
            let answer = qmp.execute(command, arguments, deadline).await;
            keep(&mut slot, qmp, answer)
        };
        match timeout_at(until, attempt).await {
            Ok(answer) => answer.map_err(|error| failure(action, vmid, error)),
            Err(_) => Err(BackendError::TimedOut {
                action,
                vmid,
                seconds: deadline.as_secs(),
            }),
        }
    }

    pub(super) async fn status(
        &self,
        machine: &MachineDir,
        action: &'static str,
        deadline: Duration,
    ) -> Result<Status> {
        let answer = self
            .ask(machine, action, ("query-status", Value::Null), deadline)
            .await?;
        match answer.get("status").and_then(Value::as_str) {
            Some("running") => Ok(Status::Running),
            Some("prelaunch" | "preconfig" | "inmigrate") => Ok(Status::Prelaunch),
            Some(_) => Ok(Status::Paused),
            None => Err(unreachable(action, "QEMU's status has no name".to_owned())),
        }
    }

    /// Whether the guest has opened its end of the serial channel: the first sign of a runner.
    pub(super) async fn guest_listens(&self, machine: &MachineDir, deadline: Duration) -> Result<bool> {
        let answer = self
            .ask(machine, "watching", ("query-chardev", Value::Null), deadline)
            .await?;
        let Value::Array(devices) = answer else {
            return Ok(false);
        };
        let channel = devices
            .iter()
            .find(|device| device.get("label") == Some(&json!(command::CHANNEL_CHARDEV)));
        Ok(channel.and_then(|device| device.get("frontend-open")) == Some(&Value::Bool(true)))
    }

    /// Why a QEMU that has ended did so, in its own last words; the connection is of no more use.
    pub(super) async fn last_words(&self) -> Option<String> {
        let mut qmp = self.0.lock().await.take()?;
        loop {
            let Event { name, data } = qmp.next_event(LAST_EVENT).await.ok()?;
            if name == "SHUTDOWN" {
                return data.get("reason").and_then(Value::as_str).map(str::to_owned);
            }
        }
    }
}

/// Keeps a connection that is still good.
fn keep(
    slot: &mut Option<Qmp<UnixStream>>,
    qmp: Qmp<UnixStream>,
    answer: std::result::Result<Value, QmpError>,
) -> std::result::Result<Value, QmpError> {
    if matches!(answer, Ok(_) | Err(QmpError::Refused { .. })) {
        *slot = Some(qmp);
    }
    answer
}
