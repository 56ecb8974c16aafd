//! Values of every kind that a bundle can hold, through a whole job in a VM: where they must be, and everywhere they must
//! not be.

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "a test waits for the commands and guests that it is about"
)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};

    use agentlab_api::JobState;
    use agentlab_testkit::{Lab, vm_tier};
    use anyhow::{Context, Result, ensure};

    const PROFILE: &str = "name: all\ntemplate_vmid: 9000\nnetwork: {mode: \"off\"}\n\
        resources: {cores: 1, memory_mb: 512}\nsecrets: [env.CANARY, git, claude, ssh.keys]\n";
    const ENVIRONMENT: &str = "c4n4ry-of-the-environment";
    const TOKEN: &str = "c4n4ry-of-git-token";
    const SETTINGS: &str = "c4n4ry-of-claude-settings";
    /// In the bundle, and in no profile.
    const UNNAMED: &str = "c4n4ry-of-nobody";
    const TAILSCALE: &str = "tskey-auth-c4n4ry";
    /// Prints whatever it finds, as a person or a program might.
    const SHOW: &str = "env; cat /run/agentlab/environment /run/agentlab/git-credential /run/agentlab/ssh-key\n\
        cat /run/agentlab/claude-settings.json; echo \"$CANARY\" | base64; printf 'url=%s' \"$CANARY\" >&2\n\
        ps -ef || true; echo one > a.txt; git add a.txt; git commit -qm one; sync";
    /// The same into files that come back.
    const KEEP: &str = "cat $(for f in environment git-credential ssh-key claude-settings.json; do echo /run/agentlab/$f; done) \
        > $AGENTLAB_ARTIFACTS_DIR/all.txt; env > $AGENTLAB_ARTIFACTS_DIR/env.txt\n\
        base64 -w0 /run/agentlab/git-credential > $AGENTLAB_ARTIFACTS_DIR/encoded.txt; git config --list --show-origin";

    /// A lab, and beside it what nobody may find in it.
    struct Planted {
        desk: tempfile::TempDir,
        lab: Lab,
    }

    impl Planted {
        fn new() -> Result<Self> {
            let desk = tempfile::tempdir()?;
            let base = desk.path().to_owned();
            let at = |name: &str| base.join(name).display().to_string();
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", "operator", "-f", &at("id")])
                .status()?;
            ensure!(made.success(), "ssh-keygen");
            let (dir, key) = (at("secrets"), at("keys/age.key"));
            let config = format!(
                "secrets_dir: {dir}\nsecrets_age_key_path: {key}\nssh_public_key_path: {}\n",
                at("id.pub")
            );
            let lab = Lab::start_with(PROFILE, &config)?;
            let mut planted = Self { desk, lab };
            std::fs::write(
                planted.path("hosts"),
                "git.example ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample\n",
            )?;
            let settings = format!("{{\"env\": {{\"ANTHROPIC_API_KEY\": \"{SETTINGS}\"}}}}");
            for (line, value) in [
                (
                    &["set-env", "--name", "CANARY", "--value-file", "-"][..],
                    ENVIRONMENT,
                ),
                (&["set-env", "--name", "OTHER", "--value-file", "-"], UNNAMED),
                (&["set-git", "--username", "bot", "--token-file", "-"], TOKEN),
                (
                    &[
                        "set-git",
                        "--ssh-key-file",
                        &at("id"),
                        "--known-hosts-file",
                        &at("hosts"),
                    ],
                    "",
                ),
                (&["set-claude", "--settings-file", "-"], &settings),
                (&["set-tailscale", "--authkey-file", "-"], TAILSCALE),
                (&["add-ssh-key", "--name", "me", "--key-file", &at("id.pub")], ""),
            ] {
                let place = ["secrets", "--dir", &dir, "--age-key", &key];
                planted.with_input(&[&place, line].concat(), value)?;
            }
            planted.deliver_key()?;
            planted.write_patterns()?;
            Ok(planted)
        }

        /// From here on the key comes as systemd's `LoadCredential=` delivers it, and nothing lies where the
        /// configuration says.
        fn deliver_key(&mut self) -> Result<()> {
            let credentials = self.path("credentials");
            std::fs::create_dir(&credentials)?;
            std::fs::set_permissions(&credentials, std::fs::Permissions::from_mode(0o500))?;
            std::fs::rename(self.path("keys/age.key"), self.key_path())?;
            self.lab.stop_daemon()?;
            self.lab
                .set_daemon_variable("CREDENTIALS_DIRECTORY", &credentials.display().to_string());
            self.lab.start_daemon()
        }

        fn key_path(&self) -> PathBuf {
            self.path("credentials/age.key")
        }

        /// One line for each value: of the two keys a line of their text.
        fn write_patterns(&self) -> Result<()> {
            let key = std::fs::read_to_string(self.path("id"))?;
            let key = key.lines().nth(2).context("a private key has lines")?.to_owned();
            let age = std::fs::read_to_string(self.key_path())?;
            let age = age
                .lines()
                .find(|line| line.starts_with("AGE-SECRET-KEY-"))
                .context("an age key has a line")?
                .to_owned();
            let encoded = Command::new("sh")
                .args(["-c", "printf '%s\\n' \"$1\" | base64", "sh", ENVIRONMENT])
                .output()?;
            let encoded = String::from_utf8(encoded.stdout)?.trim().to_owned();
            let patterns = [
                ENVIRONMENT,
                TOKEN,
                SETTINGS,
                UNNAMED,
                TAILSCALE,
                &key,
                &age,
                &encoded,
            ];
            Ok(std::fs::write(self.path("patterns"), patterns.join("\n"))?)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.desk.path().join(name)
        }

        fn with_input(&self, arguments: &[&str], input: &str) -> Result<()> {
            let mut child = self
                .lab
                .command(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()?;
            let mut stdin = child.stdin.take().context("stdin")?;
            // A command that reads nothing closes its input early.
            let _ = stdin.write_all(input.as_bytes());
            drop(stdin);
            ensure!(child.wait()?.success(), "{arguments:?}");
            Ok(())
        }

        /// Runs a task and gives its job.
        fn job(&self, task: &str, more: &[&str]) -> Result<String> {
            let repository = self.path("repository");
            if !repository.exists() {
                let make = "git init -q -b main \"$1\"; cd \"$1\"; git -c user.name=T -c user.email=t@x commit -q --allow-empty -m base";
                let made = Command::new("sh")
                    .args(["-ec", make, "sh"])
                    .arg(&repository)
                    .status()?;
                ensure!(made.success(), "git");
            }
            let path = repository.display().to_string();
            let line = ["job", "run", "--repo", &path, "--task", task, "--profile", "all"];
            let ran = self.lab.agentlab(&[&line, more].concat())?;
            std::fs::write(
                self.lab.dir().join("shown"),
                format!("{}{}", ran.stdout, ran.stderr),
            )?;
            let job = self.lab.newest_job()?;
            ensure!(
                job.state == JobState::Completed,
                "{}{}\n{}",
                ran.stdout,
                ran.stderr,
                self.lab.daemon_log()
            );
            Ok(job.id.to_string())
        }

        /// Everything that answers or prints, into the directory that is searched.
        fn ask_everything(&self, job: &str, vmid: &str) -> Result<()> {
            let (events, logs) = (format!("/v1/jobs/{job}/events"), format!("/v1/jobs/{job}/logs"));
            let shown = self.lab.dir().join("answers");
            let mut all = String::new();
            for path in [
                "/v1/status",
                "/v1/jobs",
                "/v1/sandboxes",
                "/v1/profiles",
                "/v1/events",
                &events,
                &logs,
            ] {
                all += &self.lab.get(path)?.to_string();
            }
            let config = self.lab.dir().join("config.yaml").display().to_string();
            let (dir, key) = (self.path("secrets"), self.key_path());
            let (dir, key) = (dir.display().to_string(), key.display().to_string());
            let out = self.lab.dir().join("out").display().to_string();
            for line in [
                &["job", "logs", job][..],
                &["job", "show", job],
                &["sandbox", "show", vmid],
                &["sandbox", "logs", "--console", vmid],
                &["doctor", "--config", &config],
                &["--json", "doctor", "--config", &config],
                &["secrets", "show", "--dir", &dir, "--age-key", &key],
                &["--json", "secrets", "show", "--dir", &dir, "--age-key", &key],
                &["job", "artifacts", "download", job, "--out", &out],
            ] {
                let ran = self.lab.agentlab(line)?;
                all += &format!("{}{}", ran.stdout, ran.stderr);
            }
            Ok(std::fs::write(shown, all)?)
        }

        /// No file of the lab (disks, database, logs, seeds, artifacts, answers), no command line and no environment of a
        /// process on this host holds a value.
        fn nowhere(&self) -> Result<()> {
            let everywhere = "grep -rlaF -D skip -f \"$1\" \"$2\"\n\
                              grep -laF -f \"$1\" /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null\n\
                              test -s \"$1\" && echo searched";
            let found = Command::new("sh")
                .args(["-c", everywhere, "sh"])
                .arg(self.path("patterns"))
                .arg(self.lab.dir())
                .output()?;
            let found = String::from_utf8_lossy(&found.stdout).into_owned();
            ensure!(found.trim() == "searched", "secrets are in: {found}");
            Ok(())
        }
    }

    /// The search finds a value where there is one, else it shows nothing.
    fn the_search_works(planted: &Planted) -> Result<()> {
        let bait = planted.lab.dir().join("bait");
        std::fs::write(&bait, format!("x{TOKEN}x"))?;
        ensure!(planted.nowhere().is_err(), "the search misses what is there");
        Ok(std::fs::remove_file(bait)?)
    }

    /// What the profile names is in the guest's memory, for the agent alone, and the operator may come in.
    fn they_are_where_they_belong(lab: &Lab, vmid: &str) -> Result<()> {
        let script = "cd /run/agentlab; stat -f -c %T .; stat -c '%n %a %U' environment git-credential ssh-key claude-settings.json\n\
            . ./environment; echo \"$CANARY/${OTHER:-none}\"; stat -c '%a %U' ~/.ssh ~/.ssh/authorized_keys; grep -c operator ~/.ssh/authorized_keys\n\
            if command -v sshd; then sshd -T -f /dev/null | grep authorizedkeysfile; fi";
        let ran = lab.agentlab(&["exec", vmid, "--", "sh", "-c", script])?;
        let expected = format!(
            "tmpfs\nenvironment 400 agent\ngit-credential 400 agent\nssh-key 400 agent\nclaude-settings.json 400 agent\n\
             {ENVIRONMENT}/none\n700 agent\n600 agent\n1\n"
        );
        ensure!(ran.stdout.starts_with(&expected), "{} {}", ran.stdout, ran.stderr);
        Ok(())
    }

    /// The machine is kept, and nothing in it that the job was given.
    fn they_are_gone_with_their_job(lab: &Lab, vmid: &str) -> Result<()> {
        let ran = lab.agentlab(&[
            "exec",
            "-u",
            "root",
            vmid,
            "--",
            "find",
            "/run/agentlab",
            "-type",
            "f",
        ])?;
        ensure!(
            ran.code() == Some(0) && ran.stdout.is_empty(),
            "{} {}",
            ran.stdout,
            ran.stderr
        );
        Ok(())
    }

    fn destroyed(lab: &Lab, vmid: &str) -> Result<()> {
        let ran = lab.agentlab(&["sandbox", "destroy", vmid])?;
        ensure!(ran.code() == Some(0), "{}{}", ran.stdout, ran.stderr);
        Ok(())
    }

    /// Artifacts of the second job say that something was there.
    fn artifacts_say_that_something_was_there(out: &Path) -> Result<()> {
        let text = std::fs::read_to_string(out.join("files/all.txt"))?;
        ensure!(text.matches("[redacted]").count() >= 4, "{text}");
        ensure!(
            out.join("files/encoded.txt").exists(),
            "the encoded file did not come"
        );
        Ok(())
    }

    #[test]
    fn values_of_a_bundle_are_in_the_guests_memory_and_nowhere_else() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let planted = Planted::new()?;
        the_search_works(&planted)?;
        let view = planted.lab.json(&["sandbox", "new", "--profile", "all"])?;
        let vmid = view["vmid"].to_string();
        they_are_where_they_belong(&planted.lab, &vmid)?;
        planted.nowhere()?;
        destroyed(&planted.lab, &vmid)?;

        let job = planted.job(SHOW, &["--keepalive"])?;
        let vmid = planted.lab.job(&job)?.vmid.context("no VMID")?.to_string();
        they_are_gone_with_their_job(&planted.lab, &vmid)?;
        planted.ask_everything(&job, &vmid)?;
        let answers = std::fs::read_to_string(planted.lab.dir().join("answers"))?;
        ensure!(answers.contains("[redacted]"), "nothing was printed: {answers}");
        planted.nowhere()?;
        destroyed(&planted.lab, &vmid)?;

        // The agent itself puts them on its disk now, so its disk is not looked at.
        std::fs::remove_dir_all(planted.lab.dir().join("out"))?;
        let job = planted.job(KEEP, &[])?;
        planted.ask_everything(&job, &vmid)?;
        artifacts_say_that_something_was_there(&planted.lab.dir().join("out"))?;
        planted.nowhere()?;
        planted.lab.nothing_is_left()
    }
}
