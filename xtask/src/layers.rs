//! Arrows go down only: words <- hands <- judgement <- mouths. Hands never know each other.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use cargo_metadata::{DependencyKind, MetadataCommand, Package};

/// Each crate with all workspace crates it may name in `[dependencies]`.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    // words
    ("agentlab-api", &[]),
    ("agentlab-protocol", &[]),
    ("agentlab-netpolicy", &[]),
    ("agentlab-channel", &["agentlab-protocol"]),
    ("agentlab-config", &["agentlab-api", "agentlab-protocol"]),
    // hands
    ("agentlab-backend", &["agentlab-api", "agentlab-protocol"]),
    ("agentlab-store", &["agentlab-api"]),
    ("agentlab-client", &["agentlab-api", "agentlab-protocol"]),
    ("agentlab-resolver", &[]),
    ("agentlab-secrets", &["agentlab-api", "agentlab-protocol"]),
    // judgement
    (
        "agentlab-engine",
        &[
            "agentlab-api",
            "agentlab-backend",
            "agentlab-protocol",
            "agentlab-store",
        ],
    ),
    // mouths
    ("agent-runner", &["agentlab-channel", "agentlab-protocol"]),
    (
        "agentlab-template",
        &[
            "agentlab-api",
            "agentlab-backend",
            "agentlab-config",
            "agentlab-protocol",
        ],
    ),
    (
        "agentlab",
        &[
            "agentlab-api",
            "agentlab-client",
            "agentlab-config",
            "agentlab-protocol",
            "agentlab-secrets",
        ],
    ),
    (
        "agentlabd",
        &[
            "agentlab-api",
            "agentlab-backend",
            "agentlab-channel",
            "agentlab-config",
            "agentlab-engine",
            "agentlab-netpolicy",
            "agentlab-protocol",
            "agentlab-resolver",
            "agentlab-secrets",
            "agentlab-store",
        ],
    ),
    // not shipped
    (
        "agentlab-manual",
        &["agentlab", "agentlab-netpolicy", "agentlab-template", "agentlabd"],
    ),
    ("xtask", &[]),
];

/// Crates that must not be linked into a program, directly or through others.
const MUST_NOT_REACH: &[(&str, &[&str])] = &[
    (
        "agentlab-engine",
        &[
            "axum",
            "hyper",
            "nftnl",
            "nftnl-sys",
            "mnl-sys",
            "rtnetlink",
            "rustls",
            "tokio-vsock",
        ],
    ),
    (
        "agentlab",
        &[
            "nftnl",
            "nftnl-sys",
            "mnl-sys",
            "libsqlite3-sys",
            "ring",
            "openssl-sys",
            "zstd-sys",
        ],
    ),
    (
        "agent-runner",
        &[
            "nftnl-sys",
            "mnl-sys",
            "libsqlite3-sys",
            "zstd-sys",
            "clap",
            "axum",
        ],
    ),
    (
        "agentlab-resolver",
        &[
            "nftnl",
            "nftnl-sys",
            "mnl-sys",
            "rtnetlink",
            "libsqlite3-sys",
            "ring",
        ],
    ),
    ("agentlab-api", &["tokio", "hyper", "axum"]),
    ("agentlab-protocol", &["tokio", "hyper", "rustls"]),
];

/// Crates that a crate may not name itself, though others may bring them.
const MUST_NOT_NAME: &[(&str, &[&str])] = &[("agentlab-engine", &["axum", "hyper", "nftnl", "rusqlite"])];

/// Features that a program which is shipped must not have: they let a test end it anywhere, or answer for a server.
const MUST_NOT_ENABLE: &[(&str, &str, &str)] = &[
    ("agentlabd", "agentlab-engine", "observer"),
    ("agentlabd", "agentlab-backend", "in-process"),
];

pub(crate) fn check() -> Result<Vec<String>> {
    let mut findings = directions()?;
    for (package, banned) in MUST_NOT_REACH {
        let reached = closure(package)?;
        findings.extend(
            banned
                .iter()
                .filter(|name| reached.contains(**name))
                .map(|name| format!("{package} links {name}: see the layers in docs/ARCHITECTURE.md")),
        );
    }
    for (package, of, feature) in MUST_NOT_ENABLE {
        let enabled = linked(package, "{p} {f}")?;
        let of_crate = enabled.lines().filter(|line| line.split(' ').next() == Some(of));
        if of_crate
            .flat_map(|line| line.split([' ', ',']))
            .any(|word| word == *feature)
        {
            findings.push(format!("{package} is built with feature {feature} of {of}"));
        }
    }
    Ok(findings)
}

fn directions() -> Result<Vec<String>> {
    let metadata = MetadataCommand::new()
        .no_deps()
        .exec()
        .context("cargo metadata")?;
    let members: BTreeSet<&str> = metadata
        .packages
        .iter()
        .map(|package| package.name.as_str())
        .collect();
    let mut findings = Vec::new();
    for package in &metadata.packages {
        let name = package.name.as_str();
        let within = package.manifest_path.strip_prefix(&metadata.workspace_root);
        let within = within.with_context(|| format!("{name} is outside of the workspace"))?;
        if within
            .components()
            .next()
            .is_some_and(|part| part.as_str() == "tests")
        {
            continue;
        }
        findings.extend(named_in_spite(package));
        let Some((_, allowed)) = MAY_DEPEND_ON.iter().find(|(rule, _)| *rule == name) else {
            findings.push(format!(
                "{name} has no row in xtask/src/layers.rs: say what it may depend on"
            ));
            continue;
        };
        findings.extend(
            package
                .dependencies
                .iter()
                .filter(|dependency| dependency.kind == DependencyKind::Normal)
                .filter(|dependency| members.contains(dependency.name.as_str()))
                .filter(|dependency| !allowed.contains(&dependency.name.as_str()))
                .map(|dependency| format!("{name} may not depend on {}", dependency.name)),
        );
    }
    Ok(findings)
}

fn named_in_spite(package: &Package) -> impl Iterator<Item = String> {
    let name = package.name.as_str();
    let banned = MUST_NOT_NAME
        .iter()
        .filter(move |(rule, _)| *rule == name)
        .flat_map(|(_, banned)| banned.iter());
    banned
        .filter(|banned| {
            package
                .dependencies
                .iter()
                .filter(|dependency| dependency.kind == DependencyKind::Normal)
                .any(|dependency| dependency.name == **banned)
        })
        .map(move |banned| format!("{name} may not name {banned}: see the layers in docs/ARCHITECTURE.md"))
}

/// Everything linked into a package built alone, with just the features it asks for.
fn closure(package: &str) -> Result<BTreeSet<String>> {
    Ok(linked(package, "{p}")?
        .lines()
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect())
}

fn linked(package: &str, format: &str) -> Result<String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a check that may wait for cargo as long as cargo needs"
    )]
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "tree",
            "--locked",
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--format",
            format,
            "--package",
            package,
        ])
        .output()
        .context("cargo tree")?;
    ensure!(
        output.status.success(),
        "cargo tree --package {package} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).context("cargo tree printed no UTF-8")
}
