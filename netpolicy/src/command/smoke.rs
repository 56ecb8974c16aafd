//! The promises of docs/security.md, tried from inside of a sandbox: over SSH, as from a device of the tailnet, or through
//! the daemon's own channel to it.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::json;

use super::Outcome;
use super::host::HostArguments;
use crate::HostPolicy;

#[derive(Debug, Args)]
pub(super) struct SmokeArguments {
    /// VMID, name or UUID of a sandbox of the daemon's, which is then asked through its own channel
    #[arg(required_unless_present = "ip", conflicts_with_all = ["ip", "ssh_key"])]
    sandbox: Option<String>,
    /// Address of the sandbox, to log in over SSH
    #[arg(long, requires = "ssh_key")]
    ip: Option<Ipv4Addr>,
    /// Private key that the sandbox lets in
    #[arg(long, value_name = "FILE", requires = "ip")]
    ssh_key: Option<PathBuf>,
    /// User to log in as
    #[arg(long, default_value = "agent")]
    user: String,
    /// The sandbox's trust: what must be open, and what must not
    #[arg(long, value_parser = ["sealed", "off", "nat", "allowlist"], default_value = "nat")]
    mode: String,
    /// Address of a machine on the host's LAN that must not be reached
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = target)]
    lan: Vec<(Ipv4Addr, u16)>,
    /// Address of a device of the tailnet that must not be reached
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = target)]
    tailnet_device: Vec<(Ipv4Addr, u16)>,
    /// Public address that must be reached in `nat`
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = target, default_value = "1.1.1.1:443")]
    public: (Ipv4Addr, u16),
    /// The program
    #[arg(long, value_name = "PATH", default_value = "ssh", hide = true)]
    ssh: PathBuf,
    /// The program that knows the daemon
    #[arg(long, value_name = "PATH", hide = true)]
    agentlab: Option<PathBuf>,
}

/// An address, and port 22 unless another is named.
fn target(text: &str) -> Result<(Ipv4Addr, u16), String> {
    let (address, port) = text.split_once(':').unwrap_or((text, "22"));
    address
        .parse()
        .ok()
        .zip(port.parse().ok())
        .ok_or_else(|| "expected ADDRESS or ADDRESS:PORT".to_owned())
}

/// One thing to try.
#[derive(Debug, PartialEq, Eq)]
struct Check {
    what: &'static str,
    address: Ipv4Addr,
    port: u16,
    /// Whether it must be reached.
    open: bool,
}

fn checks(arguments: &SmokeArguments, host: &HostPolicy) -> Vec<Check> {
    let bridge = host.bridge.address;
    let mut checks = Vec::new();
    let mut add = |what, address, port, open| {
        checks.push(Check {
            what,
            address,
            port,
            open,
        });
    };
    for service in &host.guest_ports {
        let open = arguments.mode != "sealed";
        add("published port of the bridge address", bridge, service.port, open);
    }
    for port in [22, 8006, 8845] {
        add("unpublished port of the bridge address", bridge, port, false);
    }
    let (public, port) = arguments.public;
    // What an allowlist names is not known here.
    if arguments.mode != "allowlist" {
        add("public address", public, port, arguments.mode == "nat");
    }
    for port in [53, 853] {
        add("resolver other than the host's", public, port, false);
    }
    add("metadata address", Ipv4Addr::new(169, 254, 169, 254), 80, false);
    for (address, port) in &arguments.lan {
        add("machine on the host's LAN", *address, *port, false);
    }
    for (address, port) in &arguments.tailnet_device {
        add("device of the tailnet", *address, *port, false);
    }
    let neighbour = arguments.ip.map(|own| Ipv4Addr::from_bits(own.to_bits() ^ 1));
    if let Some(neighbour) = neighbour.filter(|neighbour| *neighbour != bridge) {
        add("neighbouring address", neighbour, 22, false);
    }
    checks
}

/// A shell script that needs bash and `timeout` only. A refusal counts as closed: the policy tells that it refuses, and a
/// port that is open and unused could not be told from it; what must be open is therefore tried at ports that answer.
fn script(checks: &[Check]) -> String {
    let mut script = String::from("set -u\n");
    for (number, check) in checks.iter().enumerate() {
        let (address, port) = (check.address, check.port);
        script.push_str(&format!(
            "(timeout 4 bash -c 'exec 3<>/dev/tcp/{address}/{port}' 2>/dev/null && echo '{number} open' || echo \
             '{number} closed') &\n"
        ));
    }
    script.push_str("wait\n");
    script
}

pub(super) fn run(
    arguments: &SmokeArguments,
    given: &HostArguments,
    as_json: bool,
    output: &mut Vec<u8>,
) -> Result<Outcome> {
    // From a device of the tailnet nothing is known but the options.
    let host = given.policy_here()?;
    ensure!(
        arguments
            .user
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
            && !arguments.user.starts_with('-'),
        "`{}` is not a user's name",
        arguments.user.escape_debug()
    );
    let checks = checks(arguments, &host);
    let said = inside(arguments, &script(&checks))?;
    let mut failed = 0;
    let mut results = Vec::new();
    for (number, check) in checks.iter().enumerate() {
        let found = answer(&said, number)?;
        let passed = found == check.open;
        failed += usize::from(!passed);
        let (word, state) = (
            if passed { "PASS" } else { "FAIL" },
            if found { "open" } else { "closed" },
        );
        let place = format!("{}:{}", check.address, check.port);
        if !as_json {
            writeln!(output, "{word} {:<40} {place:<22} is {state}", check.what)?;
        }
        results.push(json!({ "what": check.what, "target": place, "open": found, "passed": passed }));
    }
    if as_json {
        writeln!(output, "{}", json!({ "passed": failed == 0, "checks": results }))?;
    } else {
        writeln!(
            output,
            "{} of {} checks passed",
            checks.len() - failed,
            checks.len()
        )?;
    }
    Ok(if failed == 0 {
        Outcome::Fine
    } else {
        Outcome::Drifted
    })
}

/// What the sandbox says is hostile text: only the two words are looked for.
fn answer(said: &str, number: usize) -> Result<bool> {
    let answers: Vec<bool> = said
        .lines()
        .filter_map(|line| match line.split_once(' ')? {
            (which, "open") if which.parse() == Ok(number) => Some(true),
            (which, "closed") if which.parse() == Ok(number) => Some(false),
            _ => None,
        })
        .collect();
    match answers.as_slice() {
        [only] => Ok(*only),
        _ => bail!("the sandbox did not say how check {number} went: is there bash and `timeout` in it?"),
    }
}

/// Runs the script in the sandbox, and returns what it printed.
fn inside(arguments: &SmokeArguments, script: &str) -> Result<String> {
    let (mut command, whom) = match (&arguments.sandbox, arguments.ip, &arguments.ssh_key) {
        (Some(sandbox), ..) => (through_daemon(arguments, sandbox)?, sandbox.clone()),
        (None, Some(address), Some(key)) => {
            let mut command = Command::new(&arguments.ssh);
            for option in SSH_OPTIONS {
                command.args(["-o", option]);
            }
            command.arg("-i").arg(key);
            command
                .arg(format!("{}@{address}", arguments.user))
                .arg("bash -s");
            (command, address.to_string())
        }
        (None, ..) => bail!("name a sandbox, or give --ip and --ssh-key"),
    };
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", command.get_program().display()))?;
    let mut stdin = child.stdin.take().context("its input is a pipe")?;
    let sent = stdin.write_all(script.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().context("waiting for an answer")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "asking {} failed: {}",
        whom.escape_debug(),
        error.trim().escape_debug()
    );
    sent.context("speaking to the sandbox")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A sandbox's host key is as old as the sandbox, and nothing that it says is believed.
const SSH_OPTIONS: [&str; 6] = [
    "BatchMode=yes",
    "ConnectTimeout=10",
    "StrictHostKeyChecking=no",
    "UserKnownHostsFile=/dev/null",
    "LogLevel=ERROR",
    "IdentitiesOnly=yes",
];

/// `agentlab exec`, found beside this program or in PATH.
fn through_daemon(arguments: &SmokeArguments, sandbox: &str) -> Result<Command> {
    ensure!(
        !sandbox.starts_with('-'),
        "`{}` is no sandbox",
        sandbox.escape_debug()
    );
    let beside = || {
        let own = std::env::current_exe().ok()?;
        Some(own.with_file_name("agentlab")).filter(|path| path.is_file())
    };
    let program = arguments.agentlab.clone().or_else(beside);
    let mut command = Command::new(program.unwrap_or_else(|| "agentlab".into()));
    command.args(["exec", "--stdin", sandbox, "bash", "-s"]);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_is_asked_by_one_way_or_the_other() {
        use clap::Parser as _;
        for (line, fine) in [
            ("smoke 1000", true),
            ("smoke --ip 10.77.0.11 --ssh-key key --lan 192.168.1.1:443", true),
            ("smoke", false),
            ("smoke 1000 --ip 10.77.0.11 --ssh-key key", false),
            ("smoke --ip 10.77.0.11", false),
            ("smoke --ssh-key key", false),
            ("smoke 1000 --mode open", false),
            ("smoke 1000 --lan router", false),
        ] {
            let line: Vec<_> = std::iter::once("agentlab-net").chain(line.split(' ')).collect();
            let parsed = crate::command::Arguments::try_parse_from(&line);
            assert_eq!(parsed.is_ok(), fine, "{line:?}");
        }
    }

    #[test]
    fn a_sandbox_that_says_nothing_or_both_has_not_passed() {
        assert!(answer("0 open\n1 closed\n", 0).unwrap());
        assert!(!answer("0 open\n1 closed\n", 1).unwrap());
        for said in ["", "0 open\n0 closed\n", "0 opened\n", "\u{1b}[2J0 open"] {
            assert!(answer(said, 0).is_err(), "{said:?}");
        }
    }
}
