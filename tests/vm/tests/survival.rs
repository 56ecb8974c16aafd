//! The daemon is killed in the midst of everything it does, with real processes, and the world goes wrong under it.
//! A job ends COMPLETED or FAILED with a reason, and nothing of it is left.

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Write as _;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::time::{Duration, Instant};

    use agentlab_api::{ErrorCode, JobState, JobView};
    use agentlab_testkit::{Lab, Repository, vm_tier};
    use anyhow::{Context, Result, ensure};
    use rustix::process::{Pid, Signal, kill_process};

    /// A job with all that goes before it and after it.
    const WHOLE: Duration = Duration::from_secs(480);

    const PROFILE: &str = "name: lab\ntemplate_vmid: 9000\nnetwork:\n  mode: \"off\"\n  channels: [CHANNEL]\nresources:\n  cores: 1\n  \
         memory_mb: 512\nbehavior:\n  ttl_minutes_default: 60\n  deadline_seconds_default: 600\n";
    /// Output that shows a line twice or not at all, a commit, and a file that takes a while to arrive.
    const TASK: &str = r#"for i in $(seq 30); do echo "line $i."; [ $((i % 10)) != 0 ] || sleep 1; done
sed -i "s/ - / + /" sum.sh
./test.sh
git commit -qam "Add instead of subtracting"
head -c 6000000 /dev/urandom > "$AGENTLAB_ARTIFACTS_DIR/large"
"#;

    fn profile(channel: &str) -> String {
        PROFILE.replace("CHANNEL", channel)
    }

    /// Asks for a job. The daemon may be killed before it answers; then the id is found out later.
    fn ask(lab: &Lab, task: &str) -> Result<Option<String>> {
        let fresh = tempfile::Builder::new()
            .prefix("repository-")
            .tempdir_in(lab.dir())?;
        let repository = Repository::with_failing_test(&fresh.path().join("it"))?;
        let ran = lab.agentlab(&repository.job("lab", task, &["--detach"]))?;
        Ok((ran.code() == Some(0)).then(|| ran.stdout.trim().to_owned()))
    }

    fn ended(lab: &Lab, id: &str) -> Result<JobView> {
        lab.wait_for_job(id, WHOLE, |job| job.state.is_final())
    }

    /// A whole job whose daemon is killed at this moment, or a little later, and started again.
    fn killed(moment: &str, later: u64, channel: &str) -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let mut lab = Lab::start(&profile(channel))?;
        lab.stop_daemon()?;
        lab.start_halting_daemon(moment, Duration::from_millis(later))?;
        let id = ask(&lab, TASK)?;
        lab.wait_for_halt(WHOLE)?;
        lab.start_daemon()?;
        let id = match id {
            Some(id) => id,
            None => lab.newest_job()?.id.to_string(),
        };
        let job = ended(&lab, &id)?;
        ensure!(
            job.state == JobState::Completed,
            "killed {moment}: {job:#?}\n{}",
            lab.daemon_log()
        );
        ensure!(
            job.outcome.as_ref().map(|outcome| outcome.commits) == Some(1),
            "{job:#?}"
        );
        work_is_whole(&lab, &id)?;
        lab.nothing_is_left()
    }

    /// Every line once, every file as it was made, and no bytes that nobody knows of.
    fn work_is_whole(lab: &Lab, id: &str) -> Result<()> {
        let logs = lab.agentlab(&["job", "logs", id])?.stdout;
        for number in 1..=30 {
            let line = format!("line {number}.");
            let count = logs.lines().filter(|shown| shown.ends_with(&line)).count();
            ensure!(count == 1, "`{line}` is there {count} times:\n{logs}");
        }
        let list = lab.json(&["job", "artifacts", id])?;
        let list = list["artifacts"].as_array().context("artifacts")?;
        let all = |key: &str| -> BTreeSet<String> {
            let texts = list.iter().filter_map(|file| file[key].as_str());
            texts.map(str::to_owned).collect()
        };
        ensure!(all("name").contains("files/large"), "{list:?}");
        let (recorded, mut stored) = (all("sha256"), BTreeSet::new());
        for kept in ["artifacts", "incoming", "partial"] {
            files_below(&lab.dir().join("data").join(kept), &mut stored)?;
        }
        ensure!(recorded == stored, "recorded {recorded:?}, on disk {stored:?}");
        let out = lab.dir().join("out").display().to_string();
        let ran = lab.agentlab(&["job", "artifacts", "download", id, "--out", &out])?;
        ensure!(ran.code() == Some(0), "{}{}", ran.stdout, ran.stderr);
        Ok(())
    }

    fn files_below(dir: &Path, names: &mut BTreeSet<String>) -> Result<()> {
        let entries = std::fs::read_dir(dir).with_context(|| dir.display().to_string())?;
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                files_below(&entry.path(), names)?;
            } else {
                names.insert(entry.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(())
    }

    #[test]
    fn a_daemon_killed_while_it_clones_ends_the_job_all_the_same() -> Result<()> {
        killed("after enter Clone", 12, "serial")
    }

    #[test]
    fn a_daemon_killed_with_a_clone_that_nobody_recorded_ends_the_job_all_the_same() -> Result<()> {
        killed("before enter Configure", 0, "serial")
    }

    #[test]
    fn a_daemon_killed_while_it_powers_on_ends_the_job_all_the_same() -> Result<()> {
        killed("after enter PowerOn", 60, "tls")
    }

    #[test]
    fn a_daemon_killed_while_its_guest_boots_ends_the_job_all_the_same() -> Result<()> {
        killed("after enter BOOTING", 1500, "serial")
    }

    #[test]
    fn a_daemon_killed_before_a_redemption_is_recorded_ends_the_job_all_the_same() -> Result<()> {
        killed("before enter RUNNING", 0, "tls")
    }

    #[test]
    fn a_daemon_killed_while_the_agent_works_ends_the_job_all_the_same() -> Result<()> {
        killed("after log", 700, "serial")
    }

    #[test]
    fn a_daemon_killed_with_a_file_that_nobody_recorded_ends_the_job_all_the_same() -> Result<()> {
        killed("before artifact", 0, "serial")
    }

    #[test]
    fn a_daemon_killed_while_a_file_arrives_ends_the_job_all_the_same() -> Result<()> {
        killed("after artifact", 80, "tls")
    }

    #[test]
    fn a_daemon_killed_while_it_takes_a_machine_down_ends_the_job_all_the_same() -> Result<()> {
        killed("after enter Unwinding", 30, "serial")
    }

    #[test]
    fn a_daemon_killed_between_two_undos_ends_the_job_all_the_same() -> Result<()> {
        killed("before undo BindNetwork", 0, "serial")
    }

    /// Short of patience, so that a silent guest is given up within the test's.
    const IMPATIENT: &str = "heartbeat_seconds: 2\nheartbeat_silence_seconds: 20\nreconcile_interval: 2s\n";

    fn begin(lab: &Lab, task: &str) -> Result<String> {
        ask(lab, task)?.with_context(|| format!("the job was not taken:\n{}", lab.daemon_log()))
    }

    /// The id of a job whose agent works.
    fn at_work(lab: &Lab, task: &str) -> Result<String> {
        let id = begin(lab, &format!("echo begun\n{task}"))?;
        until(lab, "the agent begins", || {
            Ok(lab.agentlab(&["job", "logs", &id])?.stdout.contains("begun"))
        })?;
        Ok(id)
    }

    fn until(lab: &Lab, what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
        let end = Instant::now() + WHOLE;
        while !condition()? {
            ensure!(Instant::now() < end, "never: {what}\n{}", lab.daemon_log());
            pause(Duration::from_millis(200));
        }
        Ok(())
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a test thread may sleep between two looks"
    )]
    fn pause(time: Duration) {
        std::thread::sleep(time);
    }

    fn signal_qemu(lab: &Lab, signal: Signal) -> Result<()> {
        let processes = lab.qemu_processes();
        ensure!(processes.len() == 1, "{processes:?}");
        for pid in processes {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("pid")?;
            kill_process(pid, signal)?;
        }
        Ok(())
    }

    /// What the daemon has told of the host itself.
    fn alarms(lab: &Lab) -> Result<String> {
        let page = lab.get("/v1/events?limit=1000")?;
        let events = page["events"].as_array().context("events")?;
        let alarms = events.iter().filter(|event| event["kind"] == "alarm");
        Ok(alarms
            .filter_map(|event| event["message"].as_str())
            .collect::<Vec<_>>()
            .join("\n"))
    }

    #[test]
    fn a_machine_that_stands_still_fails_its_job_and_one_that_goes_on_does_not() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let lab = Lab::start_with(&profile("serial"), IMPATIENT)?;
        let id = at_work(&lab, "for i in $(seq 20); do sleep 1; echo still; done")?;
        signal_qemu(&lab, Signal::STOP)?;
        pause(Duration::from_secs(8));
        signal_qemu(&lab, Signal::CONT)?;
        let job = ended(&lab, &id)?;
        ensure!(job.state == JobState::Completed, "{job:#?}\n{}", lab.daemon_log());
        lab.nothing_is_left()?;

        let id = at_work(&lab, "sleep 500")?;
        signal_qemu(&lab, Signal::STOP)?;
        let job = ended(&lab, &id)?;
        let failure = job.failure.clone().context("no reason")?;
        ensure!(
            job.state == JobState::Failed && failure.code == ErrorCode::SandboxLost,
            "{job:#?}"
        );
        ensure!(
            failure.message.contains("fell silent") && failure.message.contains("nor does its machine"),
            "{failure:#?}"
        );
        lab.nothing_is_left()
    }

    #[test]
    fn a_machine_that_is_killed_while_it_boots_fails_its_job_there() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let lab = Lab::start_with(&profile("serial"), IMPATIENT)?;
        let id = begin(&lab, "true")?;
        until(&lab, "a machine runs", || Ok(lab.qemu_processes().len() == 1))?;
        pause(Duration::from_secs(2));
        signal_qemu(&lab, Signal::KILL)?;
        let job = ended(&lab, &id)?;
        let failure = job.failure.clone().context("no reason")?;
        ensure!(
            job.state == JobState::Failed && failure.code == ErrorCode::SandboxLost,
            "{job:#?}\n{}",
            lab.daemon_log()
        );
        ensure!(failure.stage == "AwaitGuest", "{failure:#?}");
        lab.nothing_is_left()
    }

    /// A job that needs the network all the time, while somebody does `damage` to it.
    fn disturbed(damage: impl Fn(&Lab) -> Result<()>, told: &[&str]) -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let lab = Lab::start_with(&profile("tls"), "")?;
        let id = at_work(&lab, &format!("sleep 20\n{TASK}"))?;
        let tables = lab.namespace().output("nft", &["list", "tables"])?;
        ensure!(tables.contains("agentlab"), "{tables}");
        damage(&lab)?;
        until(&lab, "the policy stands again", || {
            let standing = lab.namespace().output("nft", &["list", "ruleset"])?;
            let is_whole = lab.namespace().output("nft", &["list", "tables"])? == tables;
            let bridge = lab.namespace().output("ip", &["-brief", "address"])?;
            Ok(is_whole && standing.contains("tap1000i0") && bridge.contains("10.77.0.1/16"))
        })?;
        let job = ended(&lab, &id)?;
        ensure!(job.state == JobState::Completed, "{job:#?}\n{}", lab.daemon_log());
        work_is_whole(&lab, &id)?;
        let alarms = alarms(&lab)?;
        for word in told {
            ensure!(alarms.contains(word), "`{word}` was not told: {alarms}");
        }
        lab.nothing_is_left()
    }

    #[test]
    fn rules_that_somebody_flushed_stand_again_and_the_job_goes_on() -> Result<()> {
        disturbed(
            |lab| lab.namespace().output("nft", &["flush", "ruleset"]).map(drop),
            &["changed from outside and is repaired", "table"],
        )
    }

    #[test]
    fn a_bridge_that_somebody_deleted_is_made_again_and_the_job_goes_on() -> Result<()> {
        disturbed(
            |lab| lab.namespace().output("ip", &["link", "del", "vmbr1"]).map(drop),
            &["changed from outside and is repaired", "bridge vmbr1"],
        )
    }

    /// A file system of its own for a directory of the lab's; gone when dropped.
    struct SmallDisk(PathBuf);

    impl SmallDisk {
        fn mount(dir: &Path, size: &str) -> Result<Self> {
            std::fs::create_dir_all(dir)?;
            let disk = Self(dir.to_owned());
            run(
                "mount",
                &[
                    "-t",
                    "tmpfs",
                    "-o",
                    &format!("size={size},mode=711"),
                    "small",
                    &disk.path(),
                ],
            )?;
            Ok(disk)
        }

        fn path(&self) -> String {
            self.0.display().to_string()
        }

        fn resize(&self, size: &str) -> Result<()> {
            run("mount", &["-o", &format!("remount,size={size}"), &self.path()])
        }

        fn fill(&self) -> Result<PathBuf> {
            let path = self.0.join("ballast");
            let mut file = std::fs::File::create(&path)?;
            for size in [65536, 4096, 1] {
                let piece = vec![7u8; size];
                while file.write_all(&piece).is_ok() {}
            }
            Ok(path)
        }
    }

    impl Drop for SmallDisk {
        fn drop(&mut self) {
            // Whatever still uses it keeps it until it ends.
            drop(run("umount", &["-l", &self.path()]));
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a test waits for a short command")]
    fn run(program: &str, arguments: &[&str]) -> Result<()> {
        let output = Command::new(program).args(arguments).output()?;
        ensure!(
            output.status.success(),
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    #[test]
    fn a_disk_too_full_to_clone_fails_the_job_there_and_the_next_one_runs() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let mut lab = Lab::start_with(&profile("serial"), "artifact_disk_floor_bytes: 1\n")?;
        lab.stop_daemon()?;
        let disk = SmallDisk::mount(&lab.dir().join("data"), "600m")?;
        lab.start_daemon()?;
        let id = begin(&lab, "true")?;
        let job = ended(&lab, &id)?;
        let failure = job.failure.clone().context("no reason")?;
        ensure!(
            job.state == JobState::Failed && failure.stage == "Clone",
            "{job:#?}"
        );
        ensure!(failure.message.contains("MiB free"), "{failure:#?}");
        lab.nothing_is_left()?;
        disk.resize("8g")?;
        let id = begin(&lab, "true")?;
        let job = ended(&lab, &id)?;
        ensure!(job.state == JobState::Completed, "{job:#?}\n{}", lab.daemon_log());
        lab.nothing_is_left()?;
        lab.stop_daemon()?;
        Ok(())
    }

    #[test]
    fn a_disk_that_is_full_under_the_journal_holds_a_job_up_and_loses_nothing() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        // The records alone are on the small disk: a guest whose own disk fails is another matter.
        let small = tempfile::tempdir()?;
        let disk = SmallDisk::mount(small.path(), "8m")?;
        let configuration = format!("db_path: {}/agentlab.db\n", disk.path());
        let mut lab = Lab::start_with(&profile("serial"), &configuration)?;
        let id = at_work(&lab, &format!("sleep 5\n{TASK}"))?;
        let ballast = disk.fill()?;
        until(&lab, "it is said", || {
            let status = lab.agentlab(&["status"])?;
            Ok(status.stdout.contains("disk is full"))
        })?;
        pause(Duration::from_secs(10));
        ensure!(!lab.job(&id)?.state.is_final(), "nothing can have been recorded");
        std::fs::remove_file(ballast)?;
        let job = ended(&lab, &id)?;
        ensure!(job.state == JobState::Completed, "{job:#?}\n{}", lab.daemon_log());
        work_is_whole(&lab, &id)?;
        let alarms = alarms(&lab)?;
        ensure!(alarms.contains("Nothing could be recorded for"), "{alarms}");
        lab.nothing_is_left()?;
        lab.stop_daemon()?;
        Ok(())
    }
}
