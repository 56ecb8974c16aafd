//! An operator logs in to a sandbox by SSH, from a device of the tailnet: with the key that the configuration names, and
//! nobody with another one. What a hardened agent cannot do is the same to its own machine.

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "a test waits for the commands that it is about"
)]
mod tests {
    use std::path::Path;
    use std::process::{Command, Output};
    use std::time::{Duration, Instant};

    use agentlab_testkit::{
        Identity, LOGIN_VMID, Lab, Namespace, ORIGIN_ADDRESS, Repository, login_image, template_store,
        vm_tier,
    };
    use anyhow::{Context, Result, ensure};

    const PATIENCE: Duration = Duration::from_secs(180);
    const LOOK: &str = "id -un; stat -c '%a %U %G' ~/.ssh ~/.ssh/authorized_keys; sudo -n id -un";
    /// What an agent tries that wants to be root: a way in to its own machine, where sudo works.
    const ESCAPE: &str = "until bash -c 'exec 3<>/dev/tcp/127.0.0.1/22' 2>/dev/null; do sleep 1; done; \
        mkdir -p ~/.ssh; ssh-keygen -q -t ed25519 -N '' -f $HOME/way; \
        cat $HOME/way.pub >> ~/.ssh/authorized_keys || true; \
        ssh -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -i $HOME/way agent@127.0.0.1 \
        sudo -n id -un || true; echo tried";

    fn profiles() -> String {
        ["bubblewrap", "hardened"]
            .map(|sandbox| {
                format!(
                    "name: {sandbox}\ntemplate_vmid: {LOGIN_VMID}\nnetwork: {{mode: \"off\"}}\n\
                     resources: {{cores: 1, memory_mb: 512}}\n\
                     behavior: {{inner_sandbox: {sandbox}, deadline_seconds_default: 300}}\n"
                )
            })
            .join("---\n")
    }

    fn key(path: &Path) -> Result<()> {
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(path)
            .status()?;
        ensure!(made.success(), "ssh-keygen");
        Ok(())
    }

    /// A device of the operator's tailnet, with a route to the sandboxes.
    fn device(lab: &Lab) -> Result<Namespace> {
        let device = Namespace::create()?;
        let ends = (("tailscale0", "100.64.0.1/24"), ("eth0", "100.64.0.2/24"));
        lab.namespace().cable(ends.0, &device, ends.1)?;
        device.output("ip", &["route", "add", "10.77.0.0/16", "via", "100.64.0.1"])?;
        Ok(device)
    }

    fn ssh(device: &Namespace, key: &Path, address: &str, command: &str) -> Result<Output> {
        let output = device
            .command("ssh")
            .args([
                "-F",
                "none",
                "-o",
                "BatchMode=yes",
                "-o",
                "StrictHostKeyChecking=no",
            ])
            .args(["-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes"])
            .args(["-o", "ConnectTimeout=10", "-o", "LogLevel=ERROR", "-i"])
            .arg(key)
            .args([&format!("agent@{address}"), command])
            .output()?;
        Ok(output)
    }

    #[test]
    fn an_operator_logs_in_with_the_configured_key_and_a_hardened_agent_does_not() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        login_image(&Identity::kept(
            &template_store()?.with_file_name("origin"),
            ORIGIN_ADDRESS,
        )?)?;
        let desk = tempfile::tempdir()?;
        let (own, other) = (desk.path().join("own"), desk.path().join("other"));
        key(&own)?;
        key(&other)?;
        let config = format!("ssh_public_key_path: {}.pub\n", own.display());
        let (lab, _internet) = Lab::start_online(&profiles(), &config, &[])?;
        let device = device(&lab)?;
        let made = lab.json(&["sandbox", "new", "--profile", "bubblewrap"])?;
        let vmid = made["vmid"].to_string();
        let address = made["address"].as_str().context("no address")?;

        let end = Instant::now() + PATIENCE;
        let output = loop {
            let output = ssh(&device, &own, address, LOOK)?;
            // Its server starts after the runner.
            if output.status.code() != Some(255) {
                break output;
            }
            ensure!(Instant::now() < end, "{output:?}\n{}", lab.daemon_log());
            std::thread::sleep(Duration::from_millis(500));
        };
        let seen = String::from_utf8(output.stdout)?;
        ensure!(
            seen == "agent\n700 agent agent\n600 agent agent\nroot\n",
            "{seen}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let output = ssh(&device, &other, address, "id -un")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(255) && said.contains("Permission denied (publickey)"),
            "{output:?}"
        );
        let ran = lab.agentlab(&["sandbox", "destroy", &vmid])?;
        ensure!(ran.code() == Some(0), "{}{}", ran.stdout, ran.stderr);

        let repository = Repository::with_failing_test(&lab.dir().join("repository"))?;
        // The way is there where nothing closes it: the first profile shows that the second one does.
        for (profile, root) in [("bubblewrap", true), ("hardened", false)] {
            let ran = lab.agentlab(&repository.job(profile, ESCAPE, &[]))?;
            let shown = format!("{}{}", ran.stdout, ran.stderr);
            ensure!(
                ran.code() == Some(0) && shown.contains("│ tried"),
                "{profile}: {shown}"
            );
            ensure!(shown.contains("│ root") == root, "{profile}: {shown}");
        }
        lab.nothing_is_left()
    }
}
