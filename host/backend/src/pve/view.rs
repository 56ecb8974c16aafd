//! What there is, whosever it is.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use agentlab_api::Vmid;
use serde_json::Value;
use tokio::time::Instant;

use super::{Fields, Kind, Pve, Read, Record, Refusal, Wire};
use crate::{BackendError, Machine, Power, Result, Stamp};

/// What stands under a VMID.
pub(super) enum Found {
    /// Nothing, in the whole cluster.
    Nothing,
    Here(Box<Record>),
    /// A container, which is never ours.
    Container,
    /// Something that we may not see.
    Hidden(Refusal),
}

/// What is remembered of machines, so that a list is two calls however many there are.
#[derive(Debug, Default)]
pub(super) struct View {
    /// Stamps by VMID, with the name the machine had: one of another name may be another machine. Nothing is changed on
    /// the strength of it; every change reads the stamp itself.
    stamps: Mutex<HashMap<Vmid, (String, Option<Stamp>)>>,
    /// Who runs on our node, and when that was asked.
    running: tokio::sync::Mutex<Option<(Instant, HashMap<Vmid, Listed>)>>,
}

/// A line of a node's own list.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) runs: bool,
    pub(super) is_template: bool,
    /// Share of its processors that it used since somebody asked before.
    pub(super) load: Option<f64>,
}

impl View {
    pub(super) fn forget(&self, vmid: Vmid) {
        self.stamps
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&vmid);
    }

    pub(super) fn note(&self, vmid: Vmid, name: &str, stamp: Option<Stamp>) {
        self.stamps
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(vmid, (name.to_owned(), stamp));
    }

    fn stamp(&self, vmid: Vmid, name: &str) -> Option<Option<Stamp>> {
        let stamps = self.stamps.lock().unwrap_or_else(PoisonError::into_inner);
        let (noted, stamp) = stamps.get(&vmid)?;
        (noted == name).then(|| stamp.clone())
    }

    fn keep_only(&self, keep: impl Fn(Vmid) -> bool) {
        self.stamps
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|vmid, _| keep(*vmid));
    }
}

/// A line of the cluster's list. Its status is up to 10 s old, or unknown.
struct Resource {
    node: String,
    name: String,
    is_machine: bool,
    runs: bool,
    is_template: bool,
}

impl<W: Wire> Pve<W> {
    /// Looks a VMID up. A node that does not have it is not the last word, and neither is a 403: privileges hang on a
    /// pool, and a machine leaves its pool when it is destroyed, but also when somebody takes it out.
    pub(super) async fn find(&self, action: &'static str, vmid: Vmid) -> Result<Found> {
        let failed = |refusal: Refusal| refusal.into_error(self.wire.kind(), action, vmid);
        let node = self.node().await?;
        let first = match self.record(node, vmid).await {
            Ok(record) => return Ok(Found::Here(Box::new(record))),
            Err(refusal) if is_absence(&refusal) => refusal,
            Err(refusal) => return Err(failed(refusal)),
        };
        match self.wire.read(&Read::is_free(vmid)).await {
            Ok(_) => {
                self.view.forget(vmid);
                return Ok(Found::Nothing);
            }
            Err(refusal) if refusal.kind == Kind::Taken => {}
            Err(refusal) => return Err(failed(refusal)),
        }
        let resources = self.resources().await.map_err(failed)?;
        let Some(resource) = resources.get(&vmid) else {
            return Ok(Found::Hidden(hidden(first, vmid)));
        };
        if !resource.is_machine {
            return Ok(Found::Container);
        }
        // It moved, or was made between the questions.
        match self.record(&resource.node, vmid).await {
            Ok(record) => Ok(Found::Here(Box::new(record))),
            Err(refusal) if is_absence(&refusal) => Ok(Found::Hidden(hidden(refusal, vmid))),
            Err(refusal) => Err(failed(refusal)),
        }
    }

    /// A machine's configuration on one node.
    pub(super) async fn record(&self, node: &str, vmid: Vmid) -> std::result::Result<Record, Refusal> {
        let answer = self.wire.read(&Read::config(node, vmid)).await?;
        let fields = Fields::of(answer);
        let fields = fields.ok_or_else(|| Refusal::unknown("the answer holds no configuration"))?;
        Ok(Record::new(node, vmid, fields))
    }

    pub(super) async fn power(&self, record: &Record) -> std::result::Result<Power, Refusal> {
        power_in(self.wire.read(&Read::status(&record.node, record.vmid)).await?)
    }

    /// The machine as the traits show it.
    pub(super) async fn describe(&self, action: &'static str, vmid: Vmid) -> Result<Option<Machine>> {
        let node = self.node().await?;
        let status = Read::status(node, vmid);
        let (found, status) = tokio::join!(self.find(action, vmid), self.wire.read(&status));
        let record = match found? {
            Found::Nothing => return Ok(None),
            Found::Hidden(_) | Found::Container => return Ok(Some(unreadable(vmid))),
            Found::Here(record) => record,
        };
        let power = if record.node == node {
            status.and_then(power_in)
        } else {
            self.power(&record).await
        };
        // It may have gone between the questions; the next look says so.
        let power = power.map_err(|refusal| refusal.into_error(self.wire.kind(), action, vmid))?;
        let stamp = record.label().map(|label| label.stamp);
        if !record.is_being_made() {
            self.view.note(vmid, &record.name(), stamp.clone());
        }
        Ok(Some(Machine {
            vmid,
            name: record.name(),
            power,
            stamp,
        }))
    }

    async fn resources(&self) -> std::result::Result<HashMap<Vmid, Resource>, Refusal> {
        let answer = self.wire.read(&Read::resources()).await?;
        let lines = Fields::list(answer).ok_or_else(|| Refusal::unknown("the answer is no list"))?;
        let known = lines.iter().filter_map(|line| {
            let vmid = Vmid::try_from(u32::try_from(line.number("vmid")?).ok()?).ok()?;
            let resource = Resource {
                node: line.text("node")?,
                name: line.text("name").unwrap_or_default(),
                is_machine: line.text("type")? == "qemu",
                runs: line.text("status").is_some_and(|status| status == "running"),
                is_template: line.flag("template"),
            };
            Some((vmid, resource))
        });
        Ok(known.collect())
    }

    /// Every machine that we see, with its node.
    pub(super) async fn places(&self) -> Result<Vec<(Vmid, String)>> {
        let unreachable = |refusal: Refusal| refusal.into_unreachable(self.wire.kind(), "list");
        let node = self.node().await?.to_owned();
        // What pvestatd has not told the cluster yet, the node itself knows.
        let here = self.listed(Duration::ZERO).await?.into_keys();
        let mut places: HashMap<Vmid, String> = here.map(|vmid| (vmid, node.clone())).collect();
        for (vmid, resource) in self.resources().await.map_err(unreachable)? {
            if resource.is_machine {
                places.entry(vmid).or_insert(resource.node);
            }
        }
        let mut places: Vec<_> = places.into_iter().collect();
        places.sort();
        Ok(places)
    }

    /// Machines of our range with this name.
    pub(super) async fn named(&self, name: &str) -> Result<Vec<Vmid>> {
        let unreachable = |refusal: Refusal| refusal.into_unreachable(self.wire.kind(), "list");
        let (first, last) = self.options.vmids;
        let here = self.listed(Duration::ZERO).await?;
        let here = here.into_iter().map(|(vmid, listed)| (vmid, listed.name));
        let elsewhere = self.resources().await.map_err(unreachable)?;
        let elsewhere = elsewhere
            .into_iter()
            .map(|(vmid, resource)| (vmid, resource.name));
        let mut vmids: Vec<Vmid> = here
            .chain(elsewhere)
            .filter(|(vmid, found)| (first..=last).contains(vmid) && found == name)
            .map(|(vmid, _)| vmid)
            .collect();
        vmids.sort();
        vmids.dedup();
        Ok(vmids)
    }

    /// Templates of the whole cluster, with the node each is on.
    pub(super) async fn template_nodes(&self) -> std::result::Result<Vec<(Vmid, String, String)>, Refusal> {
        let resources = self.resources().await?;
        let mut templates: Vec<_> = resources
            .into_iter()
            .filter(|(_, resource)| resource.is_machine && resource.is_template)
            .map(|(vmid, resource)| (vmid, resource.node, resource.name))
            .collect();
        templates.sort();
        Ok(templates)
    }

    /// Our node's own list, which is true to the moment. One that is not older than `age` is good enough.
    pub(super) async fn listed(&self, age: Duration) -> Result<HashMap<Vmid, Listed>> {
        let node = self.node().await?;
        let mut running = self.view.running.lock().await;
        if let Some((asked, known)) = running.as_ref()
            && asked.elapsed() < age
        {
            return Ok(known.clone());
        }
        let unreachable = |refusal: Refusal| refusal.into_unreachable(self.wire.kind(), "list");
        let answer = self.wire.read(&Read::machines(node)).await.map_err(unreachable)?;
        let lines =
            Fields::list(answer).ok_or_else(|| unreachable(Refusal::unknown("the answer is no list")))?;
        let known: HashMap<Vmid, Listed> = lines
            .iter()
            .filter_map(|line| {
                let vmid = Vmid::try_from(u32::try_from(line.number("vmid")?).ok()?).ok()?;
                let listed = Listed {
                    name: line.text("name").unwrap_or_default(),
                    runs: line.text("status")? == "running",
                    is_template: line.flag("template"),
                    load: line.fraction("cpu"),
                };
                Some((vmid, listed))
            })
            .collect();
        *running = Some((Instant::now(), known.clone()));
        Ok(known)
    }

    /// The stamp of a machine that a list shows; `None` when it is gone meanwhile. One call for one of our own node.
    async fn read_stamp(&self, node: &str, vmid: Vmid, is_here: bool) -> Result<Option<Option<Stamp>>> {
        if is_here && let Ok(record) = self.record(node, vmid).await {
            let stamp = record.label().map(|label| label.stamp);
            if !record.is_being_made() {
                self.view.note(vmid, &record.name(), stamp.clone());
            }
            return Ok(Some(stamp));
        }
        let machine = self.describe("list", vmid).await?;
        Ok(machine.map(|machine| machine.stamp))
    }

    /// Everything in our range.
    pub(super) async fn list_all(&self) -> Result<Vec<Machine>> {
        let unreachable = |refusal: Refusal| refusal.into_unreachable(self.wire.kind(), "list");
        let node = self.node().await?.to_owned();
        let here = self.listed(Duration::ZERO).await?;
        let everywhere = self.resources().await.map_err(unreachable)?;
        let (first, last) = self.options.vmids;
        let in_range = |vmid: &Vmid| (first..=last).contains(vmid);
        let mut vmids: Vec<Vmid> = here
            .keys()
            .chain(everywhere.keys())
            .copied()
            .filter(in_range)
            .collect();
        vmids.sort();
        vmids.dedup();
        self.view.keep_only(|vmid| vmids.binary_search(&vmid).is_ok());
        let mut machines = Vec::with_capacity(vmids.len());
        for vmid in vmids {
            let line = here.get(&vmid).map(|listed| (listed.name.as_str(), listed.runs));
            let elsewhere = everywhere
                .get(&vmid)
                .filter(|resource| resource.node != node || line.is_none());
            if elsewhere.is_some_and(|resource| !resource.is_machine) {
                machines.push(unreadable(vmid));
                continue;
            }
            let line = line.or_else(|| elsewhere.map(|resource| (resource.name.as_str(), resource.runs)));
            let Some((name, runs)) = line else { continue };
            let line_is_ours = here.contains_key(&vmid);
            let stamp = match self.view.stamp(vmid, name) {
                Some(stamp) => stamp,
                None => match self.read_stamp(&node, vmid, line_is_ours).await {
                    Ok(Some(stamp)) => stamp,
                    Ok(None) => continue,
                    // Another node that is down is no reason to see nothing of ours.
                    Err(error @ BackendError::Unreachable { .. }) if line_is_ours => return Err(error),
                    Err(_) => None,
                },
            };
            machines.push(Machine {
                vmid,
                name: name.to_owned(),
                power: if runs { Power::Running } else { Power::Stopped },
                stamp,
            });
        }
        Ok(machines)
    }
}

/// What `status/current` says.
pub(super) fn power_in(answer: Value) -> std::result::Result<Power, Refusal> {
    let status = Fields::of(answer).unwrap_or_default();
    match status.text("status").as_deref() {
        Some("stopped") => Ok(Power::Stopped),
        Some("running") => Ok(match status.text("qmpstatus").as_deref() {
            Some("paused" | "suspended") => Power::Suspended,
            _ => Power::Running,
        }),
        other => Err(Refusal::unknown(format!(
            "the answer says of its status `{}`",
            other.unwrap_or("nothing")
        ))),
    }
}

fn is_absence(refusal: &Refusal) -> bool {
    matches!(refusal.kind, Kind::NoMachine | Kind::Permission(_))
}

fn hidden(refusal: Refusal, vmid: Vmid) -> Refusal {
    // What is half a clone joined no pool, and a token sees no more of it than of a stranger's machine. Nor is it a kind
    // that asks for the privilege: nobody is told to hand us a machine that may be a stranger's.
    let words = format!(
        "VM {vmid} exists and cannot be read: {}. It is not ours, or half a clone, or was taken out of our pool: `qm config \
         {vmid}`, as root, shows which",
        refusal.words
    );
    Refusal::new(Kind::Other, words)
}

fn unreadable(vmid: Vmid) -> Machine {
    Machine {
        vmid,
        name: "unknown".to_owned(),
        power: Power::Stopped,
        stamp: None,
    }
}
