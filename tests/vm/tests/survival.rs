//! The daemon is killed in the midst of everything it does, with real processes, and the world goes wrong under it.
//! A job ends COMPLETED or FAILED with a reason, and nothing of it is left.

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;
    use std::time::Duration;

    use agentlab_api::{JobState, JobView};
    use agentlab_testkit::{Lab, Repository, vm_tier};
    use anyhow::{Context, Result, ensure};

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
        let repository = Repository::with_failing_test(&lab.dir().join("repository"))?;
        let path = repository.path().display().to_string();
        let ran = lab.agentlab(&[
            "job",
            "run",
            "--detach",
            "--repo",
            &path,
            "--task",
            task,
            "--profile",
            "lab",
        ])?;
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

    /// Every line once, every file as it was made, and no file that nobody knows of.
    fn work_is_whole(lab: &Lab, id: &str) -> Result<()> {
        let logs = lab.agentlab(&["job", "logs", id])?.stdout;
        for number in 1..=30 {
            let line = format!("line {number}.");
            let count = logs.lines().filter(|shown| shown.ends_with(&line)).count();
            ensure!(count == 1, "`{line}` is there {count} times:\n{logs}");
        }
        let list = lab.json(&["job", "artifacts", id])?;
        let recorded: BTreeSet<String> = list["artifacts"]
            .as_array()
            .context("artifacts")?
            .iter()
            .filter_map(|file| file["name"].as_str().map(str::to_owned))
            .collect();
        ensure!(recorded.contains("files/large"), "{recorded:?}");
        let dir = lab.dir().join("data/artifacts").join(id);
        let mut stored = BTreeSet::new();
        names_below(&dir, &dir, &mut stored)?;
        ensure!(recorded == stored, "recorded {recorded:?}, on disk {stored:?}");
        let out = lab.dir().join("out").display().to_string();
        let ran = lab.agentlab(&["job", "artifacts", "download", id, "--out", &out])?;
        ensure!(ran.code() == Some(0), "{}{}", ran.stdout, ran.stderr);
        Ok(())
    }

    fn names_below(root: &Path, dir: &Path, names: &mut BTreeSet<String>) -> Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                names_below(root, &path, names)?;
            } else {
                names.insert(path.strip_prefix(root)?.display().to_string());
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
}
