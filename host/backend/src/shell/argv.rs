//! Changes and questions as arguments. Never a line for a shell: what a description holds is one argument, whatever it
//! looks like.

use std::time::Duration;

use agentlab_api::Vmid;

use crate::pve::{Change, FirewallEdit, Read, Refusal, Values};

/// A program with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Argv {
    pub(crate) program: &'static str,
    pub(crate) arguments: Vec<String>,
}

impl Argv {
    fn new(program: &'static str, arguments: &[&str]) -> Self {
        Self {
            program,
            arguments: arguments.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    fn option(mut self, key: &str, value: impl ToString) -> Self {
        self.arguments.push(format!("--{key}"));
        self.arguments.push(value.to_string());
        self
    }

    fn options(self, values: &Values) -> Self {
        values
            .iter()
            .fold(self, |argv, (key, value)| argv.option(key, value))
    }

    /// `pvesh` asks the same questions as the REST API, and answers in the same words.
    pub(crate) fn read(read: &Read) -> Self {
        let argv = Self::new("pvesh", &["get", &read.path]);
        let argv = read
            .query
            .iter()
            .fold(argv, |argv, (key, value)| argv.option(key, value));
        argv.option("output-format", "json")
    }

    pub(crate) fn ping(vmid: Vmid) -> Self {
        Self::new("qm", &["agent", &vmid.to_string(), "ping"])
    }

    /// `qm` waits for the end itself.
    pub(crate) fn execute(vmid: Vmid, program: &[String], patience: Duration) -> Self {
        let mut argv =
            Self::new("qm", &["guest", "exec", &vmid.to_string()]).option("timeout", patience.as_secs());
        argv.arguments.push("--".to_owned());
        argv.arguments.extend(program.iter().cloned());
        argv
    }

    /// `qm` knows nothing of firewalls.
    fn firewall(node: &str, vmid: Vmid, edit: &FirewallEdit) -> Self {
        let at = |rest: String| format!("/nodes/{node}/qemu/{vmid}/firewall/{rest}");
        match edit {
            FirewallEdit::Options(values) => {
                Self::new("pvesh", &["set", &at("options".to_owned())]).options(values)
            }
            FirewallEdit::AddRule(values) => {
                Self::new("pvesh", &["create", &at("rules".to_owned())]).options(values)
            }
            FirewallEdit::RemoveRule(position) => {
                Self::new("pvesh", &["delete", &at(format!("rules/{position}"))])
            }
        }
    }

    pub(crate) fn change(node: &str, change: &Change) -> Self {
        let qm = |verb: &str, vmid: &Vmid| Self::new("qm", &[verb, &vmid.to_string()]);
        let also = |mut argv: Self, argument: &str| {
            argv.arguments.push(argument.to_owned());
            argv
        };
        match change {
            Change::Clone { template, to, values } => {
                also(qm("clone", template), &to.to_string()).options(values)
            }
            Change::Create { vmid, values } => qm("create", vmid).options(values),
            Change::Convert { vmid } => qm("template", vmid),
            Change::Set { vmid, values } => qm("set", vmid).options(values),
            Change::Resize { vmid, disk, size } => also(also(qm("resize", vmid), disk), size),
            Change::Power { vmid, to } => qm(to.as_str(), vmid),
            Change::ShutDown { vmid, seconds } => qm("shutdown", vmid)
                .option("timeout", seconds)
                .option("forceStop", 1),
            // Never with `--destroy-unreferenced-disks`: it takes every volume of that number on every storage.
            Change::Destroy { vmid } => qm("destroy", vmid).option("purge", 1),
            Change::TakeSnapshot {
                vmid,
                name,
                memory,
                description,
            } => {
                let argv = also(qm("snapshot", vmid), name).option("vmstate", u8::from(*memory));
                if description.is_empty() {
                    argv
                } else {
                    argv.option("description", description)
                }
            }
            Change::RollBack { vmid, name } => also(qm("rollback", vmid), name),
            Change::DeleteSnapshot { vmid, name } => also(qm("delsnapshot", vmid), name),
            Change::Allocate {
                storage,
                owner,
                filename,
                size_gb,
                format,
            } => Self::new(
                "pvesm",
                &[
                    "alloc",
                    storage,
                    &owner.to_string(),
                    filename,
                    &format!("{size_gb}G"),
                ],
            )
            .option("format", format),
            Change::Free { volume, .. } => Self::new("pvesm", &["free", volume]),
            Change::Firewall { vmid, edit } => Self::firewall(node, *vmid, edit),
            Change::MoveDisk { vmid, disk, storage } => {
                Self::new("qm", &["disk", "move", &vmid.to_string(), disk, storage]).option("delete", 1)
            }
            Change::GiveDisk { vmid, disk, to, slot } => {
                Self::new("qm", &["disk", "move", &vmid.to_string(), disk])
                    .option("target-vmid", to)
                    .option("target-disk", slot)
            }
        }
    }
}

/// The volume in what `pvesm alloc` prints: a sentence, after whatever its storage had to say.
pub(crate) fn allocated(stdout: &str) -> Result<String, Refusal> {
    let mut lines = stdout.lines().rev();
    let volume = lines.find_map(|line| {
        let rest = line.trim().strip_prefix("successfully created '")?;
        rest.strip_suffix('\'')
    });
    volume
        .map(str::to_owned)
        .ok_or_else(|| Refusal::unknown("pvesm does not say what it made"))
}

#[cfg(test)]
#[path = "argv_tests.rs"]
mod tests;
