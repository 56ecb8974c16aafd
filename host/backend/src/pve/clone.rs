//! Clones. An answer, yes or no, does not say whose a machine is: several may have asked for one number, and all of them
//! were told yes. Only its description says so, which stands there from its first moment.

use super::change::{Change, Read, Values, pair};
use super::machines::Attempt;
use super::record::{Label, Record};
use super::view::Found;
use super::{CloneMode, Fields, Kind, Pve, Refusal, Trouble, Wire, being_made};
use crate::{BackendError, CloneSpec, Machine, TaskId};

use agentlab_api::Vmid;

/// On every machine of ours, for people who look at PVE's interface. It proves nothing.
const TAG: &str = "agentlab";

impl<W: Wire> Pve<W> {
    /// Puts right what a clone inherits and must not keep. Only for what is proven ours.
    async fn settle(&self, record: &Record, label: &Label) -> Attempt<()> {
        let found_uuid = record.smbios().uuid().map(str::to_owned);
        let is_noted = label.uuid.is_some() || found_uuid.is_none();
        if is_noted && !record.is_protected() && !record.flag("onboot") {
            return Ok(());
        }
        let label = Label {
            uuid: found_uuid,
            ..label.clone()
        };
        let mut values: Values = vec![
            pair("description", label.replace_in(&record.description())),
            pair("protection", 0),
            pair("onboot", 0),
            pair("tags", TAG),
        ];
        match self.set(record, values.clone()).await {
            // An administrator may have reserved all tags; ours is for show only.
            Err(refusal) if is_about_tags(&refusal) => {
                tracing::warn!(vmid = %record.vmid, %refusal, "machine gets no tag");
                values.retain(|(key, _)| key != "tags");
                Ok(self.set(record, values).await?)
            }
            done => Ok(done?),
        }
    }

    /// The machine of this spec, put right, if it is there.
    async fn made_already(&self, spec: &CloneSpec) -> Attempt<Option<Machine>> {
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
                return if self.may_be_making(spec).await? {
                    Err(being_made(spec.vmid).into())
                } else {
                    Err(taken(refusal.words))
                };
            }
            Found::Here(record) => record,
        };
        let label = record.label();
        // While PVE makes it, nothing may stand there that says whose it will be.
        if record.is_being_made() && label.as_ref().is_none_or(|label| label.stamp == spec.stamp) {
            return Err(being_made(spec.vmid).into());
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
                self.settle(&record, &label).await?;
                let power = self.power(&record).await?;
                self.view.note(spec.vmid, &spec.name, Some(label.stamp.clone()));
                Ok(Some(Machine {
                    vmid: spec.vmid,
                    name: record.name(),
                    power,
                    stamp: Some(label.stamp),
                }))
            }
        }
    }

    /// Whether a machine that we may not see can be the one of this spec, on its way into our pool: its clone's answer was
    /// lost, or an earlier process of ours asked for it and PVE is still at it.
    async fn may_be_making(&self, spec: &CloneSpec) -> Attempt<bool> {
        if self.begun().contains(&spec.vmid) {
            return Ok(true);
        }
        let node = self.template(spec.template).await?.node;
        let tasks = Read::new(format!("/nodes/{node}/tasks"))
            .with("source", "active")
            .with("typefilter", "qmclone");
        let lines = Fields::list(self.wire.read(&tasks).await?).unwrap_or_default();
        let running = lines.iter().filter(|line| line.text("endtime").is_none());
        let clones = self.clones();
        // A token is shown its own tasks only.
        let mut others = running.filter_map(|line| line.text("upid")?.parse::<TaskId>().ok());
        Ok(others.any(|task| !clones.contains(&task)))
    }

    /// The template, wherever in the cluster it is.
    async fn template(&self, vmid: Vmid) -> Attempt<Record> {
        let unusable = |reason: String, hint: String| -> Trouble {
            BackendError::Template {
                template: vmid.to_string(),
                reason,
                hint: Some(hint),
            }
            .into()
        };
        let node = self.node().await?;
        let record = match self.record(node, vmid).await {
            Ok(record) => record,
            Err(refusal) if matches!(refusal.kind, Kind::NoMachine | Kind::Permission(_)) => {
                let elsewhere = self.template_nodes().await?;
                let Some((_, node, _)) = elsewhere.into_iter().find(|(found, _, _)| *found == vmid) else {
                    let hint = format!(
                        "make the template with `agentlab-template`, or grant the token the role PVETemplateUser on \
                         /vms/{vmid}"
                    );
                    return Err(unusable(refusal.words, hint));
                };
                self.record(&node, vmid).await?
            }
            Err(refusal) => return Err(refusal.into()),
        };
        if !record.is_template() {
            let reason = "it is a machine and no template".to_owned();
            return Err(unusable(
                reason,
                format!("stop it and convert it with `qm template {vmid}`"),
            ));
        }
        if record.root_disk().is_none() {
            let reason = "it has no disk that it boots from".to_owned();
            return Err(unusable(
                reason,
                "set its boot order with `qm set --boot`".to_owned(),
            ));
        }
        Ok(record)
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
        if let Some(machine) = self.made_already(spec).await? {
            return Ok(machine);
        }
        let template = self.template(spec.template).await?;
        let storage = template.root_disk().map(|disk| disk.storage().to_owned());
        let turns = self.storage_turns(&storage.unwrap_or_default());
        // Never closed.
        let _turn = turns.acquire().await;
        let mut answer = Err(Refusal::new(Kind::Other, "no way to clone is configured"));
        for full in self.fullness() {
            answer = self.make(spec, &template, *full).await;
            if !matches!(&answer, Err(refusal) if refusal.kind == Kind::NoLinkedClone) {
                break;
            }
        }
        self.view.forget(spec.vmid);
        let refusal = answer.err();
        // Neither a yes nor a no proves whose the machine is: only its description does.
        match (self.made_already(spec).await, refusal) {
            (Ok(Some(machine)), _) => Ok(machine),
            (_, Some(refusal)) if refusal.is_open() => Err(refusal.into()),
            (Err(trouble), _) => Err(trouble),
            (Ok(None), Some(refusal)) => Err(refusal.into()),
            (Ok(None), None) => Err(Refusal::unknown("its task ended well, and it is not there").into()),
        }
    }

    async fn make(
        &self,
        spec: &CloneSpec,
        template: &Record,
        full: bool,
    ) -> std::result::Result<(), Refusal> {
        let label = Label {
            stamp: spec.stamp.clone(),
            vmid: spec.vmid,
            template: spec.template,
            uuid: None,
            mac: None,
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
        if template.node != node {
            values.push(pair("target", node));
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

fn is_about_tags(refusal: &Refusal) -> bool {
    if let Kind::Invalid(errors) = &refusal.kind {
        return errors.iter().any(|(key, _)| key == "tags");
    }
    matches!(&refusal.kind, Kind::Permission(Some((_, needs))) if needs.contains("tag"))
}
