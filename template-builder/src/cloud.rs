//! An image that somebody else published, with the runner and a recipe put into it.
//!
//! ```text
//!   download ─► verify ─► raw disk ─► its ext4 root ─► packages that it lacks, by its own apt
//!                                                   ─► overlay of files, by debugfs ─► e2fsck
//! ```
//!
//! Nothing of the image is mounted, and file systems other than ext4 are refused by name.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use crate::assembly::{self, Made, Order, Outcome};
use crate::bake::{Baking, bake_into_foreign};
use crate::debugfs::FileSystem;
use crate::download::Source;
use crate::error::{During, Result, TemplateError};
use crate::fingerprint::Fingerprint;
use crate::manifest::{KernelRecord, Package, RunnerRecord, SourceRecord, WHOLE_DISK};
use crate::partition::{self, Content};
use crate::progress::{Progress, Step};
use crate::recipe::Recipe;
use crate::rootfs::{self, EPOCH};
use crate::store::TemplateStore;
use crate::tool::{Call, Workshop};
use crate::tree::Tree;
use crate::{install, npm, overlay, tuning};

/// What does not work on a template of an image that nothing was put into.
pub const UNCUSTOMISED: [&str; 4] = [
    "no runner is in it: a sandbox of it never gets READY, no job runs on it, and exec, cp, attach and logs reach nobody",
    "no account `agent`, no agents, no secrets, no workspace at /work",
    "its address is not set from the seed: it has none, unless something serves DHCP on the bridge",
    "its machine-id and host keys are as its makers left them",
];

/// Account files, which the agent is added to.
const ACCOUNT_FILES: [&str; 4] = ["/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow"];

/// Builds an image from somebody else's, unless there is nothing to do.
///
/// # Errors
/// When any step fails; nothing of the build is left then but what was downloaded so far.
pub fn build(
    templates: &TemplateStore,
    order: &Order<'_>,
    (source, customise): (&Source, bool),
    progress: &mut Progress,
) -> Result<Outcome> {
    assembly::under_lock(templates, order, progress, |workshop, image, progress| {
        let sha256 = source.sha256(workshop)?;
        let input_id = input_id(order, (&sha256, customise));
        if let Some(template) = assembly::made_from(templates, order, &input_id)? {
            return Ok(Outcome::Unchanged(template));
        }
        let kept = progress.step(Step::Download, source.name(), || {
            source.fetch(workshop, templates, &sha256)
        })?;
        let disk = image.join(WHOLE_DISK);
        progress.step(Step::Convert, "", || unpack(workshop, &kept, &disk))?;
        if customise {
            assembly::fetch_npm(templates, order.recipe, workshop, progress)?;
        }
        let found = if customise {
            customised(workshop, templates, order, (&disk, progress))?
        } else {
            Found::default()
        };
        let version = order.runner.version().filter(|_| customise);
        let made = Made {
            input_id,
            suite: found.suite,
            runner: RunnerRecord {
                version,
                sha256: if customise {
                    order.runner.sha256.clone()
                } else {
                    String::new()
                },
                path: if customise {
                    tuning::RUNNER_PATH.to_owned()
                } else {
                    String::new()
                },
            },
            kernel: KernelRecord {
                version: found.kernels.join(", "),
                command_line: String::new(),
            },
            disk_bytes: fs::metadata(&disk).during("look at", &disk)?.len(),
            tree_key: sha256.clone(),
            packages: found.packages,
            source: Some(SourceRecord {
                url: source.url().to_owned(),
                sha256,
                customised: customise,
            }),
        };
        let manifest = progress.step(Step::Hash, "", || assembly::describe(image, order.recipe, made))?;
        progress
            .step(Step::Publish, "", || templates.publish(image, &manifest))
            .map(Outcome::Built)
    })
}

fn input_id(order: &Order<'_>, (sha256, customise): (&str, bool)) -> String {
    Fingerprint::of("agentlab-template 1, from an image")
        .with("image", sha256.as_bytes())
        .with("customised", &[u8::from(customise)])
        .with(
            "base",
            assembly::input_id(order.recipe, &order.runner.sha256).as_bytes(),
        )
        .finish()
}

fn unfit(problem: &str, hint: &str) -> TemplateError {
    TemplateError::Settings {
        problem: format!("The image {problem}"),
        hint: Some(hint.to_owned()),
    }
}

/// The format of an image that can be unpacked without looking at any other file.
fn format(first: &[u8]) -> Result<&'static str> {
    let number = |at: usize| {
        let bytes = first.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_be_bytes)
    };
    let known: [(&[u8], &str); 6] = [
        (b"\x1f\x8b", "is compressed by gzip"),
        (b"\xfd7zXZ", "is compressed by xz"),
        (b"\x28\xb5\x2f\xfd", "is compressed by zstd"),
        (b"PK\x03\x04", "is a zip archive"),
        (b"KDMV", "is a VMDK"),
        (b"conectix", "is a VHD"),
    ];
    if let Some((_, problem)) = known.iter().find(|(magic, _)| first.starts_with(magic)) {
        return Err(unfit(
            problem,
            "use the qcow2 or the raw image of the same release",
        ));
    }
    if !first.starts_with(b"QFI\xfb") {
        return Ok("raw");
    }
    const EXTERNAL_DATA: u64 = 4;
    let is_third = first.get(4..8) == Some(&[0, 0, 0, 3]);
    let encrypted = number(32) >> 32 != 0;
    if number(8) != 0 || encrypted || is_third && number(72) & EXTERNAL_DATA != 0 {
        return Err(unfit(
            "is a qcow2 that is encrypted or needs another file",
            "use an image that stands by itself: `qemu-img convert` makes one",
        ));
    }
    Ok("qcow2")
}

fn unpack(workshop: &Workshop<'_>, kept: &Path, disk: &Path) -> Result<()> {
    let mut first = Vec::new();
    let file = File::open(kept).during("open", kept)?;
    file.take(512).read_to_end(&mut first).during("read", kept)?;
    let format = format(&first)?;
    let arguments = ["convert", "-f", format, "-O", "raw"].map(str::to_owned);
    let files = [kept.display().to_string(), disk.display().to_string()];
    Call {
        program: &workshop.tools.qemu_img,
        package: "qemu-utils",
        arguments: arguments.into_iter().chain(files).collect(),
        environment: Vec::new(),
    }
    .run(workshop)
}

/// What an image says of itself.
#[derive(Debug, Default)]
struct Found {
    suite: String,
    kernels: Vec<String>,
    packages: Vec<Package>,
}

fn customised(
    workshop: &Workshop<'_>,
    templates: &TemplateStore,
    order: &Order<'_>,
    (disk, progress): (&Path, &mut Progress),
) -> Result<Found> {
    let root = root_of(workshop, disk)?;
    let mut found = look(&root)?;
    let lacking = lacking(order.recipe, &found);
    if !lacking.is_empty() {
        let sources = order
            .mirror
            .map(|mirror| format!("deb {mirror} {} main", found.suite));
        progress.step(Step::Install, &lacking.join(", "), || {
            install::install(workshop, &root, &lacking, sources.as_deref())
        })?;
        found = look(&root)?;
    }
    progress.step(Step::Customise, "", || {
        put_into(workshop, templates, order, &root)
    })?;
    Ok(found)
}

/// Packages of the recipe that are not in the image.
fn lacking<'a>(recipe: &'a Recipe, found: &Found) -> Vec<&'a str> {
    let named = recipe.packages.iter().map(String::as_str);
    named
        .filter(|name| !found.packages.iter().any(|package| package.name == *name))
        .collect()
}

fn put_into(
    workshop: &Workshop<'_>,
    templates: &TemplateStore,
    order: &Order<'_>,
    root: &FileSystem<'_>,
) -> Result<()> {
    let recipe = order.recipe;
    let path = workshop.scratch.join("overlay");
    fs::create_dir(&path).during("create", &path)?;
    let tree = Tree::open(&path)?;
    for path in ACCOUNT_FILES {
        root.copy_out(path, &tree)?;
    }
    npm::unpack(workshop, templates.dir(), &tree, &recipe.npm)?;
    let version = order.runner.version();
    bake_into_foreign(
        &tree,
        &Baking {
            recipe,
            runner: &order.runner.bytes,
            runner_sha256: &order.runner.sha256,
            runner_version: version.as_deref(),
            home_owner: order.home_owner,
        },
    )?;
    tree.clamp_times(EPOCH)?;
    overlay::lay(root, &tree)?;
    check(workshop, root)
}

/// The ext4 partition that holds a Debian or one of its kind.
fn root_of<'a>(workshop: &'a Workshop<'a>, disk: &Path) -> Result<FileSystem<'a>> {
    let partitions = partition::list(disk)?;
    for partition in &partitions {
        if partition.content != Content::Ext4 {
            continue;
        }
        let root = FileSystem::at(workshop, disk, partition.offset);
        if root.read("/etc/passwd")?.is_some() && root.read("/usr/lib/os-release")?.is_some() {
            return Ok(root);
        }
    }
    let has = |content| partitions.iter().any(|partition| partition.content == content);
    let problem = if has(Content::Ext4InUse) {
        "was not shut down: the journal of its file system is not replayed"
    } else if has(Content::Xfs) {
        "has its system on XFS"
    } else if has(Content::Btrfs) {
        "has its system on Btrfs"
    } else {
        "has no ext4 partition with a system on it"
    };
    Err(unfit(
        problem,
        "cloud images of Debian and Ubuntu, with the system on one ext4 partition, can be customised; --skip-customize takes \
         any as it is",
    ))
}

fn look(root: &FileSystem<'_>) -> Result<Found> {
    let text = |path: &str| -> Result<String> {
        let bytes = root.read(path)?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let release = text("/usr/lib/os-release")?;
    let suite = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let kernels = root.names("/boot")?;
    Ok(Found {
        suite: suite.unwrap_or_default().trim_matches('"').to_owned(),
        kernels: kernels
            .iter()
            .filter_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned))
            .collect(),
        packages: rootfs::parse_status(&text("/var/lib/dpkg/status")?),
    })
}

/// Whether the file system is sound after what was done to it.
fn check(workshop: &Workshop<'_>, root: &FileSystem<'_>) -> Result<()> {
    Call {
        program: &workshop.tools.e2fsck,
        package: "e2fsprogs",
        arguments: ["-f", "-n", &root.place()].map(str::to_owned).to_vec(),
        environment: Vec::new(),
    }
    .run(workshop)
}

#[cfg(test)]
pub(crate) mod tests;
