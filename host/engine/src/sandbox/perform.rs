//! Does what a driver decided, each call with its own deadline. Nothing here touches a record: a future of this
//! module can be dropped at any point, and everything it did can be done again.

use std::collections::HashSet;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use agentlab_api::{ChannelKind, ErrorCode, Failure, Vmid, chain};
use agentlab_backend::{
    BackendError, CloneSpec, Firewall, Limits, MacAddress, Machine, NetworkPlace, Nic, Power, PowerOn, Shape,
    Stamp,
};
use agentlab_protocol::secret::Secret32;
use agentlab_protocol::seed::{Seed, SeedChannel};
use agentlab_store::{SandboxRecord, Write};
use tokio::time::timeout;

use super::attempt::{takes_changes, takes_no_changes};
use super::step::{Seen, Step};
use crate::journal::Point;
use crate::port::{NetworkError, Port, Trust};
use crate::shared::Shared;

/// Changes of the packet policy are a netlink transaction: short, or something is wrong.
const NETWORK: Duration = Duration::from_secs(15);
/// What a guest has to write down what it holds in memory, and then to switch itself off.
const WRITE_BACK: Duration = Duration::from_secs(5);
const SHUT_DOWN: Duration = Duration::from_secs(20);
/// A look at one machine.
const LOOK: Duration = Duration::from_secs(30);
/// A look at a machine whose guest is silent.
const STANDING: Duration = Duration::from_secs(4);
/// A look at a console, and how much of it.
const CONSOLE: Duration = Duration::from_secs(2);
const CONSOLE_BYTES: usize = 1500;

/// What a step made that later steps need. It lives in the driver's memory only.
#[derive(Debug)]
pub(crate) enum Produced {
    Nothing,
    /// VMIDs the hypervisor has.
    Occupied(HashSet<Vmid>),
    Tap(Option<OwnedFd>),
    Token(Secret32),
}

/// Why a step did not take effect.
#[derive(Debug)]
pub(crate) enum StepError {
    /// The VMID is somebody else's; nothing of ours is there.
    Taken(Failure),
    Failed(Failure),
}

/// What a step works with.
#[derive(Debug)]
pub(crate) struct Kit {
    pub(crate) record: SandboxRecord,
    pub(crate) token: Option<Secret32>,
    pub(crate) tap: Option<OwnedFd>,
}

/// The stamp of a sandbox's machine.
pub(crate) fn stamp_of(record: &SandboxRecord) -> Stamp {
    Stamp {
        sandbox: record.id,
        nonce: record.nonce.clone(),
    }
}

pub(crate) fn port_of(record: &SandboxRecord) -> Port {
    Port {
        vmid: record.vmid,
        mac: MacAddress(record.mac),
        address: record.address,
    }
}

pub(crate) fn failure(code: ErrorCode, stage: &str, message: impl Into<String>) -> Failure {
    Failure {
        code,
        stage: stage.to_owned(),
        message: message.into(),
        hint: None,
    }
}

pub(crate) fn backend_failure(stage: &str, error: &BackendError) -> Failure {
    let (code, hint) = match error {
        BackendError::Unreachable { .. } | BackendError::TimedOut { .. } => {
            (ErrorCode::BackendUnreachable, None)
        }
        BackendError::Template { hint, .. } => (ErrorCode::TemplateUnavailable, hint.clone()),
        BackendError::Refused { hint, .. } | BackendError::Busy { hint, .. } => {
            (ErrorCode::BackendFailed, hint.clone())
        }
        BackendError::NoSuchMachine { .. }
        | BackendError::Conflict { .. }
        | BackendError::NotOurs { .. }
        | BackendError::Storage { .. }
        | BackendError::Unsupported { .. } => (ErrorCode::BackendFailed, None),
    };
    Failure {
        hint,
        ..failure(code, stage, chain(error))
    }
}

pub(crate) fn network_failure(stage: &str, error: &NetworkError) -> Failure {
    failure(ErrorCode::NetworkUnenforced, stage, error.to_string())
}

/// Why one try of a step did not take effect.
pub(super) enum StepTrouble {
    Backend(BackendError),
    Network(NetworkError),
    Own(String),
}

impl From<BackendError> for StepTrouble {
    fn from(error: BackendError) -> Self {
        Self::Backend(error)
    }
}

impl From<NetworkError> for StepTrouble {
    fn from(error: NetworkError) -> Self {
        Self::Network(error)
    }
}

/// One try of a step.
pub(super) async fn once(shared: &Shared, step: Step, kit: &mut Kit) -> Result<Produced, StepTrouble> {
    let record = &kit.record;
    let stamp = stamp_of(record);
    match step {
        Step::Reserve => {
            return super::outcome::occupied(shared, record)
                .await
                .map(Produced::Occupied);
        }
        Step::Clone => {
            let spec = CloneSpec {
                vmid: record.vmid,
                template: record.profile.template_vmid,
                name: record.name.clone(),
                stamp,
            };
            shared.backend.clone_template(&spec).await?;
        }
        Step::Configure => {
            let shape = shape(shared, record);
            shared.backend.configure(record.vmid, &stamp, &shape).await?;
        }
        Step::AttachWorkspace => super::workspace::attach(shared, record, &stamp).await?,
        Step::AwaitGuest => {}
        Step::BindNetwork => {
            let tap = shared.network.attach(&port_of(record)).await?;
            return Ok(Produced::Tap(tap));
        }
        Step::IssueToken => {
            let mut bytes = [0u8; 32];
            getrandom::fill(&mut bytes)
                .map_err(|error| StepTrouble::Own(format!("The kernel gave no random bytes: {error}")))?;
            return Ok(Produced::Token(Secret32::new(bytes)));
        }
        Step::Seed => {
            let token = kit
                .token
                .as_ref()
                .ok_or_else(|| StepTrouble::Own("There is no token".to_owned()))?;
            let bytes = seed(shared, record, token.clone()).encode();
            let bytes = bytes.map_err(|error| StepTrouble::Own(error.to_string()))?;
            shared.backend.place_seed(record.vmid, &stamp, &bytes).await?;
        }
        Step::PowerOn => power_on(shared, kit, &stamp).await?,
    }
    Ok(Produced::Nothing)
}

/// Cable, then trust, then power. A descriptor that an earlier try used up, or that died with an earlier process, is
/// made anew, but never under a machine that runs after all: that would take its cable away.
async fn power_on(shared: &Shared, kit: &mut Kit, stamp: &Stamp) -> Result<(), StepTrouble> {
    let vmid = kit.record.vmid;
    let trust = shared.deserved(Trust::BootstrapOnly, &kit.record.profile);
    let tap = match kit.tap.take() {
        Some(tap) => Some(tap),
        None => match seen(shared.backend.inspect(vmid).await?.as_ref(), stamp) {
            Seen::Running => {
                shared.network.set_trust(vmid, trust).await?;
                return Ok(());
            }
            // The call below says why it is not powered on; a cable that it may hold stays as it is.
            Seen::Unreadable => None,
            Seen::Stopped | Seen::Absent | Seen::Unknown => {
                shared.network.attach(&port_of(&kit.record)).await?
            }
        },
    };
    shared.network.set_trust(vmid, trust).await?;
    let with = PowerOn {
        nic: Some(Nic { tap }),
    };
    shared.backend.power_on(vmid, stamp, with).await?;
    Ok(())
}

fn shape(shared: &Shared, record: &SandboxRecord) -> Shape {
    let (resources, network) = (&record.profile.resources, &record.profile.network);
    Shape {
        cores: resources.cores,
        memory_mb: resources.memory_mb,
        root_size_gb: record.profile.storage.root_size_gb,
        mac: MacAddress(record.mac),
        limits: Limits {
            cpu_percent: resources.cpu_limit_percent,
            processors: resources.cpulist.clone(),
            balloon_mb: resources.balloon,
            firewall: network.wants_firewall().then(|| Firewall {
                group: network.firewall_group.clone(),
            }),
        },
        place: Some(NetworkPlace {
            address: record.address,
            prefix: shared.settings.subnet.1,
            gateway: shared.settings.gateway,
        }),
    }
}

fn seed(shared: &Shared, record: &SandboxRecord, token: Secret32) -> Seed {
    let settings = &shared.settings;
    let channels = shared
        .channels_of(&record.profile)
        .into_iter()
        .map(|channel| match channel {
            ChannelKind::Serial => SeedChannel::Serial,
            ChannelKind::Vsock => SeedChannel::Vsock,
            ChannelKind::Tls => SeedChannel::Tls,
        });
    Seed {
        vmid: record.vmid.into(),
        sandbox: *record.id.as_bytes(),
        hostname: record.name.clone(),
        address: record.address,
        prefix: settings.subnet.1,
        gateway: settings.gateway,
        bootstrap: settings.bootstrap,
        artifacts: settings.artifacts,
        token,
        spki_sha256: settings.spki_sha256,
        channels: channels.collect(),
        clock: u64::try_from(shared.now().as_second()).unwrap_or(0),
    }
}

/// Undoes one step. Absent is success, and so is what turns out to be somebody else's: nothing of ours is there.
pub(crate) async fn undo(shared: Arc<Shared>, step: Step, record: SandboxRecord) -> Result<(), String> {
    let deadline = step.undo_deadline(&shared.settings);
    match timeout(deadline, undo_once(&shared, step, &record)).await {
        Ok(done) => done,
        Err(_) => Err(format!("no answer within {deadline:?}")),
    }
}

async fn undo_once(shared: &Arc<Shared>, step: Step, record: &SandboxRecord) -> Result<(), String> {
    let stamp = stamp_of(record);
    match step {
        Step::PowerOn => {
            if let Err(error) = within_network(shared.network.set_trust(record.vmid, Trust::Sealed)).await {
                // The plug is pulled next, which seals it better.
                tracing::warn!(sandbox = %record.id, %error, "could not seal before power-off");
            }
            gone_is_fine(
                shared,
                record,
                shared.backend.power_off(record.vmid, &stamp).await,
            )
        }
        Step::Clone => super::unwind::destroy(shared, record, &stamp).await,
        Step::BindNetwork => shared
            .network
            .detach(record.vmid)
            .await
            .map_err(|error| error.to_string()),
        Step::IssueToken => {
            let forget = vec![Write::ForgetTokens(record.id)];
            shared
                .journal
                .commit(Point::ForgetTokens, forget)
                .await
                .map(drop)
                .map_err(|error| chain(&error))
        }
        Step::Seed => gone_is_fine(
            shared,
            record,
            shared.backend.remove_seed(record.vmid, &stamp).await,
        ),
        Step::AttachWorkspace => gone_is_fine(
            shared,
            record,
            super::workspace::detach(shared, record, &stamp).await,
        ),
        Step::Reserve | Step::Configure | Step::AwaitGuest => Ok(()),
    }
}

pub(super) fn gone_is_fine(
    shared: &Shared,
    record: &SandboxRecord,
    result: Result<(), BackendError>,
) -> Result<(), String> {
    match result {
        Ok(()) | Err(BackendError::NoSuchMachine { .. }) => {
            takes_changes(shared);
            Ok(())
        }
        Err(error @ BackendError::NotOurs { .. }) => {
            tracing::warn!(sandbox = %record.id, vmid = %record.vmid, error = %chain(&error), "left alone");
            Ok(())
        }
        Err(error) => {
            takes_no_changes(shared, &error);
            Err(match error.hint() {
                Some(hint) => format!("{}; {hint}", chain(&error)),
                None => chain(&error),
            })
        }
    }
}

/// What an undo leaves when it fails, in words.
pub(crate) fn left(step: Step, record: &SandboxRecord, reason: &str) -> String {
    let what = match step {
        Step::PowerOn => format!("VM {} is still powered on", record.vmid),
        Step::Clone => format!("VM {} with its disks", record.vmid),
        Step::BindNetwork => format!("network port of VM {}", record.vmid),
        Step::IssueToken => "bootstrap token".to_owned(),
        Step::Seed => format!("seed of VM {}", record.vmid),
        Step::AttachWorkspace => format!("workspace at VM {}", record.vmid),
        Step::Reserve | Step::Configure | Step::AwaitGuest => step.to_string(),
    };
    format!("{what}: {reason}")
}

/// Sets how far the network trusts a sandbox. After a restart the policy may have forgotten the cable that the
/// machine still holds.
pub(crate) async fn enforce(
    shared: &Shared,
    record: &SandboxRecord,
    trust: Trust,
    rebind: bool,
) -> Result<(), NetworkError> {
    if trust == Trust::Allowlist {
        let list = &record.profile.network.allow;
        within_network(shared.network.allow(record.vmid, list)).await?;
    }
    match within_network(shared.network.set_trust(record.vmid, trust)).await {
        Err(error) if rebind => {
            tracing::warn!(sandbox = %record.id, %error, "binding the cable anew");
            within_network(shared.network.adopt(&port_of(record))).await?;
            within_network(shared.network.set_trust(record.vmid, trust)).await
        }
        done => done,
    }
}

/// What the hypervisor says of a machine whose guest is silent, where that is more than that it runs.
pub(crate) async fn standing(shared: &Shared, record: &SandboxRecord) -> String {
    let stamp = stamp_of(record);
    match timeout(STANDING, shared.backend.inspect(record.vmid)).await {
        Ok(Ok(found)) => match (seen(found.as_ref(), &stamp), found.map(|machine| machine.power)) {
            (Seen::Running, Some(Power::Suspended)) => "; its machine is paused".to_owned(),
            (Seen::Running | Seen::Unknown, _) => String::new(),
            (Seen::Unreadable, _) => "; what runs in its place has a stamp that cannot be read".to_owned(),
            (Seen::Stopped, _) => "; its machine is off".to_owned(),
            (Seen::Absent, _) => "; its machine is gone".to_owned(),
        },
        Ok(Err(error)) => format!("; nor does its machine: {}", chain(&error)),
        Err(_) => format!("; nor does the back end say what its machine does, in {STANDING:?}"),
    }
}

/// The end of the machine's console, cleaned: often the only one who knows why a guest did not come up. Gone with
/// the machine, so it is asked before.
pub(crate) async fn last_words(shared: &Shared, vmid: Vmid) -> String {
    match timeout(CONSOLE, shared.backend.console(vmid, CONSOLE_BYTES)).await {
        Ok(Ok(bytes)) => {
            let text = crate::report::clean(&String::from_utf8_lossy(&bytes), CONSOLE_BYTES);
            match text.trim() {
                "" => "; its console is empty".to_owned(),
                text => format!("; its console ends with:\n{text}"),
            }
        }
        Ok(Err(_)) | Err(_) => String::new(),
    }
}

async fn within_network<T>(call: impl Future<Output = Result<T, NetworkError>>) -> Result<T, NetworkError> {
    timeout(NETWORK, call).await.unwrap_or_else(|_| {
        Err(NetworkError::Unenforced {
            action: "apply",
            reason: format!("no answer within {NETWORK:?}"),
        })
    })
}

/// Power changes outside of provisioning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PowerChange {
    /// The guest has a moment to do it itself.
    ShutDown,
    Off,
    Suspend,
    Resume,
}

/// Has the guest write its disks, and then seals it: nothing it says is heard after that.
pub(crate) async fn write_back(shared: &Shared, record: &SandboxRecord) {
    let written = shared.door.write_back(record.id);
    if timeout(WRITE_BACK, written).await.is_err() {
        tracing::warn!(sandbox = %record.id, "the guest did not write back in time");
    }
    if let Err(error) = within_network(shared.network.set_trust(record.vmid, Trust::Sealed)).await {
        // Its power goes next, which seals it better.
        tracing::warn!(sandbox = %record.id, %error, "could not seal before power-off");
    }
}

pub(crate) async fn power(
    shared: Arc<Shared>,
    change: PowerChange,
    record: SandboxRecord,
) -> Result<(), BackendError> {
    let stamp = stamp_of(&record);
    let deadline = Step::PowerOn.undo_deadline(&shared.settings);
    let call = async {
        match change {
            PowerChange::ShutDown => {
                let patience = SHUT_DOWN.min(deadline / 2);
                shared.backend.shut_down(record.vmid, &stamp, patience).await
            }
            PowerChange::Off => shared.backend.power_off(record.vmid, &stamp).await,
            PowerChange::Suspend => shared.backend.suspend(record.vmid, &stamp).await,
            PowerChange::Resume => shared.backend.resume(record.vmid, &stamp).await,
        }
    };
    let late = BackendError::TimedOut {
        action: "power",
        vmid: record.vmid,
        seconds: deadline.as_secs(),
    };
    timeout(deadline, call).await.unwrap_or(Err(late))
}

/// Looks at the machine. Only an answer concludes anything.
pub(crate) async fn look(shared: Arc<Shared>, record: SandboxRecord) -> Seen {
    let stamp = stamp_of(&record);
    match timeout(LOOK, shared.backend.inspect(record.vmid)).await {
        Ok(Ok(found)) => seen(found.as_ref(), &stamp),
        Ok(Err(BackendError::NoSuchMachine { .. })) => Seen::Absent,
        Ok(Err(error)) => {
            tracing::debug!(sandbox = %record.id, error = %chain(&error), "look answered nothing");
            Seen::Unknown
        }
        Err(_) => Seen::Unknown,
    }
}

/// What a machine's record says of ours. One whose stamp cannot be read may be anything.
pub(crate) fn seen(found: Option<&Machine>, stamp: &Stamp) -> Seen {
    match found {
        None => Seen::Absent,
        Some(machine) => match &machine.stamp {
            None => Seen::Unreadable,
            Some(other) if other != stamp => Seen::Absent,
            Some(_) => match machine.power {
                Power::Stopped => Seen::Stopped,
                Power::Running | Power::Suspended => Seen::Running,
            },
        },
    }
}
