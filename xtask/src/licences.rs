//! What we may link and ship.

use anyhow::{Context, Result};
use cargo_metadata::MetadataCommand;

/// SPDX identifiers that go with Apache-2.0 OR MIT sources and GPL-3.0-or-later host binaries.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates we keep out, each with its reason.
const BANNED: &[(&str, &str)] = &[
    ("async-std", "one async runtime: tokio"),
    (
        "aws-lc-rs",
        "one TLS provider: ring, which builds for musl without cmake",
    ),
    (
        "aws-lc-sys",
        "one TLS provider: ring, which builds for musl without cmake",
    ),
    ("native-tls", "TLS is rustls"),
    ("openssl-sys", "TLS is rustls"),
    ("rustables", "GPL-3.0-or-later, and needs libclang to build"),
    ("serde_yaml", "archived; YAML is serde-saphyr"),
];

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

pub(crate) fn check() -> Result<Vec<String>> {
    let metadata = MetadataCommand::new()
        .other_options(vec!["--locked".into()])
        .exec()
        .context("cargo metadata")?;
    let mut findings = Vec::new();
    for package in &metadata.packages {
        let subject = format!("{} {}", package.name, package.version);
        match &package.source {
            None => continue,
            Some(source) if source.repr == REGISTRY => {}
            Some(source) => findings.push(format!(
                "{subject} comes from {source}: only the crate registry is allowed"
            )),
        }
        if let Some((_, reason)) = BANNED.iter().find(|(name, _)| *name == package.name.as_str()) {
            findings.push(format!("{subject} is banned: {reason}"));
        }
        match package.license.as_deref() {
            Some(expression) if allows(expression) => {}
            Some(expression) => findings.push(format!(
                "{subject} has licence `{expression}`, which is not allowed"
            )),
            None => findings.push(format!("{subject} states no licence")),
        }
    }
    Ok(findings)
}

/// Whether an SPDX expression offers a choice that is allowed whole. `/` is the old spelling of `OR`.
fn allows(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    let mut tokens = tokenize(&expression);
    tokens.reverse();
    any(&mut tokens) == Some(true) && tokens.is_empty()
}

fn tokenize(expression: &str) -> Vec<String> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ");
    let mut tokens: Vec<String> = Vec::new();
    let mut words = spaced.split_whitespace().peekable();
    while let Some(word) = words.next() {
        let exception = (words.peek() == Some(&"WITH")).then(|| (words.next(), words.next()));
        match exception {
            Some((_, Some(name))) => tokens.push(format!("{word} WITH {name}")),
            Some((_, None)) | None => tokens.push(word.to_owned()),
        }
    }
    tokens
}

/// `None` for what is no expression.
fn any(tokens: &mut Vec<String>) -> Option<bool> {
    let mut allowed = all(tokens)?;
    while tokens.last().is_some_and(|token| token == "OR") {
        tokens.pop();
        allowed |= all(tokens)?;
    }
    Some(allowed)
}

fn all(tokens: &mut Vec<String>) -> Option<bool> {
    let mut allowed = one(tokens)?;
    while tokens.last().is_some_and(|token| token == "AND") {
        tokens.pop();
        allowed &= one(tokens)?;
    }
    Some(allowed)
}

fn one(tokens: &mut Vec<String>) -> Option<bool> {
    match tokens.pop()?.as_str() {
        "(" => {
            let allowed = any(tokens)?;
            (tokens.pop()? == ")").then_some(allowed)
        }
        identifier => Some(ALLOWED.contains(&identifier)),
    }
}

#[cfg(test)]
mod tests {
    use super::allows;

    #[test]
    fn an_expression_is_read_as_spdx_means_it() {
        for good in [
            "MIT",
            "MIT OR GPL-3.0-only",
            "Apache-2.0/MIT",
            "(MIT OR GPL-2.0-only) AND Unicode-3.0",
        ] {
            assert!(allows(good), "{good}");
        }
        assert!(allows("Apache-2.0 WITH LLVM-exception OR GPL-2.0-only"));
        for bad in [
            "GPL-3.0-or-later",
            "MIT AND GPL-3.0-only",
            "(MIT OR ISC) AND GPL-2.0-only",
            "",
            "MIT OR",
            "(MIT",
        ] {
            assert!(!allows(bad), "{bad}");
        }
    }
}
