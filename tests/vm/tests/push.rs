//! `--push`: what an agent made goes from its guest to a branch of the origin, over TLS with a token and over SSH with a
//! key, and neither of the two is anywhere it can be read.

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "a test waits for the commands that it is about"
)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};

    use agentlab_api::{ErrorCode, JobState};
    use agentlab_testkit::{
        Identity, Internet, LOGIN_VMID, Lab, ORIGIN_ADDRESS, Origin, Repository, SshServer, job_run,
        login_image, template_store, vm_tier,
    };
    use anyhow::{Context, Result, ensure};

    /// The same server, which no list of known hosts has.
    const UNKNOWN_ADDRESS: &str = "45.76.0.2";
    const TOKEN: &str = "c4n4ry-of-the-origin";
    /// Says where a token could be read, and what is there.
    const TASK: &str = "echo more > more; git add more; git commit -qm 'Add more'; cat .git/config ~/.gitconfig; \
        git remote -v; cat /proc/[0-9]*/cmdline | tr '\\0' ' '; env | grep -v CANARY; echo looked";

    fn profile() -> String {
        format!(
            "name: pushing\ntemplate_vmid: {LOGIN_VMID}\nnetwork:\n  mode: allowlist\n  \
             allow: [{ORIGIN_ADDRESS}/32, {UNKNOWN_ADDRESS}/32]\nresources: {{cores: 1, memory_mb: 512}}\n\
             behavior: {{push: [\"agentlab/*\"], deadline_seconds_default: 300}}\nsecrets: [git]\n"
        )
    }

    /// Everything outside of the lab: bundles, keys, and the servers with their repositories.
    struct World {
        desk: tempfile::TempDir,
        lab: Lab,
        _internet: Internet,
        server: SshServer,
        _origin: Origin,
        _runtime: tokio::runtime::Runtime,
    }

    impl World {
        fn new() -> Result<Self> {
            let identity = Identity::kept(&template_store()?.with_file_name("origin"), ORIGIN_ADDRESS)?;
            let image = login_image(&identity)?;
            let desk = tempfile::Builder::new().prefix("agentlab-lab-push-").tempdir()?;
            let at = |name: &str| desk.path().join(name).display().to_string();
            let config = format!(
                "secrets_dir: {}\nsecrets_age_key_path: {}\n",
                at("secrets"),
                at("keys/age.key")
            );
            let addresses = [ORIGIN_ADDRESS, UNKNOWN_ADDRESS];
            let (lab, internet) = Lab::start_online(&profile(), &config, &addresses)?;
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f", &at("id")])
                .status()?;
            ensure!(made.success(), "ssh-keygen");
            let authorized = std::fs::read_to_string(at("id.pub"))?;
            let server = SshServer::start(
                &image,
                &desk.path().join("server"),
                internet.namespace(),
                &authorized,
            )?;
            std::fs::write(at("known_hosts"), server.known_as(ORIGIN_ADDRESS))?;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()?;
            let listener = internet
                .namespace()
                .listen(format!("{ORIGIN_ADDRESS}:443").parse()?)?;
            let origin = {
                let _entered = runtime.enter();
                Origin::serve(&desk.path().join("served"), &identity, TOKEN, listener)?
            };
            let world = Self {
                desk,
                lab,
                _internet: internet,
                server,
                _origin: origin,
                _runtime: runtime,
            };
            world.set_secrets()?;
            Ok(world)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.desk.path().join(name)
        }

        fn set_secrets(&self) -> Result<()> {
            let at = |name: &str| self.path(name).display().to_string();
            std::fs::write(self.path("token"), TOKEN)?;
            let (dir, key) = (at("secrets"), at("keys/age.key"));
            for line in [
                &["set-git", "--username", "bot", "--token-file", &at("token")][..],
                &[
                    "set-git",
                    "--ssh-key-file",
                    &at("id"),
                    "--known-hosts-file",
                    &at("known_hosts"),
                ],
            ] {
                let place = ["secrets", "--dir", &dir, "--age-key", &key];
                let ran = self.lab.agentlab(&[&place, line].concat())?;
                ensure!(ran.code() == Some(0), "{}{}", ran.stdout, ran.stderr);
            }
            Ok(())
        }

        /// One of the server behind TLS, and one of the other.
        fn repositories(&self) -> Result<[PathBuf; 2]> {
            let source = Repository::with_failing_test(&self.path("source"))?;
            let served = self.path("served/origin.git");
            source.git(&["clone", "-q", "--bare", ".", &served.display().to_string()])?;
            git(&served, &["config", "http.receivepack", "true"])?;
            Ok([served, self.server.take(source.path(), "/srv/origin.git")?])
        }

        /// The token and the key are in no record, answer or log.
        fn keeps_its_secrets(&self) -> Result<()> {
            let key = std::fs::read_to_string(self.path("id"))?;
            let line = key.lines().nth(2).context("a private key has lines")?;
            std::fs::write(self.path("patterns"), format!("{TOKEN}\n{line}\n"))?;
            let search = "grep -rlaF -D skip -f \"$1\" \"$2\"; grep -laF -f \"$1\" /proc/[0-9]*/cmdline; echo searched";
            let found = Command::new("sh")
                .args(["-c", search, "sh"])
                .arg(self.path("patterns"))
                .arg(self.lab.dir())
                .stderr(Stdio::null())
                .output()?;
            let found = String::from_utf8(found.stdout)?;
            ensure!(found == "searched\n", "secrets are in {found}");
            Ok(())
        }
    }

    fn git(at: &Path, words: &[&str]) -> Result<String> {
        let output = Command::new("git")
            .args(["-c", "safe.directory=*", "-C"])
            .arg(at)
            .args(words)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .output()?;
        ensure!(
            output.status.success(),
            "git {words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// A job on a URL whose work is at a branch of the origin afterwards.
    fn pushed(world: &World, url: &str, branch: &str, there: &Path) -> Result<()> {
        let lab = &world.lab;
        let ran = lab.agentlab(&job_run(url, "pushing", TASK, &["--push", branch]))?;
        let shown = format!("{}{}", ran.stdout, ran.stderr);
        ensure!(
            ran.code() == Some(0),
            "{shown}\n{}\n{}",
            world.server.log(),
            lab.daemon_log()
        );
        ensure!(shown.contains("looked") && shown.contains("pushed"), "{shown}");
        ensure!(
            !shown.contains(TOKEN) && !shown.contains("[redacted]"),
            "the agent could read the token: {shown}"
        );
        let outcome = lab.newest_job()?.outcome.context("no outcome")?;
        let head = outcome.head_commit.context("no commit")?;
        let at = git(there, &["rev-parse", &format!("refs/heads/{branch}")])?;
        ensure!(at.trim() == head, "{at} is not {head}");
        Ok(())
    }

    #[test]
    fn work_is_pushed_with_a_token_and_with_a_key_that_nobody_can_read() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let world = World::new()?;
        let [served, there] = world.repositories()?;
        let main = |repository: &Path| git(repository, &["rev-parse", "main"]);
        let before = (main(&served)?, main(&there)?);
        let of_tls = format!("https://{ORIGIN_ADDRESS}/origin.git");
        pushed(&world, &of_tls, "agentlab/by-token", &served)?;
        let of_ssh = format!("ssh://agent@{ORIGIN_ADDRESS}/srv/origin.git");
        pushed(&world, &of_ssh, "agentlab/by-key", &there)?;
        ensure!((main(&served)?, main(&there)?) == before, "main was touched");

        // A server that the bundle does not know is not talked to, whoever it is.
        let unknown = format!("ssh://agent@{UNKNOWN_ADDRESS}/srv/origin.git");
        let ran = world.lab.agentlab(&job_run(&unknown, "pushing", TASK, &[]))?;
        let job = world.lab.newest_job()?;
        let failure = job.failure.context("no failure")?;
        ensure!(
            ran.code() == Some(1)
                && job.state == JobState::Failed
                && failure.code == ErrorCode::RepositoryUnavailable
                && failure.message.contains("Host key verification failed"),
            "{failure:#?}"
        );
        world.keeps_its_secrets()?;
        world.lab.nothing_is_left()
    }
}
