//! The trait's calls. Each attempt reads the machine's configuration and compares its stamp before it changes anything.

use std::collections::BTreeMap;
use std::time::Duration;

use agentlab_api::Vmid;
use async_trait::async_trait;
use tokio::time::{Instant, sleep};

use super::change::{Change, PowerWord, Read, pair};
use super::record::Record;
use super::shape::stands_where_it_should;
use super::view::Found;
use super::{Fields, Kind, Pve, Refusal, Trouble, Wire, refused, with_jitter};
use crate::{
    BackendError, CloneSpec, Load, Machine, Machines, Power, PowerOn, Result, Shape, Stamp, Template, Usage,
};

pub(super) const GIB: u64 = 1 << 30;
pub(super) type Attempt<T> = std::result::Result<T, Trouble>;

impl<W: Wire> Pve<W> {
    async fn power_on_once(&self, vmid: Vmid, stamp: &Stamp) -> Attempt<()> {
        const ACTION: &str = "power on";
        let (record, power) = self.ours_with_power(ACTION, vmid, stamp).await?;
        match power {
            Power::Running => return Ok(()),
            Power::Suspended => return Err(refused(ACTION, vmid, "it is suspended").into()),
            Power::Stopped => {}
        }
        // The policy knows one port of this machine, by the name that its first NIC's tap gets on our bridge. Whatever
        // else it has would reach a network that nobody filters.
        stands_where_it_should(&record, &self.options.bridge)
            .map_err(|reason| refused(ACTION, vmid, reason))?;
        let node = self.node().await?;
        if record.node != node {
            let reason = format!(
                "it is on node {}, and its network is guarded on {node} only",
                record.node
            );
            return Err(refused(ACTION, vmid, reason).into());
        }
        let read = Instant::now();
        self.check_firewall(ACTION, &record).await?;
        let record = self.still_ours(ACTION, stamp, record, read).await?;
        self.switch(&record, PowerWord::Start, Power::Running).await
    }

    /// Switches, and believes the machine rather than an answer that may be about somebody else's switch.
    async fn switch(&self, record: &Record, to: PowerWord, wanted: Power) -> Attempt<()> {
        let vmid = record.vmid;
        let answer = self.change(&record.node, Change::Power { vmid, to }).await;
        match answer {
            Ok(()) => Ok(()),
            Err(refusal)
                if refusal.is_open() || matches!(refusal.kind, Kind::AlreadyRunning | Kind::NotRunning) =>
            {
                match self.power(record).await {
                    Ok(power) if power == wanted => Ok(()),
                    Ok(_) | Err(_) => Err(refusal.into()),
                }
            }
            Err(refusal) => Err(refusal.into()),
        }
    }

    async fn power_off_once(&self, vmid: Vmid, stamp: &Stamp) -> Attempt<()> {
        const ACTION: &str = "power off";
        let read = Instant::now();
        let Some(record) = self.ours_or_absent(ACTION, vmid, stamp).await? else {
            return Ok(());
        };
        if self.power(&record).await? == Power::Stopped {
            return Ok(());
        }
        let record = self.still_ours(ACTION, stamp, record, read).await?;
        self.switch(&record, PowerWord::Stop, Power::Stopped).await?;
        self.is_off(&record).await
    }

    /// What the HA stack keeps is only asked to stop, by a task that ends well before it has: waited for as for a lock.
    async fn is_off(&self, record: &Record) -> Attempt<()> {
        if self.power(record).await? == Power::Stopped {
            return Ok(());
        }
        let vmid = record.vmid;
        let words = format!("VM {vmid} is running, although PVE's task to stop it has ended well");
        Err(Refusal::new(Kind::Running, words).into())
    }

    async fn shut_down_once(&self, vmid: Vmid, stamp: &Stamp, patience: Duration) -> Attempt<()> {
        const ACTION: &str = "shut down";
        let read = Instant::now();
        let Some(record) = self.ours_or_absent(ACTION, vmid, stamp).await? else {
            return Ok(());
        };
        let power = self.power(&record).await?;
        if power == Power::Stopped {
            return Ok(());
        }
        let record = self.still_ours(ACTION, stamp, record, read).await?;
        if power == Power::Suspended {
            // A guest that is frozen hears nothing.
            return self.switch(&record, PowerWord::Stop, Power::Stopped).await;
        }
        let change = Change::ShutDown {
            vmid,
            seconds: patience.as_secs().max(1),
        };
        let patience = patience + self.options.task_patience;
        match self.carry_out(&record.node, &change, patience).await {
            Ok(_) => self.is_off(&record).await,
            Err(refusal) => match self.power(&record).await {
                Ok(Power::Stopped) => Ok(()),
                Ok(_) | Err(_) => Err(refusal.into()),
            },
        }
    }

    async fn pause_once(&self, vmid: Vmid, stamp: &Stamp, to: PowerWord) -> Attempt<()> {
        let (action, wanted) = match to {
            PowerWord::Suspend => ("suspend", Power::Suspended),
            PowerWord::Resume | PowerWord::Start | PowerWord::Stop => ("resume", Power::Running),
        };
        let (record, power) = self.ours_with_power(action, vmid, stamp).await?;
        match power {
            Power::Stopped => Err(refused(action, vmid, "it is not running").into()),
            power if power == wanted => Ok(()),
            Power::Running | Power::Suspended => self.switch(&record, to, wanted).await,
        }
    }

    async fn destroy_once(&self, vmid: Vmid, stamp: &Stamp) -> Attempt<()> {
        const ACTION: &str = "destroy";
        let read = Instant::now();
        let Some(mut record) = self.ours_or_absent(ACTION, vmid, stamp).await? else {
            return Ok(());
        };
        if self.power(&record).await? != Power::Stopped {
            record = self.still_ours(ACTION, stamp, record, read).await?;
            self.switch(&record, PowerWord::Stop, Power::Stopped).await?;
        }
        if record.is_protected() {
            self.set(&record, vec![pair("protection", 0)]).await?;
        }
        let record = self.still_ours(ACTION, stamp, record, read).await?;
        let answer = self.change(&record.node, Change::Destroy { vmid }).await;
        self.view.forget(vmid);
        self.begun().remove(&vmid);
        match (answer, self.wire.read(&Read::is_free(vmid)).await) {
            (_, Ok(_)) => Ok(()),
            (Err(refusal), Err(_)) => Err(refusal.into()),
            // Somebody may have got the number at once.
            (Ok(()), Err(refusal)) if refusal.kind == Kind::Taken => {
                match self.ours_or_absent(ACTION, vmid, stamp).await {
                    Ok(Some(_)) => {
                        Err(refused(ACTION, vmid, "its task ended well, and it is still there").into())
                    }
                    Ok(None) | Err(Trouble::Ours(BackendError::NotOurs { .. })) => Ok(()),
                    Err(trouble) => Err(trouble),
                }
            }
            // PVE said that it is done.
            (Ok(()), Err(_)) => Ok(()),
        }
    }
}

/// The line `agentlab-runner: 0.1.0` of a template's description: which runner was baked in.
fn runner_version(description: &str) -> Option<String> {
    let mut lines = description.lines();
    let version = lines
        .find_map(|line| line.trim().strip_prefix("agentlab-runner:"))?
        .trim();
    (!version.is_empty()).then(|| version.to_owned())
}

#[async_trait]
impl<W: Wire> Machines for Pve<W> {
    async fn templates(&self) -> Result<Vec<Template>> {
        let unreachable = |refusal: Refusal| refusal.into_unreachable(self.wire.kind(), "templates");
        let (first, last) = self.options.vmids;
        let is_template = |vmid: &Vmid| !(first..=last).contains(vmid);
        let mut places = self.template_nodes().await.map_err(unreachable)?;
        // What pvestatd has not told the cluster yet, the node itself knows.
        let own_node = self.node().await?.to_owned();
        for (vmid, listed) in self.listed(Duration::from_secs(1)).await? {
            let is_known = places.iter().any(|(known, _, _)| *known == vmid);
            if listed.is_template && !is_known {
                places.push((vmid, own_node.clone(), listed.name));
            }
        }
        let mut templates = Vec::new();
        for (vmid, node, name) in places.into_iter().filter(|(vmid, _, _)| is_template(vmid)) {
            // Only its own configuration tells, and not everybody may read that.
            let record = match self.record(&node, vmid).await {
                Ok(record) => Some(record),
                Err(refusal) if matches!(refusal.kind, Kind::NoMachine | Kind::Permission(_)) => None,
                // Another node that is down is no reason to see nothing of ours.
                Err(_) if node != own_node => None,
                Err(refusal) => return Err(unreachable(refusal)),
            };
            templates.push(Template {
                id: name.clone(),
                name,
                vmid,
                runner_version: record.and_then(|record| runner_version(&record.description())),
            });
        }
        templates.sort_by_key(|template| template.vmid);
        Ok(templates)
    }

    async fn clone_template(&self, spec: &CloneSpec) -> Result<Machine> {
        let _turn = self.turn(spec.vmid).await;
        self.patiently("clone", spec.vmid, || self.clone_once(spec)).await
    }

    fn waits_behind(&self, vmid: Vmid) -> Option<usize> {
        self.all_storage_turns()
            .values()
            .find_map(|turns| turns.before(vmid))
    }

    async fn configure(&self, vmid: Vmid, stamp: &Stamp, shape: &Shape) -> Result<()> {
        let _turn = self.turn(vmid).await;
        self.patiently("configure", vmid, || self.configure_once(vmid, stamp, shape))
            .await
    }

    async fn power_on(&self, vmid: Vmid, stamp: &Stamp, with: PowerOn) -> Result<()> {
        if with.nic.is_some_and(|nic| nic.tap.is_some()) {
            return Err(BackendError::Unsupported {
                what: "use for a tap device: Proxmox makes its own",
            });
        }
        let _turn = self.turn(vmid).await;
        self.patiently("power on", vmid, || self.power_on_once(vmid, stamp))
            .await
    }

    async fn power_off(&self, vmid: Vmid, stamp: &Stamp) -> Result<()> {
        let _turn = self.turn(vmid).await;
        let done = self
            .patiently("power off", vmid, || self.power_off_once(vmid, stamp))
            .await;
        absent_is_success(done)
    }

    async fn shut_down(&self, vmid: Vmid, stamp: &Stamp, patience: Duration) -> Result<()> {
        let _turn = self.turn(vmid).await;
        let attempt = || self.shut_down_once(vmid, stamp, patience);
        absent_is_success(self.patiently("shut down", vmid, attempt).await)
    }

    async fn suspend(&self, vmid: Vmid, stamp: &Stamp) -> Result<()> {
        let _turn = self.turn(vmid).await;
        let attempt = || self.pause_once(vmid, stamp, PowerWord::Suspend);
        self.patiently("suspend", vmid, attempt).await
    }

    async fn resume(&self, vmid: Vmid, stamp: &Stamp) -> Result<()> {
        let _turn = self.turn(vmid).await;
        let attempt = || self.pause_once(vmid, stamp, PowerWord::Resume);
        self.patiently("resume", vmid, attempt).await
    }

    async fn inspect(&self, vmid: Vmid) -> Result<Option<Machine>> {
        match self.describe("inspect", vmid).await {
            Err(BackendError::NoSuchMachine { .. }) => self.describe("inspect", vmid).await,
            done => done,
        }
    }

    async fn list(&self) -> Result<Vec<Machine>> {
        self.list_all().await
    }

    async fn destroy(&self, vmid: Vmid, stamp: &Stamp) -> Result<()> {
        let _turn = self.turn(vmid).await;
        let done = self
            .patiently("destroy", vmid, || self.destroy_once(vmid, stamp))
            .await;
        if done.is_ok() {
            self.let_go(vmid, None).await;
        }
        self.and_forget_snippet(vmid, stamp, done).await
    }

    async fn stopped(&self, vmid: Vmid) -> Result<()> {
        let interval = self.options.watch_interval;
        loop {
            let known = self.listed(interval).await;
            let seems_up = matches!(&known, Ok(known) if known.get(&vmid).is_some_and(|line| line.runs));
            if !seems_up {
                match self.describe("watch", vmid).await {
                    Ok(None) => return Ok(()),
                    Ok(Some(machine)) if machine.power == Power::Stopped && machine.stamp.is_some() => {
                        return Ok(());
                    }
                    // Nothing is concluded from no answer, nor of what cannot be read.
                    Ok(Some(_)) | Err(_) => {}
                }
            }
            sleep(with_jitter(interval)).await;
        }
    }

    async fn loads(&self) -> Result<BTreeMap<Vmid, Load>> {
        let listed = self.listed(self.options.watch_interval).await?;
        let running = listed.into_iter().filter(|(_, line)| line.runs);
        Ok(running
            .filter_map(|(vmid, line)| Some((vmid, Load::Share(line.load?))))
            .collect())
    }

    async fn usage(&self, vmid: Vmid) -> Result<Usage> {
        let failed = |refusal: Refusal| refusal.into_error(self.wire.kind(), "usage", vmid);
        let record = match self.find("usage", vmid).await? {
            Found::Nothing | Found::Container => return Err(BackendError::NoSuchMachine { vmid }),
            Found::Hidden(refusal) => return Err(failed(refusal)),
            Found::Here(record) => record,
        };
        let answer = self
            .wire
            .read(&Read::status(&record.node, vmid))
            .await
            .map_err(failed)?;
        let status = Fields::of(answer).unwrap_or_default();
        // PVE tells a share of its processors at the moment; over its uptime that is an estimate.
        let share = status.fraction("cpu").unwrap_or(0.0) * status.fraction("cpus").unwrap_or(1.0);
        Ok(Usage {
            cpu_seconds: share * status.fraction("uptime").unwrap_or(0.0),
            memory_bytes: status.number("mem").unwrap_or(0),
        })
    }
}

pub(super) fn absent_is_success(done: Result<()>) -> Result<()> {
    match done {
        Err(BackendError::NoSuchMachine { .. }) => Ok(()),
        other => other,
    }
}
