//! What a test has in place of the packet policy and of the guest edge's serial door.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentlab_api::{AllowEntry, SandboxId, Vmid};
use agentlab_backend::ByteStream;
use async_trait::async_trait;
use tokio::sync::Notify;

use crate::port::{Disturbance, GuestDoor, Network, NetworkError, Port, Trust};

/// A packet policy in memory that keeps the whole history of what it was told.
#[derive(Debug, Clone, Default)]
pub(super) struct Wires(Arc<Mutex<WiresInner>>);

#[derive(Debug, Default)]
struct WiresInner {
    ports: BTreeMap<Vmid, (Port, Trust)>,
    history: Vec<(Vmid, Trust)>,
    faults: Vec<(&'static str, usize, Fault)>,
    /// How often each call came.
    calls: BTreeMap<&'static str, usize>,
    unsupported: Option<Trust>,
    disturbances: VecDeque<Disturbance>,
    forgotten: Vec<Vmid>,
    allowed: BTreeMap<Vmid, Vec<AllowEntry>>,
    /// Sandboxes into which somebody is logged in.
    reached: BTreeSet<Vmid>,
}

impl Wires {
    fn inner(&self) -> std::sync::MutexGuard<'_, WiresInner> {
        self.0.lock().unwrap()
    }

    /// The next call of this name fails.
    pub(super) fn fail_next(&self, call: &'static str) {
        self.fault(call, self.count(call), Fault::Refuse);
    }

    /// How often a call came.
    pub(super) fn count(&self, call: &'static str) -> usize {
        self.inner().calls.get(call).copied().unwrap_or(0)
    }

    /// The n-th call of this name, counted from 0, goes wrong.
    pub(super) fn fault(&self, call: &'static str, nth: usize, fault: Fault) {
        self.inner().faults.push((call, nth, fault));
    }

    /// Somebody else was at the policy.
    pub(super) fn disturb(&self, disturbance: Disturbance) {
        self.inner().disturbances.push_back(disturbance);
    }

    /// Somebody logs in, or out.
    pub(super) fn log_in(&self, vmid: Vmid, is_in: bool) {
        let reached = &mut self.inner().reached;
        if is_in {
            reached.insert(vmid);
        } else {
            reached.remove(&vmid);
        }
    }

    pub(super) fn without(&self, trust: Trust) {
        self.inner().unsupported = Some(trust);
    }

    /// Where a sandbox may go, as it was told since this was asked last.
    pub(super) fn take_allowed(&self, vmid: Vmid) -> Option<Vec<AllowEntry>> {
        self.inner().allowed.remove(&vmid)
    }

    pub(super) fn trust(&self, vmid: Vmid) -> Option<Trust> {
        self.inner().ports.get(&vmid).map(|(_, trust)| *trust)
    }

    fn trusts(&self) -> BTreeMap<Vmid, Trust> {
        let inner = self.inner();
        inner
            .ports
            .iter()
            .map(|(vmid, (_, trust))| (*vmid, *trust))
            .collect()
    }

    pub(super) fn history(&self, vmid: Vmid) -> Vec<Trust> {
        self.inner()
            .history
            .iter()
            .filter(|(of, _)| *of == vmid)
            .map(|(_, trust)| *trust)
            .collect()
    }

    pub(super) fn ports(&self) -> Vec<Vmid> {
        self.inner().ports.keys().copied().collect()
    }

    /// As if the rules had been replaced under a sandbox: its cable is there, its binding is not.
    pub(super) fn forget(&self, vmid: Vmid) {
        let mut inner = self.inner();
        inner.ports.remove(&vmid);
        inner.forgotten.push(vmid);
    }

    pub(super) fn plant(&self, port: Port) {
        self.inner().ports.insert(port.vmid, (port, Trust::Sealed));
    }

    /// One call: what goes wrong before its effect, its effect, what goes wrong after it.
    async fn perform<T>(
        &self,
        call: &'static str,
        effect: impl FnOnce() -> Result<T, NetworkError> + Send,
    ) -> Result<T, NetworkError> {
        let fault = {
            let mut inner = self.inner();
            let count = inner.calls.entry(call).or_default();
            let nth = *count;
            *count += 1;
            let planned = inner
                .faults
                .iter()
                .position(|(of, at, _)| (*of, *at) == (call, nth));
            planned.map(|position| inner.faults.remove(position).2)
        };
        let refused = || {
            Err(NetworkError::Unenforced {
                action: call,
                reason: "told to fail".into(),
            })
        };
        match fault {
            None => effect(),
            Some(Fault::Refuse) => refused(),
            Some(Fault::Lose) => {
                effect()?;
                refused()
            }
            Some(Fault::Hang(reached)) => {
                reached.notify_one();
                std::future::pending().await
            }
        }
    }
}

/// What goes wrong with a call.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    /// It has no effect.
    Refuse,
    /// It takes effect, and says that it did not.
    Lose,
    /// It never ends.
    Hang(Arc<Notify>),
}

#[async_trait]
impl Network for Wires {
    async fn supports(&self, trust: Trust) -> Result<(), NetworkError> {
        if self.inner().unsupported == Some(trust) {
            return Err(NetworkError::Unsupported {
                mode: format!("{trust:?}"),
                reason: "not in this test".into(),
            });
        }
        Ok(())
    }

    async fn attach(&self, port: &Port) -> Result<Option<std::os::fd::OwnedFd>, NetworkError> {
        self.perform("attach", || {
            let mut inner = self.inner();
            inner.ports.insert(port.vmid, (port.clone(), Trust::Sealed));
            inner.history.push((port.vmid, Trust::Sealed));
            let tap = std::fs::File::open("/dev/null").unwrap();
            Ok(Some(tap.into()))
        })
        .await
    }

    async fn adopt(&self, port: &Port) -> Result<(), NetworkError> {
        let mut inner = self.inner();
        if !inner.forgotten.contains(&port.vmid) {
            return Err(NetworkError::Unenforced {
                action: "adopt",
                reason: format!("{} has no cable", port.vmid),
            });
        }
        inner.ports.insert(port.vmid, (port.clone(), Trust::Sealed));
        Ok(())
    }

    async fn allow(&self, vmid: Vmid, list: &[AllowEntry]) -> Result<(), NetworkError> {
        self.inner().allowed.insert(vmid, list.to_vec());
        Ok(())
    }

    async fn set_trust(&self, vmid: Vmid, trust: Trust) -> Result<(), NetworkError> {
        self.perform("set_trust", || {
            let mut inner = self.inner();
            assert!(
                trust != Trust::Allowlist || inner.allowed.contains_key(&vmid),
                "{vmid} is trusted with a list that nobody told"
            );
            let Some(port) = inner.ports.get_mut(&vmid) else {
                return Err(NetworkError::Unenforced {
                    action: "set_trust",
                    reason: format!("{vmid} has no port"),
                });
            };
            port.1 = trust;
            inner.history.push((vmid, trust));
            Ok(())
        })
        .await
    }

    async fn detach(&self, vmid: Vmid) -> Result<(), NetworkError> {
        self.perform("detach", || {
            self.inner().ports.remove(&vmid);
            Ok(())
        })
        .await
    }

    async fn attached(&self) -> Result<Vec<Vmid>, NetworkError> {
        Ok(self.ports())
    }

    async fn reached(&self) -> Result<BTreeSet<Vmid>, NetworkError> {
        self.perform("reached", || Ok(self.inner().reached.clone())).await
    }

    async fn disturbed(&self) -> Disturbance {
        loop {
            if let Some(disturbance) = self.inner().disturbances.pop_front() {
                return disturbance;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Counts the streams it was handed, and holds each until its other end goes.
#[derive(Debug, Clone, Default)]
pub(super) struct Door {
    served: Arc<Mutex<Vec<SandboxId>>>,
    /// Of all cables, whenever a guest was asked to write back.
    asked: Arc<Mutex<Vec<BTreeMap<Vmid, Trust>>>>,
    wires: Wires,
    /// Guests never answer.
    pub(super) is_mute: Arc<AtomicBool>,
}

impl Door {
    pub(super) fn beside(wires: Wires) -> Self {
        Self {
            wires,
            ..Self::default()
        }
    }

    pub(super) fn served(&self) -> Vec<SandboxId> {
        self.served.lock().unwrap().clone()
    }

    /// How a guest was trusted each time it was asked to write back.
    pub(super) fn asked(&self, vmid: Vmid) -> Vec<Trust> {
        let asked = self.asked.lock().unwrap();
        asked
            .iter()
            .filter_map(|trusts| trusts.get(&vmid).copied())
            .collect()
    }
}

#[async_trait]
impl GuestDoor for Door {
    async fn write_back(&self, _sandbox: SandboxId) {
        self.asked.lock().unwrap().push(self.wires.trusts());
        if self.is_mute.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }

    async fn serve(&self, sandbox: SandboxId, mut stream: Box<dyn ByteStream>) {
        self.served.lock().unwrap().push(sandbox);
        let mut sink = tokio::io::sink();
        drop(tokio::io::copy(&mut stream, &mut sink).await);
    }
}
