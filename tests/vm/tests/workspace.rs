//! A disk that outlives its sandboxes: made by the first guest, read by the second, and never by this host.

#[cfg(test)]
mod tests {
    use agentlab_api::{ErrorCode, JobState};
    use agentlab_testkit::{Lab, Ran, Repository, vm_tier};
    use anyhow::{Context, Result, ensure};

    const PROFILE: &str = "name: work\ntemplate_vmid: 9000\nnetwork:\n  mode: \"off\"\n  channels: [serial]\nresources:\n  \
         cores: 1\n  memory_mb: 512\nbehavior:\n  ttl_minutes_default: 30\n  deadline_seconds_default: 300\n";

    fn ok(lab: &Lab, arguments: &[&str]) -> Result<Ran> {
        let ran = lab.agentlab(arguments)?;
        ensure!(
            ran.code() == Some(0),
            "agentlab {arguments:?} ended with {:?}\n{}{}\n{}",
            ran.code(),
            ran.stdout,
            ran.stderr,
            lab.daemon_log()
        );
        Ok(ran)
    }

    fn job(lab: &Lab, repository: &Repository, workspace: &str, task: &str) -> Result<Ran> {
        lab.agentlab(&repository.job("work", task, &["--workspace", workspace]))
    }

    fn whole_job(lab: &Lab, repository: &Repository, workspace: &str, task: &str) -> Result<String> {
        let ran = job(lab, repository, workspace, task)?;
        let said = format!("{}{}", ran.stdout, ran.stderr);
        ensure!(ran.code() == Some(0), "{said}\n{}", lab.daemon_log());
        ensure!(lab.newest_job()?.state == JobState::Completed, "{said}");
        lab.nothing_is_left()?;
        Ok(said)
    }

    /// Workspace as the daemon shows it.
    fn shown(lab: &Lab, name: &str) -> Result<serde_json::Value> {
        lab.json(&["workspace", "show", name])
    }

    fn disk_of(lab: &Lab, name: &str) -> Result<std::path::PathBuf> {
        let volume = shown(lab, name)?["volume"]
            .as_str()
            .context("no volume")?
            .to_owned();
        Ok(lab.dir().join("data/qemu/volumes").join(volume).join("disk.raw"))
    }

    #[test]
    fn what_one_job_leaves_on_a_workspace_the_next_one_finds_and_no_hook_of_it_is_run() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let lab = Lab::start(PROFILE)?;
        let repository = Repository::with_failing_test(&lab.dir().join("repository"))?;
        ok(&lab, &["workspace", "create", "w", "--size", "2G"])?;
        ensure!(shown(&lab, "w")?["formatted"] == false);

        let first = "grep ' /work ' /proc/mounts; echo kept > /work/notes\n\
            git commit -q --allow-empty -m 'Work of the first job'; mkdir -p .git/hooks\n\
            printf '#!/bin/sh\\ntouch /work/hooked\\n' > .git/hooks/post-checkout; chmod +x .git/hooks/post-checkout\n\
            git config core.fsmonitor 'touch /work/hooked'";
        let said = whole_job(&lab, &repository, "w", first)?;
        ensure!(
            said.contains("ext4"),
            "/work is no file system of its own: {said}"
        );
        let view = shown(&lab, "w")?;
        ensure!(
            view["formatted"] == true && view["state"] == "DETACHED",
            "{view:#}"
        );

        let second = "cat /work/notes; git log --format=%s --all | grep 'Work of the first job'\n\
            test ! -e /work/hooked && echo 'no hook was run'; test ! -e .git/hooks/post-checkout\n\
            git config core.fsmonitor || echo 'no configuration came along'; ls /work/previous";
        let said = whole_job(&lab, &repository, "w", second)?;
        for line in [
            "kept",
            "Work of the first job",
            "no hook was run",
            "no configuration came along",
            "sum.sh",
        ] {
            ensure!(said.contains(line), "no `{line}`: {said}");
        }

        // An enemy's guest leaves a file system that nobody should mount.
        ok(&lab, &["workspace", "snapshot", "create", "w", "good"])?;
        let disk = disk_of(&lab, "w")?;
        let file = std::fs::OpenOptions::new().write(true).open(&disk)?;
        std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 4096], 4096)?;
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![0x5a; 1 << 20], 8192)?;
        let ran = job(&lab, &repository, "w", "echo began")?;
        let ended = lab.newest_job()?;
        let failure = ended.failure.clone().context("no failure")?;
        ensure!(
            failure.code == ErrorCode::WorkspaceUnusable && !ran.stdout.contains("began"),
            "{ended:#?}\n{}",
            ran.stdout
        );
        ensure!(failure.message.contains("e2fsck"), "{failure:#?}");
        let id = ended.sandbox.context("no sandbox")?.to_string();
        ok(&lab, &["sandbox", "destroy", &id])?;
        lab.nothing_is_left()?;

        ok(&lab, &["workspace", "snapshot", "restore", "w", "good"])?;
        let said = whole_job(&lab, &repository, "w", "cat /work/notes")?;
        ensure!(said.contains("kept"), "{said}");
        ok(&lab, &["workspace", "delete", "w", "--yes"])?;
        ensure!(!disk.exists(), "its disk is left");
        lab.nothing_is_left()
    }
}
