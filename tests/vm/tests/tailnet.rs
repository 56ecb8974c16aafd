//! A tailnet is joined by the sandboxes of a profile that names its key, and by no others.

#[cfg(test)]
mod tests {
    use agentlab_testkit::{Identity, LOGIN_VMID, Lab, login_image, template_store, vm_tier};
    use anyhow::{Context, Result, ensure};

    const KEY: &str = "tskey-auth-c4n4ry";
    /// An operator may come in before everything is in place: git's settings are there before a tailnet is joined, and the key
    /// is gone when it has been.
    const JOINED: &str = "test -s /run/tailscale/key && ! test -e /run/agentlab/tailscale-key";
    const PREPARED: &str = "test -s ~agent/.gitconfig";
    const LOOK: &str = "cd /run/tailscale 2>/dev/null || { echo not begun; exit; }; cat owner key; echo; cat arguments; \
        grep -c c4n4ry environment arguments || true";

    fn profiles() -> String {
        [("joins", "secrets: [tailscale]\n"), ("stays", "")]
            .map(|(name, more)| {
                format!(
                    "name: {name}\ntemplate_vmid: {LOGIN_VMID}\nnetwork: {{mode: \"off\"}}\n\
                     resources: {{cores: 1, memory_mb: 512}}\n{more}"
                )
            })
            .join("---\n")
    }

    /// A lab whose bundle holds a key.
    fn lab() -> Result<(Lab, tempfile::TempDir)> {
        template_store()?;
        login_image(&Identity::new("git.example")?)?;
        let desk = tempfile::tempdir()?;
        let at = |name: &str| desk.path().join(name).display().to_string();
        let (dir, age) = (at("secrets"), at("age.key"));
        let config = format!("secrets_dir: {dir}\nsecrets_age_key_path: {age}\n");
        let lab = Lab::start_with(&profiles(), &config)?;
        std::fs::write(desk.path().join("key"), KEY)?;
        let set = ["secrets", "--dir", &dir, "--age-key", &age, "set-tailscale"];
        let key = at("key");
        let given = ["--authkey-file", &key, "--tag", "tag:sandbox"];
        let ran = lab.agentlab(&[&set[..], &given].concat())?;
        ensure!(ran.code() == Some(0), "{}", ran.stderr);
        Ok((lab, desk))
    }

    /// What Tailscale was begun with in a sandbox of this profile, once a condition holds there.
    fn seen_in(lab: &Lab, profile: &str, ready: &str) -> Result<String> {
        let view = lab.json(&["sandbox", "new", "--profile", profile])?;
        let vmid = view["vmid"].to_string();
        let look = format!(
            "left=600; until {ready} || test $left = 0; do left=$((left - 1)); sleep 0.1; done; {LOOK}"
        );
        let ran = lab.agentlab(&["exec", "-u", "root", &vmid, "--", "sh", "-c", &look])?;
        ensure!(ran.code() == Some(0), "{view:#}\n{ran:?}\n{}", lab.daemon_log());
        let gone = lab.agentlab(&["sandbox", "destroy", &vmid])?;
        ensure!(gone.code() == Some(0), "{gone:?}");
        Ok(ran.stdout)
    }

    #[test]
    fn a_sandbox_joins_where_its_profile_says_so_and_its_key_is_on_no_command_line() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let (lab, _desk) = lab()?;
        let joined = seen_in(&lab, "joins", JOINED)?;
        let stayed = seen_in(&lab, "stays", PREPARED)?;
        ensure!(stayed == "not begun\n", "{stayed}");
        let mut lines = joined.lines();
        ensure!(
            lines.next() == Some("400 root") && lines.next() == Some(KEY),
            "{joined}"
        );
        ensure!(lines.next() == Some("up"), "{joined}");
        let rest: Vec<&str> = lines.collect();
        ensure!(rest.contains(&"--advertise-tags=tag:sandbox"), "{joined}");
        ensure!(
            rest.contains(&"environment:0") && rest.contains(&"arguments:0"),
            "{joined}"
        );
        lab.nothing_is_left().context("after both")
    }
}
