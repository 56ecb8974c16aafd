//! A whole job through Proxmox VE's REST API: a stand-in for a node boots, on its own tap, what the daemon starts.

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "a test thread may sleep between two looks"
)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::{File, read_to_string};
    use std::path::PathBuf;
    use std::process::{Child, Stdio};
    use std::time::{Duration, Instant};

    use agentlab_api::{ChannelKind, JobState, JobView};
    use agentlab_testkit::{Lab, Repository, binaries_dir, template_store, vm_tier};
    use anyhow::{Context, Result, ensure};
    use serde_json::Value;

    const PROFILE: &str = "name: over-rest\ntemplate_vmid: 9000\nnetwork: {mode: \"off\"}\n\
        resources: {cores: 1, memory_mb: 512}\n";
    /// The daemon is there before the node is, so that the node's certificate cannot be pinned.
    const CONFIGURATION: &str = "backend: proxmox\nproxmox_api_url: https://127.0.0.1:8006\n\
        proxmox_api_token: agentlab@pve!lp=11111111-2222-3333-4444-555555555555\nproxmox_tls_insecure: true\n\
        proxmox_node: pve9\nproxmox_pool: agentlab\n";
    const TOKEN: &str = "Authorization: PVEAPIToken=agentlab@pve!lp=11111111-2222-3333-4444-555555555555";
    const FIX: &str =
        "sed -i 's/ - / + /' sum.sh && ./test.sh && git commit -qam 'Add instead of subtracting'";
    const PATIENCE: Duration = Duration::from_secs(60);

    struct Node {
        child: Child,
        log: PathBuf,
    }

    impl Drop for Node {
        fn drop(&mut self) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }

    impl Node {
        /// Ends it. It says at its end what of the daemon's is left on it, and what of others was touched.
        fn leaves_nothing(mut self) -> Result<()> {
            let pid = rustix::process::Pid::from_child(&self.child);
            rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
            self.child.wait()?;
            let said = read_to_string(&self.log)?;
            let (_, end) = said.split_once("at its end").context("it did not say its end")?;
            println!("{end}");
            ensure!(
                end.contains("left: nothing\n") && end.contains("foreign touched: nothing\n"),
                "{end}"
            );
            Ok(())
        }
    }

    /// `faults`: the seed by which its calls and workers fail.
    fn node(lab: &Lab, faults: Option<u64>) -> Result<Node> {
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
            .args(faults.map(|seed| format!("--faults={seed}")))
            .stdin(Stdio::null())
            .stdout(File::create(&log)?)
            .stderr(File::create(lab.dir().join("node.err"))?)
            .spawn()
            .context("pve-sim: cargo build --workspace --bins makes it")?;
        let node = Node {
            child,
            log: log.clone(),
        };
        let end = Instant::now() + PATIENCE;
        while !read_to_string(&log)?.contains("node: ") {
            let said = read_to_string(lab.dir().join("node.err"))?;
            ensure!(Instant::now() < end, "the stand-in does not begin: {said}");
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(node)
    }

    /// A daemon that begins with the node there, and a repository to work on.
    fn lab_on_node(configuration: &str, faults: Option<u64>) -> Result<(Lab, Node, Repository)> {
        let mut lab = Lab::start_with(PROFILE, configuration)?;
        let node = node(&lab, faults)?;
        lab.stop_daemon()?;
        lab.start_daemon()?;
        let repository = Repository::with_failing_test(&lab.dir().join("repository"))?;
        Ok((lab, node, repository))
    }

    #[test]
    fn a_job_runs_in_a_machine_that_was_made_and_started_over_rest_and_nothing_is_left() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let (lab, node, repository) = lab_on_node(CONFIGURATION, None)?;
        let ran = lab.agentlab(&repository.job("over-rest", FIX, &[]))?;
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
        node.leaves_nothing()
    }

    /// The SMBIOS of the first machine, as the node shows it: what it will have with its next start.
    fn smbios(lab: &Lab) -> Result<String> {
        let line = [
            "-sSfk",
            "-H",
            TOKEN,
            "https://127.0.0.1:8006/api2/json/nodes/pve9/qemu/1000/config",
        ];
        let answer: Value = serde_json::from_str(&lab.namespace().output("curl", &line)?)?;
        let smbios = answer["data"]["smbios1"].as_str();
        Ok(smbios.context("the machine has no SMBIOS")?.to_owned())
    }

    #[test]
    fn a_seed_leaves_the_nodes_configuration_once_its_guest_has_redeemed_it() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let (lab, node, repository) = lab_on_node(CONFIGURATION, None)?;
        let task = "echo waiting; while [ ! -e go ]; do sleep 1; done";
        let begun = lab.json(&repository.job("over-rest", task, &["--detach"]))?;
        let job = begun["id"].as_str().context("id")?.to_owned();
        let end = Instant::now() + PATIENCE * 3;
        let mut had_one = false;
        while lab.job(&job)?.channel.is_none() {
            ensure!(Instant::now() < end, "no guest redeems:\n{}", lab.daemon_log());
            had_one |= smbios(&lab).is_ok_and(|smbios| smbios.contains("serial="));
            std::thread::sleep(Duration::from_millis(50));
        }
        ensure!(had_one, "no seed was ever seen");
        lab.wait_for_log(&job, PATIENCE * 3, "waiting")?;
        let end = Instant::now() + PATIENCE;
        while smbios(&lab)?.contains("serial=") {
            ensure!(Instant::now() < end, "the seed stays: {}", smbios(&lab)?);
            std::thread::sleep(Duration::from_millis(100));
        }
        let ran = lab.agentlab(&["exec", "1000", "--", "touch", "go"])?;
        ensure!(ran.code() == Some(0), "{}{}", ran.stdout, ran.stderr);
        lab.wait_for_job(&job, PATIENCE * 2, |job| job.state == JobState::Completed)?;
        lab.nothing_is_left()?;
        node.leaves_nothing()
    }

    #[test]
    fn a_workspace_goes_from_one_job_to_the_next_over_rest_and_is_removed_in_the_end() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let volumes = format!("{CONFIGURATION}proxmox_storage: local\nproxmox_volume_vmid: 777\n");
        let (lab, node, repository) = lab_on_node(&volumes, None)?;
        let job = |task: &str| -> Result<String> {
            let ran = lab.agentlab(&repository.job("over-rest", task, &["--workspace", "w"]))?;
            let said = format!("{}{}", ran.stdout, ran.stderr);
            ensure!(ran.code() == Some(0), "{said}\n{}", lab.daemon_log());
            Ok(said)
        };
        let made = lab.agentlab(&["workspace", "create", "w", "--size", "1G"])?;
        ensure!(made.code() == Some(0), "{}{}", made.stdout, made.stderr);
        job("echo kept > /work/notes")?;
        let resized = lab.agentlab(&["workspace", "resize", "w", "2G"])?;
        ensure!(resized.code() == Some(0), "{}", resized.stderr);
        let said =
            job("cat /work/notes; test $(df -BM --output=size /work | tail -n 1 | tr -dc 0-9) -gt 1500")?;
        ensure!(said.contains("kept"), "{said}");
        lab.nothing_is_left()?;
        let gone = lab.agentlab(&["workspace", "delete", "w", "--yes"])?;
        ensure!(gone.code() == Some(0), "{}{}", gone.stdout, gone.stderr);
        node.leaves_nothing()
    }

    /// The daemon is killed at some moment of each job, always another one. `AGENTLAB_KILLS=50` for more of them.
    #[test]
    fn a_daemon_killed_at_any_moment_of_a_job_over_rest_brings_it_to_its_end() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        killed(None, 4, |job| job.state == JobState::Completed)
    }

    /// The same while calls are lost before and after their effect, come late, meet locks, and workers fail: a job may
    /// fail then, and says why. `AGENTLAB_SEED` for other faults.
    #[test]
    fn a_daemon_killed_at_any_moment_while_the_node_fails_too_ends_every_job_and_leaves_nothing() -> Result<()>
    {
        if !vm_tier() {
            return Ok(());
        }
        let seed = std::env::var("AGENTLAB_SEED").map_or(Ok(1), |text| text.parse::<u64>())?;
        println!("seed {seed}");
        killed(Some(seed), 3, |job| {
            let says_why = job.failure.as_ref();
            job.state == JobState::Completed || says_why.is_some_and(|failure| !failure.message.is_empty())
        })
    }

    fn killed(faults: Option<u64>, kills: u64, is_well: impl Fn(&JobView) -> bool) -> Result<()> {
        let kills = std::env::var("AGENTLAB_KILLS").map_or(Ok(kills), |text| text.parse::<u64>())?;
        let (mut lab, node, repository) = lab_on_node(CONFIGURATION, faults)?;
        let mut ends = BTreeMap::<String, u64>::new();
        for kill in 0..kills {
            let moment = Duration::from_millis((kill * 3571 + 400) % 9000);
            println!("killed after {moment:?}");
            let asked = repository.job("over-rest", FIX, &["--detach"]);
            // As a user would, who is told that the node does not answer just now.
            let end = Instant::now() + PATIENCE;
            loop {
                let ran = lab.agentlab(&asked)?;
                if ran.code() == Some(0) {
                    break;
                }
                ensure!(
                    faults.is_some() && Instant::now() < end,
                    "{}{}\n{}",
                    ran.stdout,
                    ran.stderr,
                    lab.daemon_log()
                );
                std::thread::sleep(Duration::from_secs(1));
            }
            let job = lab.newest_job()?;
            std::thread::sleep(moment);
            lab.kill_daemon()?;
            lab.start_daemon()?;
            let ended = lab.wait_for_job(&job.id.to_string(), PATIENCE * 6, |job| job.state.is_final())?;
            ensure!(
                is_well(&ended),
                "killed after {moment:?}: {ended:#?}\n{}",
                lab.daemon_log()
            );
            *ends.entry(format!("{:?}", ended.state)).or_default() += 1;
            lab.nothing_is_left()?;
        }
        println!("{ends:?}");
        node.leaves_nothing()
    }
}
