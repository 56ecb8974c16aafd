//! A whole job through Proxmox VE's REST API: a stand-in for a node boots, on its own tap, what the daemon starts.

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "a test thread may sleep between two looks"
)]
mod tests {
    use std::fs::{File, read_to_string};
    use std::process::{Child, Stdio};
    use std::time::{Duration, Instant};

    use agentlab_api::{ChannelKind, JobState};
    use agentlab_testkit::{Lab, Repository, binaries_dir, template_store, vm_tier};
    use anyhow::{Context, Result, ensure};

    const PROFILE: &str = "name: over-rest\ntemplate_vmid: 9000\nnetwork: {mode: \"off\"}\n\
        resources: {cores: 1, memory_mb: 512}\n";
    /// The daemon is there before the node is, so that the node's certificate cannot be pinned.
    const CONFIGURATION: &str = "backend: proxmox\nproxmox_api_url: https://127.0.0.1:8006\n\
        proxmox_api_token: agentlab@pve!lp=11111111-2222-3333-4444-555555555555\nproxmox_tls_insecure: true\n\
        proxmox_node: pve9\nproxmox_pool: agentlab\n";
    const FIX: &str =
        "sed -i 's/ - / + /' sum.sh && ./test.sh && git commit -qam 'Add instead of subtracting'";
    const PATIENCE: Duration = Duration::from_secs(60);

    struct Node(Child);

    impl Drop for Node {
        fn drop(&mut self) {
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }

    fn node(lab: &Lab) -> Result<Node> {
        let log = lab.dir().join("node.log");
        let child = lab
            .namespace()
            .command(binaries_dir().join("pve-sim"))
            .args([
                "--listen",
                "127.0.0.1:8006",
                "--scale",
                "0.3",
                "--uid-first",
                "1900000000",
            ])
            .arg("--templates")
            .arg(template_store()?)
            .arg("--run-dir")
            .arg(lab.dir().join("vms"))
            .stdin(Stdio::null())
            .stdout(File::create(&log)?)
            .stderr(File::create(lab.dir().join("node.err"))?)
            .spawn()
            .context("pve-sim: cargo build --workspace --bins makes it")?;
        let node = Node(child);
        let end = Instant::now() + PATIENCE;
        while !read_to_string(&log)?.contains("node: ") {
            let said = read_to_string(lab.dir().join("node.err"))?;
            ensure!(Instant::now() < end, "the stand-in does not begin: {said}");
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(node)
    }

    #[test]
    fn a_job_runs_in_a_machine_that_was_made_and_started_over_rest_and_nothing_is_left() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let mut lab = Lab::start_with(PROFILE, CONFIGURATION)?;
        let node = node(&lab)?;
        lab.stop_daemon()?;
        lab.start_daemon()?;
        let repository = Repository::with_failing_test(&lab.dir().join("repository"))?;
        let path = repository.path().display().to_string();
        let ran = lab.agentlab(&[
            "job",
            "run",
            "--repo",
            &path,
            "--task",
            FIX,
            "--profile",
            "over-rest",
        ])?;
        let said = format!("{}{}\n{}", ran.stdout, ran.stderr, lab.daemon_log());
        ensure!(
            ran.code() == Some(0),
            "job run ended with {:?}\n{said}",
            ran.code()
        );
        let job = lab.newest_job()?;
        ensure!(job.state == JobState::Completed, "{job:#?}");
        ensure!(job.channel == Some(ChannelKind::Tls), "{job:#?}");
        ensure!(
            job.outcome.as_ref().is_some_and(|outcome| outcome.commits == 1),
            "{job:#?}"
        );
        lab.nothing_is_left()?;
        drop(node);
        Ok(())
    }

    /// The daemon is killed at some moment of each job, always another one. `AGENTLAB_KILLS=50` for more of them.
    #[test]
    fn a_daemon_killed_at_any_moment_of_a_job_over_rest_brings_it_to_its_end() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let kills = std::env::var("AGENTLAB_KILLS").map_or(Ok(4), |text| text.parse::<u64>())?;
        let mut lab = Lab::start_with(PROFILE, CONFIGURATION)?;
        let node = node(&lab)?;
        lab.stop_daemon()?;
        lab.start_daemon()?;
        let repository = Repository::with_failing_test(&lab.dir().join("repository"))?;
        let path = repository.path().display().to_string();
        for kill in 0..kills {
            let moment = Duration::from_millis((kill * 3571 + 400) % 9000);
            println!("killed after {moment:?}");
            let asked = [
                "job",
                "run",
                "--detach",
                "--repo",
                &path,
                "--task",
                FIX,
                "--profile",
                "over-rest",
            ];
            let ran = lab.agentlab(&asked)?;
            ensure!(
                ran.code() == Some(0),
                "{}{}\n{}",
                ran.stdout,
                ran.stderr,
                lab.daemon_log()
            );
            let job = lab.newest_job()?;
            std::thread::sleep(moment);
            lab.kill_daemon()?;
            lab.start_daemon()?;
            let ended = lab.wait_for_job(&job.id.to_string(), PATIENCE * 3, |job| job.state.is_final())?;
            ensure!(
                ended.state == JobState::Completed,
                "killed after {moment:?}: {ended:#?}\n{}",
                lab.daemon_log()
            );
            lab.nothing_is_left()?;
        }
        drop(node);
        Ok(())
    }
}
