//! The engine's packet policy over netpolicy's enforcer, on a thread of its own: its calls block, and the network
//! namespace it works in is that of its thread.
//!
//! ```text
//!   engine ──► Network ──► queue ──► thread: Enforcer ──► kernel
//!                                     └─ nothing to do for a while: read back, repair
//! ```

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use agentlab_api::Vmid;
use agentlab_config::Config;
use agentlab_engine::port::{Network, NetworkError, Port, Trust};
use agentlab_netpolicy as policy;
use agentlab_netpolicy::{
    BridgeSpec, EnforceError, Enforcer, GuestPort, GuestService, HostPolicy, IfName, Protocol,
};
use async_trait::async_trait;
use tokio::sync::oneshot;

use crate::error::StartError;
use crate::http::problem::chain;

const VERIFY: Duration = Duration::from_secs(30);

type Task = Box<dyn FnOnce(&mut Enforcer) + Send>;

/// The policy of this host. Dropping it removes nothing: closed means sealed.
#[derive(Debug)]
pub(crate) struct EnforcedNetwork {
    queue: Sender<Task>,
}

impl EnforcedNetwork {
    /// Makes bridge, address and policy stand, or adopts what stands.
    pub(crate) async fn start(config: &Config) -> Result<Self, StartError> {
        let host = host_policy(config).map_err(StartError::Network)?;
        let (queue, tasks) = channel();
        let (started, outcome) = oneshot::channel();
        std::thread::Builder::new()
            .name("policy".into())
            .spawn(move || match Enforcer::start(host) {
                Ok(enforcer) => {
                    // Nobody waits any more when the daemon is stopped meanwhile; the queue is gone too then.
                    let _ = started.send(Ok(()));
                    work(enforcer, &tasks);
                }
                Err(error) => {
                    let _ = started.send(Err(chain(&error)));
                }
            })
            .map_err(|error| StartError::Network(format!("its thread cannot be started: {error}")))?;
        match outcome.await {
            Ok(Ok(())) => Ok(Self { queue }),
            Ok(Err(words)) => Err(StartError::Network(words)),
            Err(_) => Err(StartError::Network("its thread panicked".into())),
        }
    }

    async fn call<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(&mut Enforcer) -> Result<T, EnforceError> + Send + 'static,
    ) -> Result<T, NetworkError> {
        let gone = || NetworkError::Unenforced {
            action,
            reason: "the policy's thread has ended".into(),
        };
        let (reply, answer) = oneshot::channel();
        let task: Task = Box::new(move |enforcer| {
            let _ = reply.send(work(enforcer));
        });
        self.queue.send(task).map_err(|_| gone())?;
        answer
            .await
            .map_err(|_| gone())?
            .map_err(|error| refused(action, &error))
    }
}

fn work(mut enforcer: Enforcer, tasks: &Receiver<Task>) {
    let mut verified = Instant::now();
    loop {
        match tasks.recv_timeout(VERIFY.saturating_sub(verified.elapsed())) {
            Ok(task) => task(&mut enforcer),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if verified.elapsed() >= VERIFY {
            // What it repairs, it reports in the log itself.
            if let Err(error) = enforcer.verify() {
                tracing::error!(error = %chain(&error), "The packet policy could not be read back");
            }
            verified = Instant::now();
        }
    }
}

fn refused(action: &'static str, error: &EnforceError) -> NetworkError {
    if let EnforceError::Unsupported { trust, reason } = error {
        NetworkError::Unsupported {
            mode: (*trust).to_owned(),
            reason: reason.clone(),
        }
    } else {
        NetworkError::Unenforced {
            action,
            reason: chain(error),
        }
    }
}

fn host_policy(config: &Config) -> Result<HostPolicy, String> {
    let name = |text: &str| text.parse::<IfName>().map_err(|error| error.to_string());
    let tcp = |port| GuestService {
        protocol: Protocol::Tcp,
        port,
    };
    Ok(HostPolicy {
        bridge: BridgeSpec {
            name: name(&config.bridge)?,
            address: config.bridge_address.address,
            prefix: config.bridge_address.prefix,
            mtu: None,
        },
        uplink: config.uplink.as_deref().map(name).transpose()?,
        guest_ports: vec![
            tcp(config.bootstrap_listen.port()),
            tcp(config.artifact_listen.port()),
        ],
        dns: true,
        machine_uids: Some((
            config.qemu.uid_first,
            config.qemu.uid_first.saturating_add(config.qemu.uid_count - 1),
        )),
    })
}

/// The name is the binding's key, in the kernel as well.
fn port_name(vmid: Vmid) -> Result<IfName, NetworkError> {
    format!("tap{vmid}i0")
        .parse()
        .map_err(|error: policy::IfNameError| NetworkError::Unenforced {
            action: "naming",
            reason: error.to_string(),
        })
}

fn port_vmid(name: &IfName) -> Option<Vmid> {
    name.as_str()
        .strip_prefix("tap")?
        .strip_suffix("i0")?
        .parse()
        .ok()
}

fn sealed(port: &Port) -> Result<GuestPort, NetworkError> {
    Ok(GuestPort {
        name: port_name(port.vmid)?,
        mac: port.mac.0,
        address: port.address,
        trust: policy::Trust::Sealed,
    })
}

fn level(trust: Trust) -> Result<policy::Trust, NetworkError> {
    Ok(match trust {
        Trust::Sealed => policy::Trust::Sealed,
        Trust::BootstrapOnly => policy::Trust::BootstrapOnly,
        Trust::Off => policy::Trust::Off,
        Trust::Nat => policy::Trust::Nat,
        Trust::Allowlist => {
            return Err(NetworkError::Unsupported {
                mode: "allowlist".into(),
                reason: "profiles of this version cannot name destinations".into(),
            });
        }
    })
}

#[async_trait]
impl Network for EnforcedNetwork {
    async fn supports(&self, trust: Trust) -> Result<(), NetworkError> {
        let trust = level(trust)?;
        self.call("looking at the host", move |enforcer| enforcer.supports(&trust))
            .await
    }

    async fn attach(&self, port: &Port) -> Result<Option<OwnedFd>, NetworkError> {
        let port = sealed(port)?;
        self.call("attaching", move |enforcer| enforcer.attach(&port))
            .await
            .map(Some)
    }

    async fn adopt(&self, port: &Port) -> Result<(), NetworkError> {
        let port = sealed(port)?;
        self.call("adopting", move |enforcer| enforcer.adopt(&port)).await
    }

    async fn set_trust(&self, vmid: Vmid, trust: Trust) -> Result<(), NetworkError> {
        let (name, trust) = (port_name(vmid)?, level(trust)?);
        self.call("changing trust", move |enforcer| enforcer.set_trust(&name, trust))
            .await
    }

    async fn detach(&self, vmid: Vmid) -> Result<(), NetworkError> {
        let name = port_name(vmid)?;
        self.call("detaching", move |enforcer| enforcer.detach(&name))
            .await
    }

    async fn attached(&self) -> Result<Vec<Vmid>, NetworkError> {
        let names = self.call("listing", Enforcer::attached).await?;
        Ok(names.iter().filter_map(port_vmid).collect())
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
        for foreign in ["tap1i0", "tap1000i1", "fwpr1000p0", "eth0"] {
            assert_eq!(port_vmid(&foreign.parse().unwrap()), None, "{foreign}");
        }
    }
}
