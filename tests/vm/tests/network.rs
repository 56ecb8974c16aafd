//! `agentlab-net` beside a daemon that runs: it writes nothing itself, and what it promises holds inside a real VM.

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "a test waits for the commands it is about"
)]
mod tests {
    use agentlab_testkit::{Lab, binaries_dir, vm_tier};
    use anyhow::{Context, Result, ensure};

    const PROFILE: &str = "name: closed\ntemplate_vmid: 9000\nnetwork: {mode: \"off\"}\n\
        resources: {cores: 1, memory_mb: 512}\n";
    /// A machine of the operator's own, whose port is not there yet.
    const PORT: &str = "tap9500i0";

    struct Net<'a>(&'a Lab);

    impl Net<'_> {
        /// Exit status and everything that was said.
        fn run(&self, words: &[&str]) -> Result<(Option<i32>, String)> {
            let socket = self.0.dir().join("run/agentlabd.sock");
            let output = self
                .0
                .namespace()
                .command(binaries_dir().join("agentlab-net"))
                .args(words)
                .arg("--config")
                .arg(self.0.dir().join("config.yaml"))
                .env("AGENTLAB_SOCKET", socket)
                .output()?;
            let said = [output.stdout, output.stderr].concat();
            Ok((output.status.code(), String::from_utf8(said)?))
        }

        fn fine(&self, words: &[&str]) -> Result<String> {
            let (status, said) = self.run(words)?;
            ensure!(status == Some(0), "{words:?} ended with {status:?}: {said}");
            Ok(said)
        }
    }

    #[test]
    fn orders_go_through_the_daemon_and_the_promises_hold_inside_a_vm() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let lab = Lab::start(PROFILE)?;
        let net = Net(&lab);
        let made = lab.json(&["sandbox", "new", "--profile", "closed"])?;
        let vmid = made["vmid"].as_u64().context("no vmid")?.to_string();

        let said = net.fine(&["smoke", &vmid, "--mode", "off"])?;
        ensure!(
            said.contains("PASS metadata address") && !said.contains("FAIL"),
            "{said}"
        );

        let bind = [
            "bind",
            PORT,
            "--mac",
            "bc:24:11:00:00:01",
            "--ip",
            "10.77.200.1",
            "off",
        ];
        let said = net.fine(&bind)?;
        ensure!(said.contains("(by the daemon)"), "{said}");
        let said = net.fine(&["trust", PORT, "sealed"])?;
        ensure!(said.contains("has trust sealed (by the daemon)"), "{said}");
        ensure!(net.fine(&["status"])?.contains(PORT));
        net.fine(&["verify"])?;
        let (status, said) = net.run(&[
            "bind",
            "tap9501i0",
            "--mac",
            "bc:24:11:00:00:02",
            "--ip",
            "10.77.200.1",
            "off",
        ])?;
        ensure!(
            status != Some(0) && said.contains("have the same address"),
            "{status:?} {said}"
        );
        net.fine(&["unbind", PORT])?;
        ensure!(!net.fine(&["status"])?.contains(PORT));

        // Its own channel is a serial line, which no packet rule closes.
        net.fine(&["seal"])?;
        net.fine(&["smoke", &vmid, "--mode", "sealed"])?;
        let (status, said) = net.run(&["smoke", &vmid, "--mode", "off"])?;
        ensure!(
            status == Some(1) && said.contains("FAIL published port"),
            "what is sealed is reached: {status:?} {said}"
        );
        let ran = lab.agentlab(&["sandbox", "destroy", &vmid])?;
        ensure!(ran.code() == Some(0), "{}{}", ran.stdout, ran.stderr);
        lab.nothing_is_left()
    }
}
