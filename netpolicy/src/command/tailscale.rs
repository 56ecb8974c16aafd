//! Has this host's tailscaled advertise the agent subnet, beside whatever it advertises already.

mod approval;

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use self::approval::ApiArguments;
use super::host::HostArguments;
use crate::Cidr;

#[derive(Debug, Args)]
pub(super) struct TailscaleArguments {
    /// Log in with the key in this file, or on standard input with `-`; a key on the command line could be read by all
    #[arg(long, value_name = "FILE")]
    auth_key_file: Option<PathBuf>,
    /// Name of this host in the tailnet, when it logs in
    #[arg(long)]
    hostname: Option<String>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    api: ApiArguments,
    /// The program
    #[arg(long, value_name = "PATH", default_value = "tailscale", hide = true)]
    program: PathBuf,
}

pub(super) fn run(
    arguments: &TailscaleArguments,
    given: &HostArguments,
    as_json: bool,
    output: &mut Vec<u8>,
) -> Result<()> {
    let subnet = given.policy_here()?.bridge.subnet();
    let standard_input = Some(Path::new("-"));
    ensure!(
        arguments.auth_key_file.as_deref() != standard_input
            || arguments.api.api_key_file.as_deref() != standard_input,
        "both keys cannot come from standard input: name a file for one of them"
    );
    let status: Value = serde_json::from_str(&tailscale(arguments, &["status", "--json"], None)?)
        .context("`tailscale status --json` printed something else")?;
    let running = status.get("BackendState").and_then(Value::as_str) == Some("Running");
    if !running && arguments.auth_key_file.is_none() {
        bail!(
            "this host is not logged in to a tailnet: give --auth-key-file, or run `tailscale up` yourself"
        );
    }
    let preferences: Value = serde_json::from_str(&tailscale(arguments, &["debug", "prefs"], None)?)
        .context("`tailscale debug prefs` printed something else")?;
    let before = advertised(&preferences);
    let routes = with(&before, subnet);
    let changed = routes != before;
    let line = format!("--advertise-routes={}", routes.join(","));
    if !arguments.dry_run && (changed || !running) {
        if running {
            tailscale(arguments, &["set", &line], None)?;
        } else {
            log_in(arguments, &line)?;
        }
        let after: Value = serde_json::from_str(&tailscale(arguments, &["debug", "prefs"], None)?)?;
        ensure!(
            advertised(&after) == routes,
            "tailscale took the routes and advertises others: {}",
            advertised(&after).join(", ")
        );
    }
    let approval = approve(arguments, subnet)?;
    if as_json {
        let document = json!({
            "subnet": subnet, "routes": routes, "changed": changed, "approval": approval.word(),
            "dry_run": arguments.dry_run,
        });
        return Ok(writeln!(output, "{document}")?);
    }
    let word = match (changed, arguments.dry_run) {
        (true, true) => "Would advertise",
        (true, false) => "Advertises",
        (false, _) => "Advertises already",
    };
    writeln!(output, "{word} {}", routes.join(", "))?;
    let devices = "devices need `tailscale set --accept-routes`";
    match approval {
        Approval::LeftToYou => writeln!(
            output,
            "Approve {subnet} in the admin console where routes are not approved by themselves, or give --api-key-file; \
             {devices}"
        )?,
        Approval::Given => writeln!(output, "Approved {subnet} in the tailnet; {devices}")?,
        Approval::Stood => writeln!(output, "{subnet} was approved in the tailnet already; {devices}")?,
    }
    Ok(())
}

/// Whether the tailnet takes the route.
#[derive(Debug, Clone, Copy)]
enum Approval {
    /// Nobody asked for it here.
    LeftToYou,
    /// It does from now on.
    Given,
    /// It did before.
    Stood,
}

impl Approval {
    fn word(self) -> &'static str {
        match self {
            Self::LeftToYou => "left_to_you",
            Self::Given => "given",
            Self::Stood => "stood",
        }
    }
}

fn approve(arguments: &TailscaleArguments, subnet: Cidr) -> Result<Approval> {
    let Some(path) = arguments
        .api
        .api_key_file
        .as_deref()
        .filter(|_| !arguments.dry_run)
    else {
        return Ok(Approval::LeftToYou);
    };
    let key = key_in(path)?;
    let status: Value = serde_json::from_str(&tailscale(arguments, &["status", "--json"], None)?)?;
    let device = status.pointer("/Self/ID").and_then(Value::as_str);
    let device = device.context("`tailscale status --json` does not say which device this is")?;
    let given = approval::approve(&arguments.api, &key, device, subnet)?;
    Ok(if given { Approval::Given } else { Approval::Stood })
}

/// The key in a file, or on standard input with `-`.
fn key_in(path: &Path) -> Result<String> {
    let mut key = String::new();
    if path.as_os_str() == "-" {
        std::io::stdin()
            .read_to_string(&mut key)
            .context("reading the key")?;
    } else {
        key = std::fs::read_to_string(path)
            .with_context(|| format!("reading the key in {}", path.display()))?;
    }
    let key = key.trim();
    ensure!(!key.is_empty(), "the key is empty");
    Ok(key.to_owned())
}

/// The key reaches tailscale as the name of a descriptor, not as an argument that every user can read.
fn log_in(arguments: &TailscaleArguments, routes: &str) -> Result<()> {
    let path = arguments.auth_key_file.as_deref().context("there is no key")?;
    let key = key_in(path)?;
    let mut line = vec!["up", "--auth-key=file:/dev/stdin", routes];
    let hostname = arguments
        .hostname
        .as_ref()
        .map(|name| format!("--hostname={name}"));
    line.extend(hostname.as_deref());
    tailscale(arguments, &line, Some(&key)).map(drop)
}

fn tailscale(arguments: &TailscaleArguments, line: &[&str], input: Option<&str>) -> Result<String> {
    let said = || {
        format!(
            "running `tailscale {}`",
            line.first().copied().unwrap_or_default()
        )
    };
    let mut child = Command::new(&arguments.program)
        .args(line)
        .stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(said)?;
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(text.as_bytes()).with_context(said)?;
    }
    let output = child.wait_with_output().with_context(said)?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} failed: {}", said(), error.trim());
    String::from_utf8(output.stdout).with_context(said)
}

fn advertised(preferences: &Value) -> Vec<String> {
    let routes = preferences.get("AdvertiseRoutes").and_then(Value::as_array);
    routes
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

/// The routes there are, and one more unless it is among them.
fn with(before: &[String], subnet: Cidr) -> Vec<String> {
    let mut routes = before.to_vec();
    let subnet = subnet.to_string();
    if !routes.contains(&subnet) {
        routes.push(subnet);
    }
    routes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_that_are_advertised_already_stay() {
        let preferences = json!({ "AdvertiseRoutes": ["0.0.0.0/0", "::/0", "192.168.7.0/24"] });
        let before = advertised(&preferences);
        let subnet: Cidr = "10.77.0.0/16".parse().unwrap();
        let after = with(&before, subnet);
        assert_eq!(after, ["0.0.0.0/0", "::/0", "192.168.7.0/24", "10.77.0.0/16"]);
        assert_eq!(with(&after, subnet), after);
        assert!(advertised(&json!({ "AdvertiseRoutes": null })).is_empty());
    }
}
