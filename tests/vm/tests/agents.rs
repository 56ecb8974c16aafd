//! Real agents in a real VM, against a model that follows a script. It takes the template of the recipe `agents`, which is
//! not built here: `agentlab-template build agents --store target/templates` makes it. `make soak` runs this.

#[cfg(test)]
mod tests {
    use std::process::{Child, Stdio};
    use std::time::{Duration, Instant};

    use agentlab_api::JobState;
    use agentlab_testkit::{Lab, Namespace, Repository, binaries_dir, vm_tier};
    use anyhow::{Context, Result, ensure};

    /// An address that no rule takes for a private one; it exists in a namespace of the test's alone.
    const MODEL: &str = "45.76.0.1";
    const FIX: &str = "./test.sh && exit 1; sed -i 's/ - / + /' sum.sh && ./test.sh && git commit -qam 'Add, do not subtract'";
    const PROFILE: &str = "name: claude\ntemplate_vmid: 9002\nnetwork: {mode: nat}\n\
        resources: {cores: 2, memory_mb: 2048}\nbehavior: {agent: claude, deadline_seconds_default: 1500}\n";

    /// The Internet, as far as this test needs one: behind the lab's uplink, with the model in it.
    struct Internet {
        namespace: Namespace,
        model: Child,
    }

    impl Drop for Internet {
        fn drop(&mut self) {
            let _ = self.model.kill();
            let _ = self.model.wait();
        }
    }

    impl Internet {
        fn behind(lab: &Lab) -> Result<Self> {
            let namespace = Namespace::create()?;
            let inside = namespace.path().display().to_string();
            let inside = inside
                .trim_end_matches("/ns/net")
                .rsplit('/')
                .next()
                .context("pid")?
                .to_owned();
            for words in [
                format!("link add up0 type veth peer name eth0 netns {inside}"),
                "addr add 192.0.2.1/24 dev up0".to_owned(),
                "link set up0 up".to_owned(),
                "route add default via 192.0.2.2".to_owned(),
            ] {
                lab.namespace()
                    .output("ip", &words.split(' ').collect::<Vec<_>>())?;
            }
            for words in [
                "addr add 192.0.2.2/24 dev eth0".to_owned(),
                format!("addr add {MODEL}/32 dev lo"),
                "link set eth0 up".to_owned(),
            ] {
                namespace.output("ip", &words.split(' ').collect::<Vec<_>>())?;
            }
            let model = namespace
                .command(binaries_dir().join("agentlab-scripted-model"))
                .args([&format!("{MODEL}:8080"), FIX])
                .stdin(Stdio::null())
                .spawn()?;
            Ok(Self { namespace, model })
        }
    }

    /// Claude Code takes CMPXCHG16B, which guests do not get from an emulation before QEMU 10: it corrupts their kernel
    /// there. `AGENTLAB_TEST_QEMU` names a newer one.
    fn emulator() -> String {
        std::env::var_os("AGENTLAB_TEST_QEMU").map_or_else(String::new, |path| {
            format!("qemu: {{binary: \"{}\"}}\n", path.display())
        })
    }

    #[test]
    #[ignore = "takes the template of the recipe `agents` and minutes of emulation: make soak"]
    fn claude_code_fixes_a_test_and_its_patch_comes_back() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let mut lab = Lab::start_with(PROFILE, &emulator())?;
        let internet = Internet::behind(&lab)?;
        lab.stop_daemon()?;
        let config = lab.dir().join("config.yaml");
        let text = std::fs::read_to_string(&config)?;
        std::fs::write(&config, format!("{text}uplink: up0\n"))?;
        lab.start_daemon()?;

        let repository = Repository::with_failing_test(&lab.dir().join("repository"))?;
        let settings = format!(
            "{{\"env\": {{\"ANTHROPIC_BASE_URL\": \"http://{MODEL}:8080\", \"ANTHROPIC_API_KEY\": \"sk-test\"}}}}"
        );
        std::fs::create_dir(repository.path().join(".claude"))?;
        std::fs::write(repository.path().join(".claude/settings.json"), settings)?;
        repository.git(&["add", "."])?;
        repository.git(&["commit", "-q", "-m", "Say where the model is"])?;
        let path = repository.path().display().to_string();
        let task = "Make the failing test pass, and commit.";
        let begun = Instant::now();
        let ran = lab.agentlab(&[
            "job",
            "run",
            "--repo",
            &path,
            "--task",
            task,
            "--profile",
            "claude",
        ])?;
        let shown = format!("{}{}", ran.stdout, ran.stderr);
        ensure!(ran.code() == Some(0), "{shown}\n{}", lab.daemon_log());
        let job = lab.newest_job()?;
        let outcome = job.outcome.clone().context("no outcome")?;
        ensure!(
            job.state == JobState::Completed && outcome.commits == 1,
            "{job:#?}"
        );
        ensure!(shown.contains("It is fixed and committed."), "{shown}");
        let agent = Duration::from_millis(outcome.agent_milliseconds);
        println!(
            "Claude Code ran {agent:?}; the whole job took {:?}",
            begun.elapsed()
        );

        let id = job.id.to_string();
        let applied = lab.agentlab(&["job", "apply", &id, "--repo", &path, "--branch", "fixed"])?;
        ensure!(applied.code() == Some(0), "{}{}", applied.stdout, applied.stderr);
        let diff = repository.git(&["diff", "HEAD..fixed"])?;
        ensure!(diff.contains(" + "), "{diff}");
        let artifacts = lab.json(&["job", "artifacts", &id])?.to_string();
        ensure!(artifacts.contains("files/transcript/projects/"), "{artifacts}");
        drop(internet.namespace.path());
        lab.nothing_is_left()
    }
}
