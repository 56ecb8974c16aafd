//! The shell back end as the suite sees it: three programs that hand their arguments to this process, which asks a
//! stand-in for a node and prints what `qm`, `pvesh` and `pvesm` print, with their exit codes.
//!
//! ```text
//!   qm set 1000 ... ─► args.<pid> ─► control (a FIFO) ─► this process ─► stand-in
//!                      out, err, code.<pid> ◄── done.<pid> (a FIFO) ◄──┘
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agentlab_api::Vmid;
use agentlab_backend::shell::{ShellSettings, connect, publisher};
use agentlab_backend::{Backend, Publisher, PveOptions};
use async_trait::async_trait;
use pve_sim::{PveSim, Request, Response, Scale, Setup, Version};
use serde_json::{Map, Value};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::task::JoinSet;

use crate::proxmox::left;
use crate::suite::{Rig, TEMPLATE, vmid};

const SCALE: Scale = Scale(0.02);
const PROGRAM: &str = r#"#!/bin/sh
here=${0%/*}
{ printf '%s\0' "${0##*/}"; [ $# = 0 ] || printf '%s\0' "$@"; } > "$here/args.$$"
mkfifo "$here/done.$$"
echo $$ > "$here/control"
cat "$here/done.$$"
cat "$here/out.$$"
cat "$here/err.$$" >&2
exit "$(cat "$here/code.$$")"
"#;

pub(crate) struct ShellRig {
    node: PveSim,
    backend: Arc<dyn Backend>,
    programs: tempfile::TempDir,
    _answering: JoinSet<()>,
}

impl ShellRig {
    pub(crate) fn open(version: Version) -> std::future::Ready<Option<Self>> {
        let node = Setup::lab(version, SCALE).in_process();
        let programs = tempfile::tempdir().unwrap();
        // Installed by a child: while another test begins a process, that may hold open what this process writes, and
        // what is open for writing cannot be run.
        let draft = programs.path().join("draft");
        std::fs::write(&draft, PROGRAM).unwrap();
        for program in ["qm", "pvesh", "pvesm"] {
            let path = programs.path().join(program);
            let installed = std::process::Command::new("install")
                .args([&draft, &path])
                .status();
            assert!(installed.unwrap().success());
        }
        let control = programs.path().join("control");
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &control, fifo, 0o600.into(), 0).unwrap();
        let control = pipe::OpenOptions::new()
            .read_write(true)
            .open_receiver(&control)
            .unwrap();
        let mut answering = JoinSet::new();
        let (asked, dir) = (node.clone(), programs.path().to_owned());
        answering.spawn(async move {
            let mut lines = BufReader::new(control).lines();
            let mut calls = JoinSet::new();
            while let Ok(Some(pid)) = lines.next_line().await {
                calls.spawn(answer(asked.clone(), dir.clone(), pid));
            }
        });
        std::future::ready(Some(Self {
            backend: connect(settings(&node, programs.path())),
            node,
            programs,
            _answering: answering,
        }))
    }
}

impl ShellRig {
    pub(crate) fn node(&self) -> &PveSim {
        &self.node
    }

    pub(crate) fn publisher(&self) -> Arc<dyn Publisher> {
        publisher(settings(&self.node, self.programs.path()))
    }
}

fn settings(node: &PveSim, program_dir: &Path) -> ShellSettings {
    let mut options = PveOptions::new((vmid(1000), vmid(1999)), "vmbr1");
    options.node = Some(node.node().to_owned());
    options.pool = Some("agentlab".into());
    options.storage = Some("local".into());
    options.volume_owner = Some(vmid(777));
    options.watch_interval = Duration::from_millis(200);
    let mut settings = ShellSettings::new(options);
    settings.program_dir = program_dir.to_owned();
    settings
}

async fn answer(node: PveSim, dir: PathBuf, pid: String) {
    let file = |kind: &str| dir.join(format!("{kind}.{pid}"));
    let arguments = std::fs::read_to_string(file("args")).unwrap();
    let words: Vec<&str> = arguments.trim_end_matches('\0').split('\0').collect();
    let printed = perform(&node, &words).await;
    for (kind, text) in [
        ("out", printed.stdout),
        ("err", printed.stderr),
        ("code", printed.code.to_string()),
    ] {
        std::fs::write(file(kind), text).unwrap();
    }
    // The program waits for its end.
    let done = file("done");
    let _ = tokio::task::spawn_blocking(move || std::fs::write(done, "")).await;
}

#[derive(Default)]
struct Printed {
    stdout: String,
    stderr: String,
    code: u8,
}

impl Printed {
    fn failed(code: u8, stderr: impl Into<String>) -> Self {
        Self {
            stderr: stderr.into(),
            code,
            ..Self::default()
        }
    }
}

/// Method, path and what stands behind `--`.
fn asked(node: &str, words: &[&str]) -> (&'static str, String, Map<String, Value>) {
    let first = words
        .iter()
        .position(|word| word.starts_with("--"))
        .unwrap_or(words.len());
    let (plain, options) = words.split_at(first);
    let mut values: Map<String, Value> = options
        .chunks_exact(2)
        .map(|pair| (pair[0].trim_start_matches('-').to_owned(), Value::from(pair[1])))
        .filter(|(key, _)| key != "output-format")
        .collect();
    let mut give = |key: &str, value: &str| drop(values.insert(key.to_owned(), value.into()));
    let machine = |vmid: &str| format!("/nodes/{node}/qemu/{vmid}");
    let (method, path) = match plain {
        ["pvesh", "get", path] => ("GET", (*path).to_owned()),
        ["pvesh", "set", path] => ("PUT", (*path).to_owned()),
        ["pvesh", "create", path] => ("POST", (*path).to_owned()),
        ["pvesh", "delete", path] => ("DELETE", (*path).to_owned()),
        ["qm", "clone", template, to] => {
            give("newid", to);
            ("POST", format!("{}/clone", machine(template)))
        }
        ["qm", "create", vmid] => {
            give("vmid", vmid);
            ("POST", format!("/nodes/{node}/qemu"))
        }
        ["qm", "disk", "move", vmid, disk, storage @ ..] => {
            give("disk", disk);
            if let [storage] = storage {
                give("storage", storage);
            }
            ("POST", format!("{}/move_disk", machine(vmid)))
        }
        ["qm", "template", vmid] => ("POST", format!("{}/template", machine(vmid))),
        ["qm", "set", vmid] => ("PUT", format!("{}/config", machine(vmid))),
        ["qm", "resize", vmid, disk, size] => {
            give("disk", disk);
            give("size", size);
            ("PUT", format!("{}/resize", machine(vmid)))
        }
        ["qm", power @ ("start" | "stop" | "suspend" | "resume"), vmid] => {
            ("POST", format!("{}/status/{power}", machine(vmid)))
        }
        ["qm", "shutdown", vmid] => ("POST", format!("{}/status/shutdown", machine(vmid))),
        ["qm", "destroy", vmid] => ("DELETE", machine(vmid)),
        ["qm", "snapshot", vmid, name] => {
            give("snapname", name);
            ("POST", format!("{}/snapshot", machine(vmid)))
        }
        ["qm", "rollback", vmid, name] => ("POST", format!("{}/snapshot/{name}/rollback", machine(vmid))),
        ["qm", "delsnapshot", vmid, name] => ("DELETE", format!("{}/snapshot/{name}", machine(vmid))),
        ["pvesm", "alloc", storage, owner, filename, size] => {
            give("vmid", owner);
            give("filename", filename);
            give("size", size);
            ("POST", format!("/nodes/{node}/storage/{storage}/content"))
        }
        ["pvesm", "free", volume] => {
            let (storage, _) = volume.split_once(':').unwrap();
            let volume = volume.replace('/', "%2F");
            (
                "DELETE",
                format!("/nodes/{node}/storage/{storage}/content/{volume}"),
            )
        }
        _ => panic!("nobody should ask for {words:?}"),
    };
    (method, path, values)
}

/// A disk that lies on the node: no token may name it, so the template's stands in for it.
fn import(node: &PveSim, values: &mut Map<String, Value>) {
    let drive = values.get("scsi0").and_then(Value::as_str).unwrap_or_default();
    let Some(path) = drive
        .split(',')
        .find_map(|part| part.strip_prefix("import-from=/"))
    else {
        return;
    };
    let path = format!("/{path}");
    assert!(Path::new(&path).is_file(), "{path}");
    let template = node.operator().config(TEMPLATE).unwrap()["scsi0"].clone();
    let volume = template.split(',').next().unwrap();
    let drive = drive.replace(&path, volume);
    values.insert("scsi0".to_owned(), drive.into());
}

async fn perform(node: &PveSim, words: &[&str]) -> Printed {
    let (method, path, mut values) = asked(node.node(), words);
    import(node, &mut values);
    let response = call(node, method, &path, &values).await;
    if response.status != 200 {
        return refused(&response);
    }
    let data = response
        .body
        .and_then(|body| body.get("data").cloned())
        .unwrap_or_default();
    let upid = data.as_str().filter(|text| text.starts_with("UPID:"));
    match upid {
        // The programs wait for their own tasks.
        Some(upid) => ended(node, upid).await,
        None if words[..2] == ["pvesm", "alloc"] => Printed {
            stdout: format!("successfully created '{}'\n", data.as_str().unwrap()),
            ..Printed::default()
        },
        None if words[0] == "pvesh" => Printed {
            stdout: format!("{data}\n"),
            ..Printed::default()
        },
        None => Printed::default(),
    }
}

async fn ended(node: &PveSim, upid: &str) -> Printed {
    let path = format!("/nodes/{}/tasks/{upid}/status", node.node());
    loop {
        let response = call(node, "GET", &path, &Map::new()).await;
        let status = response.body.unwrap_or_default()["data"].clone();
        if status["status"] == "stopped" {
            return match status["exitstatus"].as_str() {
                Some("OK") => Printed::default(),
                Some(reason) => Printed::failed(255, format!("{reason}\n")),
                None => Printed::failed(255, ""),
            };
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// On standard error stands the message alone, and after a bad parameter how the program is used.
fn refused(response: &Response) -> Printed {
    let body = response.body.clone().unwrap_or_default();
    let message = body["message"].as_str().unwrap_or(&response.reason);
    let Some(errors) = body["errors"].as_object() else {
        let code = if message.contains("is running - destroy failed") {
            25
        } else {
            2
        };
        return Printed::failed(code, message);
    };
    let mut stderr = format!("400 {message}");
    for (key, error) in errors {
        stderr.push_str(&format!("{key}: {}\n", error.as_str().unwrap_or_default().trim()));
    }
    stderr.push_str("\nqm set <vmid> [OPTIONS]\n");
    Printed::failed(255, stderr)
}

async fn call(node: &PveSim, method: &str, path: &str, values: &Map<String, Value>) -> Response {
    let in_query = method == "GET" || method == "DELETE";
    let query = values
        .iter()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
    let body = Value::Object(values.clone()).to_string();
    node.answer(Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: if in_query {
            query.collect::<Vec<_>>().join("&")
        } else {
            String::new()
        },
        authorization: Some(format!("PVEAPIToken={}", node.token())),
        content_type: (!in_query).then(|| "application/json".to_owned()),
        body: if in_query {
            String::new().into()
        } else {
            body.into()
        },
    })
    .await
}

#[async_trait]
impl Rig for ShellRig {
    fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    async fn restart(&mut self) {
        self.backend = connect(settings(&self.node, self.programs.path()));
    }

    async fn kill_from_outside(&self, vmid: Vmid) {
        self.node.operator().stop(vmid.into());
    }

    async fn await_hello(&self, _vmid: Vmid) {}

    async fn remove_template(&self) {
        self.node.operator().destroy(TEMPLATE);
        // A list of machines is believed for a second.
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }

    fn leftovers(&self) -> Vec<String> {
        let touched = self.node.audit().foreign_touched;
        left(&self.node).into_iter().chain(touched).collect()
    }
}

#[tokio::test]
async fn without_its_programs_the_back_end_is_unreachable_and_says_why() {
    let empty = tempfile::tempdir().unwrap();
    let node = Setup::lab(Version::V9, SCALE).in_process();
    let answer = connect(settings(&node, empty.path())).info().await;
    assert!(
        matches!(&answer, Err(agentlab_backend::BackendError::Unreachable { reason, .. }) if reason.contains("Proxmox node")),
        "{answer:?}"
    );
}
