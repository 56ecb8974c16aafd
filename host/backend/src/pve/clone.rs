//! Clones. An answer, yes or no, does not say whose a machine is: several may have asked for one number, and all of them
//! were told yes. Only its description says so, which stands there from its first moment.

use super::change::{Change, Read, pair};
use super::machines::Attempt;
use super::placement::{Placement, Reached, place};
use super::record::{Label, Record};
use super::view::Found;
use super::{CloneMode, Fields, Kind, Pve, Refusal, Trouble, Wire, being_made, template};
use crate::{BackendError, CloneSpec, Machine, Power, TaskId};

use agentlab_api::Vmid;

impl<W: Wire> Pve<W> {
    /// The machine of this spec, if it is there.
    async fn made_already(&self, spec: &CloneSpec) -> Attempt<Option<Record>> {
        let taken = |reason: String| -> Trouble {
            BackendError::Conflict {
                vmid: spec.vmid,
                reason,
            }
            .into()
        };
        let record = match self.find("clone", spec.vmid).await? {
            Found::Nothing => return Ok(None),
            Found::Container => return Err(taken("a container has it".to_owned())),
            Found::Hidden(refusal) => {
                let was_begun = self.begun().contains(&spec.vmid)
                    || self.is_cloning(spec).await?
                    // The clone may have ended between the two looks.
                    || !matches!(self.find("clone", spec.vmid).await?, Found::Hidden(_));
                return Err(if was_begun {
                    under_way(spec.vmid).into()
                } else {
                    taken(refusal.words)
                });
            }
            Found::Here(record) => record,
        };
        let label = record.label();
        // While PVE makes it, nothing may stand there that says whose it will be.
        if record.is_being_made() && label.as_ref().is_none_or(|label| label.stamp == spec.stamp) {
            return Err(if self.is_cloning(spec).await? {
                under_way(spec.vmid).into()
            } else {
                being_made(spec.vmid).into()
            });
        }
        match label {
            None => Err(taken("a machine without a stamp of ours has it".to_owned())),
            Some(label) if label.stamp != spec.stamp => {
                Err(taken(format!("a machine with the stamp {} has it", label.stamp)))
            }
            Some(label) if label.template != spec.template || record.name() != spec.name => Err(taken(
                format!("it is `{}`, a clone of {}", record.name(), label.template),
            )),
            Some(label) => {
                self.begun().remove(&spec.vmid);
                self.view.note(spec.vmid, &spec.name, Some(label.stamp));
                Ok(Some(*record))
            }
        }
    }

    /// Whether a clone is under way that this process does not know: an earlier one asked for it, or its answer was lost.
    /// It may be the one of this spec, which nobody can read before it joins our pool.
    async fn is_cloning(&self, spec: &CloneSpec) -> Attempt<bool> {
        let node = self.template(spec.template).await?.node;
        let tasks = Read::new(format!("/nodes/{node}/tasks"))
            .with("source", "active")
            .with("typefilter", "qmclone");
        let lines = Fields::list(self.wire.read(&tasks).await?).unwrap_or_default();
        let running = lines.iter().filter(|line| line.text("endtime").is_none());
        let of_template = format!(":qmclone:{}:", spec.template);
        let clones = self.clones();
        // A token is shown its own tasks only, unless it has Sys.Audit; root is shown everybody's.
        let mut others = running.filter_map(|line| line.text("upid")?.parse::<TaskId>().ok());
        Ok(others.any(|task| task.as_str().contains(&of_template) && !clones.contains(&task)))
    }

    /// The template, wherever in the cluster it is.
    pub(super) async fn template(&self, vmid: Vmid) -> Attempt<Record> {
        let node = self.node().await?;
        match self.record(node, vmid).await {
            Ok(record) => Ok(record),
            Err(refusal) if matches!(refusal.kind, Kind::NoMachine | Kind::Permission(_)) => {
                let elsewhere = self.template_nodes().await?;
                let Some((_, node, _)) = elsewhere.into_iter().find(|(found, _, _)| *found == vmid) else {
                    let hint = format!(
                        "make the template with `agentlab-template`, or grant the token the role PVETemplateUser on \
                         /vms/{vmid}"
                    );
                    return Err(BackendError::Template {
                        template: vmid.to_string(),
                        reason: refusal.words,
                        hint: Some(hint),
                    }
                    .into());
                };
                Ok(self.record(&node, vmid).await?)
            }
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// The template, if machines can be made of it.
    async fn usable_template(&self, vmid: Vmid) -> Attempt<Record> {
        let record = self.template(vmid).await?;
        match template::check(&record, &self.options.bridge) {
            Ok(()) => Ok(record),
            Err(fault) => Err(BackendError::Template {
                template: vmid.to_string(),
                reason: fault.reason,
                hint: Some(fault.hint),
            }
            .into()),
        }
    }

    /// Whether to clone in full: ways in the order to try. PVE says at once, before it begins, that a storage cannot link.
    fn fullness(&self) -> &'static [bool] {
        match self.options.clone {
            CloneMode::Linked => &[false],
            CloneMode::Full => &[true],
            CloneMode::Auto => &[false, true],
        }
    }

    pub(super) async fn clone_once(&self, spec: &CloneSpec) -> Attempt<Machine> {
        let machine = |power| Machine {
            vmid: spec.vmid,
            name: spec.name.clone(),
            power,
            stamp: Some(spec.stamp.clone()),
        };
        let free = Read::is_free(spec.vmid);
        let (free, template) = tokio::join!(self.wire.read(&free), self.usable_template(spec.template));
        if free.is_err()
            && let Some(record) = self.made_already(spec).await?
        {
            return Ok(machine(self.power(&record).await?));
        }
        let template = template?;
        let placement = self.place(&template).await?;
        let refusal = self.make_somehow(spec, &template, &placement).await.err();
        self.view.forget(spec.vmid);
        // Neither a yes nor a no proves whose the machine is: only its description does.
        match (self.made_already(spec).await, refusal) {
            // A clone is made stopped, and nobody else may start it.
            (Ok(Some(_)), None) => Ok(machine(Power::Stopped)),
            (Ok(Some(record)), Some(_)) => Ok(machine(self.power(&record).await?)),
            (_, Some(refusal)) if refusal.is_open() => Err(refusal.into()),
            (Err(trouble), _) => Err(trouble),
            (Ok(None), Some(refusal)) => Err(refusal.into()),
            (Ok(None), None) => Err(Refusal::unknown("its task ended well, and it is not there").into()),
        }
    }

    /// Asks our node for the storages of a template that is elsewhere, and decides.
    async fn place(&self, template: &Record) -> Attempt<Placement> {
        let node = self.node().await?;
        let mut names: Vec<String> = template
            .disks()
            .iter()
            .map(|disk| disk.storage().to_owned())
            .collect();
        names.sort();
        names.dedup();
        let mut storages = Vec::new();
        for name in names.into_iter().filter(|_| template.node != node) {
            let status = Read::new(format!("/nodes/{node}/storage/{name}/status"));
            let status = Fields::of(self.wire.read(&status).await?).unwrap_or_default();
            storages.push(Reached {
                shared: status.flag("shared"),
                usable: status.flag("enabled") && status.flag("active"),
                name,
            });
        }
        place(node, &template.node, &storages).map_err(|no_place| {
            BackendError::Template {
                template: template.vmid.to_string(),
                reason: no_place.reason,
                hint: Some(no_place.hint),
            }
            .into()
        })
    }

    /// When the template's storage has a turn, linked or full as it can.
    async fn make_somehow(
        &self,
        spec: &CloneSpec,
        template: &Record,
        placement: &Placement,
    ) -> std::result::Result<(), Refusal> {
        let storage = template.root_disk().map(|disk| disk.storage().to_owned());
        let turns = self.storage_turns(&storage.unwrap_or_default());
        let _turn = turns.take(spec.vmid).await;
        let mut answer = Err(Refusal::new(Kind::Other, "no way to clone is configured"));
        for full in self.fullness() {
            answer = self.make(spec, template, placement, *full).await;
            if !matches!(&answer, Err(refusal) if refusal.kind == Kind::NoLinkedClone) {
                break;
            }
        }
        answer
    }

    async fn make(
        &self,
        spec: &CloneSpec,
        template: &Record,
        placement: &Placement,
        full: bool,
    ) -> std::result::Result<(), Refusal> {
        let label = Label {
            stamp: spec.stamp.clone(),
            vmid: spec.vmid,
            template: spec.template,
            uuid: None,
            mac: None,
            firewall: None,
        };
        let mut values = vec![
            pair("name", &spec.name),
            pair("description", label.to_line()),
            pair("full", u8::from(full)),
        ];
        values.extend(self.options.pool.as_ref().map(|pool| pair("pool", pool)));
        let storage = self.options.storage.as_ref().filter(|_| full);
        values.extend(storage.map(|storage| pair("storage", storage)));
        let node = self.node.get().map(String::as_str).unwrap_or_default();
        match placement {
            Placement::Here => {}
            Placement::Across => values.push(pair("target", node)),
        }
        let change = Change::Clone {
            template: spec.template,
            to: spec.vmid,
            values,
        };
        let patience = self.options.clone_patience;
        self.begun().insert(spec.vmid);
        let answer = self.carry_out(&template.node, &change, patience).await;
        if !matches!(&answer, Err(refusal) if refusal.is_open()) {
            self.begun().remove(&spec.vmid);
        }
        answer.map(drop)
    }
}

/// It takes as long as a clone takes.
pub(super) fn under_way(vmid: Vmid) -> Refusal {
    Refusal::new(Kind::BeingMade, format!("PVE is still making VM {vmid}"))
}
