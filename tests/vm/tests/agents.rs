//! Real agents in a real VM, against a model that follows a script. It takes the template of the recipe `agents`, which is
//! not built here: `agentlab-template build agents --store target/templates` makes it. `make soak` runs this.

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Child, Stdio};
    use std::time::{Duration, Instant};

    use agentlab_api::JobState;
    use agentlab_testkit::{Lab, Namespace, Repository, binaries_dir, vm_tier};
    use anyhow::{Context, Result, ensure};

    /// An address that no rule takes for a private one; it exists in a namespace of the test's alone.
    const MODEL: &str = "45.76.0.1";
    const FIX: &str = "./test.sh && exit 1; sed -i 's/ - / + /' sum.sh && ./test.sh && git commit -qam 'Add, do not subtract'";

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

    /// What an operator says in a profile so that an agent asks the scripted model, beside the secrets it is given.
    struct Case {
        agent: &'static str,
        behavior: &'static str,
        environment: &'static [(&'static str, &'static str)],
        transcript: &'static str,
    }

    const CLAUDE: Case = Case {
        agent: "claude",
        behavior: "",
        environment: &[
            ("ANTHROPIC_BASE_URL", "http://45.76.0.1:8080"),
            ("ANTHROPIC_API_KEY", "sk-test"),
        ],
        transcript: "files/transcript/projects/",
    };
    const CODEX: Case = Case {
        agent: "codex",
        behavior: "  agent_args:\n  - -cmodel=\"gpt-5\"\n  - -cmodel_provider=\"scripted\"\n  - >-\n    \
            -cmodel_providers.scripted={name=\"scripted\", base_url=\"http://45.76.0.1:8080/v1\", env_key=\"OPENAI_API_KEY\", \
            wire_api=\"responses\"}\n",
        environment: &[("OPENAI_API_KEY", "sk-test")],
        transcript: "files/transcript/sessions/",
    };
    const OPENCODE: Case = Case {
        agent: "opencode",
        behavior: "",
        environment: &[(
            "OPENCODE_CONFIG_CONTENT",
            r#"{"model": "scripted/m", "provider": {"scripted": {"npm": "@ai-sdk/openai-compatible", "name": "scripted",
            "options": {"baseURL": "http://45.76.0.1:8080/v1", "apiKey": "sk-test"}, "models": {"m": {"name": "m"}}}}}"#,
        )],
        transcript: "files/transcript/",
    };

    #[test]
    #[ignore = "takes the template of the recipe `agents` and minutes of emulation: make soak"]
    fn claude_code_fixes_a_test_and_its_patch_comes_back() -> Result<()> {
        fixes_a_test(&CLAUDE)
    }

    #[test]
    #[ignore = "takes the template of the recipe `agents` and minutes of emulation: make soak"]
    fn codex_fixes_a_test_and_its_patch_comes_back() -> Result<()> {
        fixes_a_test(&CODEX)
    }

    #[test]
    #[ignore = "takes the template of the recipe `agents` and minutes of emulation: make soak"]
    fn opencode_fixes_a_test_and_its_patch_comes_back() -> Result<()> {
        fixes_a_test(&OPENCODE)
    }

    /// The agent as it comes from npm, told where its model is as an operator would: by the profile and its secrets.
    fn fixes_a_test(case: &Case) -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let desk = tempfile::tempdir()?;
        let (dir, key) = (desk.path().join("secrets"), desk.path().join("age.key"));
        let profile = format!(
            "name: agent\ntemplate_vmid: 9002\nnetwork: {{mode: nat}}\nresources: {{cores: 2, memory_mb: 2048}}\n\
             secrets: [env]\nbehavior:\n  agent: {}\n  deadline_seconds_default: 1500\n{}",
            case.agent, case.behavior
        );
        let config = format!(
            "{}secrets_dir: {}\nsecrets_age_key_path: {}\n",
            emulator(),
            dir.display(),
            key.display()
        );
        let mut lab = Lab::start_with(&profile, &config)?;
        give_environment(&lab, case, &dir, &key)?;
        let internet = Internet::behind(&lab)?;
        lab.stop_daemon()?;
        let config = lab.dir().join("config.yaml");
        let text = std::fs::read_to_string(&config)?;
        std::fs::write(&config, format!("{text}uplink: up0\n"))?;
        lab.start_daemon()?;

        let repository = Repository::with_failing_test(&lab.dir().join("repository"))?;
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
            "agent",
        ])?;
        let shown = format!("{}{}", ran.stdout, ran.stderr);
        ensure!(ran.code() == Some(0), "{shown}\n{}", lab.daemon_log());
        let job = lab.newest_job()?;
        let outcome = job.outcome.clone().context("no outcome")?;
        ensure!(
            job.state == JobState::Completed && outcome.commits == 1,
            "{job:#?}\n{shown}"
        );
        ensure!(shown.contains("It is fixed and committed."), "{shown}");
        let agent = Duration::from_millis(outcome.agent_milliseconds);
        println!(
            "{} ran {agent:?}; the whole job took {:?}",
            case.agent,
            begun.elapsed()
        );

        let id = job.id.to_string();
        let applied = lab.agentlab(&["job", "apply", &id, "--repo", &path, "--branch", "fixed"])?;
        ensure!(applied.code() == Some(0), "{}{}", applied.stdout, applied.stderr);
        let diff = repository.git(&["diff", "HEAD..fixed"])?;
        ensure!(diff.contains(" + "), "{diff}");
        let artifacts = lab.json(&["job", "artifacts", &id])?.to_string();
        ensure!(artifacts.contains(case.transcript), "{artifacts}");
        drop(internet.namespace.path());
        lab.nothing_is_left()
    }

    fn give_environment(lab: &Lab, case: &Case, dir: &Path, key: &Path) -> Result<()> {
        let lines: Vec<String> = case
            .environment
            .iter()
            .map(|(name, value)| format!("{name}={}\n", value.replace('\n', " ")))
            .collect();
        let file = dir.with_file_name("environment");
        std::fs::write(&file, lines.concat())?;
        let [dir, key, file] = [dir, key, &file].map(|path| path.display().to_string());
        let set = lab.agentlab(&[
            "secrets",
            "--dir",
            &dir,
            "--age-key",
            &key,
            "set-env",
            "--from-file",
            &file,
        ])?;
        ensure!(set.code() == Some(0), "{}", set.stderr);
        Ok(())
    }
}
