//! What happens on a node without its clients: the operator's hand, and fate.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::access::Identity;
use crate::api::power;
use crate::audit::Origin;
use crate::core::Core;
use crate::timeline::lock;
use crate::world::{Config, Vm};

/// Keys with their values, as PVE stores them.
pub type Keys = BTreeMap<String, String>;

/// Acts at once, past tokens and locks. Nothing it does counts as a client's.
pub struct Operator {
    core: Arc<Core>,
    who: Identity,
}

impl std::fmt::Debug for Operator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Operator")
    }
}

impl Operator {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        let who = Identity {
            user: "root@pam".into(),
            token: None,
        };
        Self { core, who }
    }

    fn strikes(&self, fault: &'static str) {
        self.core.world().audit.strikes(fault);
    }

    /// Stops a machine, or lets its guest power itself off.
    pub fn stop(&self, vmid: u32) {
        self.strikes("machine stopped");
        power::stop_from_outside(&self.core, vmid, &self.who);
        self.core.changed.notify_waiters();
    }

    /// Destroys a machine with the disks of its VMID.
    pub fn destroy(&self, vmid: u32) {
        self.strikes("machine destroyed");
        let mut world = self.core.world();
        world.changes_vm(&self.who, vmid, "destroy");
        power::halt(&self.core, &mut world, vmid);
        world.volumes.retain(|_, volume| volume.owner != vmid);
        world.forget_vm(vmid);
        drop(world);
        self.core.boot.destroyed(vmid);
    }

    /// Destroys a machine right before the first request in whose path or query these words stand.
    pub fn destroy_before(&self, vmid: u32, words: &str) {
        *lock(&self.core.ambush) = Some((vmid, words.to_owned()));
    }

    /// Sets, or with `None` removes, a key of a machine's configuration. A machine whose description is changed is
    /// no longer the client's.
    pub fn configure(&self, vmid: u32, key: &str, value: Option<&str>) {
        let mut world = self.core.world();
        world.changes_vm(&self.who, vmid, "config of");
        match (key, value) {
            ("name", _) => world.audit.strikes("machine renamed"),
            ("lock", Some(_)) => world.audit.strikes("machine locked"),
            ("description", _) => world.audit.strikes("notes changed"),
            _ => {}
        }
        let Some(vm) = world.vms.get_mut(&vmid) else {
            return;
        };
        match value {
            Some(value) => vm.config.insert(key.to_owned(), value.to_owned()),
            None => vm.config.remove(key),
        };
        if key == "description" {
            vm.origin = Origin::Foreign;
            for volume in world.volumes.values_mut().filter(|volume| volume.owner == vmid) {
                volume.origin = Origin::Foreign;
            }
        }
    }

    /// Options and rules of a machine's firewall.
    #[must_use]
    pub fn firewall(&self, vmid: u32) -> Option<(Keys, Vec<Keys>)> {
        let world = self.core.world();
        let vm = world.vms.get(&vmid)?;
        Some((vm.firewall.clone(), vm.rules.clone()))
    }

    /// Sets an option of a machine's firewall.
    pub fn configure_firewall(&self, vmid: u32, key: &str, value: &str) {
        if let Some(vm) = self.core.world().vms.get_mut(&vmid) {
            vm.firewall.insert(key.to_owned(), value.to_owned());
        }
    }

    /// Adds a rule to a machine's firewall.
    pub fn add_firewall_rule(&self, vmid: u32, rule: &[(&str, &str)]) {
        let rule = rule
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()));
        if let Some(vm) = self.core.world().vms.get_mut(&vmid) {
            vm.rules.push(rule.collect());
        }
    }

    /// Gives a machine to the HA stack.
    pub fn manage_by_ha(&self, vmid: u32) {
        if let Some(vm) = self.core.world().vms.get_mut(&vmid) {
            vm.ha = true;
        }
    }

    /// Moves a stopped machine to another node, its volumes along.
    pub fn migrate(&self, vmid: u32, node: &str) {
        let mut world = self.core.world();
        world.changes_vm(&self.who, vmid, "migrate");
        if let Some(vm) = world.vms.get_mut(&vmid) {
            vm.node = node.to_owned();
        }
        for volume in world.volumes.values_mut().filter(|volume| volume.owner == vmid) {
            volume.node = node.to_owned();
        }
    }

    /// Works on a storage for so long, as a backup that removes old volumes does.
    pub fn hold_storage(&self, storage: &str, span: Duration) {
        let (core, storage) = (Arc::clone(&self.core), storage.to_owned());
        self.core.timeline.spawn(async move {
            let guard = core.lock_storage(&storage).await;
            core.pass(span).await;
            drop(guard);
        });
    }

    /// Takes away what clones that died in the middle left: nobody can tell whose it was to be.
    pub fn clear_half_done(&self) {
        let world = self.core.world();
        let half_done = world.vms.iter().filter(|(_, vm)| vm.lock() == Some("clone"));
        let half_done: Vec<u32> = half_done.map(|(vmid, _)| *vmid).collect();
        let is_under_way = |vmid: &u32| {
            let mut tasks = world.tasks.iter();
            tasks.any(|task| task.target == Some(*vmid) && task.end.is_none())
        };
        let dead: Vec<u32> = half_done.into_iter().filter(|vmid| !is_under_way(vmid)).collect();
        drop(world);
        for vmid in dead {
            self.destroy(vmid);
        }
    }

    /// Puts a machine of somebody else's onto a VMID that is free, and says whether it was.
    pub fn create_foreign(&self, vmid: u32) -> bool {
        let mut world = self.core.world();
        if world.vms.contains_key(&vmid) {
            return false;
        }
        let config = Config::from([
            ("name".to_owned(), "foreign".to_owned()),
            ("memory".to_owned(), "512".to_owned()),
            ("description".to_owned(), "somebody's database".to_owned()),
        ]);
        let node = world.local.clone();
        world.audit.strikes("foreign machine on a number");
        world.vms.insert(vmid, Vm::new(&node, config, Origin::Foreign));
        // In the client's pool, so that only its own judgement keeps it from touching the machine.
        for pool in world.pools.values_mut() {
            pool.vms.insert(vmid);
        }
        true
    }

    /// Machines that clients made and that still are theirs, those aside that are being made.
    #[must_use]
    pub fn clients_machines(&self) -> Vec<u32> {
        let world = self.core.world();
        let is_made = |vm: &Vm| vm.origin == Origin::Client && vm.lock() != Some("clone");
        let own = world.vms.iter().filter(|(_, vm)| is_made(vm));
        own.map(|(vmid, _)| *vmid).collect()
    }

    /// Configuration of a machine, if it is there.
    #[must_use]
    pub fn config(&self, vmid: u32) -> Option<Keys> {
        self.core.world().vms.get(&vmid).map(|vm| vm.config.clone())
    }

    /// Whether a machine runs.
    #[must_use]
    pub fn runs(&self, vmid: u32) -> bool {
        self.core
            .world()
            .vms
            .get(&vmid)
            .is_some_and(|vm| vm.run.is_some())
    }

    /// A node goes down or comes back; its machines go down with it.
    pub fn set_online(&self, node: &str, online: bool) {
        let mut world = self.core.world();
        let on_it: Vec<u32> = world
            .vms
            .iter()
            .filter(|(_, vm)| vm.node == node)
            .map(|(vmid, _)| *vmid)
            .collect();
        if !online {
            world.audit.strikes("node lost");
            for vmid in on_it {
                power::end(&self.core, &mut world, vmid);
            }
        }
        if let Some(found) = world.nodes.get_mut(node) {
            found.online = online;
        }
    }

    /// The cluster loses or regains its quorum.
    pub fn set_quorate(&self, quorate: bool) {
        let mut world = self.core.world();
        if !quorate {
            world.audit.strikes("quorum lost");
        }
        world.quorate = quorate;
    }

    /// Switches the cluster's firewall on or off.
    pub fn set_firewall(&self, on: bool) {
        self.core.world().firewall = on;
    }

    /// Sets a datacenter option, such as `next-id`.
    pub fn set_option(&self, key: &str, value: &str) {
        let mut world = self.core.world();
        world.options.insert(key.to_owned(), value.to_owned());
    }

    /// All wall clock times move.
    pub fn jump_clock(&self, seconds: i64) {
        let mut world = self.core.world();
        world.audit.strikes("clock jumped");
        world.clock_offset += seconds;
    }

    /// Adds a snippet file.
    pub fn add_snippet(&self, volid: &str) {
        self.core.world().snippets.insert(volid.to_owned());
    }

    /// Whatever is under way goes on until now. Nothing else moves the stand-in while nobody asks it.
    pub fn let_time_pass(&self) {
        self.core.timeline.advance();
    }
}
