//! Packages of npm: fetched while the image is built, compared with the hash that the recipe pins, and unpacked. Nothing
//! of them is run, and the guest needs neither npm nor node: what is pinned are packages that hold whole programs.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha512};

use crate::error::{During, Result, TemplateError};
use crate::store::CACHE;
use crate::tool::{Call, Workshop};
use crate::tree::Tree;

/// Below this they are unpacked, each into a directory of its own.
pub const INTO: &str = "/opt/agentlab";
/// Where their programs are found.
const PROGRAMS: &str = "/usr/local/bin";

/// One package, as the recipe pins it and the manifest records it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NpmPackage {
    /// Its name, with its scope.
    pub package: String,
    /// The very version.
    pub version: String,
    /// `sha512-` and the base64 of the tarball's hash, as registries publish it.
    pub integrity: String,
    /// Directory below [`INTO`].
    pub directory: String,
    /// Name of each program, and the file of the package that it is.
    pub programs: std::collections::BTreeMap<String, String>,
}

impl NpmPackage {
    /// The hash as hexadecimal digits; nothing when it is not written like one.
    #[must_use]
    pub fn sha512(&self) -> Option<String> {
        let bytes = STANDARD.decode(self.integrity.strip_prefix("sha512-")?).ok()?;
        (bytes.len() == 64).then(|| hex::encode(bytes))
    }

    /// What about it cannot stand; nothing when all can.
    #[must_use]
    pub fn fault(&self) -> Option<&'static str> {
        let plain = |text: &str, more: &str| {
            !text.is_empty()
                && !text.starts_with(['-', '.'])
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c) || more.contains(c))
        };
        let relative = |path: &str| path.split('/').all(|part| plain(part, "@+"));
        if !plain(self.package.trim_start_matches('@'), "/") || self.package.len() > 214 {
            return Some("`package` is not the name of an npm package");
        }
        let exact = self
            .version
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_digit());
        if !exact || !plain(&self.version, "+") {
            return Some("`version` is one exact version, such as \"1.2.3\"");
        }
        if self.sha512().is_none() {
            return Some("`integrity` is `sha512-` and 88 characters of base64");
        }
        if !plain(&self.directory, "") {
            return Some("`directory` is one name");
        }
        if !self
            .programs
            .iter()
            .all(|(name, path)| plain(name, "") && relative(path))
        {
            return Some("`programs` are names, each with a path within the package");
        }
        None
    }

    fn kept_path(&self, store: &Path) -> PathBuf {
        let name = self.sha512().unwrap_or_default();
        store.join(CACHE).join(format!("{name}.tgz"))
    }
}

/// Fetches what is not kept from last time. What came is compared before anything looks into it.
pub(crate) fn fetch(workshop: &Workshop<'_>, store: &Path, packages: &[NpmPackage]) -> Result<()> {
    for package in packages {
        let kept = package.kept_path(store);
        if kept.is_file() && compare(&kept, package).is_ok() {
            continue;
        }
        let into = workshop.scratch.join("npm");
        fs::create_dir_all(&into).during("create", &into)?;
        let specification = format!("{}@{}", package.package, package.version);
        Call {
            program: &workshop.tools.npm,
            package: "npm",
            arguments: [
                "pack",
                "--ignore-scripts",
                "--no-audit",
                "--no-fund",
                "--no-update-notifier",
                "--pack-destination",
                &into.display().to_string(),
                "--cache",
                &workshop.scratch.join("npm-cache").display().to_string(),
                "--",
                &specification,
            ]
            .map(str::to_owned)
            .to_vec(),
            environment: Vec::new(),
        }
        .run(workshop)?;
        let found = only_file(&into)?;
        compare(&found, package)?;
        fs::rename(&found, &kept).during("keep the package as", &kept)?;
        fs::remove_dir_all(&into).during("remove", &into)?;
    }
    Ok(())
}

fn only_file(directory: &Path) -> Result<PathBuf> {
    let names = crate::store::read_dir(directory)?;
    match names.as_slice() {
        [name] => Ok(directory.join(name)),
        _ => Err(TemplateError::Tree {
            problem: format!("got {} files where npm was to leave one package", names.len()),
        }),
    }
}

fn compare(path: &Path, package: &NpmPackage) -> Result<()> {
    let mut file = File::open(path).during("open", path)?;
    let (mut hash, mut buffer) = (Sha512::new(), vec![0; 256 * 1024]);
    loop {
        let count = file.read(&mut buffer).during("read", path)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
    }
    let found = hex::encode(hash.finalize());
    if Some(&found) == package.sha512().as_ref() {
        return Ok(());
    }
    Err(TemplateError::Tree {
        problem: format!(
            "needs {} {} as the recipe pins it, and another one came: its SHA-512 is {found}",
            package.package, package.version
        ),
    })
}

/// Unpacks them into the tree and makes their programs known.
pub(crate) fn unpack(
    workshop: &Workshop<'_>,
    store: &Path,
    tree: &Tree,
    packages: &[NpmPackage],
) -> Result<()> {
    for package in packages {
        let inside = format!("{INTO}/{}", package.directory);
        tree.make_dir(&inside, 0o755)?;
        let target = tree.path().join(inside.trim_start_matches('/'));
        Call {
            program: &workshop.tools.tar,
            package: "tar",
            arguments: [
                "--extract",
                "--gzip",
                "--no-same-owner",
                "--no-same-permissions",
                "--strip-components=1",
                "--file",
                &package.kept_path(store).display().to_string(),
                "--directory",
                &target.display().to_string(),
            ]
            .map(str::to_owned)
            .to_vec(),
            environment: Vec::new(),
        }
        .run(workshop)?;
        for (name, path) in &package.programs {
            let program = format!("{inside}/{path}");
            if !tree.has(&program) {
                return Err(TemplateError::Tree {
                    problem: format!("lacks {program}, which the recipe says is in {}", package.package),
                });
            }
            tree.link(&format!("{PROGRAMS}/{name}"), &program)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package() -> NpmPackage {
        NpmPackage {
            package: "@scope/tool-linux-x64".to_owned(),
            version: "1.2.3-linux-x64".to_owned(),
            integrity: format!("sha512-{}", STANDARD.encode([7; 64])),
            directory: "tool".to_owned(),
            programs: [("tool".to_owned(), "bin/tool".to_owned())].into(),
        }
    }

    #[test]
    fn only_an_exact_version_with_its_hash_is_taken_and_no_path_leads_out() {
        assert_eq!(package().fault(), None);
        assert_eq!(package().sha512(), Some("07".repeat(64)));
        type Change = fn(&mut NpmPackage);
        let changes: [Change; 8] = [
            |package| package.package = "--registry=x".to_owned(),
            |package| package.package = "a b".to_owned(),
            |package| package.version = "latest".to_owned(),
            |package| package.version = "^1.2.3".to_owned(),
            |package| package.integrity = "sha1-AAAA".to_owned(),
            |package| package.directory = "../tool".to_owned(),
            |package| package.programs = [("tool".to_owned(), "../../bin/sh".to_owned())].into(),
            |package| package.programs = [("a/b".to_owned(), "bin/tool".to_owned())].into(),
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let mut changed = package();
            change(&mut changed);
            assert!(changed.fault().is_some(), "change {index}: {changed:?}");
        }
    }
}
