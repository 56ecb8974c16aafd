//! A sandbox switched off and on, paused and left alone, in a real VM: what somebody wrote there is there again.

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "a test waits for the sandbox that it is about"
)]
mod tests {
    use std::time::{Duration, Instant};

    use agentlab_testkit::{Lab, vm_tier};
    use anyhow::{Result, ensure};

    const PROFILE: &str = "name: one\ntemplate_vmid: 9000\nnetwork: {mode: \"off\", channels: [serial]}\n\
        resources: {cores: 1, memory_mb: 512}\nbehavior: {idle_stop_minutes_default: 1}\n";
    const PATIENCE: Duration = Duration::from_secs(300);

    /// Asks until the guest answers, as it does a moment after its machine goes on.
    fn in_guest(lab: &Lab, vmid: &str, script: &str) -> Result<String> {
        let began = Instant::now();
        loop {
            let ran = lab.agentlab(&["exec", vmid, "--", "sh", "-c", script])?;
            if ran.code() == Some(0) {
                return Ok(ran.stdout);
            }
            ensure!(
                began.elapsed() < PATIENCE,
                "{script}: {}{}",
                ran.stdout,
                ran.stderr
            );
            std::thread::sleep(Duration::from_millis(250));
        }
    }

    fn ask(lab: &Lab, arguments: &[&str]) -> Result<()> {
        let ran = lab.agentlab(&[&["sandbox"], arguments].concat())?;
        ensure!(
            ran.code() == Some(0),
            "{arguments:?}: {}{}\n{}",
            ran.stdout,
            ran.stderr,
            lab.daemon_log()
        );
        Ok(())
    }

    fn until(lab: &Lab, vmid: &str, state: &str) -> Result<()> {
        let began = Instant::now();
        loop {
            let view = lab.json(&["sandbox", "show", vmid])?;
            if view["state"] == state {
                return Ok(());
            }
            ensure!(began.elapsed() < PATIENCE, "never {state}: {view:#}");
            std::thread::sleep(Duration::from_millis(250));
        }
    }

    #[test]
    fn what_was_written_survives_a_stop_and_a_pause_and_an_unused_sandbox_is_stopped() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let config = "idle_stop_interval: 5s\nidle_stop_cpu_threshold: 0.5\n";
        let lab = Lab::start_with(PROFILE, config)?;
        let vmid = lab.json(&["sandbox", "new", "--profile", "one"])?["vmid"].to_string();
        let written =
            "head -c 1000000 /dev/urandom > ~/file; sha256sum ~/file; cat /proc/sys/kernel/random/boot_id";
        let (before, boot) = split(&in_guest(&lab, &vmid, written)?);

        // At once: nothing has written it to the disk by itself yet.
        ask(&lab, &["stop", &vmid])?;
        ask(&lab, &["start", &vmid])?;
        let read = "sha256sum ~/file; cat /proc/sys/kernel/random/boot_id";
        let (after, second_boot) = split(&in_guest(&lab, &vmid, read)?);
        ensure!(after == before, "{before} became {after}");
        ensure!(second_boot != boot, "it was not switched off");

        ask(&lab, &["pause", &vmid])?;
        until(&lab, &vmid, "SUSPENDED")?;
        ask(&lab, &["resume", &vmid])?;
        let (_, same_boot) = split(&in_guest(&lab, &vmid, read)?);
        ensure!(same_boot == second_boot, "a pause is no restart");

        // Nobody comes any more.
        until(&lab, &vmid, "STOPPED")?;
        let told = lab.agentlab(&["sandbox", "logs", &vmid])?.stdout;
        ensure!(told.contains("Nobody has used sandbox"), "{told}");
        ask(&lab, &["prune", "--stopped"])?;
        until(&lab, &vmid, "DESTROYED")?;
        lab.nothing_is_left()
    }

    fn split(text: &str) -> (String, String) {
        let mut lines = text.lines().map(str::to_owned);
        (lines.next().unwrap_or_default(), lines.next().unwrap_or_default())
    }
}
