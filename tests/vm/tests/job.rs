//! The main job: a repository goes in, a patch comes back, nothing is left.

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    use agentlab_api::{ChannelKind, ErrorCode, JobState};
    use agentlab_testkit::{Lab, Repository, job_run, vm_tier};
    use anyhow::{Context, Result, ensure};

    const FIX: &str = r#"./test.sh && { echo "the test should fail before the fix"; exit 1; }
sed -i "s/ - / + /" sum.sh
./test.sh
git commit -qam "Add instead of subtracting"
echo "left uncommitted" > note.txt
./sum.sh 20 22 > "$AGENTLAB_ARTIFACTS_DIR/answer.txt"
ln -s /etc/passwd "$AGENTLAB_ARTIFACTS_DIR/passwd"
echo "the agent is user $(id -un)"
"#;

    fn profile(name: &str, channels: &str) -> String {
        format!(
            "name: {name}\ntemplate_vmid: 9000\nnetwork:\n  mode: \"off\"\n  channels: [{channels}]\nresources:\n  cores: 1\n  \
             memory_mb: 512\nbehavior:\n  ttl_minutes_default: 30\n  deadline_seconds_default: 300\n"
        )
    }

    fn profiles() -> String {
        [
            profile("over-serial", "serial"),
            profile("over-tls", "tls"),
            "name: no-template\ntemplate_vmid: 9999\nnetwork: {mode: \"off\"}\n".to_owned(),
        ]
        .join("---\n")
    }

    /// The whole main job over one way to the host, looked at from every side.
    fn whole_job(lab: &Lab, profile: &str, channel: ChannelKind) -> Result<()> {
        let repository = Repository::with_failing_test(&lab.dir().join(format!("repository-{profile}")))?;
        let path = repository.path().display().to_string();
        let ran = lab.agentlab(&repository.job(profile, FIX, &[]))?;
        ensure!(
            ran.code() == Some(0),
            "job run ended with {:?}\n{}{}\n{}",
            ran.code(),
            ran.stdout,
            ran.stderr,
            lab.daemon_log()
        );
        let shown = format!("{}{}", ran.stdout, ran.stderr);
        ensure!(
            shown.contains("the agent is user agent"),
            "the agent's output was not shown: {shown}"
        );

        let job = lab.newest_job()?;
        ensure!(job.state == JobState::Completed, "{job:#?}");
        ensure!(job.channel == Some(channel), "asked for {channel:?}: {job:#?}");
        let outcome = job.outcome.clone().context("no outcome")?;
        ensure!(
            outcome.exit_code == Some(0) && outcome.commits == 1 && outcome.uncommitted,
            "{outcome:#?}"
        );

        let id = job.id.to_string();
        let out = lab.dir().join(format!("artifacts-{profile}"));
        let out_text = out.display().to_string();
        let ran = lab.agentlab(&["job", "artifacts", "download", &id, "--out", &out_text])?;
        ensure!(ran.code() == Some(0), "{}{}", ran.stdout, ran.stderr);
        for name in [
            "work.bundle",
            "work.patch",
            "uncommitted.diff",
            "report.json",
            "agent.log",
            "files/answer.txt",
        ] {
            ensure!(
                out.join(name).is_file(),
                "no {name}: {:#}",
                lab.json(&["job", "artifacts", &id])?
            );
        }
        ensure!(
            std::fs::read_to_string(out.join("files/answer.txt"))? == "42\n",
            "wrong answer"
        );
        ensure!(
            !out.join("files/passwd").exists(),
            "a symbolic link out of the artifacts directory was followed"
        );
        ensure!(
            std::fs::read_to_string(out.join("uncommitted.diff"))?.contains("left uncommitted"),
            "diff"
        );

        let clean = repository.clone_to(&lab.dir().join(format!("clean-{profile}")))?;
        clean.git(&["am", "-q", &out.join("work.patch").display().to_string()])?;
        ensure!(
            std::fs::read_to_string(clean.path().join("sum.sh"))?.contains('+'),
            "the patch did not arrive"
        );
        let applied = lab.agentlab(&["job", "apply", &id, "--repo", &path])?;
        ensure!(applied.code() == Some(0), "{}{}", applied.stdout, applied.stderr);
        let subject = repository.git(&["log", "-1", "--format=%s", &format!("refs/agentlab/{id}")])?;
        ensure!(subject == "Add instead of subtracting\n", "{subject}");

        lab.nothing_is_left()
    }

    #[test]
    fn a_job_over_virtio_serial_brings_its_work_back_and_leaves_nothing() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        whole_job(&Lab::start(&profiles())?, "over-serial", ChannelKind::Serial)
    }

    #[test]
    fn a_job_over_tls_brings_its_work_back_and_leaves_nothing() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        whole_job(&Lab::start(&profiles())?, "over-tls", ChannelKind::Tls)
    }

    #[test]
    fn output_is_seen_while_the_agent_still_runs() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let lab = Lab::start(&profiles())?;
        let repository = Repository::with_failing_test(&lab.dir().join("repository"))?;
        let task = "echo early; sleep 20; echo late";
        let mut child = lab
            .command(&repository.job("over-serial", task, &[]))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut seen = Vec::new();
        for line in BufReader::new(child.stdout.take().context("stdout")?).lines() {
            let line = line?;
            if line.ends_with("early") || line.ends_with("late") {
                seen.push(Instant::now());
            }
        }
        ensure!(child.wait()?.success(), "{}", lab.daemon_log());
        ensure!(seen.len() == 2, "{} lines of the agent's were seen", seen.len());
        let apart = seen[1] - seen[0];
        ensure!(
            apart > Duration::from_secs(3),
            "lines twenty seconds apart arrived within {apart:?}"
        );
        Ok(())
    }

    #[test]
    fn a_runner_that_is_killed_is_followed_by_one_that_hands_over_what_was_made() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let lab = Lab::start(&profiles())?;
        let repository = Repository::with_failing_test(&lab.dir().join("repository"))?;
        let task = "echo more > more; git add more; git commit -qm more; echo waiting; sleep 600";
        let begun = lab.json(&repository.job("over-serial", task, &["--detach"]))?;
        let id = begun["id"].as_str().context("id")?.to_owned();
        lab.wait_for_log(&id, Duration::from_secs(300), "waiting")?;
        // The command is a child of the runner's, and its connection ends with it.
        lab.agentlab(&["exec", "-u", "root", "1000", "--", "sh", "-c", "kill -KILL $PPID"])?;
        let job = lab.wait_for_job(&id, Duration::from_secs(300), |job| job.state == JobState::Failed)?;
        let failure = job.failure.context("no failure")?;
        ensure!(
            failure.code == ErrorCode::SandboxLost && failure.message.contains("runner was killed"),
            "{failure:#?}\n{}",
            lab.daemon_log()
        );
        let outcome = job.outcome.context("no outcome")?;
        ensure!(outcome.commits == 1, "{outcome:#?}");
        let said = lab.agentlab(&["job", "logs", &id])?.stdout;
        ensure!(said.contains("waiting") && said.contains("was killed"), "{said}");
        let events = lab.agentlab(&["job", "show", &id])?.stdout;
        ensure!(!events.contains("ALARM"), "{events}");
        lab.nothing_is_left()
    }

    #[test]
    fn a_guest_without_memory_or_disk_for_its_agent_says_so() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let lab = Lab::start(&profiles())?;
        let repository = Repository::with_failing_test(&lab.dir().join("repository"))?;
        for (task, code) in [
            // Keeps all it reads until it sees a line end.
            (
                "git commit -q --allow-empty -m kept; tail /dev/zero",
                ErrorCode::OutOfMemory,
            ),
            (
                "git commit -q --allow-empty -m kept; cat /dev/zero > /var/tmp/all",
                ErrorCode::GuestDiskFull,
            ),
        ] {
            let ran = lab.agentlab(&repository.job("over-serial", task, &[]))?;
            let job = lab.newest_job()?;
            let failure = job.failure.context("no failure")?;
            ensure!(failure.code == code, "{failure:#?}\n{}{}", ran.stdout, ran.stderr);
            let outcome = job.outcome.context("no outcome")?;
            ensure!(outcome.commits == 1, "the work was lost: {outcome:#?}");
        }
        lab.nothing_is_left()
    }

    #[test]
    fn an_agent_that_neither_prints_nor_computes_is_told_of_and_its_job_goes_on() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let lab = Lab::start_with(&profiles(), "agent_stuck_after: 5s\nheartbeat_seconds: 2\n")?;
        let id = started(&lab, "mkfifo go; read word < go; rm go")?;
        lab.wait_for_log(&id, Duration::from_secs(300), "has neither printed nor computed")?;
        let go = lab.agentlab(&["exec", "1000", "--", "sh", "-c", "echo go > go"])?;
        ensure!(go.code() == Some(0), "{go:?}");
        let job = lab.wait_for_job(&id, Duration::from_secs(300), |job| job.state.is_final())?;
        ensure!(job.state == JobState::Completed, "{job:#?}");
        lab.nothing_is_left()
    }

    #[test]
    fn failures_of_the_agent_come_back_with_code_deadline_and_artifacts() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let lab = Lab::start(&profiles())?;
        let repository = Repository::with_failing_test(&lab.dir().join("repository"))?;
        let run = |task: &str, more: &[&str]| lab.agentlab(&repository.job("over-serial", task, more));
        let has = |id: &str, wanted: &str| -> Result<bool> {
            let list = lab.json(&["job", "artifacts", id])?;
            Ok(list["artifacts"]
                .as_array()
                .is_some_and(|all| all.iter().any(|one| one["name"] == wanted)))
        };

        let ran = run("echo partial > \"$AGENTLAB_ARTIFACTS_DIR/partial\"; exit 3", &[])?;
        ensure!(
            ran.code() == Some(3),
            "{:?} {}{}",
            ran.code(),
            ran.stdout,
            ran.stderr
        );
        let job = lab.newest_job()?;
        ensure!(job.state == JobState::Failed, "{job:#?}");
        ensure!(
            job.outcome.as_ref().and_then(|outcome| outcome.exit_code) == Some(3),
            "{job:#?}"
        );
        ensure!(
            has(job.id.as_str(), "files/partial")? && has(job.id.as_str(), "report.json")?,
            "artifacts of a failed job"
        );

        let stubborn =
            "trap '' TERM; echo kept > \"$AGENTLAB_ARTIFACTS_DIR/kept\"; while :; do sleep 1; done";
        let ran = run(stubborn, &["--deadline", "5s"])?;
        ensure!(
            ran.code() == Some(7),
            "{:?} {}{}",
            ran.code(),
            ran.stdout,
            ran.stderr
        );
        let job = lab.newest_job()?;
        ensure!(job.state == JobState::Timeout, "{job:#?}");
        ensure!(
            has(job.id.as_str(), "files/kept")?,
            "artifacts of a job that ran out of time"
        );

        lab.nothing_is_left()
    }

    #[test]
    fn a_repository_that_does_not_clone_fails_the_job_with_gits_words() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let lab = Lab::start(&profiles())?;
        let url = "https://10.77.0.1:8846/nothing.git";
        let ran = lab.agentlab(&job_run(url, "over-serial", "true", &[]))?;
        ensure!(
            ran.code() == Some(1),
            "{:?} {}{}",
            ran.code(),
            ran.stdout,
            ran.stderr
        );
        let job = lab.newest_job()?;
        let failure = job.failure.context("no failure")?;
        ensure!(
            job.state == JobState::Failed && failure.stage.to_lowercase().contains("repository"),
            "{failure:#?}"
        );
        ensure!(
            failure.message.contains("fatal:"),
            "git's words are missing: {failure:#?}"
        );
        lab.nothing_is_left()
    }

    #[test]
    fn a_vm_killed_under_its_job_fails_it_as_lost() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let lab = Lab::start(&profiles())?;
        let id = started(&lab, "sleep 300")?;
        for pid in lab.qemu_processes() {
            let pid = i32::try_from(pid)
                .ok()
                .and_then(rustix::process::Pid::from_raw)
                .context("pid")?;
            rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        }
        let job = lab.wait_for_job(&id, Duration::from_secs(300), |job| job.state.is_final())?;
        ensure!(job.state == JobState::Failed, "{job:#?}");
        ensure!(
            job.failure
                .is_some_and(|failure| failure.code == agentlab_api::ErrorCode::SandboxLost),
            "not lost"
        );
        lab.nothing_is_left()
    }

    #[test]
    fn a_job_outlives_a_killed_daemon() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        for profile in ["over-serial", "over-tls"] {
            let mut lab = Lab::start(&profiles())?;
            let id = started_on(&lab, "sleep 20; echo done", profile)?;
            lab.kill_daemon()?;
            ensure!(
                lab.qemu_processes().len() == 1,
                "the VM did not outlive the daemon"
            );
            lab.start_daemon()?;
            let job = lab.wait_for_job(&id, Duration::from_secs(300), |job| job.state.is_final())?;
            ensure!(
                job.state == JobState::Completed,
                "{profile}: {job:#?}\n{}",
                lab.daemon_log()
            );
            lab.nothing_is_left()?;
        }
        Ok(())
    }

    #[test]
    fn a_cancelled_job_ends_and_leaves_nothing() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let lab = Lab::start(&profiles())?;
        let id = started(&lab, "sleep 300")?;
        let ran = lab.agentlab(&["job", "cancel", &id])?;
        ensure!(ran.code() == Some(0), "{}{}", ran.stdout, ran.stderr);
        let job = lab.wait_for_job(&id, Duration::from_secs(300), |job| job.state.is_final())?;
        ensure!(job.state == JobState::Cancelled, "{job:#?}");
        lab.nothing_is_left()
    }

    #[test]
    fn what_cannot_work_is_refused_before_anything_is_made() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let lab = Lab::start(&profiles())?;
        let repository = Repository::with_failing_test(&lab.dir().join("repository"))?;
        let ran = lab.agentlab(&repository.job("no-template", "true", &[]))?;
        ensure!(ran.code() == Some(1), "{:?}", ran.code());
        ensure!(
            ran.stderr.contains("9999") && ran.stderr.contains("agentlab-template build"),
            "{}",
            ran.stderr
        );
        let ran = lab.agentlab(&repository.job("over-serail", "true", &[]))?;
        ensure!(
            ran.stderr.contains("over-serial"),
            "the nearest profile is not named: {}",
            ran.stderr
        );

        let mut second = lab.spawn_daemon()?;
        let status = second.wait()?;
        ensure!(
            status.code() == Some(1),
            "a second daemon on the same socket ended with {status}"
        );
        ensure!(
            lab.agentlab(&["status"])?.code() == Some(0),
            "the first daemon no longer answers"
        );
        lab.nothing_is_left()
    }

    /// The id of a job whose agent runs.
    fn started(lab: &Lab, task: &str) -> Result<String> {
        started_on(lab, task, "over-serial")
    }

    fn started_on(lab: &Lab, task: &str, profile: &str) -> Result<String> {
        let repository = Repository::with_failing_test(&lab.dir().join("repository"))?;
        let task = format!("echo begun; {task}");
        let ran = lab.agentlab(&repository.job(profile, &task, &["--detach"]))?;
        ensure!(ran.code() == Some(0), "{}{}", ran.stdout, ran.stderr);
        let id = ran.stdout.trim().to_owned();
        lab.wait_for_job(&id, Duration::from_secs(300), |job| {
            job.state == JobState::Running
        })?;
        let end = Instant::now() + Duration::from_secs(300);
        while !lab.agentlab(&["job", "logs", &id])?.stdout.contains("begun") {
            ensure!(
                Instant::now() < end,
                "the agent does not begin\n{}",
                lab.daemon_log()
            );
            pause();
        }
        Ok(id)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a test thread may sleep between two looks"
    )]
    fn pause() {
        std::thread::sleep(Duration::from_millis(200));
    }
}
