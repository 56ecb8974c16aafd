//! Real QEMU processes as the suite sees them, and the templates of a few bytes that they run.

mod killed;
mod own;
mod tiny;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use std::{fs, io};

use agentlab_api::Vmid;
use agentlab_backend::Backend;
use agentlab_backend::qemu::{AcceleratorChoice, Qemu, QemuOptions};
use async_trait::async_trait;
use tempfile::TempDir;

use crate::suite::{HELLO, Rig};

/// Uids of this suite's machines; each rig takes its own hundred.
const UIDS: u32 = 3_100_000;
const UIDS_PER_RIG: u32 = 100;
static RIGS: AtomicU32 = AtomicU32::new(0);

/// Whether this machine can run the suite; says so where it cannot.
fn possible() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    let has_qemu = Path::new("/usr/bin/qemu-system-x86_64").exists();
    if is_root && has_qemu {
        return true;
    }
    let missing = if is_root { "qemu-system-x86_64" } else { "root" };
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "the QEMU contract needs {missing}"
    );
    println!("SKIP: the QEMU contract needs {missing}");
    false
}

pub(crate) struct QemuRig {
    qemu: Option<Qemu>,
    options: QemuOptions,
    _templates: TempDir,
    run: TempDir,
}

impl QemuRig {
    pub(crate) async fn open() -> Option<Self> {
        if !possible() {
            return None;
        }
        let templates = tempfile::tempdir().unwrap();
        let run = tempfile::tempdir().unwrap();
        tiny::store(templates.path());
        let first = UIDS + RIGS.fetch_add(1, Ordering::Relaxed) * UIDS_PER_RIG;
        let options = QemuOptions {
            uid_range: (first, first + UIDS_PER_RIG - 1),
            accelerator: AcceleratorChoice::Tcg,
            concurrent_starts: Some(8),
            disk_floor_mb: 1,
            ..QemuOptions::new(run.path().join("run"), templates.path())
        };
        let qemu = Some(Qemu::open(options.clone()).await.unwrap());
        Some(Self {
            qemu,
            options,
            _templates: templates,
            run,
        })
    }

    fn qemu(&self) -> &Qemu {
        self.qemu.as_ref().unwrap()
    }

    fn dir(&self, vmid: Vmid) -> PathBuf {
        self.options.run_dir.join("vm").join(vmid.to_string())
    }

    /// Processes of this rig's machines.
    fn processes(&self) -> Vec<i32> {
        let (first, last) = self.options.uid_range;
        let pids = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter(|pid| {
            let uid =
                status(*pid, "Uid").and_then(|uids| uids.split_whitespace().next()?.parse::<u32>().ok());
            let is_alive = status(*pid, "State").is_some_and(|state| !state.starts_with('Z'));
            is_alive && uid.is_some_and(|uid| (first..=last).contains(&uid))
        })
        .collect()
    }

    fn signal(&self, vmid: Vmid, signal: rustix::process::Signal) {
        let text = fs::read_to_string(self.dir(vmid).join("process.json")).unwrap();
        let record: serde_json::Value = serde_json::from_str(&text).unwrap();
        let pid = i32::try_from(record["pid"].as_i64().unwrap()).unwrap();
        assert!(self.processes().contains(&pid));
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
    }
}

/// A line of `/proc/<pid>/status`.
fn status(pid: i32, key: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(":"))
        .map(|value| value.trim().to_owned())
}

impl Drop for QemuRig {
    fn drop(&mut self) {
        self.qemu = None;
        for pid in self.processes() {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
            }
        }
    }
}

#[async_trait]
impl Rig for QemuRig {
    fn backend(&self) -> &dyn Backend {
        self.qemu()
    }

    async fn restart(&mut self) {
        self.qemu = None;
        self.qemu = Some(Qemu::open(self.options.clone()).await.unwrap());
    }

    async fn kill_from_outside(&self, vmid: Vmid) {
        self.signal(vmid, rustix::process::Signal::KILL);
    }

    async fn await_hello(&self, vmid: Vmid) {
        for _ in 0..1200 {
            if self
                .backend()
                .console(vmid, 4096)
                .await
                .unwrap()
                .windows(HELLO.len())
                .any(|seen| seen == HELLO)
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the guest never wrote to its console");
    }

    async fn remove_template(&self) {
        let name = self.options.template_dir.join("by-name/tiny");
        fs::remove_file(name).unwrap();
    }

    fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> = self
            .processes()
            .iter()
            .map(|pid| format!("process {pid}"))
            .collect();
        let entries: io::Result<Vec<_>> = fs::read_dir(self.options.run_dir.join("vm")).unwrap().collect();
        left.extend(
            entries
                .unwrap()
                .iter()
                .map(|entry| entry.path().display().to_string()),
        );
        assert!(self.run.path().exists());
        left
    }
}
