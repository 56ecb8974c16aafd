//! The engine's packet policy over netpolicy's enforcer, on a thread of its own: its calls block, and the network
//! namespace it works in is that of its thread.
//!
//! ```text
//!   engine ──► Network ──► queue ──► thread: Enforcer ──► kernel
//!                            ▲        └─ now and then, and when somebody was heard: read back, repair
//!                            └── watch: a link came or went, somebody was at the rules, a packet was refused
//!   engine ◄── disturbed, denied ◄── what was found
//! ```

mod allow;
mod denials;
mod ears;
mod names;
mod resolver;
mod watch;
mod words;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use agentlab_api::{AllowEntry, Vmid, chain};
use agentlab_config::{BackendKind, Config};
use agentlab_engine::port::{Denied, Disturbance, Network, NetworkError, Port, Trust};
use agentlab_netpolicy as policy;
use agentlab_netpolicy::{
    Binding, EnforceError, Enforcer, LinkHint, LinkWatch, PortChange, Refusal, RefusalWatch, RefusedPacket,
};
use agentlab_resolver::budget::Limits;
use async_trait::async_trait;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Mutex, oneshot};

use self::allow::Ports;
use self::denials::Denials;
use self::ears::Ears;
use self::names::OwnNetworks;
use self::resolver::Resolver;
use self::watch::Watch;
use self::words::{asks, host_policy, level, port_name, port_vmid, refused, sealed};
use crate::error::StartError;

/// Where people log in to a guest.
const LOGIN_PORT: u16 = 22;
const VERIFY: Duration = Duration::from_secs(30);

type Task = Box<dyn FnOnce(&mut Watched) + Send>;

/// The enforcer, and how it was found last.
struct Watched {
    enforcer: Enforcer,
    finder: UnboundedSender<Disturbance>,
    teller: UnboundedSender<Denied>,
    denials: Denials,
    is_broken: bool,
    looked: Instant,
    own: OwnNetworks,
    /// Guests in `allowlist`, and what the names of their lists open.
    listed: BTreeMap<Ipv4Addr, BTreeMap<String, Ports>>,
    lock: Option<policy::WriterLock>,
}

impl Watched {
    fn new(
        enforcer: Enforcer,
        mut lock: Option<policy::WriterLock>,
        finder: UnboundedSender<Disturbance>,
        teller: UnboundedSender<Denied>,
    ) -> Self {
        writer::note_bridge(lock.as_mut(), &enforcer);
        Self {
            enforcer,
            lock,
            finder,
            teller,
            denials: Denials::default(),
            is_broken: false,
            looked: Instant::now(),
            own: OwnNetworks::default(),
            listed: BTreeMap::new(),
        }
    }

    /// Reads back, repairs, and tells what there is to tell.
    fn look(&mut self) {
        let found = self.enforcer.verify();
        self.looked = Instant::now();
        writer::note_bridge(self.lock.as_mut(), &self.enforcer);
        let was_broken = std::mem::replace(&mut self.is_broken, found.is_err());
        let disturbance = match found {
            Ok(drifts) if drifts.is_empty() => was_broken.then_some(Disturbance::Whole),
            Ok(drifts) => {
                if was_broken {
                    // Nobody listens any more when the engine has stopped.
                    let _ = self.finder.send(Disturbance::Whole);
                }
                Some(Disturbance::Repaired(
                    drifts.iter().map(ToString::to_string).collect(),
                ))
            }
            Err(error) => Some(Disturbance::Broken(chain(&error))),
        };
        if let Some(disturbance) = disturbance {
            let _ = self.finder.send(disturbance);
        }
    }

    /// Binds, seals or unbinds the ports that links came or went of.
    fn links_changed(&mut self, hints: &[LinkHint]) {
        for hint in hints {
            match self.enforcer.link_changed(hint) {
                Ok(changes) => changes.into_iter().for_each(|change| self.note(change)),
                // The next look finds what is left of it.
                Err(error) => {
                    tracing::warn!(link = hint.name, error = %chain(&error), "A port could not be followed");
                }
            }
        }
    }

    fn note(&mut self, change: PortChange) {
        match change {
            PortChange::Bound(port) => tracing::info!(%port, "Port appeared and is bound"),
            PortChange::Unbound(port) => {
                tracing::info!(%port, "Port is gone and unbound");
                if let Some(vmid) = port_vmid(&port) {
                    self.denials.forget(vmid);
                }
            }
            PortChange::Sealed(port) => {
                let words = format!("port {port}: is on the bridge and nobody bound it");
                let _ = self.finder.send(Disturbance::Repaired(vec![words]));
            }
        }
    }

    /// Counts refused packets, and tells the engine now and then.
    fn refused(&mut self, packets: &[RefusedPacket]) {
        let known: BTreeMap<Ipv4Addr, (Vmid, policy::Trust)> = self
            .enforcer
            .bindings()
            .filter_map(|binding| match binding {
                Binding::Known(port) => Some((port.address, (port_vmid(&port.name)?, port.trust.clone()))),
                Binding::SealedName(_) => None,
            })
            .collect();
        for packet in packets {
            let Some((vmid, trust)) = known.get(&packet.guest) else {
                continue;
            };
            let why = Refusal::of(self.enforcer.host(), trust, packet);
            if let Some(denied) = self.denials.count(*vmid, packet, why, Instant::now()) {
                let _ = self.teller.send(denied);
            }
        }
    }
}

/// The policy of this host. Dropping it removes nothing: closed means sealed.
#[derive(Debug)]
pub struct EnforcedNetwork {
    queue: Sender<Task>,
    /// Whether machines bring their own cables, under the same names.
    hypervisor_makes_taps: bool,
    /// What looks at the policy have found.
    found: Mutex<UnboundedReceiver<Disturbance>>,
    denied: Mutex<UnboundedReceiver<Denied>>,
    resolver: Resolver,
    /// Where sandboxes in `allowlist` may go.
    lists: std::sync::Mutex<BTreeMap<Vmid, Vec<AllowEntry>>>,
    _watch: Watch,
}

impl EnforcedNetwork {
    /// Makes bridge, address and policy stand, or adopts what stands.
    ///
    /// # Errors
    /// The policy cannot be enforced on this host.
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        Self::start_with(config, Limits::default()).await
    }

    /// The same with other limits of what guests may ask. Tests do not wait for minutes.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with(config: &Config, limits: Limits) -> Result<Self, StartError> {
        let host = host_policy(config).map_err(StartError::Network)?;
        let failed = |error: &EnforceError| StartError::Network(chain(error));
        let lock = writer::lock(config).await?;
        // Open before anything is looked at: what happens meanwhile is heard.
        let links = LinkWatch::open().map_err(|error| failed(&error))?;
        let refusals = RefusalWatch::open(host.denial_group)
            .inspect_err(|error| tracing::warn!(error = %chain(error), "Refused packets are not told"))
            .ok();
        let ears = Ears::open()
            .inspect_err(|error| {
                let seconds = VERIFY.as_secs();
                tracing::warn!(%error, "Changes of the rules from outside are seen every {seconds} s only");
            })
            .ok();
        let (queue, tasks) = channel();
        let (finder, found) = unbounded_channel();
        let told = finder.clone();
        let (teller, denied) = unbounded_channel();
        let (started, outcome) = oneshot::channel();
        std::thread::Builder::new()
            .name("policy".into())
            .spawn(move || match Enforcer::start(host) {
                Ok(mut enforcer) => {
                    writer::restore(&mut enforcer);
                    // Nobody waits any more when the daemon is stopped meanwhile; the queue is gone too then.
                    let _ = started.send(Ok(()));
                    work(Watched::new(enforcer, lock, finder, teller), &tasks);
                }
                Err(error) => {
                    let _ = started.send(Err(chain(&error)));
                }
            })
            .map_err(|error| StartError::Network(format!("its thread cannot be started: {error}")))?;
        match outcome.await {
            Ok(Ok(())) => Ok(Self {
                hypervisor_makes_taps: config.backend != BackendKind::Qemu,
                _watch: Watch::start(queue.clone(), links, refusals, ears)
                    .map_err(|error| StartError::Network(format!("links cannot be watched: {error}")))?,
                // The bridge has its address by now.
                resolver: Resolver::start(config, limits, queue.clone(), told),
                lists: std::sync::Mutex::default(),
                queue,
                found: Mutex::new(found),
                denied: Mutex::new(denied),
            }),
            Ok(Err(words)) => Err(StartError::Network(words)),
            Err(_) => Err(StartError::Network("its thread panicked".into())),
        }
    }

    async fn call<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(&mut Enforcer) -> Result<T, EnforceError> + Send + 'static,
    ) -> Result<T, NetworkError> {
        self.call_watched(action, |watched| work(&mut watched.enforcer))
            .await
    }

    fn lists(&self) -> std::sync::MutexGuard<'_, BTreeMap<Vmid, Vec<AllowEntry>>> {
        self.lists
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn call_watched<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(&mut Watched) -> Result<T, EnforceError> + Send + 'static,
    ) -> Result<T, NetworkError> {
        let gone = || NetworkError::Unenforced {
            action,
            reason: "the policy's thread has ended".into(),
        };
        let (reply, answer) = oneshot::channel();
        let task: Task = Box::new(move |watched| {
            let _ = reply.send(work(watched));
        });
        self.queue.send(task).map_err(|_| gone())?;
        answer
            .await
            .map_err(|_| gone())?
            .map_err(|error| refused(action, &error))
    }
}

fn work(mut watched: Watched, tasks: &Receiver<Task>) {
    loop {
        match tasks.recv_timeout(VERIFY.saturating_sub(watched.looked.elapsed())) {
            Ok(task) => task(&mut watched),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if watched.looked.elapsed() >= VERIFY {
            watched.look();
        }
    }
}

#[async_trait]
impl Network for EnforcedNetwork {
    async fn supports(&self, trust: Trust) -> Result<(), NetworkError> {
        let wanted = level(trust, &[]);
        let mode = wanted.word().to_owned();
        self.call("looking at the host", move |enforcer| enforcer.supports(&wanted))
            .await?;
        if asks(trust, &[]).is_none() {
            return Ok(());
        }
        let works = self.resolver.works(trust == Trust::Allowlist).await;
        works.map_err(|reason| NetworkError::Unresolved { mode, reason })
    }

    async fn attach(&self, port: &Port) -> Result<Option<OwnedFd>, NetworkError> {
        let port = sealed(port)?;
        if self.hypervisor_makes_taps {
            // Bound by name, and sealed, before it is there.
            return self
                .call("binding", move |enforcer| enforcer.bind(&port))
                .await
                .map(|()| None);
        }
        self.call("attaching", move |enforcer| enforcer.attach(&port))
            .await
            .map(Some)
    }

    async fn reached(&self) -> Result<BTreeSet<Vmid>, NetworkError> {
        let reached = self
            .call("looking for logins", |enforcer| enforcer.reached(LOGIN_PORT))
            .await?;
        Ok(reached.iter().filter_map(port_vmid).collect())
    }

    async fn adopt(&self, port: &Port) -> Result<(), NetworkError> {
        let port = sealed(port)?;
        self.call("adopting", move |enforcer| enforcer.adopt(&port)).await
    }

    async fn allow(&self, vmid: Vmid, list: &[AllowEntry]) -> Result<(), NetworkError> {
        self.lists().insert(vmid, list.to_vec());
        Ok(())
    }

    async fn set_trust(&self, vmid: Vmid, trust: Trust) -> Result<(), NetworkError> {
        let name = port_name(vmid)?;
        let list = self.lists().get(&vmid).cloned().unwrap_or_default();
        let (level, asks) = (level(trust, &list), asks(trust, &list));
        let resolver = self.resolver.clone();
        self.call_watched("changing trust", move |watched| {
            let address = watched.address_of(vmid);
            // The resolver knows it before it is let through, and until it is not let through any more.
            if let (Some(address), Some(names)) = (address, asks.clone()) {
                watched.listed.insert(address, allow::ports_of_names(&list));
                resolver.admit(address, names);
            }
            let changed = watched.enforcer.set_trust(&name, level);
            if let Some(address) = address
                && (asks.is_none() || changed.is_err())
            {
                watched.listed.remove(&address);
                resolver.forget(address);
            }
            changed
        })
        .await
    }

    async fn detach(&self, vmid: Vmid) -> Result<(), NetworkError> {
        let name = port_name(vmid)?;
        self.lists().remove(&vmid);
        let (resolver, hypervisor_makes_taps) = (self.resolver.clone(), self.hypervisor_makes_taps);
        self.call_watched("detaching", move |watched| {
            let address = watched.address_of(vmid);
            if hypervisor_makes_taps {
                // The link is its machine's, and goes with it.
                watched.enforcer.unbind(&name)?;
            } else {
                watched.enforcer.detach(&name)?;
            }
            if let Some(address) = address {
                watched.listed.remove(&address);
                resolver.forget(address);
            }
            Ok(())
        })
        .await
    }

    async fn attached(&self) -> Result<Vec<Vmid>, NetworkError> {
        let names = self.call("listing", Enforcer::attached).await?;
        Ok(names.iter().filter_map(port_vmid).collect())
    }

    async fn operate(&self, order: &str) -> Result<String, NetworkError> {
        const ACTION: &str = "an operator's order";
        let failed = |error: serde_json::Error| NetworkError::Unenforced {
            action: ACTION,
            reason: error.to_string(),
        };
        let order = serde_json::from_str(order).map_err(failed)?;
        let done = self.call(ACTION, move |enforcer| writer::obey(enforcer, &order));
        serde_json::to_string(&done.await?).map_err(failed)
    }

    async fn denied(&self) -> Denied {
        match self.denied.lock().await.recv().await {
            Some(denied) => denied,
            // The policy's thread has ended, and has said why.
            None => std::future::pending().await,
        }
    }

    async fn denials(&self, vmid: Vmid) -> Vec<Denied> {
        let (reply, answer) = oneshot::channel();
        let task: Task = Box::new(move |watched| {
            let _ = reply.send(watched.denials.of(vmid));
        });
        if self.queue.send(task).is_err() {
            return Vec::new();
        }
        answer.await.unwrap_or_default()
    }

    async fn disturbed(&self) -> Disturbance {
        match self.found.lock().await.recv().await {
            Some(disturbance) => disturbance,
            // The policy's thread has ended, and has said why.
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_named_by_its_vmid_and_found_by_its_name() {
        for vmid in [Vmid::MIN, Vmid::MAX] {
            let name = port_name(vmid).unwrap();
            assert_eq!(port_vmid(&name), Some(vmid), "{name}");
        }
        assert_eq!(port_vmid(&"fwpr1000p0".parse().unwrap()), "1000".parse().ok());
        for foreign in ["tap1i0", "tap1000i1", "fwpr1000p1", "fwpr1p0", "eth0"] {
            assert_eq!(port_vmid(&foreign.parse().unwrap()), None, "{foreign}");
        }
    }
}
