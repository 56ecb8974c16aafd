//! Proxmox VE over `qm`, `pvesh` and `pvesm`, for a node on which we are root and have no token.
//!
//! ```text
//!   Pve over Shell ─┬─ argv   a change or a question as a program with arguments; questions are answered in JSON
//!                   └─ run    one process, waited for and never killed: what it began, it ends
//! ```
//! `qm` works on the machines of its own node only, and waits for its task itself.

mod argv;

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use agentlab_api::Vmid;
use async_trait::async_trait;
use serde_json::Value;
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::pve::{Begun, Change, Ended, Kind, Publisher, Pve, PveOptions, Read, Refusal, Upload, Wire};
use crate::{Backend, TaskId};
use argv::Argv;

const KIND: &str = "shell";
/// How long a question may take: each is a Perl program that is loaded first.
const READ: Duration = Duration::from_secs(40);

/// What the shell back end is told.
#[derive(Debug, Clone)]
pub struct ShellSettings {
    /// Where the three programs are.
    pub program_dir: PathBuf,
    /// Where machines are made.
    pub pve: PveOptions,
}

impl ShellSettings {
    /// The programs of a node.
    #[must_use]
    pub fn new(pve: PveOptions) -> Self {
        Self {
            program_dir: "/usr/sbin".into(),
            pve,
        }
    }
}

/// The shell back end. It executes nothing yet. Dropping it leaves everything as it is.
#[must_use]
pub fn connect(settings: ShellSettings) -> Arc<dyn Backend> {
    Arc::new(pve(settings))
}

/// Publishes templates with `qm`. It executes nothing yet.
#[must_use]
pub fn publisher(settings: ShellSettings) -> Arc<dyn Publisher> {
    Arc::new(pve(settings))
}

fn pve(settings: ShellSettings) -> Pve<Shell> {
    let shell = Shell {
        program_dir: settings.program_dir,
        calls: Semaphore::new(settings.pve.calls_per_node),
        changes: Semaphore::new(settings.pve.changes_per_node()),
    };
    Pve::new(shell, settings.pve)
}

#[derive(Debug)]
struct Shell {
    program_dir: PathBuf,
    calls: Semaphore,
    /// One place is left for looks, however slow the changes are.
    changes: Semaphore,
}

impl Shell {
    /// Standard output of a program that ended well.
    async fn run(&self, argv: &Argv, patience: Duration) -> Result<String, Refusal> {
        // Never closed.
        let _call = self.calls.acquire().await;
        let path = self.program_dir.join(argv.program);
        let child = Command::new(&path)
            .args(&argv.arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A signal for the daemon is not for a clone that it asked for, and one that nobody waits for any more goes
            // on as well: half a clone holds a lock that only an administrator ends.
            .process_group(0)
            .kill_on_drop(false)
            .spawn()
            .map_err(|error| {
                let path = path.display();
                Refusal::unreached(format!(
                    "{path} could not be executed: {error}; is this a Proxmox node?"
                ))
            })?;
        let output = timeout(patience, child.wait_with_output())
            .await
            .map_err(|_| {
                let seconds = patience.as_secs();
                Refusal::unknown(format!("{} did not end within {seconds} s", argv.program))
            })?
            .map_err(|error| Refusal::unknown(format!("{} was lost: {error}", argv.program)))?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(0) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            Some(status) => {
                tracing::debug!(program = argv.program, status, "refused");
                Err(Refusal::command(&stderr))
            }
            // How far it came is not known.
            None => Err(Refusal::unknown(format!("{} was killed", argv.program))),
        }
    }
}

#[async_trait]
impl Wire for Shell {
    fn kind(&self) -> &'static str {
        KIND
    }

    async fn read(&self, read: &Read) -> Result<Value, Refusal> {
        let text = self.run(&Argv::read(read), READ).await?;
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text)
            .map_err(|error| Refusal::unknown(format!("pvesh answered no JSON: {error}")))
    }

    /// `qm` waits for its task itself, and keeps its name to itself.
    async fn begin(&self, node: &str, change: &Change, patience: Duration) -> Result<Begun, Refusal> {
        // Never closed.
        let _change = self.changes.acquire().await;
        let text = self.run(&Argv::change(node, change), patience).await?;
        match change {
            Change::Allocate { .. } => {
                argv::allocated(&text).map(|volume| Begun::Done(Value::String(volume)))
            }
            Change::Clone { .. }
            | Change::Create { .. }
            | Change::Convert { .. }
            | Change::Set { .. }
            | Change::Resize { .. }
            | Change::Power { .. }
            | Change::ShutDown { .. }
            | Change::Destroy { .. }
            | Change::TakeSnapshot { .. }
            | Change::RollBack { .. }
            | Change::DeleteSnapshot { .. }
            | Change::Free { .. }
            | Change::Firewall { .. }
            | Change::MoveDisk { .. }
            | Change::GiveDisk { .. } => Ok(Begun::Done(Value::Null)),
        }
    }

    async fn follow(&self, _task: &TaskId, _patience: Duration) -> Result<Ended, Refusal> {
        Err(Refusal::new(Kind::NoTask, "qm waits for its tasks itself"))
    }

    /// `qm` is root's and reads any file.
    fn uploads(&self) -> bool {
        false
    }

    async fn upload(&self, _node: &str, _upload: &Upload) -> Result<Option<TaskId>, Refusal> {
        Err(Refusal::new(Kind::Other, "qm imports a disk from where it lies"))
    }

    async fn ping(&self, _node: &str, vmid: Vmid) -> Result<(), Refusal> {
        self.run(&Argv::ping(vmid), READ).await.map(drop)
    }

    async fn execute(
        &self,
        _node: &str,
        vmid: Vmid,
        program: &[String],
        patience: Duration,
    ) -> Result<Value, Refusal> {
        let text = self
            .run(&Argv::execute(vmid, program, patience), patience + READ)
            .await?;
        serde_json::from_str(&text).map_err(|error| Refusal::unknown(format!("qm answered no JSON: {error}")))
    }
}
