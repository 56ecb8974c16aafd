//! A job over vsock, where a vhost-user device stands in for the kernel's. It takes rust-vmm's `vhost-device-vsock`, which
//! `make soak` installs below the target directory and names in AGENTLAB_TEST_VHOST_VSOCK.

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "a test waits for the device and the guest that it is about"
)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use agentlab_api::{ChannelKind, JobState};
    use agentlab_testkit::{Lab, Repository, vm_tier};
    use anyhow::{Context, Result, ensure};

    /// No other way to the host: what works here went over vsock.
    const PROFILE: &str = "name: over-vsock\ntemplate_vmid: 9000\nnetwork: {mode: \"off\", channels: [vsock]}\n\
        resources: {cores: 1, memory_mb: 512}\nbehavior: {deadline_seconds_default: 600}\n";
    const AGENT: &str = "head -c 1048576 /dev/urandom > \"$AGENTLAB_ARTIFACTS_DIR/random\"; \
        sha256sum < \"$AGENTLAB_ARTIFACTS_DIR/random\"; echo waiting; \
        while [ ! -e /work/repo/go ]; do sleep 1; done; rm /work/repo/go; echo went on";

    /// The process behind the first sandbox's device.
    struct Device(Child);

    impl Device {
        fn start(dir: &Path) -> Result<Self> {
            let program = std::env::var_os("AGENTLAB_TEST_VHOST_VSOCK")
                .context("AGENTLAB_TEST_VHOST_VSOCK must name vhost-device-vsock")?;
            let at = |name: &str| dir.join(name).display().to_string();
            let child = Command::new(PathBuf::from(program))
                .args(["--guest-cid", "1000", "--socket", &at("1000.sock")])
                .args(["--uds-path", &at("1000.vsock")])
                .stdin(Stdio::null())
                .spawn()?;
            let device = Self(child);
            ensure!(
                (0..100).any(|_| {
                    std::thread::sleep(Duration::from_millis(50));
                    dir.join("1000.sock").exists()
                }),
                "the device does not listen"
            );
            Ok(device)
        }
    }

    impl Drop for Device {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    #[ignore = "takes rust-vmm's vhost-device-vsock; `make soak` runs it"]
    fn a_job_over_vsock_is_reached_into_loses_its_daemon_and_brings_a_mebibyte_back() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let devices = tempfile::Builder::new().prefix("agentlab-lab-vsock-").tempdir()?;
        let _device = Device::start(devices.path())?;
        let config = format!("qemu:\n  vsock_dir: {}\n", devices.path().display());
        let mut lab = Lab::start_with(PROFILE, &config)?;
        let repository = Repository::with_failing_test(&lab.dir().join("repository"))?;
        let begun = lab.json(&repository.job("over-vsock", AGENT, &["--detach", "--agent", "shell"]))?;
        let id = begun["id"].as_str().context("id")?.to_owned();
        lab.wait_for_log(&id, Duration::from_secs(300), "waiting")?;
        ensure!(
            lab.job(&id)?.channel == Some(ChannelKind::Vsock),
            "{:#?}",
            lab.job(&id)?
        );

        lab.kill_daemon()?;
        lab.start_daemon()?;
        let ran = lab.agentlab(&["exec", "1000", "--", "sh", "-c", "touch /work/repo/go; id -un"])?;
        ensure!(
            (ran.code(), ran.stdout.as_str()) == (Some(0), "agent\n"),
            "{ran:?}\n{}",
            lab.daemon_log()
        );
        lab.wait_for_job(&id, Duration::from_secs(300), |job| {
            job.state == JobState::Completed
        })?;

        let said = lab.agentlab(&["job", "logs", &id])?.stdout;
        let out = lab.dir().join("out");
        let out_text = out.display().to_string();
        let ran = lab.agentlab(&["job", "artifacts", "download", &id, "--out", &out_text])?;
        ensure!(ran.code() == Some(0), "{}{}", ran.stdout, ran.stderr);
        let random = out.join("files/random");
        ensure!(std::fs::metadata(&random)?.len() == 1 << 20, "not a mebibyte");
        let sum = lab
            .namespace()
            .output("sha256sum", &[&random.display().to_string()])?;
        let sum = sum.split(' ').next().context("no sum")?;
        ensure!(
            said.contains(sum) && said.contains("went on"),
            "{sum} is not in {said}"
        );
        lab.nothing_is_left()
    }
}
