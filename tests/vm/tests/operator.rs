//! A person in a sandbox: made without a job, worked in through the guest channel, on both channels.

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Output, Stdio};
    use std::time::Duration;

    use agentlab_testkit::{Lab, vm_tier};
    use anyhow::{Context, Result, ensure};

    const PROFILES: &str = "name: over-serial\ntemplate_vmid: 9000\nnetwork: {mode: \"off\", channels: [serial]}\n\
        resources: {cores: 1, memory_mb: 512}\n---\nname: over-tls\ntemplate_vmid: 9000\n\
        network: {mode: \"off\", channels: [tls]}\nresources: {cores: 1, memory_mb: 512}\n";

    /// Runs the CLI with this on its standard input.
    fn with_input(lab: &Lab, arguments: &[&str], input: &[u8]) -> Result<Output> {
        let mut child = lab
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().context("stdin")?;
        let input = input.to_vec();
        let feeder = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output()?;
        // A command that reads nothing closes its input early.
        let _ = feeder.join();
        Ok(output)
    }

    fn new_sandbox(lab: &Lab, profile: &str) -> Result<String> {
        let view = lab.json(&["sandbox", "new", "--profile", profile])?;
        ensure!(
            view["state"] == "RUNNING" && view["job"].is_null(),
            "{view:#}\n{}",
            lab.daemon_log()
        );
        Ok(view["vmid"].to_string())
    }

    fn exec(lab: &Lab, vmid: &str, script: &str) -> Result<(Option<i32>, String, String)> {
        let ran = lab.agentlab(&["exec", vmid, "--", "sh", "-c", script])?;
        Ok((ran.code(), ran.stdout, ran.stderr))
    }

    #[test]
    fn commands_files_and_terminals_go_through_the_guest_channel() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        for profile in ["over-serial", "over-tls"] {
            let mut lab = Lab::start(PROFILES)?;
            let vmid = new_sandbox(&lab, profile)?;
            let (code, out, err) = exec(&lab, &vmid, "echo out; echo err >&2; id -u; pwd; exit 7")?;
            ensure!(
                (code, out.as_str(), err.as_str()) == (Some(7), "out\n1000\n/work/repo\n", "err\n"),
                "{profile}: {code:?} {out:?} {err:?}\n{}",
                lab.daemon_log()
            );
            let ran = lab.agentlab(&["exec", "-u", "root", &vmid, "--", "id", "-u"])?;
            ensure!(ran.stdout == "0\n", "{} {}", ran.stdout, ran.stderr);
            let ran = lab.agentlab(&["exec", &vmid, "--", "no-such-program"])?;
            ensure!(ran.code() == Some(127), "{:?} {}", ran.code(), ran.stderr);

            let bytes: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
            let counted = with_input(&lab, &["exec", "-i", &vmid, "--", "wc", "-c"], &bytes)?;
            ensure!(counted.stdout == b"3000000\n", "{counted:?}");
            let (source, back) = (lab.dir().join("source.bin"), lab.dir().join("back.bin"));
            std::fs::write(&source, &bytes)?;
            let there = format!("{vmid}:/tmp/there.bin");
            for (from, to) in [
                (source.display().to_string(), there.clone()),
                (there.clone(), back.display().to_string()),
            ] {
                let ran = lab.agentlab(&["cp", &from, &to])?;
                ensure!(ran.code() == Some(0), "{from} to {to}: {}", ran.stderr);
            }
            ensure!(
                std::fs::read(&back)? == bytes,
                "the file came back as another one"
            );

            // What a command began ends with its operator.
            let mut child = lab
                .command(&["exec", &vmid, "--", "sleep", "4711"])
                .stdin(Stdio::null())
                .spawn()?;
            let running = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c 'sleep [4]711'";
            let counts = |wanted: &str| -> Result<bool> {
                for _ in 0..40 {
                    if exec(&lab, &vmid, running)?.1.trim() == wanted {
                        return Ok(true);
                    }
                    std::thread::sleep(Duration::from_millis(250));
                }
                Ok(false)
            };
            ensure!(counts("1")?, "the command did not begin");
            child.kill()?;
            child.wait()?;
            ensure!(counts("0")?, "the command outlived its operator");

            let typed = "tty; stty size; exit 5\r";
            let attach = lab.command(&["attach", &vmid]);
            let line = format!(
                "stty rows 33 columns 99; {} attach {vmid}; echo code=$?",
                attach.get_program().display()
            );
            let mut terminal = Command::new("script");
            for (name, value) in attach.get_envs() {
                terminal.env(name, value.unwrap_or_default());
            }
            let mut terminal = terminal
                .args(["-qec", &line, "/dev/null"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            let mut keys = terminal.stdin.take().context("stdin")?;
            std::thread::sleep(Duration::from_secs(2));
            keys.write_all(typed.as_bytes())?;
            keys.flush()?;
            let shown = terminal.wait_with_output()?;
            drop(keys);
            let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
            ensure!(
                shown.contains("/dev/pts/") && shown.contains("33 99") && shown.contains("code=5"),
                "{shown}"
            );

            lab.kill_daemon()?;
            lab.start_daemon()?;
            let mut again = (None, String::new(), String::new());
            for _ in 0..40 {
                again = exec(&lab, &vmid, "echo again")?;
                if again.0 == Some(0) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(250));
            }
            ensure!(again.1 == "again\n", "after a restart: {again:?}");
            let ran = lab.agentlab(&["sandbox", "destroy", &vmid])?;
            ensure!(ran.code() == Some(0), "{}{}", ran.stdout, ran.stderr);
            lab.nothing_is_left()?;
        }
        Ok(())
    }
}
