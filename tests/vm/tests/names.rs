//! An allowlist of names as an agent in a real VM meets it.

#[cfg(test)]
mod tests {
    use std::process::{Child, Stdio};

    use agentlab_api::ErrorCode;
    use agentlab_testkit::{Lab, Namespace, Repository, binaries_dir, job_run, vm_tier};
    use anyhow::{Context, Result, ensure};

    /// An address that no rule takes for a private one; it exists in a namespace of the test's alone.
    const ADDRESS: &str = "45.76.0.1";
    const PROFILE: &str = "name: listed\ntemplate_vmid: 9000\nnetwork: {mode: allowlist, allow: [good.example.com]}\n\
        resources: {cores: 1, memory_mb: 512}\nbehavior: {deadline_seconds_default: 300}\n";
    /// What is open, what is not, and that both are known at once instead of after minutes.
    const TASK: &str = r#"reaches() { timeout 60 bash -c "exec 3<>/dev/tcp/$1/8080"; }
reaches 45.76.0.1 && { echo "open before it was asked for"; exit 11; }
reaches good.example.com || { echo "the name on the list is closed"; exit 12; }
reaches 45.76.0.1 || { echo "what the name stands for is closed"; exit 13; }
getent ahostsv4 evil.example.net && { echo "a name that is not on the list was answered"; exit 14; }
reaches 45.76.0.2 && { echo "an address that nothing names is open"; exit 15; }
echo "as the list says"
"#;

    struct Internet {
        _namespace: Namespace,
        names: Child,
    }

    impl Drop for Internet {
        fn drop(&mut self) {
            let _ = self.names.kill();
            let _ = self.names.wait();
        }
    }

    fn behind(lab: &Lab) -> Result<Internet> {
        let namespace = Namespace::create()?;
        let inside = namespace.path().display().to_string();
        let inside = inside
            .trim_end_matches("/ns/net")
            .rsplit('/')
            .next()
            .context("pid")?;
        let ip = |of: &Namespace, words: &str| {
            let words: Vec<&str> = words.split(' ').collect();
            of.output("ip", &words).map(drop)
        };
        ip(
            lab.namespace(),
            &format!("link add up0 type veth peer name eth0 netns {inside}"),
        )?;
        ip(lab.namespace(), "addr add 192.0.2.1/24 dev up0")?;
        ip(lab.namespace(), "link set up0 up")?;
        ip(lab.namespace(), "route add default via 192.0.2.2")?;
        ip(&namespace, "addr add 192.0.2.2/24 dev eth0")?;
        ip(&namespace, &format!("addr add {ADDRESS}/32 dev lo"))?;
        ip(&namespace, "link set eth0 up")?;
        let names = namespace
            .command(binaries_dir().join("agentlab-lone-name"))
            .args(["good.example.com", ADDRESS, "8080"])
            .stdin(Stdio::null())
            .spawn()?;
        Ok(Internet {
            _namespace: namespace,
            names,
        })
    }

    #[test]
    fn an_agent_reaches_the_name_on_its_list_and_is_told_at_once_of_the_rest() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let mut lab = Lab::start(PROFILE)?;
        let _internet = behind(&lab)?;
        lab.stop_daemon()?;
        let config = lab.dir().join("config.yaml");
        let text = std::fs::read_to_string(&config)?;
        std::fs::write(
            &config,
            format!("{text}uplink: up0\ndns: {{upstreams: [{ADDRESS}]}}\n"),
        )?;
        lab.start_daemon()?;
        let repository = Repository::with_failing_test(&lab.dir().join("repository"))?;
        let ran = lab.agentlab(&repository.job("listed", TASK, &[]))?;
        let shown = format!("{}{}", ran.stdout, ran.stderr);
        ensure!(ran.code() == Some(0), "{shown}\n{}", lab.daemon_log());
        ensure!(shown.contains("as the list says"), "{shown}");
        lab.nothing_is_left()
    }

    /// A name server that never answers: packets to it go out and nothing comes back.
    const SILENT: &str = "45.76.0.9";
    const OPEN: &str = "name: open\ntemplate_vmid: 9000\nnetwork: {mode: nat}\n\
        resources: {cores: 1, memory_mb: 512}\nbehavior: {deadline_seconds_default: 300}\n";

    #[test]
    fn without_anybody_who_resolves_names_a_job_runs_or_says_why_it_cannot() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let (lab, _internet) = Lab::start_online(OPEN, &format!("dns: {{upstreams: [{SILENT}]}}\n"), &[])?;
        let repository = Repository::with_failing_test(&lab.dir().join("repository"))?;
        let task = "getent hosts good.example.com || echo nobody knows it";
        let ran = lab.agentlab(&repository.job("open", task, &[]))?;
        let shown = format!("{}{}", ran.stdout, ran.stderr);
        ensure!(
            ran.code() == Some(0) && shown.contains("nobody knows it"),
            "{shown}\n{}",
            lab.daemon_log()
        );

        let url = "https://git.example.com/r.git";
        let ran = lab.agentlab(&job_run(url, "open", "true", &[]))?;
        let failure = lab.newest_job()?.failure.context("no failure")?;
        ensure!(
            ran.code() == Some(1)
                && failure.code == ErrorCode::RepositoryUnavailable
                && failure.message.contains("Could not resolve host"),
            "{failure:#?}\n{}{}",
            ran.stdout,
            ran.stderr
        );
        lab.nothing_is_left()
    }
}
