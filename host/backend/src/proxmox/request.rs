//! Changes and questions as the REST API wants them.
//!
//! Bodies are JSON: of a form, PVE keeps only what stands between the first and the second `=` of a parameter. What is
//! deleted has no body, and says everything in its query.

use std::fmt::Write as _;

use agentlab_api::Vmid;
use http::Method;
use serde_json::{Map, Value};

use crate::pve::{Change, FirewallEdit, Read, Values, pair};

/// One call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Request {
    pub(crate) method: Method,
    /// Path and query, below `/api2/json`, encoded.
    pub(crate) target: String,
    /// JSON; `None` where a body is not allowed.
    pub(crate) body: Option<String>,
}

impl Request {
    pub(crate) fn read(read: &Read) -> Self {
        let query: Vec<(&str, &str)> = read
            .query
            .iter()
            .map(|(key, value)| (*key, value.as_str()))
            .collect();
        Self {
            method: Method::GET,
            target: target(&read.path, &query),
            body: None,
        }
    }

    fn with_body(method: Method, path: &str, values: Values) -> Self {
        let values: Map<String, Value> = values
            .into_iter()
            .map(|(key, value)| (key, Value::String(value)))
            .collect();
        Self {
            method,
            target: target(path, &[]),
            body: Some(Value::Object(values).to_string()),
        }
    }

    pub(crate) fn ping(node: &str, vmid: Vmid) -> Self {
        Self::with_body(
            Method::POST,
            &format!("/nodes/{node}/qemu/{vmid}/agent/ping"),
            Vec::new(),
        )
    }

    /// A list, because PVE takes a single text for the name of the program with all that follows.
    pub(crate) fn execute(node: &str, vmid: Vmid, program: &[String]) -> Self {
        Self {
            method: Method::POST,
            target: target(&format!("/nodes/{node}/qemu/{vmid}/agent/exec"), &[]),
            body: Some(serde_json::json!({ "command": program }).to_string()),
        }
    }

    pub(crate) fn executed(node: &str, vmid: Vmid, pid: u64) -> Self {
        let read = Read::new(format!("/nodes/{node}/qemu/{vmid}/agent/exec-status"));
        Self::read(&read.with("pid", pid))
    }

    /// How a change is asked for on a node.
    pub(crate) fn change(node: &str, change: &Change) -> Self {
        let machine = |vmid| format!("/nodes/{node}/qemu/{vmid}");
        let post = |path: String, values| Self::with_body(Method::POST, &path, values);
        match change {
            Change::Clone { template, to, values } => {
                let mut all = vec![pair("newid", to)];
                all.extend(values.iter().cloned());
                post(format!("{}/clone", machine(template)), all)
            }
            Change::Create { vmid, values } => {
                let mut all = vec![pair("vmid", vmid)];
                all.extend(values.iter().cloned());
                post(format!("/nodes/{node}/qemu"), all)
            }
            Change::Convert { vmid } => post(format!("{}/template", machine(vmid)), Vec::new()),
            Change::Set { vmid, values } => {
                Self::with_body(Method::PUT, &format!("{}/config", machine(vmid)), values.clone())
            }
            Change::Resize { vmid, disk, size } => {
                let values = vec![pair("disk", disk), pair("size", size)];
                Self::with_body(Method::PUT, &format!("{}/resize", machine(vmid)), values)
            }
            Change::Power { vmid, to } => {
                post(format!("{}/status/{}", machine(vmid), to.as_str()), Vec::new())
            }
            Change::ShutDown { vmid, seconds } => {
                let values = vec![pair("timeout", seconds), pair("forceStop", 1)];
                post(format!("{}/status/shutdown", machine(vmid)), values)
            }
            // Never with `destroy-unreferenced-disks`: it takes every volume of that number on every storage.
            Change::Destroy { vmid } => Self::delete(&machine(vmid), &[("purge", "1")]),
            Change::TakeSnapshot {
                vmid,
                name,
                memory,
                description,
            } => {
                let mut values = vec![pair("snapname", name), pair("vmstate", u8::from(*memory))];
                let is_said = !description.is_empty();
                values.extend(is_said.then(|| pair("description", description)));
                post(format!("{}/snapshot", machine(vmid)), values)
            }
            Change::RollBack { vmid, name } => post(
                format!("{}/snapshot/{}/rollback", machine(vmid), encoded(name)),
                Vec::new(),
            ),
            Change::DeleteSnapshot { vmid, name } => {
                Self::delete(&format!("{}/snapshot/{}", machine(vmid), encoded(name)), &[])
            }
            Change::Allocate {
                storage,
                owner,
                filename,
                size_gb,
                format,
            } => {
                let values = vec![
                    pair("vmid", owner),
                    pair("filename", filename),
                    pair("size", format!("{size_gb}G")),
                    pair("format", format),
                ];
                post(content(node, storage), values)
            }
            Change::Free { storage, volume, .. } => {
                Self::delete(&format!("{}/{}", content(node, storage), encoded(volume)), &[])
            }
            Change::Firewall { vmid, edit } => Self::firewall(&machine(vmid), edit),
            Change::MoveDisk { vmid, disk, storage } => {
                let values = vec![pair("disk", disk), pair("storage", storage), pair("delete", 1)];
                post(format!("{}/move_disk", machine(vmid)), values)
            }
            Change::GiveDisk { vmid, disk, to, slot } => {
                let values = vec![
                    pair("disk", disk),
                    pair("target-vmid", to),
                    pair("target-disk", slot),
                ];
                post(format!("{}/move_disk", machine(vmid)), values)
            }
        }
    }

    fn firewall(machine: &str, edit: &FirewallEdit) -> Self {
        let rules = format!("{machine}/firewall/rules");
        match edit {
            FirewallEdit::Options(values) => Self::with_body(
                Method::PUT,
                &format!("{machine}/firewall/options"),
                values.clone(),
            ),
            FirewallEdit::AddRule(values) => Self::with_body(Method::POST, &rules, values.clone()),
            FirewallEdit::RemoveRule(position) => Self::delete(&format!("{rules}/{position}"), &[]),
        }
    }

    fn delete(path: &str, query: &[(&str, &str)]) -> Self {
        Self {
            method: Method::DELETE,
            target: target(path, query),
            body: None,
        }
    }

    /// The node whose workers have the work: calls are counted by it. Empty for the whole cluster's.
    pub(crate) fn node(&self) -> &str {
        let rest = self.target.strip_prefix("/api2/json/nodes/").unwrap_or_default();
        rest.split(['/', '?']).next().unwrap_or_default()
    }

    /// Whether asking twice is as good as once.
    pub(crate) fn is_question(&self) -> bool {
        self.method == Method::GET
    }
}

/// Where the volumes of a storage are.
fn content(node: &str, storage: &str) -> String {
    format!("/nodes/{node}/storage/{}/content", encoded(storage))
}

/// `path` is of our own making, and what of it came from elsewhere is encoded already.
fn target(path: &str, query: &[(&str, &str)]) -> String {
    let mut target = format!("/api2/json{path}");
    for (index, (key, value)) in query.iter().enumerate() {
        let mark = if index == 0 { '?' } else { '&' };
        let _ = write!(target, "{mark}{}={}", encoded(key), encoded(value));
    }
    target
}

/// Percent-encoded but for what is never special.
pub(crate) fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:@!".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
