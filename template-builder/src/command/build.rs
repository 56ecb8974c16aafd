//! `build`: makes an image, and publishes it where it was asked to.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use agentlab_api::Vmid;
use clap::Args;
use serde_json::{Value, json};

use super::{line, print, summary, text};
use crate::account::AGENT_ID;
use crate::assembly::{self, Order, Outcome};
use crate::cloud;
use crate::download::Source;
use crate::error::{Result, TemplateError};
use crate::progress::Progress;
use crate::publish::{self, Node, Way};
use crate::recipe;
use crate::runner::Runner;
use crate::shape::Shape;
use crate::store::{Template, TemplateStore};
use crate::tool::{self, Toolbox};

/// Arguments of `build`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A built-in recipe (demo, debian-13, agents) or the path of one
    recipe: String,
    /// Runner to bake in [default: the recipe's, else beside this program, else /usr/lib/agentlab/agent-runner]
    #[arg(long, value_name = "PATH")]
    runner: Option<PathBuf>,
    /// For whom: `local` for the embedded QEMU, `proxmox` for a disk that boots by itself [default: local; proxmox with
    /// --storage]
    #[arg(long, value_name = "SHAPE", value_enum)]
    shape: Option<Shape>,
    /// Debian mirror [default: the suite's own]
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// Build even when nothing changed, with today's packages
    #[arg(long)]
    force: bool,
    /// VMID that the template stands for, or gets on the node [default: the recipe's]
    #[arg(long, value_name = "N")]
    vmid: Option<Vmid>,
    #[command(flatten)]
    image: CloudImage,
    #[command(flatten)]
    target: Target,
}

/// An image to start from instead of Debian packages.
#[derive(Debug, Args)]
#[command(next_help_heading = "Starting from a published image")]
struct CloudImage {
    /// Start from this cloud image of Debian or Ubuntu (qcow2 or raw) instead of packages
    #[arg(long, value_name = "URL")]
    image_url: Option<String>,
    /// Its SHA-256
    #[arg(
        long,
        value_name = "HEX",
        requires = "image_url",
        conflicts_with = "image_sha256_url"
    )]
    image_sha256: Option<String>,
    /// List of checksums that has it, such as SHA256SUMS; https only
    #[arg(long, value_name = "URL", requires = "image_url")]
    image_sha256_url: Option<String>,
    /// Put nothing into it: no runner, no account, nothing of the recipe
    #[arg(long, requires = "image_url")]
    skip_customize: bool,
}

impl CloudImage {
    fn source(&self) -> Result<Option<Source>> {
        let Some(url) = &self.image_url else {
            return Ok(None);
        };
        Source::new(
            url,
            self.image_sha256.as_deref(),
            self.image_sha256_url.as_deref(),
        )
        .map(Some)
    }
}

/// Where a template is published.
#[derive(Debug, Args)]
#[command(next_help_heading = "Publishing to Proxmox VE")]
struct Target {
    /// Publish: storage of the template's disk
    #[arg(long, value_name = "STORAGE", requires = "bridge")]
    storage: Option<String>,
    /// Bridge of the template's NIC; a sandbox gets the daemon's own
    #[arg(long, value_name = "BRIDGE", requires = "storage")]
    bridge: Option<String>,
    /// Put it in the place of our earlier template of that number
    #[arg(long, requires = "storage")]
    replace: bool,
    /// The way to the node [default: api with a token, else qm]
    #[arg(long, value_name = "WAY", value_enum, requires = "storage")]
    through: Option<Way>,
    /// File with an API token that may make templates [default: the daemon's token]
    #[arg(long, value_name = "PATH", requires = "storage")]
    token_file: Option<PathBuf>,
    /// The daemon's configuration, which says where the node is
    #[arg(long, value_name = "PATH", default_value = "/etc/agentlab/config.yaml")]
    config: PathBuf,
    /// Where qm and pvesh are
    #[arg(long, value_name = "DIR", default_value = "/usr/sbin", hide = true)]
    program_dir: PathBuf,
}

pub(super) fn run(store: &TemplateStore, arguments: &Arguments, json: bool) -> Result<ExitCode> {
    let target = &arguments.target;
    let source = arguments.image.source()?;
    let shape = shape(arguments, source.is_some())?;
    let mut recipe = recipe::load(&arguments.recipe)?.in_shape(shape);
    if let Some(vmid) = arguments.vmid {
        recipe.vmid = vmid.into();
    }
    let runner = Runner::find(arguments.runner.as_deref(), recipe.runner.as_deref())?;
    let tools = Toolbox::default();
    let order = Order {
        recipe: &recipe,
        runner: &runner,
        mirror: arguments.mirror.as_deref(),
        force: arguments.force,
        tools: &tools,
        home_owner: (AGENT_ID, AGENT_ID),
    };
    let begun = Instant::now();
    let mut progress = Progress::new(true);
    let outcome = match &source {
        None => make(store, &order, &mut progress)?,
        Some(source) => {
            let customise = !arguments.image.skip_customize;
            make_from(store, &order, (source, customise), &mut progress)?
        }
    };
    let (template, word) = match &outcome {
        Outcome::Unchanged(template) => (template, "unchanged"),
        Outcome::Built(template) => (template, "built"),
    };
    let published = match (&target.storage, &target.bridge) {
        (Some(storage), Some(bridge)) => {
            let vmid = send(store, (target, storage, bridge), template, &mut progress)?;
            Some((vmid, storage.as_str()))
        }
        _ => None,
    };
    let seconds = begun.elapsed().as_secs_f64();
    if !json {
        return print(&text::built(
            template,
            word,
            published,
            (progress.steps(), seconds),
        ));
    }
    let steps: Vec<Value> = progress
        .steps()
        .iter()
        .map(|(step, took)| json!({ "step": step, "seconds": took.as_secs_f64() }))
        .collect();
    let mut answer = summary(store, template);
    answer["outcome"] = json!(word);
    answer["published"] = json!(published.map(|(vmid, storage)| json!({ "vmid": vmid, "storage": storage })));
    answer["seconds"] = json!(seconds);
    answer["steps"] = json!(steps);
    print(&line(&answer))
}

/// What is published boots by itself, and so does what others have published.
fn shape(arguments: &Arguments, from_image: bool) -> Result<Shape> {
    let boots_by_itself = from_image || arguments.target.storage.is_some();
    match (arguments.shape, boots_by_itself) {
        (Some(Shape::Local), true) => Err(TemplateError::Settings {
            problem: "A local image does not boot by itself: no node can start it, and no cloud image is one"
                .to_owned(),
            hint: Some("leave out --shape, or say --shape proxmox".to_owned()),
        }),
        (Some(shape), _) => Ok(shape),
        (None, true) => Ok(Shape::Proxmox),
        (None, false) => Ok(Shape::Local),
    }
}

fn make_from(
    store: &TemplateStore,
    order: &Order<'_>,
    (source, customise): (&Source, bool),
    progress: &mut Progress,
) -> Result<Outcome> {
    if customise {
        tool::require_root()?;
    } else {
        progress.say("warning: --skip-customize leaves the image as its makers published it:");
        for lost in cloud::UNCUSTOMISED {
            progress.say(&format!("warning:   {lost}"));
        }
    }
    progress.say(&format!(
        "Building template {} from {}",
        order.recipe.name,
        source.url()
    ));
    cloud::build(store, order, (source, customise), progress)
}

fn make(store: &TemplateStore, order: &Order<'_>, progress: &mut Progress) -> Result<Outcome> {
    if let Some(template) = assembly::unchanged(store, order)? {
        return Ok(Outcome::Unchanged(template));
    }
    tool::require_root()?;
    progress.say(&format!(
        "Building template {} with {}",
        order.recipe.name,
        order.runner.path.display()
    ));
    assembly::build(store, order, progress)
}

fn send(
    store: &TemplateStore,
    (target, storage, bridge): (&Target, &str, &str),
    template: &Template,
    progress: &mut Progress,
) -> Result<Vmid> {
    let vmid = Vmid::try_from(template.manifest.vmid).map_err(|error| TemplateError::Settings {
        problem: error.to_string(),
        hint: None,
    })?;
    let node = Node {
        config: target.config.clone(),
        way: target.through,
        token_file: target.token_file.clone(),
        program_dir: target.program_dir.clone(),
    };
    let order = publish::Order {
        template,
        vmid,
        storage,
        bridge,
        replace: target.replace,
        tools: &Toolbox::default(),
    };
    publish::publish(store, &node.publisher(vmid)?, &order, progress)?;
    Ok(vmid)
}
