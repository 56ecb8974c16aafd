//! The root tree: bootstrapped by mmdebstrap once per suite, packages and mirror, and kept as a tar, so that a new
//! runner alone costs seconds.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::error::{During, Result, TemplateError};
use crate::fingerprint::Fingerprint;
use crate::manifest::Package;
use crate::recipe::Recipe;
use crate::shape::Shape;
use crate::tool::{Call, Workshop};
use crate::tree::Tree;

/// Packages that every image has, because the builder's own parts run on them.
pub const BASE_PACKAGES: [&str; 7] = [
    "busybox-static",
    // Makes and checks the file system of a workspace.
    "e2fsprogs",
    "kmod",
    "linux-image-cloud-amd64",
    "systemd",
    "systemd-sysv",
    "udev",
];

/// Debian's word for the only architecture we build.
pub const ARCHITECTURE: &str = "amd64";

/// No file in an image is newer: 2025-06-15T15:06:40Z.
pub const EPOCH: i64 = 1_750_000_000;

/// Never unpacked; copyright files stay, as their licences ask.
const PATHS: [&str; 8] = [
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/bug/*",
    "path-exclude=/usr/share/gtk-doc/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
];

/// Where GRUB's two images are in the tree until they are on the disk.
pub(crate) const BOOT_SECTOR: &str = "/boot/boot.img";
/// See [`BOOT_SECTOR`].
pub(crate) const BOOT_CORE: &str = "/boot/core.img";

/// Has the suite's own GRUB make its core image while the tree is made, and takes GRUB out again: nothing in a guest
/// updates its boot loader. The prefix names a partition of whichever drive the machine was started from.
const BOOT_HOOK: &str = "chroot \"$1\" grub-mkimage --format=i386-pc --output=/boot/core.img \
    '--prefix=(,gpt2)/boot/grub' biosdisk part_gpt ext2 linux normal && \
    cp \"$1/usr/lib/grub/i386-pc/boot.img\" \"$1/boot/boot.img\" && \
    chroot \"$1\" dpkg --purge grub-pc-bin grub-common";

fn hook(shape: Shape) -> Option<&'static str> {
    match shape {
        Shape::Local => None,
        Shape::Proxmox => Some(BOOT_HOOK),
    }
}

/// Packages of an image: the recipe's and ours.
fn packages(recipe: &Recipe) -> Vec<String> {
    let mut all: Vec<String> = BASE_PACKAGES.map(str::to_owned).to_vec();
    all.extend(recipe.shape.packages().iter().map(|name| (*name).to_owned()));
    all.extend(recipe.packages.iter().cloned());
    all.sort_unstable();
    all.dedup();
    all
}

/// What decides a root tree. Versions do not: they are what the mirror has on the day.
#[must_use]
pub fn key(recipe: &Recipe, mirror: Option<&str>) -> String {
    let print = Fingerprint::of("agentlab root tree 1")
        .with("architecture", ARCHITECTURE.as_bytes())
        .with("suite", recipe.suite.as_bytes())
        .with_all("packages", &packages(recipe))
        .with_all("paths", &PATHS)
        .with("mirror", mirror.unwrap_or_default().as_bytes());
    match hook(recipe.shape) {
        Some(hook) => print.with("hook", hook.as_bytes()).finish(),
        None => print.finish(),
    }
}

/// Has mmdebstrap make the tar. It appears at `tar` whole or not at all.
pub(crate) fn bootstrap(
    workshop: &Workshop<'_>,
    recipe: &Recipe,
    mirror: Option<&str>,
    tar: &Path,
) -> Result<()> {
    let partial = workshop.scratch.join("tree.tar");
    let mut arguments: Vec<String> = [
        "--mode=root",
        "--variant=minbase",
        "--format=tar",
        "--aptopt=Apt::Install-Recommends \"false\"",
        "--aptopt=Acquire::Retries \"2\"",
        "--aptopt=Acquire::http::Timeout \"30\"",
        "--aptopt=Acquire::https::Timeout \"30\"",
    ]
    .map(str::to_owned)
    .to_vec();
    arguments.push(format!("--architectures={ARCHITECTURE}"));
    arguments.push(format!("--include={}", packages(recipe).join(",")));
    arguments.extend(PATHS.iter().map(|rule| format!("--dpkgopt={rule}")));
    arguments.extend(hook(recipe.shape).map(|hook| format!("--customize-hook={hook}")));
    arguments.extend([recipe.suite.clone(), partial.display().to_string()]);
    arguments.extend(mirror.map(str::to_owned));
    Call {
        program: &workshop.tools.mmdebstrap,
        package: "mmdebstrap",
        arguments,
        environment: vec![
            ("TMPDIR", workshop.scratch.display().to_string()),
            ("SOURCE_DATE_EPOCH", EPOCH.to_string()),
            // The kernel package then makes no initrd, which saves its ten seconds: ours replaces it.
            ("INITRD", "No".to_owned()),
        ],
    }
    .run(workshop)?;
    File::open(&partial)
        .and_then(|file| file.sync_all())
        .during("flush", &partial)?;
    fs::rename(&partial, tar).during("keep the root tree as", tar)
}

/// Unpacks the tar into a new directory.
pub(crate) fn unpack(workshop: &Workshop<'_>, tar: &Path) -> Result<Tree> {
    let into = workshop.scratch.join("tree");
    fs::create_dir(&into).during("create", &into)?;
    let arguments = [
        "--extract",
        "--preserve-permissions",
        "--numeric-owner",
        "--xattrs",
        "--xattrs-include=*",
        "--exclude=./dev/*",
        "--file",
    ];
    let paths = [
        tar.display().to_string(),
        "--directory".to_owned(),
        into.display().to_string(),
    ];
    Call {
        program: &workshop.tools.tar,
        package: "tar",
        arguments: arguments.map(str::to_owned).into_iter().chain(paths).collect(),
        environment: Vec::new(),
    }
    .run(workshop)?;
    Tree::open(&into)
}

/// Packages installed in a tree, by dpkg's own record.
///
/// # Errors
/// When it has no such record.
pub fn installed(tree: &Tree) -> Result<Vec<Package>> {
    let status = tree.read("/var/lib/dpkg/status")?;
    let status = status.ok_or_else(|| TemplateError::Tree {
        problem: "lacks /var/lib/dpkg/status".to_owned(),
    })?;
    Ok(parse_status(&String::from_utf8_lossy(&status)))
}

pub(crate) fn parse_status(status: &str) -> Vec<Package> {
    let mut packages = Vec::new();
    for stanza in status.split("\n\n") {
        let field = |name: &str| {
            stanza
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(|value| value.trim().to_owned())
        };
        if let (Some(name), Some(version), Some(architecture)) =
            (field("Package"), field("Version"), field("Architecture"))
            && field("Status").is_some_and(|status| status.ends_with(" installed"))
        {
            packages.push(Package {
                name,
                version,
                architecture,
            });
        }
    }
    packages.sort_by(|one, two| (&one.name, &one.architecture).cmp(&(&two.name, &two.architecture)));
    packages
}

/// Where a root tree is kept.
#[must_use]
pub fn kept_path(store: &Path, key: &str) -> PathBuf {
    store.join(crate::store::CACHE).join(format!("{key}.tar"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(text: &str) -> Recipe {
        crate::recipe::parse(text, "r", Path::new(".")).unwrap()
    }

    #[test]
    fn the_kept_tree_depends_on_packages_suite_and_mirror_and_on_nothing_else() {
        let base = key(&recipe("name = \"a\"\npackages = [\"git\"]\n"), None);
        assert_eq!(
            base,
            key(
                &recipe("name = \"b\"\nsize_mb = 600\nvmid = 200\npackages = [\"git\", \"kmod\"]\n"),
                None
            )
        );
        assert_ne!(base, key(&recipe("name = \"a\"\npackages = [\"jq\"]\n"), None));
        assert_ne!(
            base,
            key(
                &recipe("name = \"a\"\nsuite = \"forky\"\npackages = [\"git\"]\n"),
                None
            )
        );
        assert_ne!(
            base,
            key(
                &recipe("name = \"a\"\npackages = [\"git\"]\n"),
                Some("http://mirror.invalid/debian")
            )
        );
    }

    #[test]
    fn only_installed_packages_are_listed() {
        let status = "Package: git\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:2\n\n\
                      Package: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n\n\
                      Package: bash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5\n";
        let names: Vec<String> = parse_status(status)
            .into_iter()
            .map(|package| package.name)
            .collect();
        assert_eq!(names, ["bash", "git"]);
    }
}
