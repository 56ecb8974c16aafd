//! A build from end to end. Everything happens in one work directory inside the store, which goes when the build
//! fails and becomes the image when it does not.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::bake::{Baking, bake};
use crate::error::{During, Result, TemplateError};
use crate::fingerprint::{self, Fingerprint};
use crate::image::{self, Boot};
use crate::manifest::{
    self, DiskRecord, FORMAT, FileRecord, KernelRecord, MANIFEST, Manifest, Package, RunnerRecord,
    SourceRecord,
};
use crate::progress::{Progress, Step};
use crate::recipe::Recipe;
use crate::rootfs::{self, ARCHITECTURE, EPOCH};
use crate::runner::Runner;
use crate::shape::Shape;
use crate::store::{BUILDING, Template, TemplateStore};
use crate::tool::{Toolbox, Workshop};
use crate::{gc, initrd, npm, store, strip, tuning};

/// Counts up when the same recipe and runner would give another image for a reason that [`input_id`] does not hash.
const BUILDER: &str = "agentlab-template 1";

/// What to build.
#[derive(Debug)]
pub struct Order<'a> {
    /// The recipe.
    pub recipe: &'a Recipe,
    /// The runner to bake in.
    pub runner: &'a Runner,
    /// Mirror instead of the suite's own.
    pub mirror: Option<&'a str>,
    /// Build even when nothing changed, with today's packages.
    pub force: bool,
    /// Programs to build with.
    pub tools: &'a Toolbox,
    /// Owner of the agent's home: uid and gid 1000, except where a test is not root.
    pub home_owner: (u32, u32),
}

/// How a build ended.
#[derive(Debug)]
pub enum Outcome {
    /// There was nothing to do.
    Unchanged(Template),
    /// A new image stands.
    Built(Template),
}

/// What an image is made from. Package versions do not count: they are what the mirror has on the day of the build.
#[must_use]
pub fn input_id(recipe: &Recipe, runner_sha256: &str) -> String {
    Fingerprint::of(BUILDER)
        .with("architecture", ARCHITECTURE.as_bytes())
        .with("recipe", recipe.digest().as_bytes())
        .with("runner", runner_sha256.as_bytes())
        .with_all("command line", recipe.shape.command_line())
        .with("tuning", tuning::digest().as_bytes())
        .with("strip", strip::digest().as_bytes())
        .with("initrd", initrd::digest(recipe.shape).as_bytes())
        .finish()
}

/// The image that a build with this order would only make again.
///
/// # Errors
/// When the store cannot be read.
pub fn unchanged(templates: &TemplateStore, order: &Order<'_>) -> Result<Option<Template>> {
    made_from(templates, order, &input_id(order.recipe, &order.runner.sha256))
}

/// The recipe's current image, when it is whole and was made from just this.
pub(crate) fn made_from(
    templates: &TemplateStore,
    order: &Order<'_>,
    input_id: &str,
) -> Result<Option<Template>> {
    let found = templates.find_by_name(&order.recipe.name)?;
    let whole = |template: &Template| {
        template
            .manifest
            .files
            .keys()
            .all(|name| template.dir.join(name).is_file())
    };
    Ok(found.filter(|template| !order.force && template.manifest.input_id == input_id && whole(template)))
}

/// Builds, unless there is nothing to do.
///
/// # Errors
/// When any step fails; nothing of the build is left then.
pub fn build(templates: &TemplateStore, order: &Order<'_>, progress: &mut Progress) -> Result<Outcome> {
    if let Some(template) = unchanged(templates, order)? {
        return Ok(Outcome::Unchanged(template));
    }
    under_lock(templates, order, progress, |workshop, image, progress| {
        // Whoever we waited for may have built just this.
        if let Some(template) = unchanged(templates, order)? {
            return Ok(Outcome::Unchanged(template));
        }
        refuse_taken_vmid(templates, order.recipe)?;
        let manifest = assemble(templates, order, (workshop, image), progress)?;
        progress
            .step(Step::Publish, "", || templates.publish(image, &manifest))
            .map(Outcome::Built)
    })
}

/// Lets `work` have the store, a work directory, and in it an empty one for the image's files.
pub(crate) fn under_lock(
    templates: &TemplateStore,
    order: &Order<'_>,
    progress: &mut Progress,
    work: impl FnOnce(&Workshop<'_>, &Path, &mut Progress) -> Result<Outcome>,
) -> Result<Outcome> {
    templates.create()?;
    let lock = match templates.try_lock()? {
        Some(lock) => lock,
        None => progress.step(Step::Wait, "", || templates.lock())?,
    };
    for leftover in gc::leftovers(templates)? {
        progress.say(&format!("  clearing {leftover}, left by a build that died"));
        gc::remove(&templates.dir().join(leftover))?;
    }
    let scratch = tempfile::Builder::new()
        .prefix(BUILDING)
        .tempdir_in(templates.dir());
    let scratch = scratch.during("make a work directory in", templates.dir())?;
    // apt drops its rights for downloads and must still get through.
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755))
        .during("open up", scratch.path())?;
    let image = scratch.path().join("image");
    fs::create_dir(&image).during("create", &image)?;
    let workshop = Workshop {
        tools: order.tools,
        scratch: scratch.path(),
        lock: &lock,
    };
    work(&workshop, &image, progress)
}

fn refuse_taken_vmid(templates: &TemplateStore, recipe: &Recipe) -> Result<()> {
    match templates.find_by_vmid(recipe.vmid)? {
        Some(other) if recipe.shape == Shape::Local && other.manifest.name != recipe.name => {
            Err(TemplateError::VmidTaken {
                vmid: recipe.vmid,
                holder: other.manifest.name,
                wanted: recipe.name.clone(),
                store: templates.dir().to_owned(),
            })
        }
        Some(_) | None => Ok(()),
    }
}

fn assemble(
    templates: &TemplateStore,
    order: &Order<'_>,
    (workshop, image): (&Workshop<'_>, &Path),
    progress: &mut Progress,
) -> Result<Manifest> {
    let (recipe, runner) = (order.recipe, order.runner);
    let tree_key = rootfs::key(recipe, order.mirror);
    let tar = rootfs::kept_path(templates.dir(), &tree_key);
    if order.force || !tar.is_file() {
        let detail = format!(
            "{} with {} packages and what they need",
            recipe.suite,
            recipe.packages.len()
        );
        progress.step(Step::Bootstrap, &detail, || {
            rootfs::bootstrap(workshop, recipe, order.mirror, &tar)
        })?;
    }
    fetch_npm(templates, recipe, workshop, progress)?;
    let tree = progress.step(Step::Unpack, "", || rootfs::unpack(workshop, &tar))?;
    let packages = rootfs::installed(&tree)?;
    // Before the strip, which takes the kernel out of the tree.
    let boot = progress.step(Step::Kernel, "", || Boot::of(&tree, recipe))?;
    let version = runner.version();
    progress.step(Step::Bake, version.as_deref().unwrap_or_default(), || {
        strip::strip(&tree)?;
        npm::unpack(workshop, templates.dir(), &tree, &recipe.npm)?;
        bake(
            &tree,
            &Baking {
                recipe,
                runner: &runner.bytes,
                runner_sha256: &runner.sha256,
                runner_version: version.as_deref(),
                home_owner: order.home_owner,
            },
        )?;
        boot.settle(&tree, recipe)?;
        tree.clamp_times(EPOCH)
    })?;
    let input = input_id(recipe, &runner.sha256);
    progress.step(Step::Image, &format!("{} MiB", recipe.size_mb), || {
        boot.write(workshop, &tree, image, (recipe, &input))
    })?;
    let made = Made {
        input_id: input,
        suite: recipe.suite.clone(),
        runner: RunnerRecord {
            version,
            sha256: runner.sha256.clone(),
            path: tuning::RUNNER_PATH.to_owned(),
        },
        kernel: KernelRecord {
            version: boot.kernel.version,
            command_line: recipe.command_line(),
        },
        disk_bytes: image::disk_bytes(recipe),
        tree_key,
        packages,
        source: None,
    };
    progress.step(Step::Hash, "", || describe(image, recipe, made))
}

/// What was found out of an image while it was made.
pub(crate) struct Made {
    pub(crate) input_id: String,
    pub(crate) suite: String,
    pub(crate) runner: RunnerRecord,
    pub(crate) kernel: KernelRecord,
    pub(crate) disk_bytes: u64,
    pub(crate) tree_key: String,
    pub(crate) packages: Vec<Package>,
    pub(crate) source: Option<SourceRecord>,
}

/// Hashes an image's files and writes its manifest beside them.
pub(crate) fn describe(image: &Path, recipe: &Recipe, made: Made) -> Result<Manifest> {
    let mut manifest = Manifest {
        format: FORMAT,
        id: String::new(),
        input_id: made.input_id,
        name: recipe.name.clone(),
        shape: recipe.shape,
        vmid: recipe.vmid,
        architecture: ARCHITECTURE.to_owned(),
        suite: made.suite,
        recipe_sha256: recipe.digest(),
        created: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        builder_version: env!("CARGO_PKG_VERSION").to_owned(),
        runner: made.runner,
        kernel: made.kernel,
        disk: DiskRecord {
            file: recipe.shape.disk_file().to_owned(),
            format: "raw".to_owned(),
            size_bytes: made.disk_bytes,
            device: recipe.shape.disk_device().to_owned(),
        },
        files: hash_all(image)?,
        tree_key: made.tree_key,
        packages: made.packages,
        npm: recipe.npm.clone(),
        source: made.source,
    };
    manifest.id = store::image_id(&manifest);
    let path = image.join(MANIFEST);
    fs::write(&path, manifest::to_json(&manifest)?).during("write", &path)?;
    Ok(manifest)
}

pub(crate) fn fetch_npm(
    templates: &TemplateStore,
    recipe: &Recipe,
    workshop: &Workshop<'_>,
    progress: &mut Progress,
) -> Result<()> {
    if recipe.npm.is_empty() {
        return Ok(());
    }
    let detail = format!("{} of them", recipe.npm.len());
    progress.step(Step::Fetch, &detail, || {
        npm::fetch(workshop, templates.dir(), &recipe.npm)
    })
}

fn hash_all(image: &Path) -> Result<BTreeMap<String, FileRecord>> {
    let mut files = BTreeMap::new();
    for name in store::read_dir(image)? {
        let (sha256, size_bytes) = fingerprint::of_file(&image.join(&name))?;
        files.insert(name, FileRecord { sha256, size_bytes });
    }
    Ok(files)
}

#[cfg(test)]
pub(crate) mod tests;
