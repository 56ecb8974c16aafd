//! A person in a sandbox: made without a job, worked in through the guest channel, on both channels.

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "a test waits for the commands and guests that it is about"
)]
mod tests {
    use std::io::Write as _;
    use std::path::Path;
    use std::process::{Command, Output, Stdio};
    use std::time::Duration;

    use agentlab_testkit::{CTRL_C, Lab, Terminal, vm_tier};
    use anyhow::{Context, Result, ensure};

    const PROFILES: &str = "name: over-serial\ntemplate_vmid: 9000\nnetwork: {mode: \"off\", channels: [serial]}\n\
        resources: {cores: 1, memory_mb: 512}\nsecrets: [env.CANARY, git.token]\n---\nname: over-tls\n\
        template_vmid: 9000\nnetwork: {mode: \"off\", channels: [tls]}\nresources: {cores: 1, memory_mb: 512}\n\
        secrets: [env.CANARY, git.token]\n";
    /// Values of a bundle: two that sandboxes are given, and one that they are not.
    const CANARIES: [(&str, &str); 3] = [
        ("env", "c4n4ry-of-the-environment"),
        ("git", "c4n4ry-of-git"),
        ("other", "c4n4ry-of-nobody"),
    ];

    /// A lab with a bundle beside it: what is searched later must not hold the values themselves.
    fn lab_with_secrets(desk: &Path) -> Result<Lab> {
        let (dir, key) = (desk.join("secrets"), desk.join("keys/age.key"));
        let config = format!(
            "secrets_dir: {}\nsecrets_age_key_path: {}\n",
            dir.display(),
            key.display()
        );
        let lab = Lab::start_with(PROFILES, &config)?;
        let (dir, key) = (dir.display().to_string(), key.display().to_string());
        let place = ["secrets", "--dir", &dir, "--age-key", &key];
        for (line, (_, value)) in [
            &["set-env", "--name", "CANARY", "--value-file", "-"][..],
            &["set-git", "--token-file", "-"],
            &["set-env", "--name", "OTHER", "--value-file", "-"],
        ]
        .into_iter()
        .zip(CANARIES)
        {
            let set = with_input(&lab, &[&place, line].concat(), value.as_bytes())?;
            ensure!(set.status.success(), "{set:?}");
        }
        let patterns: Vec<&str> = CANARIES.iter().map(|(_, value)| *value).collect();
        std::fs::write(desk.join("patterns"), patterns.join("\n"))?;
        Ok(lab)
    }

    /// The values are in the sandbox's memory, and on no disk, in no record and on no command line of the host.
    fn secrets_are_in_memory_only(lab: &Lab, vmid: &str, desk: &Path) -> Result<()> {
        let script = "set -e; cd /run/agentlab; stat -f -c %T .; stat -c '%n %a %U' environment git-credential\n\
                      . ./environment; echo \"$CANARY\"; echo \"none${OTHER:-}\"; grep -c c4n4ry-of-git git-credential; sync";
        let (code, out, err) = exec(lab, vmid, script)?;
        let seen =
            "tmpfs\nenvironment 400 agent\ngit-credential 400 agent\nc4n4ry-of-the-environment\nnone\n1\n";
        ensure!((code, out.as_str()) == (Some(0), seen), "{code:?} {out} {err}");
        let everywhere = "grep -rlaF -D skip -f \"$1\" \"$2\"; grep -laF -f \"$1\" /proc/[0-9]*/cmdline /proc/[0-9]*/environ \
                          2>/dev/null; test -s \"$1\" && find \"$2\" -size +1M -name '*.qcow2' | grep -c .";
        let found = Command::new("sh")
            .args(["-c", everywhere, "sh"])
            .arg(desk.join("patterns"))
            .arg(lab.dir())
            .output()?;
        let found = String::from_utf8_lossy(&found.stdout).into_owned();
        // One line: there was a disk to look at.
        ensure!(found.trim() == "1", "secrets are in: {found}");
        Ok(())
    }

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

    /// Exit codes, both outputs, both users.
    fn commands_return_what_they_print(lab: &Lab, vmid: &str) -> Result<()> {
        let (code, out, err) = exec(lab, vmid, "echo out; echo err >&2; id -u; pwd; exit 7")?;
        ensure!(
            (code, out.as_str(), err.as_str()) == (Some(7), "out\n1000\n/work/repo\n", "err\n"),
            "{code:?} {out:?} {err:?}\n{}",
            lab.daemon_log()
        );
        let ran = lab.agentlab(&["exec", "-u", "root", vmid, "--", "id", "-u"])?;
        ensure!(ran.stdout == "0\n", "{} {}", ran.stdout, ran.stderr);
        let ran = lab.agentlab(&["exec", vmid, "--", "no-such-program"])?;
        ensure!(ran.code() == Some(127), "{:?} {}", ran.code(), ran.stderr);
        Ok(())
    }

    /// A large input, and a file there and back.
    fn files_come_back_unchanged(lab: &Lab, vmid: &str) -> Result<()> {
        let bytes: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
        let counted = with_input(lab, &["exec", "-i", vmid, "--", "wc", "-c"], &bytes)?;
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
        Ok(())
    }

    /// A directory there and back, and nothing of it where it does not belong.
    fn directories_come_back_without_what_a_guest_adds(lab: &Lab, vmid: &str) -> Result<()> {
        let source = lab.dir().join("tree");
        std::fs::create_dir_all(source.join("deep/er"))?;
        std::fs::write(source.join("deep/er/file"), vec![5; 70_000])?;
        std::fs::write(source.join("empty"), "")?;
        std::os::unix::fs::symlink("deep/er/file", source.join("link"))?;
        let from = source.display().to_string();
        let there = format!("{vmid}:/tmp/tree");
        let ran = lab.agentlab(&["cp", "-r", &from, &there])?;
        ensure!(
            ran.code() == Some(0) && ran.stdout.contains("2 files"),
            "{}{}",
            ran.stdout,
            ran.stderr
        );
        let again = lab.agentlab(&["cp", "-r", &from, &there])?;
        ensure!(
            again.code() == Some(0),
            "into the directory that is there now: {}",
            again.stderr
        );
        let third = lab.agentlab(&["cp", "-r", &from, &there])?;
        ensure!(third.stderr.contains("there already"), "{}", third.stderr);
        let plant = "cd /tmp/tree && test -x deep && cmp deep/er/file tree/link && rm -r tree && ln -s /etc/passwd out && \
                     mkfifo pipe && mkdir .git && echo x > .git/config && echo x > EMPTY";
        let (code, _, err) = exec(lab, vmid, plant)?;
        ensure!(code == Some(0), "{err}");
        let back = lab.dir().join("back");
        let ran = lab.agentlab(&["cp", "-r", &there, &back.display().to_string()])?;
        for left_out in [
            "out: a link",
            "pipe: a device",
            ".git: git would",
            "another one has this name",
        ] {
            ensure!(ran.stderr.contains(left_out), "{left_out}: {}", ran.stderr);
        }
        ensure!(ran.code() == Some(1), "{:?} {}", ran.code(), ran.stdout);
        let listed = Command::new("sh")
            .args(["-c", "cd \"$1\" && find . | tr A-Z a-z | sort | tr '\\n' ' '; cmp -s link ../tree/deep/er/file && ls -a .. | grep -c '^.agentlab-'", "sh"])
            .arg(&back)
            .output()?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        ensure!(
            listed == ". ./deep ./deep/er ./deep/er/file ./empty ./link 0\n",
            "{listed}"
        );
        Ok(())
    }

    /// What a command began ends with its operator.
    fn a_command_ends_with_its_operator(lab: &Lab, vmid: &str) -> Result<()> {
        let mut child = lab
            .command(&["exec", vmid, "--", "sleep", "4711"])
            .stdin(Stdio::null())
            .spawn()?;
        let command = "sleep [4]711";
        ensure!(counted(lab, vmid, command, "1")?, "the command did not begin");
        child.kill()?;
        child.wait()?;
        ensure!(
            counted(lab, vmid, command, "0")?,
            "the command outlived its operator"
        );
        Ok(())
    }

    /// Whoever works there when its lease is about to end is told, and renews it from another terminal.
    fn who_works_there_is_told_that_the_lease_ends(lab: &Lab, vmid: &str) -> Result<()> {
        let renew = |ttl| lab.agentlab(&["sandbox", "lease", "renew", "--ttl", ttl, vmid]);
        ensure!(renew("4m")?.code() == Some(0), "the lease could not be cut short");
        let ran = lab.agentlab(&["exec", vmid, "--", "sleep", "4"])?;
        let told = format!("`agentlab sandbox lease renew {vmid} --ttl 2h`");
        ensure!(
            ran.code() == Some(0) && ran.stderr.contains(&told),
            "{}",
            ran.stderr
        );
        let mut terminal = Terminal::begin(&lab.command(&["attach", vmid]))?;
        terminal.wait_for("warning: the lease of")?;
        ensure!(renew("2h")?.code() == Some(0), "the lease could not be renewed");
        terminal.press("exit 0\r")?;
        ensure!(
            terminal.finish()?.status.code() == Some(0),
            "the session did not go on"
        );
        let view = lab.json(&["sandbox", "show", vmid])?;
        ensure!(view["state"] == "RUNNING", "{view:#}");
        Ok(())
    }

    /// Whether so many processes of a guest are what a pattern says, in the end. The pattern must not match itself.
    fn counted(lab: &Lab, vmid: &str, pattern: &str, wanted: &str) -> Result<bool> {
        let look =
            format!("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -oE '{pattern}' | wc -l");
        for _ in 0..120 {
            if exec(lab, vmid, &look)?.1.trim() == wanted {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(250));
        }
        Ok(false)
    }

    /// A shell on a terminal: it has its size, Ctrl-C is for what runs in it, and its exit code comes back.
    fn a_terminal_has_its_size_and_its_code(lab: &Lab, vmid: &str) -> Result<()> {
        let mut terminal = Terminal::begin(&lab.command(&["attach", vmid]))?;
        terminal.wait_for("$ ")?;
        terminal.press("tty; stty size; echo be''gun; sleep 4711\r")?;
        terminal.wait_for("begun")?;
        terminal.press(CTRL_C)?;
        terminal.press("echo interrupted=$?; exit 5\r")?;
        let left = terminal.finish()?;
        ensure!(
            left.status.code() == Some(5)
                && left.shown.contains("/dev/pts/")
                && left.shown.contains("33 99")
                && left.shown.contains("interrupted=130"),
            "{left:?}"
        );

        // The key that leaves, whatever runs.
        let mut terminal = Terminal::begin(&lab.command(&["attach", vmid]))?;
        terminal.wait_for("$ ")?;
        terminal.press("echo be''gun; sleep 4711\r")?;
        terminal.wait_for("begun")?;
        terminal.press("\u{1d}")?;
        let left = terminal.finish()?;
        ensure!(left.status.code() == Some(0), "{left:?}");
        Ok(())
    }

    /// Ctrl-C at a terminal ends what was begun, on both sides.
    fn ctrl_c_ends_a_command_and_what_is_followed(lab: &Lab, vmid: &str) -> Result<()> {
        for (words, shown) in [
            (
                &["exec", vmid, "--", "sh", "-c", "echo begun; sleep 4712"][..],
                "begun",
            ),
            (&["logs", "--follow", vmid], "RUNNING"),
            (&["logs", "--guest", "--follow", vmid], "systemd"),
        ] {
            let mut terminal = Terminal::begin(&lab.command(words))?;
            terminal.wait_for(shown)?;
            terminal.press(CTRL_C)?;
            let left = terminal.finish()?;
            ensure!(left.status.code() == Some(130), "{words:?}: {left:?}");
        }
        ensure!(
            counted(lab, vmid, "sleep 471[2]|sleep 471[1]|journalct[l]", "0")?,
            "something outlived its operator"
        );
        Ok(())
    }

    #[test]
    fn commands_files_and_terminals_go_through_the_guest_channel() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        for profile in ["over-serial", "over-tls"] {
            let desk = tempfile::tempdir()?;
            let mut lab = lab_with_secrets(desk.path())?;
            let vmid = new_sandbox(&lab, profile)?;
            secrets_are_in_memory_only(&lab, &vmid, desk.path())?;
            commands_return_what_they_print(&lab, &vmid)?;
            files_come_back_unchanged(&lab, &vmid)?;
            directories_come_back_without_what_a_guest_adds(&lab, &vmid)?;
            a_command_ends_with_its_operator(&lab, &vmid)?;
            who_works_there_is_told_that_the_lease_ends(&lab, &vmid)?;
            a_terminal_has_its_size_and_its_code(&lab, &vmid)?;
            ctrl_c_ends_a_command_and_what_is_followed(&lab, &vmid)?;

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
