//! A cold job against the same VM and the same commands run by hand, and what the programs weigh.
//!
//! By hand means: the same image, kernel, command line and QEMU options, with a shell script in the runner's place that
//! clones the same bundle from a disk, runs the same task in the same bubblewrap as the same user, writes the patch to
//! a disk and powers the machine off. Both are timed from the first process to the patch on the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agentlab_testkit::{Lab, Repository, binaries_dir, runner_path, template_store, vm_tier};
use anyhow::{Context, Result, ensure};

const ROUNDS: usize = 3;
const TASK: &str = "sed -i 's/ - / + /' sum.sh\n./test.sh\ngit commit -qam 'Add instead of subtracting'\n";
const PROFILE: &str =
    "name: bench\ntemplate_vmid: 9000\nnetwork:\n  mode: \"off\"\nresources:\n  cores: 1\n  memory_mb: 512\n";

const BY_HAND: &str = r#"#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/home/agent
{
mkdir -p /work && chown agent /work && head -c "$(sed 's/.* bundle=//' /proc/cmdline)" /dev/vdb > /tmp/in.bundle && chown agent /tmp/in.bundle
as="setpriv --reuid 1000 --regid 1000 --clear-groups"
$as git clone -q /tmp/in.bundle /work/repo
cd /work/repo
$as git config user.name Hand && $as git config user.email hand@example.invalid
base=$($as git rev-parse HEAD)
$as bwrap --die-with-parent --unshare-pid --ro-bind / / --dev /dev --proc /proc --bind /work /work --bind /tmp /tmp --bind /home/agent /home/agent sh -euc "TASK_TEXT"
$as git format-patch -q --stdout "$base" > /dev/vdc
sync
} > /dev/ttyS0 2>&1
echo o > /proc/sysrq-trigger
sleep 60
"#;

#[expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
fn main() -> Result<()> {
    if !vm_tier() {
        return Ok(());
    }
    let hand = Hand::prepare()?;
    let lab = Lab::start(PROFILE)?;
    let repository = Repository::with_failing_test(&lab.dir().join("repository"))?;
    let rss = lab.daemon_rss_kib()?;
    // The one that the daemon chose, or one side alone would be fast.
    let accelerator = match lab.json(&["status"])?["backend"]["accelerator"].as_str() {
        Some("kvm") => ["-accel", "kvm", "-cpu", "host"],
        _ => ["-accel", "tcg,tb-size=64", "-cpu", "max,-cx16"],
    };

    let mut by_hand = Vec::new();
    let mut by_agentlab = Vec::new();
    let mut to_running = Vec::new();
    for _ in 0..ROUNDS {
        by_hand.push(hand.run(&repository, accelerator)?);
        let (whole, running) = job(&lab, &repository)?;
        by_agentlab.push(whole);
        to_running.push(running);
    }
    let (hand, ours, running) = (
        median(&mut by_hand),
        median(&mut by_agentlab),
        median(&mut to_running),
    );
    println!("cold job, median of {ROUNDS}, from request to patch on the host:");
    println!("  by hand                 {:8.2} s", hand.as_secs_f64());
    println!("  agentlab job run        {:8.2} s", ours.as_secs_f64());
    println!(
        "  ratio                   {:8.2}",
        ours.as_secs_f64() / hand.as_secs_f64()
    );
    println!("  of it until RUNNING     {:8.2} s", running.as_secs_f64());
    println!("daemon RSS, idle          {:8.1} MB", kib_to_mb(rss));
    println!(
        "daemon RSS, after {ROUNDS} jobs  {:8.1} MB",
        kib_to_mb(lab.daemon_rss_kib()?)
    );
    for name in ["agentlabd", "agentlab", "agentlab-net", "agentlab-template"] {
        println!(
            "size of {name:<17} {:8.1} MB",
            bytes_to_mb(&binaries_dir().join(name))?
        );
    }
    println!(
        "size of agent-runner      {:8.2} MB",
        bytes_to_mb(&runner_path())?
    );
    Ok(())
}

fn job(lab: &Lab, repository: &Repository) -> Result<(Duration, Duration)> {
    let begun = Instant::now();
    let ran = lab.agentlab(&repository.job("bench", TASK, &[]))?;
    ensure!(ran.code() == Some(0), "{}{}", ran.stdout, ran.stderr);
    let whole = begun.elapsed();
    let job = lab.newest_job()?;
    let started = job.started_at.context("the job never ran")?;
    let running =
        Duration::try_from(started.duration_since(job.created_at)).context("the clock went back")?;
    lab.nothing_is_left()?;
    Ok((whole, running))
}

/// The VM a person would run by hand.
struct Hand {
    dir: tempfile::TempDir,
    template: PathBuf,
    command_line: String,
}

impl Hand {
    fn prepare() -> Result<Self> {
        let template = fs::canonicalize(template_store()?.join("by-name/demo"))?;
        let manifest: serde_json::Value = serde_json::from_slice(&fs::read(template.join("manifest.json"))?)?;
        let command_line = manifest["kernel"]["command_line"]
            .as_str()
            .context("no command line")?
            .to_owned();
        let dir = tempfile::tempdir()?;
        let image = dir.path().join("root.ext4");
        run(Command::new("cp")
            .arg("--sparse=always")
            .arg(template.join("root.ext4"))
            .arg(&image))?;
        run(Command::new("chmod").arg("u+w").arg(&image))?;
        let script = dir.path().join("script");
        fs::write(&script, BY_HAND.replace("TASK_TEXT", &TASK.replace('"', "\\\"")))?;
        let runner = manifest["runner"]["path"].as_str().context("no runner path")?;
        for request in [
            format!("rm {runner}"),
            format!("write {} {runner}", script.display()),
            format!("set_inode_field {runner} mode 0100755"),
        ] {
            run(Command::new("debugfs").args(["-w", "-R", &request]).arg(&image))?;
        }
        Ok(Self {
            dir,
            template,
            command_line,
        })
    }

    fn run(&self, repository: &Repository, accelerator: [&str; 4]) -> Result<Duration> {
        let at = |name: &str| self.dir.path().join(name);
        let begun = Instant::now();
        let bundle = at("in.bundle").display().to_string();
        repository.git(&["bundle", "create", "-q", &bundle, "HEAD", "main"])?;
        // A disk is whole sectors, and git refuses what follows a bundle: the guest is told where it ends.
        let length = fs::metadata(at("in.bundle"))?.len();
        fs::OpenOptions::new()
            .write(true)
            .open(at("in.bundle"))?
            .set_len(length.next_multiple_of(512))?;
        fs::File::create(at("out.patch"))?.set_len(1 << 20)?;
        let overlay = at("overlay.qcow2");
        run(Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(at("root.ext4"))
            .arg(&overlay))?;
        let drive = |path: &Path, format: &str| format!("file={},if=virtio,format={format}", path.display());
        run(Command::new("qemu-system-x86_64")
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-machine",
                "q35",
                "-no-reboot",
            ])
            .args(accelerator)
            .args(["-smp", "1", "-m", "512"])
            .arg("-kernel")
            .arg(self.template.join("vmlinuz"))
            .arg("-initrd")
            .arg(self.template.join("initrd.img"))
            .args(["-append", &format!("{} bundle={length}", self.command_line)])
            .args([
                "-drive",
                &drive(&overlay, "qcow2"),
                "-drive",
                &drive(&at("in.bundle"), "raw"),
            ])
            .args(["-drive", &drive(&at("out.patch"), "raw")])
            .args(["-device", "virtio-rng-pci", "-serial"])
            .arg(format!("file:{}", at("console").display())))?;
        let patch = fs::read(at("out.patch"))?;
        ensure!(
            patch.starts_with(b"From "),
            "no patch came out:\n{}",
            fs::read_to_string(at("console")).unwrap_or_default()
        );
        Ok(begun.elapsed())
    }
}

fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn kib_to_mb(kib: u32) -> f64 {
    f64::from(kib) / 1024.0
}

fn bytes_to_mb(path: &Path) -> Result<f64> {
    let kib = u32::try_from(
        fs::metadata(path)
            .with_context(|| path.display().to_string())?
            .len()
            / 1024,
    )?;
    Ok(kib_to_mb(kib))
}
