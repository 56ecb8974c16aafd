//! From a stopped machine's directory to a running QEMU.
//!
//! ```text
//!   turn ─► open files, make sockets ─► launch (paused) + process.json ─► QMP: block_resize, cont ─► running
//!                                         one blocking piece: a caller that gives up cannot part the two
//! ```
//!
//! A start that fails leaves no process. One that was cut off leaves a paused QEMU, which power-off, destroy and the
//! next power-on of the same machine kill: it holds what that start was given.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use agentlab_api::Vmid;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::accelerator::Accelerator;
use super::command::{self, Descriptors, Guest};
use super::launch::Launch;
use super::monitor::Status;
use super::process::{self, Identity, Process};
use super::record::{CHANNEL_SOCKET, MachineDir, QMP_SOCKET, ShapeRecord, storage};
use super::template::TemplateFiles;
use super::vsock::Plug;
use super::{Qemu, Vm, blocking, log, probe, sockets, unreachable};
use crate::turns::Turn;
use crate::{BackendError, PowerOn, Result};

/// From exec to the monitor's greeting, on a host that has other things to do.
const GREETING_DEADLINE: Duration = Duration::from_secs(20);
const COMMAND_DEADLINE: Duration = Duration::from_secs(5);
/// From the closing of its sockets to its end.
pub(super) const DYING: Duration = Duration::from_secs(5);
const QUIT_DEADLINE: Duration = Duration::from_secs(3);
const KILL_DEADLINE: Duration = Duration::from_secs(15);
/// Of QEMU's complaints, what goes into an error.
const MAX_COMPLAINT: u64 = 2000;
/// A qcow2 file with its tables is a little larger than the disk in it; beyond this something floods.
const FILE_SLACK: u64 = 256 * 1024 * 1024;

const START: &str = "power_on";

impl Qemu {
    /// The machine's living QEMU, by its record or else by the machine's uid; what the latter finds is recorded.
    pub(super) async fn find_process(&self, machine: &MachineDir) -> Result<Option<Process>> {
        let machine = machine.clone();
        blocking(move || {
            let look = || -> io::Result<Option<Process>> {
                if let Some(identity) = machine.process()
                    && let Some(process) = identity.hold()?
                {
                    return Ok(Some(process));
                }
                let sandbox = machine.record.stamp().map(|stamp| stamp.sandbox.to_string());
                for pid in process::of_machine(machine.record.uid, &sandbox.unwrap_or_default()) {
                    let Ok(identity) = Identity::of(pid) else { continue };
                    if let Some(process) = identity.hold()? {
                        machine.set_process(&identity)?;
                        return Ok(Some(process));
                    }
                }
                Ok(None)
            };
            look().map_err(storage("finding the process of", machine.path()))
        })
        .await
    }

    /// Starts a stopped machine. The caller holds the machine's operation lock.
    pub(super) async fn start(&self, vm: &Vm, machine: &MachineDir, with: PowerOn, turn: Turn) -> Result<()> {
        let launch = self.plan(machine, with).await?;
        let recorded = machine.clone();
        let process = blocking(move || launch_and_record(launch, &recorded)).await?;
        let Some(process) = process else {
            return Err(self.explain(machine, None).await);
        };
        self.let_go_or_end(vm, machine, &process).await?;
        self.watch(machine, process, Some(turn));
        Ok(())
    }

    /// Lets a started, paused QEMU go; ends it when that fails.
    async fn let_go_or_end(&self, vm: &Vm, machine: &MachineDir, process: &Process) -> Result<()> {
        let outcome = tokio::select! {
            // QEMU that ends says more on stderr than its closed monitor does.
            biased;
            code = process.exit_code() => Err(self.explain(machine, code.ok().flatten()).await),
            done = self.let_go(vm, machine) => done,
        };
        let Err(error) = outcome else { return Ok(()) };
        let mut error = error;
        // A dying process closes its sockets before it is seen to be gone.
        if matches!(error, BackendError::Unreachable { .. })
            && let Ok(code) = timeout(DYING, process.exit_code()).await
        {
            error = self.explain(machine, code.ok().flatten()).await;
        }
        if let Err(left) = end(machine.record.vmid, START, process).await {
            tracing::error!(vmid = %machine.record.vmid, error = %left, "QEMU of a failed start still lives");
        }
        let cleared = machine.clone();
        blocking(move || cleared.clear_runtime()).await?;
        Err(error)
    }

    async fn let_go(&self, vm: &Vm, machine: &MachineDir) -> Result<()> {
        vm.monitor.status(machine, START, GREETING_DEADLINE).await?;
        let shape = shape_of(machine)?;
        // A no-op where the disk has its size already. Done in QEMU's sandbox, because by now the overlay's tables
        // are the guest's words.
        let resize = json!({ "node-name": command::DISK_NODE, "size": shape.root_bytes });
        vm.monitor
            .ask(machine, START, ("block_resize", resize), COMMAND_DEADLINE)
            .await?;
        vm.monitor
            .ask(machine, START, ("cont", Value::Null), COMMAND_DEADLINE)
            .await?;
        match vm.monitor.status(machine, START, COMMAND_DEADLINE).await? {
            Status::Running => Ok(()),
            Status::Paused | Status::Prelaunch => {
                let reason = "QEMU accepted the guest and does not run it".to_owned();
                let hint = Some("look at its console and at qemu.log beside it".to_owned());
                Err(BackendError::Refused {
                    action: START,
                    vmid: machine.record.vmid,
                    reason,
                    hint,
                })
            }
        }
    }

    /// Opens everything QEMU is to have and writes its command line.
    async fn plan(&self, machine: &MachineDir, with: PowerOn) -> Result<Launch> {
        let vmid = machine.record.vmid;
        let tap = self.tap_of(vmid, with)?;
        let (store, origin) = (self.templates.clone(), machine.record.template.clone());
        let template = blocking(move || store.of_machine(&origin)).await?;
        let accelerator = self.accelerator(&template).await;
        let (program, version) = (self.programs.system.clone(), self.programs.version.clone());
        let (machine, tb_size_mb) = (machine.clone(), self.options.tb_size_mb);
        let volumes = self.volumes.clone();
        let vsock = self.vsock.clone();
        blocking(move || {
            let shape = shape_of(&machine)?;
            let sandbox = machine
                .record
                .stamp()
                .map(|stamp| stamp.sandbox)
                .ok_or_else(|| unreachable(START, "its stamp cannot be read".to_owned()))?;
            let mut opened = Opened::of(&machine, template.open()?, tap)?;
            opened.vsock = vsock.plug(&machine)?;
            let volume = machine.record.volume.as_deref();
            let volume = volume.map(|volume| volumes.open_disk(volume)).transpose()?;
            let volume_bytes = volume.as_ref().map_or(0, |(_, bytes)| *bytes);
            opened.volume = volume.map(|(disk, _)| disk);
            let guest = Guest {
                vmid,
                sandbox,
                cores: shape.cores,
                memory_mb: shape.memory_mb,
                mac: shape.mac(),
                kernel_command_line: &template.kernel_command_line,
                accelerator,
                version: &version,
                tb_size_mb,
            };
            let uid = machine.record.uid;
            Ok(Launch {
                program,
                arguments: command::arguments(&guest, &opened.numbers()),
                uid,
                gid: match accelerator {
                    Accelerator::Kvm => probe::kvm_group(uid),
                    Accelerator::Tcg => uid,
                },
                stderr: opened_stderr(&machine)?,
                descriptors: opened.into_descriptors(),
                max_file_bytes: max_file_bytes(shape).max(volume_bytes),
            })
        })
        .await
    }

    fn tap_of(&self, vmid: Vmid, with: PowerOn) -> Result<Option<OwnedFd>> {
        let refused = |reason: &str| BackendError::Refused {
            action: START,
            vmid,
            reason: reason.to_owned(),
            hint: None,
        };
        match (with.nic, self.options.tap) {
            (None, _) => Ok(None),
            (Some(nic), true) => nic
                .tap
                .map(Some)
                .ok_or_else(|| refused("its NIC came without a tap descriptor")),
            (Some(_), false) => Err(refused("this back end was opened without NICs")),
        }
    }

    /// Why QEMU ended, in its own words.
    async fn explain(&self, machine: &MachineDir, code: Option<i32>) -> BackendError {
        let path = machine.stderr_path();
        let words =
            blocking(move || log::tail(&path, MAX_COMPLAINT).map_err(storage("reading", &path))).await;
        let words = String::from_utf8_lossy(&words.unwrap_or_default())
            .trim()
            .to_owned();
        let code = code.map_or_else(
            || "QEMU ended".to_owned(),
            |code| format!("QEMU ended with code {code}"),
        );
        let reason = if words.is_empty() {
            format!("{code} without a word")
        } else {
            format!("{code}: {words}")
        };
        BackendError::Refused {
            action: START,
            vmid: machine.record.vmid,
            reason,
            hint: None,
        }
    }

    /// Ends the machine's QEMU, however many there are and in whatever state. None is success.
    pub(super) async fn stop(&self, vm: &Vm, machine: &MachineDir, action: &'static str) -> Result<()> {
        // More than one only if records were lost in between; each round ends one.
        while let Some(process) = self.find_process(machine).await? {
            let asked = vm
                .monitor
                .ask(machine, action, ("quit", Value::Null), QUIT_DEADLINE)
                .await;
            let left = if asked.is_ok() {
                QUIT_DEADLINE
            } else {
                Duration::ZERO
            };
            if timeout(left, process.ended()).await.is_err() {
                end(machine.record.vmid, action, &process).await?;
            }
        }
        vm.channel.cut();
        let machine = machine.clone();
        blocking(move || machine.clear_runtime()).await
    }
}

/// Kills a process and waits until it is gone.
async fn end(vmid: Vmid, action: &'static str, process: &Process) -> Result<()> {
    process
        .kill()
        .map_err(|error| unreachable(action, format!("QEMU could not be killed: {error}")))?;
    match timeout(KILL_DEADLINE, process.ended()).await {
        Ok(ended) => ended.map_err(|error| unreachable(action, error.to_string())),
        Err(_) => Err(BackendError::TimedOut {
            action,
            vmid,
            seconds: KILL_DEADLINE.as_secs(),
        }),
    }
}

/// Starts QEMU and records it, in one piece. `None` when it ended before it could be taken hold of.
fn launch_and_record(launch: Launch, machine: &MachineDir) -> Result<Option<Process>> {
    let program = launch.program.clone();
    let identity = launch.start().map_err(storage("executing", &program))?;
    let recorded = machine.set_process(&identity);
    let process = identity.hold_child().map_err(storage("watching", &program))?;
    if let Err(error) = recorded {
        if let Some(process) = process {
            drop(process.kill());
        }
        return Err(storage("recording the process of", machine.path())(error));
    }
    Ok(process)
}

fn shape_of(machine: &MachineDir) -> Result<&ShapeRecord> {
    machine
        .record
        .shape
        .as_ref()
        .ok_or_else(|| BackendError::Refused {
            action: START,
            vmid: machine.record.vmid,
            reason: "it was never configured".to_owned(),
            hint: None,
        })
}

/// Its disk is a file, and so is its memory where somebody else is to see that.
fn max_file_bytes(shape: &ShapeRecord) -> u64 {
    let disk = shape.root_bytes.saturating_mul(2);
    disk.max(u64::from(shape.memory_mb) << 20)
        .saturating_add(FILE_SLACK)
}

/// Begins the file anew: an error shows this start's complaints, not the last one's.
fn opened_stderr(machine: &MachineDir) -> Result<File> {
    let path = machine.stderr_path();
    let file = log::open_for_append(&path).map_err(storage("opening", &path))?;
    file.set_len(0).map_err(storage("emptying", &path))?;
    Ok(file)
}

/// Everything QEMU is handed.
struct Opened {
    files: TemplateFiles,
    overlay: File,
    seed: Option<File>,
    console: File,
    qmp: OwnedFd,
    channel: OwnedFd,
    tap: Option<OwnedFd>,
    volume: Option<File>,
    vsock: Option<Plug>,
}

impl Opened {
    fn of(machine: &MachineDir, files: TemplateFiles, tap: Option<OwnedFd>) -> Result<Self> {
        let overlay_path = machine.overlay_path();
        if !machine.has_overlay() {
            return Err(BackendError::Refused {
                action: START,
                vmid: machine.record.vmid,
                reason: "its disk was never finished".to_owned(),
                hint: Some("repeat the clone, or destroy it".to_owned()),
            });
        }
        let seed_path = machine.seed_path();
        let seed = match File::open(&seed_path) {
            Ok(seed) => Some(seed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(storage("opening", &seed_path)(error)),
        };
        let console_path = machine.console_path();
        let listen = |name: &str| {
            sockets::listen(machine.path(), name).map_err(storage("listening at", &machine.path().join(name)))
        };
        Ok(Self {
            files,
            overlay: OpenOptions::new()
                .read(true)
                .write(true)
                .open(&overlay_path)
                .map_err(storage("opening", &overlay_path))?,
            seed,
            console: log::open_for_append(&console_path).map_err(storage("opening", &console_path))?,
            qmp: listen(QMP_SOCKET)?,
            channel: listen(CHANNEL_SOCKET)?,
            tap,
            volume: None,
            vsock: None,
        })
    }

    fn numbers(&self) -> Descriptors {
        Descriptors {
            base: self.files.disk.as_raw_fd(),
            overlay: self.overlay.as_raw_fd(),
            kernel: self.files.kernel.as_raw_fd(),
            initrd: self.files.initrd.as_ref().map(AsRawFd::as_raw_fd),
            seed: self.seed.as_ref().map(AsRawFd::as_raw_fd),
            console: self.console.as_raw_fd(),
            qmp: self.qmp.as_raw_fd(),
            channel: self.channel.as_raw_fd(),
            tap: self.tap.as_ref().map(AsRawFd::as_raw_fd),
            volume: self.volume.as_ref().map(AsRawFd::as_raw_fd),
            vsock: self.vsock.as_ref().map(Plug::number),
        }
    }

    fn into_descriptors(self) -> Vec<OwnedFd> {
        let files = [Some(self.files.disk), Some(self.files.kernel), self.files.initrd];
        let files = files
            .into_iter()
            .chain([Some(self.overlay), self.seed, Some(self.console), self.volume]);
        let vsock = self.vsock.map(|plug| plug.descriptor);
        let sockets = [Some(self.qmp), Some(self.channel), self.tap, vsock];
        files
            .flatten()
            .map(OwnedFd::from)
            .chain(sockets.into_iter().flatten())
            .collect()
    }
}
