//! Seeds by other carriers than the back end's own, and machines whose clock is years off. QEMU is begun by a program of the
//! test's, which moves the seed and sets the clock.

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;
    use std::time::{SystemTime, UNIX_EPOCH};

    use agentlab_api::ChannelKind;
    use agentlab_protocol::secret::Secret32;
    use agentlab_protocol::seed::{Seed, SeedChannel};
    use agentlab_testkit::{Lab, Repository, vm_tier};
    use anyhow::{Context, Result, ensure};

    /// Takes `-fw_cfg` out of QEMU's arguments and puts in what CARRIERS says; `$seed` is the file it named. The probe's machine
    /// has no seed and is left alone.
    const BEGIN: &str = r#"#!/bin/sh
left=$#
while [ $left -gt 0 ]; do
    one=$1; shift; left=$((left - 1))
    if [ "$one" = -fw_cfg ]; then seed=${1##*file=}; shift; left=$((left - 1)); else set -- "$@" "$one"; fi
done
text() { base64 -w0 "$1" | tr +/ -_ | tr -d =; }
port() {
    mkfifo -m 600 "$DIR/$$.in" "$DIR/$$.out"
    cat "$1" > "$DIR/$$.in" &
}
if [ -n "$seed" ]; then
    CARRIERS
fi
exec qemu-system-x86_64 "$@"
"#;
    const PORT: &str =
        r#"-chardev "pipe,id=seed,path=$DIR/$$" -device virtserialport,chardev=seed,name=agentlab.seed"#;
    /// What the machine was begun with, and what its runner made of it.
    const LOOK: &str = "echo began $(cat /sys/class/rtc/rtc0/date); date +'now %s'; echo x > x; git add x; git commit -qm x; \
        git log -1 --format='committed %ct'";

    struct Case {
        carriers: String,
        year: &'static str,
        channel: (&'static str, ChannelKind),
    }

    /// A seed that nothing is wrong with, but that it is nobody's.
    fn foreign_seed() -> Result<Vec<u8>> {
        let address = Ipv4Addr::new(10, 77, 9, 9);
        let gateway = Ipv4Addr::new(10, 77, 0, 1);
        let seed = Seed {
            vmid: 4711,
            sandbox: [7; 16],
            hostname: "foreign".to_owned(),
            address,
            prefix: 16,
            gateway,
            bootstrap: SocketAddrV4::new(gateway, 8844),
            artifacts: SocketAddrV4::new(gateway, 8846),
            token: Secret32::new([9; 32]),
            spki_sha256: [9; 32],
            channels: vec![SeedChannel::Serial, SeedChannel::Tls],
            clock: 0,
        };
        Ok(seed.encode()?)
    }

    fn begin(dir: &Path, carriers: &str) -> Result<String> {
        // Each machine's program is its own user.
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o1777))?;
        std::fs::write(dir.join("foreign"), foreign_seed()?)?;
        let program = dir.join("begin");
        let text = BEGIN.replace("CARRIERS", carriers);
        std::fs::write(&program, text.replace("$DIR", &dir.display().to_string()))?;
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
        Ok(program.display().to_string())
    }

    fn seconds() -> Result<u64> {
        Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
    }

    fn job_in(case: &Case) -> Result<()> {
        let dir = tempfile::Builder::new().prefix("agentlab-carriers-").tempdir()?;
        let program = begin(dir.path(), &case.carriers)?;
        let profile = format!(
            "name: demo\ntemplate_vmid: 9000\nnetwork: {{mode: \"off\", channels: [{}]}}\n\
             resources: {{cores: 1, memory_mb: 512}}\nbehavior: {{deadline_seconds_default: 300}}\n",
            case.channel.0
        );
        let lab = Lab::start_with(&profile, &format!("qemu: {{binary: \"{program}\"}}\n"))?;
        let repository = Repository::with_failing_test(&lab.dir().join("repository"))?;
        let before = seconds()?;
        let ran = lab.agentlab(&repository.job("demo", LOOK, &[]))?;
        let shown = format!("{}{}", ran.stdout, ran.stderr);
        ensure!(ran.code() == Some(0), "{shown}\n{}", lab.daemon_log());
        let after = seconds()?;
        let job = lab.newest_job()?;
        ensure!(job.channel == Some(case.channel.1), "{job:#?}");
        let said = |word: &str| {
            let start = shown.find(word).with_context(|| shown.clone())? + word.len();
            let rest = shown.get(start..).unwrap_or_default();
            rest.split_whitespace()
                .next()
                .map(str::to_owned)
                .context("no word")
        };
        ensure!(said("began ")?.starts_with(case.year), "{shown}");
        for word in ["now ", "committed "] {
            let time: u64 = said(word)?.parse()?;
            // Seeds count whole seconds, and emulated clocks are not exact.
            ensure!(
                before - 60 < time && time < after + 60,
                "{word}{time} is not within {before}..{after}: {shown}"
            );
        }
        lab.nothing_is_left()
    }

    #[test]
    fn the_serial_number_comes_before_a_port_and_a_machine_of_2003_speaks_tls_and_keeps_time() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        let carriers = format!(
            "port $DIR/foreign; set -- \"$@\" -smbios \"type=1,serial=$(text \"$seed\")\" -rtc base=2003-04-05T06:07:08 {PORT}"
        );
        job_in(&Case {
            carriers,
            year: "2003",
            channel: ("tls", ChannelKind::Tls),
        })
    }

    #[test]
    fn a_port_carries_a_seed_and_a_machine_of_2040_keeps_time() -> Result<()> {
        if !vm_tier() {
            return Ok(());
        }
        job_in(&Case {
            carriers: format!("port \"$seed\"; set -- \"$@\" -rtc base=2040-01-02T03:04:05 {PORT}"),
            year: "2040",
            channel: ("serial", ChannelKind::Serial),
        })
    }
}
