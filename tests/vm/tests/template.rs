//! Disks that boot by themselves, in a machine as PVE makes them: SeaBIOS starts it from the disk alone, the runner finds
//! its seed in SMBIOS, and a daemon whose hypervisor is in memory gets a job's work out of it.

#[cfg(test)]
#[path = "template/published.rs"]
mod published;

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use agentlab_protocol::seed::Seed;
    use agentlab_testkit::{template_image, template_image_in, vm_tier};
    use agentlab_tests_contract::{Lab, Visitors};
    use anyhow::{Context, Result, ensure};
    use serde_json::Value;
    use tokio::io::copy_bidirectional;
    use tokio::net::UnixStream;
    use tokio::task::JoinSet;
    use tokio::time::{sleep, timeout};

    use crate::published::{self, Publisher};

    const GROWN: &str = "echo \"started by $(cat /sys/class/dmi/id/bios_vendor), root on $(stat -c %T -f /)\"; \
        sed -i 's/ - / + /' sum.sh; git commit -qam 'Add instead of subtracting'; \
        until [ \"$(df -m --output=size / | tail -n 1)\" -gt 2500 ]; do sleep 1; done";
    const LOOK: &str = "echo \"cloud-init $(cloud-init --version), started by $(cat /sys/class/dmi/id/bios_vendor)\"; \
        sed -i 's/ - / + /' sum.sh; git commit -qam 'Add instead of subtracting'";
    /// A GiB more than the template has.
    const DISK_BYTES: u64 = 3 << 30;

    /// Killed with the test.
    struct Vm(Child);

    impl Drop for Vm {
        fn drop(&mut self) {
            // It may have ended by itself.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// A machine with the parts that PVE gives one: virtio-scsi-single, a serial port, a serial number. No kernel, no
    /// initrd, no argument for either.
    fn boot(disk: &Path, dir: &Path, seed: &Seed) -> Result<Vm> {
        let own = dir.join("disk.raw");
        std::fs::copy(disk, &own)?;
        std::fs::File::options()
            .write(true)
            .open(&own)?
            .set_len(DISK_BYTES)?;
        let at = |name: &str| dir.join(name).display().to_string();
        let vm = Command::new("qemu-system-x86_64")
            .args(["-machine", "q35", "-cpu", "max,-cx16", "-m", "512", "-nodefaults"])
            .args([
                "-display",
                "none",
                "-no-reboot",
                "-serial",
                &format!("file:{}", at("console")),
            ])
            .args([
                "-drive",
                &format!("id=drive-scsi0,if=none,format=raw,file={}", own.display()),
            ])
            .args(["-device", "virtio-scsi-pci,id=virtioscsi0"])
            .args([
                "-device",
                "scsi-hd,bus=virtioscsi0.0,channel=0,scsi-id=0,lun=0,drive=drive-scsi0,bootindex=100",
            ])
            .args(["-smbios", &format!("type=1,serial={}", seed.to_text()?)])
            .args([
                "-chardev",
                &format!("socket,id=line,server=on,wait=off,path={}", at("line")),
            ])
            .args([
                "-device",
                "virtio-serial-pci",
                "-device",
                "virtserialport,chardev=line,name=agentlab.channel",
            ])
            .stdin(Stdio::null())
            .spawn()
            .context("qemu-system-x86_64")?;
        Ok(Vm(vm))
    }

    /// Joins every line that the daemon opens with the machine's port.
    async fn join(visitors: Visitors, first: UnixStream, port: PathBuf) -> Result<()> {
        let mut line = first;
        loop {
            let mut guest = loop {
                match UnixStream::connect(&port).await {
                    Ok(guest) => break guest,
                    Err(_) => sleep(Duration::from_millis(50)).await,
                }
            };
            // Whoever hangs up first: the daemon opens another when it wants one.
            let _ = copy_bidirectional(&mut line, &mut guest).await;
            line = visitors.next_line().await?.1;
        }
    }

    async fn job_in_a_machine_from(disk: &Path, task: &str, says: &str) -> Result<()> {
        let mut lab = Lab::prepare()?;
        let visitors = lab.visitors()?;
        lab.start()?;
        let repository = lab.repository()?.path().display().to_string();
        let arguments = [
            "job",
            "run",
            "--repo",
            &repository,
            "--profile",
            "demo",
            "--task",
            task,
        ];
        let running = lab.begin(&arguments)?;
        let next = timeout(Duration::from_secs(60), visitors.next()).await;
        let (seed, line) = next.context("no machine was powered on")??;
        let dir = tempfile::tempdir()?;
        let _vm = boot(disk, dir.path(), &seed)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(join(visitors, line, dir.path().join("line")));
        let ran = tokio::task::spawn_blocking(move || running.finish()).await??;
        let console = std::fs::read(dir.path().join("console")).unwrap_or_default();
        ensure!(
            ran.code() == Some(0) && ran.stdout.contains(says),
            "{ran:?}\n{}\n{}",
            lab.log(),
            String::from_utf8_lossy(&console)
        );
        Ok(())
    }

    #[test]
    fn a_disk_made_for_proxmox_boots_by_itself_grows_redeems_from_smbios_and_does_a_job() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let disk = template_image("demo", &["--shape", "proxmox"])?.join("disk.raw");
        let says = "started by SeaBIOS, root on ext2/ext3";
        tokio::runtime::Runtime::new()?.block_on(job_in_a_machine_from(&disk, GROWN, says))
    }

    #[test]
    fn a_cloud_image_gets_the_packages_it_lacks_and_a_runner_and_does_a_job() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let publisher = Publisher::of(published::image()?)?;
        let [url, list] = publisher.urls();
        let store = tempfile::tempdir()?;
        let arguments = ["--image-url", &url, "--image-sha256-url", &list];
        let image = template_image_in(store.path(), "demo", &arguments)?;
        let (sent, length) = publisher.sent_of();
        ensure!(sent == length, "{sent} bytes of {length} went out: some twice");
        let manifest: Value = serde_json::from_slice(&std::fs::read(image.join("manifest.json"))?)?;
        let packages = manifest["packages"].as_array().context("packages")?;
        for name in ["bubblewrap", "cloud-init", "git"] {
            ensure!(
                packages.iter().any(|one| one["name"] == name),
                "no {name}: {packages:?}"
            );
        }
        let disk = image.join("disk.raw");
        tokio::runtime::Runtime::new()?.block_on(job_in_a_machine_from(&disk, LOOK, ", started by SeaBIOS"))
    }
}
