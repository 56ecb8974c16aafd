//! The trait's calls. Each attempt reads the machine's configuration and compares its stamp before it changes anything.

use std::time::Duration;

use agentlab_api::Vmid;
use async_trait::async_trait;
use tokio::time::sleep;

use super::change::{Change, PowerWord, Read, Values, pair};
use super::record::{Label, Record, net0};
use super::view::Found;
use super::{Fields, Kind, Pve, Refusal, Trouble, Wire, refused, with_jitter};
use crate::{
    BackendError, CloneSpec, Machine, Machines, Power, PowerOn, Result, Shape, Stamp, Template, Usage,
};

const GIB: u64 = 1 << 30;
pub(super) type Attempt<T> = std::result::Result<T, Trouble>;

impl<W: Wire> Pve<W> {
    async fn configure_once(&self, vmid: Vmid, stamp: &Stamp, shape: &Shape) -> Attempt<()> {
        const ACTION: &str = "configure";
        let record = self.ours(ACTION, vmid, stamp).await?;
        let root = record
            .root_disk()
            .ok_or_else(|| refused(ACTION, vmid, "it has no disk that it boots from"))?;
        let wanted_bytes = shape.root_size_gb.map(|gb| u64::from(gb) * GIB);
        if let (Some(wanted), Some(has)) = (wanted_bytes, root.bytes)
            && wanted < has
        {
            return Err(BackendError::Refused {
                action: ACTION,
                vmid,
                reason: format!(
                    "its disk has {} MiB and cannot shrink to {} MiB",
                    has.div_ceil(1 << 20),
                    wanted >> 20
                ),
                hint: Some(format!("ask for {} GiB or more", has.div_ceil(GIB))),
            }
            .into());
        }
        let grows = wanted_bytes.is_some_and(|wanted| root.bytes.is_none_or(|has| wanted > has));
        let has_shape = has_shape(&record, shape, &self.options.bridge);
        if has_shape && !grows {
            return Ok(());
        }
        if self.power(&record).await? != Power::Stopped {
            return Err(refused(ACTION, vmid, "it is running").into());
        }
        if !has_shape {
            self.shape(&record, shape).await?;
        }
        if let (true, Some(gb)) = (grows, shape.root_size_gb) {
            let change = Change::Resize {
                vmid,
                disk: root.slot,
                size: format!("{gb}G"),
            };
            self.change(&record.node, change).await?;
        }
        Ok(())
    }

    async fn shape(&self, record: &Record, shape: &Shape) -> Attempt<()> {
        let mut values = shape_values(record, shape, &self.options.bridge);
        // Two tenants' memory is never merged. Versions before 9 have no word for it.
        if self.version().await?.major >= 9 {
            values.push(pair("allow-ksm", 0));
        }
        match self.set(record, values.clone()).await {
            Err(Refusal {
                kind: Kind::Invalid(errors),
                ..
            }) if errors.iter().all(|(key, _)| key == "allow-ksm") => {
                values.retain(|(key, _)| key != "allow-ksm");
                Ok(self.set(record, values).await?)
            }
            done => Ok(done?),
        }
    }

    async fn power_on_once(&self, vmid: Vmid, stamp: &Stamp) -> Attempt<()> {
        const ACTION: &str = "power on";
        let record = self.ours(ACTION, vmid, stamp).await?;
        match self.power(&record).await? {
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
        let Some(record) = self.ours_or_absent("power off", vmid, stamp).await? else {
            return Ok(());
        };
        if self.power(&record).await? == Power::Stopped {
            return Ok(());
        }
        self.switch(&record, PowerWord::Stop, Power::Stopped).await
    }

    async fn shut_down_once(&self, vmid: Vmid, stamp: &Stamp, patience: Duration) -> Attempt<()> {
        let Some(record) = self.ours_or_absent("shut down", vmid, stamp).await? else {
            return Ok(());
        };
        match self.power(&record).await? {
            Power::Stopped => return Ok(()),
            // A guest that is frozen hears nothing.
            Power::Suspended => return self.switch(&record, PowerWord::Stop, Power::Stopped).await,
            Power::Running => {}
        }
        let change = Change::ShutDown {
            vmid,
            seconds: patience.as_secs().max(1),
        };
        let patience = patience + self.options.task_patience;
        match self.carry_out(&record.node, &change, patience).await {
            Ok(_) => Ok(()),
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
        let record = self.ours(action, vmid, stamp).await?;
        match self.power(&record).await? {
            Power::Stopped => Err(refused(action, vmid, "it is not running").into()),
            power if power == wanted => Ok(()),
            Power::Running | Power::Suspended => self.switch(&record, to, wanted).await,
        }
    }

    async fn destroy_once(&self, vmid: Vmid, stamp: &Stamp) -> Attempt<()> {
        const ACTION: &str = "destroy";
        let Some(record) = self.ours_or_absent(ACTION, vmid, stamp).await? else {
            return Ok(());
        };
        if self.power(&record).await? != Power::Stopped {
            self.switch(&record, PowerWord::Stop, Power::Stopped).await?;
        }
        if record.is_protected() {
            self.set(&record, vec![pair("protection", 0)]).await?;
        }
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

/// Whether a configuration is what a shape asks for already, the disk aside.
fn has_shape(record: &Record, shape: &Shape, bridge: &str) -> bool {
    let mac = shape.mac.to_string();
    let is_labelled = record
        .label()
        .and_then(|label| label.mac)
        .is_some_and(|noted| noted.eq_ignore_ascii_case(&mac));
    is_labelled
        && record.number("cores").unwrap_or(1) == u64::from(shape.cores)
        && record.number("sockets").unwrap_or(1) == 1
        && record.number("memory") == Some(u64::from(shape.memory_mb))
        && stands_where_it_should(record, bridge).is_ok()
}

fn shape_values(record: &Record, shape: &Shape, bridge: &str) -> Values {
    let mut values = vec![
        pair("cores", shape.cores),
        pair("memory", shape.memory_mb),
        pair("balloon", 0),
        pair("net0", net0(&shape.mac, bridge)),
    ];
    if record.number("sockets").unwrap_or(1) != 1 {
        values.push(pair("sockets", 1));
    }
    if record.has_cloud_init() {
        // PVE's own default lets the first boot upgrade every package.
        values.push(pair("ciupgrade", 0));
    }
    if let Some(label) = record.label() {
        let label = Label {
            mac: Some(shape.mac.to_string().to_uppercase()),
            ..label
        };
        values.push(pair("description", label.replace_in(&record.description())));
    }
    let others: Vec<String> = record
        .nics()
        .into_iter()
        .map(|(slot, _)| slot)
        .filter(|slot| slot != "net0")
        .collect();
    if !others.is_empty() {
        values.push(pair("delete", others.join(",")));
    }
    values
}

/// One NIC, on our bridge, with the address that the policy pins.
fn stands_where_it_should(record: &Record, bridge: &str) -> std::result::Result<(), String> {
    let mac = record.label().and_then(|label| label.mac);
    let mac = mac.ok_or("it was never configured")?;
    let nics = record.nics();
    let [(slot, net)] = nics.as_slice() else {
        return Err(format!("it has {} NICs, and must have one", nics.len()));
    };
    let is_pinned = net
        .mac
        .as_ref()
        .is_some_and(|found| found.eq_ignore_ascii_case(&mac));
    if slot != "net0" || !is_pinned {
        return Err(format!("its NIC is not the one it was configured with, {mac}"));
    }
    match &net.bridge {
        Some(found) if found == bridge && !net.firewall => Ok(()),
        Some(found) if found == bridge => Err("its NIC is behind a bridge of PVE's own firewall".to_owned()),
        Some(found) => Err(format!("its NIC is on bridge {found}, and must be on {bridge}")),
        None => Err(format!("its NIC is on no bridge, and must be on {bridge}")),
    }
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
        absent_is_success(done)
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

fn absent_is_success(done: Result<()>) -> Result<()> {
    match done {
        Err(BackendError::NoSuchMachine { .. }) => Ok(()),
        other => other,
    }
}
