//! Real agents in a real VM, against a model that follows a script: the programs that the recipe `agents` pins, in the
//! root tree of the recipe `demo`, which is there already. Its kernel makes no namespace of users for anybody: the inner
//! sandbox stands without one.

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use agentlab_api::JobState;
    use agentlab_testkit::{Internet, Lab, Repository, binaries_dir, template_image, vm_tier};
    use anyhow::{Context, Result, ensure};

    /// An address that no rule takes for a private one; it exists in a namespace of the test's alone.
    const MODEL: &str = "45.76.0.1";
    const TEMPLATE: u32 = 9012;
    const NO_USER_NAMESPACES: &str =
        "\"sysctl.user.max_user_namespaces=0\", \"sysctl.kernel.unprivileged_userns_clone=0\"";
    /// Nobody makes a namespace of users, and yet the system is read-only, processes are the agent's own, its work is not.
    const LOOK: &str = r#"unshare --user true && exit 11
grep -qx 0 /proc/sys/user/max_user_namespaces || exit 12
touch /usr/here && exit 13
grep -qx kthreadd /proc/2/comm && exit 14
touch here /tmp/here ~/here || exit 15
echo "all of it holds""#;
    const FIX: &str = "./test.sh && exit 1; sed -i 's/ - / + /' sum.sh && ./test.sh && git commit -qam 'Add, do not subtract'";

    /// The scripted model, on the Internet. Killed with the test.
    struct Model(Child);

    impl Drop for Model {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    impl Model {
        fn on(internet: &Internet) -> Result<Self> {
            let model = internet
                .namespace()
                .command(binaries_dir().join("agentlab-scripted-model"))
                .args([&format!("{MODEL}:8080"), FIX])
                .stdin(Stdio::null())
                .spawn()?;
            Ok(Self(model))
        }
    }

    /// Claude Code and OpenCode take CMPXCHG16B, which guests do not get from an emulation before QEMU 10: it corrupts
    /// their kernel there.
    fn emulator() -> Result<PathBuf> {
        let named = std::env::var_os("AGENTLAB_TEST_QEMU").map(PathBuf::from);
        let places = ["/usr/bin", "/var/cache/agentlab-tests/qemu/usr/bin"];
        let known = places.map(|place| Path::new(place).join("qemu-system-x86_64"));
        let mut found = named.into_iter().chain(known);
        found
            .find(|program| major_version(program).is_some_and(|major| major >= 10))
            .context("no QEMU of version 10 or newer is here: packaging/fetch-qemu fetches one")
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a test waits for the command it is about"
    )]
    fn major_version(program: &Path) -> Option<u32> {
        let output = Command::new(program).arg("--version").output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let version = text.strip_prefix("QEMU emulator version ")?;
        version.split('.').next()?.parse().ok()
    }

    /// The three of them in one image. What `demo` has is what a job needs, and its root tree is kept from that.
    fn image(dir: &Path) -> Result<()> {
        let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/recipes");
        let read = |name: &str| std::fs::read_to_string(recipes.join(name)).with_context(|| name.to_owned());
        let (demo, agents) = (read("demo.toml")?, read("agents.toml")?);
        let packages = demo.find("packages = ").and_then(|at| demo.get(at..));
        let pinned = agents.find("[[npm]]").and_then(|at| agents.get(at..));
        let recipe = dir.join("tested.toml");
        let text = format!(
            "name = \"agents-tested\"\nvmid = {TEMPLATE}\nsize_mb = 2560\nkernel_command_line = [{NO_USER_NAMESPACES}]\n{}\n{}",
            packages.context("packages")?,
            pinned.context("npm")?
        );
        std::fs::write(&recipe, text)?;
        template_image(&recipe.display().to_string(), &[]).map(drop)
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
    fn claude_code_fixes_a_test_and_its_patch_comes_back() -> Result<()> {
        fixes_a_test(&CLAUDE)
    }

    #[test]
    fn codex_fixes_a_test_and_its_patch_comes_back() -> Result<()> {
        fixes_a_test(&CODEX)
    }

    #[test]
    #[ignore = "an emulated processor compiles its JavaScript for minutes: make soak"]
    fn opencode_fixes_a_test_and_its_patch_comes_back() -> Result<()> {
        fixes_a_test(&OPENCODE)
    }

    #[test]
    fn the_inner_sandbox_stands_where_nobody_may_make_a_namespace_of_users() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let desk = tempfile::tempdir()?;
        image(desk.path())?;
        let profile = |preset: &str| {
            format!(
                "name: {preset}\ntemplate_vmid: {TEMPLATE}\nnetwork: {{mode: \"off\"}}\nresources: {{cores: 1, memory_mb: 512}}\n\
                 behavior: {{inner_sandbox: {preset}, deadline_seconds_default: 300}}\n"
            )
        };
        let presets = ["bubblewrap", "hardened"];
        let lab = Lab::start(&presets.map(profile).join("---\n"))?;
        let repository = Repository::with_failing_test(&lab.dir().join("repository"))?;
        for preset in presets {
            let ran = lab.agentlab(&repository.job(preset, LOOK, &[]))?;
            let shown = format!("{}{}", ran.stdout, ran.stderr);
            ensure!(
                ran.code() == Some(0) && shown.contains("all of it holds"),
                "{preset}: {shown}\n{}",
                lab.daemon_log()
            );
        }
        lab.nothing_is_left()
    }

    /// The agent as it comes from npm, told where its model is as an operator would: by the profile and its secrets.
    fn fixes_a_test(case: &Case) -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let desk = tempfile::tempdir()?;
        image(desk.path())?;
        let (dir, key) = (desk.path().join("secrets"), desk.path().join("age.key"));
        let profile = format!(
            "name: agent\ntemplate_vmid: {TEMPLATE}\nnetwork: {{mode: nat}}\nresources: {{cores: 2, memory_mb: 2048}}\n\
             secrets: [env]\nbehavior:\n  agent: {}\n  deadline_seconds_default: 1500\n{}",
            case.agent, case.behavior
        );
        let config = format!(
            "qemu: {{binary: \"{}\"}}\nsecrets_dir: {}\nsecrets_age_key_path: {}\ndns: {{upstreams: [{MODEL}]}}\n",
            emulator()?.display(),
            dir.display(),
            key.display()
        );
        let (mut lab, internet) = Lab::start_online(&profile, &config, &[MODEL])?;
        give_environment(&lab, case, &dir, &key)?;
        lab.stop_daemon()?;
        lab.start_daemon()?;
        let _model = Model::on(&internet)?;

        let repository = Repository::with_failing_test(&lab.dir().join("repository"))?;
        let path = repository.path().display().to_string();
        let task = "Make the failing test pass, and commit.";
        let begun = Instant::now();
        let ran = lab.agentlab(&repository.job("agent", task, &[]))?;
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
