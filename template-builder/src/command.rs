//! The command line: data to stdout, everything else to stderr, one exit code per kind of answer.

mod build;
mod text;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde_json::{Value, json};

use crate::error::{During, Result, TemplateError};
use crate::gc;
use crate::store::{DEFAULT_STORE, Template, TemplateStore};

/// Builds, lists, checks and clears template images.
#[derive(Debug, Parser)]
#[command(name = "agentlab-template", version, arg_required_else_help = true)]
pub struct Arguments {
    /// Directory of images
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_STORE, env = "AGENTLAB_TEMPLATES")]
    store: PathBuf,
    /// Answer in JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Build an image; one that is already as its recipe says is left alone
    Build(Box<build::Arguments>),
    /// List images
    #[command(alias = "ls")]
    List,
    /// Show an image
    Show {
        /// Name, VMID or start of the id
        template: String,
    },
    /// Hash every file again; exit 1 when one differs
    Verify {
        /// Name, VMID or start of the id [default: all images]
        template: Option<String>,
    },
    /// Remove images that no name leads to and no machine uses, what is kept and no image was made from, and leftovers
    Gc {
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
    },
    /// Take a template's name away; its files go with the next gc
    #[command(alias = "rm")]
    Remove {
        /// Name
        template: String,
    },
}

/// Runs the program.
#[must_use]
pub fn run(arguments: &Arguments) -> ExitCode {
    match perform(arguments) {
        Ok(code) => code,
        // Whoever read our output has seen enough.
        Err(TemplateError::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            let mut stderr = io::stderr().lock();
            let _closed = writeln!(stderr, "error: {error}");
            if let Some(hint) = error.hint() {
                let _closed = writeln!(stderr, "hint: {hint}");
            }
            ExitCode::from(if matches!(error, TemplateError::NotFound { .. }) {
                3
            } else {
                1
            })
        }
    }
}

fn perform(arguments: &Arguments) -> Result<ExitCode> {
    let store = TemplateStore::open(&arguments.store);
    let json = arguments.json;
    match &arguments.verb {
        Verb::Build(arguments) => build::run(&store, arguments, json),
        Verb::List => list(&store, json),
        Verb::Show { template } => {
            let template = store.find(template)?;
            let answer = if json {
                line(&describe(&template))
            } else {
                text::show(&template)
            };
            print(&answer)
        }
        Verb::Verify { template } => verify(&store, template.as_deref(), json),
        Verb::Gc { dry_run } => clear(&store, *dry_run, json),
        Verb::Remove { template } => {
            let found = store.find(template)?;
            let name = found.manifest.name;
            let _lock = store.lock()?;
            store.forget(&name)?;
            print(&if json {
                line(&json!({ "removed": name, "id": found.manifest.id }))
            } else {
                format!("{name} has no image any more; `agentlab-template gc` frees its space\n")
            })
        }
    }
}

fn list(store: &TemplateStore, json: bool) -> Result<ExitCode> {
    let (templates, damaged) = store.list()?;
    for (_, error) in &damaged {
        let _closed = writeln!(io::stderr().lock(), "warning: {error}");
    }
    let answer = if json {
        line(&Value::Array(
            templates
                .iter()
                .map(|template| summary(store, template))
                .collect(),
        ))
    } else if templates.is_empty() {
        format!(
            "No templates in {}. Build one: agentlab-template build demo\n",
            store.dir().display()
        )
    } else {
        text::list(&templates)
    };
    print(&answer)
}

fn verify(store: &TemplateStore, wanted: Option<&str>, json: bool) -> Result<ExitCode> {
    let (templates, damaged) = match wanted {
        Some(wanted) => (vec![store.find(wanted)?], Vec::new()),
        None => store.list()?,
    };
    let mut sound = damaged.is_empty();
    let mut lines = String::new();
    let mut values = Vec::new();
    for (dir, error) in &damaged {
        lines.push_str(&format!("damaged  {error}\n"));
        values.push(json!({ "dir": dir, "sound": false, "problem": error.to_string() }));
    }
    for template in &templates {
        let differences = store.verify(template)?;
        sound &= differences.is_empty();
        lines.push_str(&text::verified(template, &differences));
        let manifest = &template.manifest;
        values.push(json!({
            "name": manifest.name, "id": manifest.id, "dir": template.dir,
            "sound": differences.is_empty(), "differences": differences,
        }));
    }
    print(&if json { line(&Value::Array(values)) } else { lines })?;
    Ok(if sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn clear(store: &TemplateStore, dry_run: bool, json: bool) -> Result<ExitCode> {
    let removals = if store.dir().is_dir() {
        let _lock = store.lock()?;
        gc::collect(store, dry_run)?
    } else {
        Vec::new()
    };
    print(&if json {
        let bytes: u64 = removals.iter().map(|removal| removal.bytes).sum();
        line(&json!({ "dry_run": dry_run, "removed": removals, "bytes": bytes }))
    } else {
        text::removals(&removals, dry_run)
    })
}

/// What `list` and `build` say of an image.
fn summary(store: &TemplateStore, template: &Template) -> Value {
    let manifest = &template.manifest;
    json!({
        "id": manifest.id, "name": manifest.name, "shape": manifest.shape, "vmid": manifest.vmid, "current": template.current,
        "suite": manifest.suite, "kernel": manifest.kernel.version, "runner_version": manifest.runner.version,
        "runner_sha256": manifest.runner.sha256, "created": manifest.created, "dir": template.dir,
        "bytes_on_disk": gc::bytes_on_disk(&template.dir), "in_use": store.in_use(&template.dir).ok(),
    })
}

/// The manifest, and where it was found.
fn describe(template: &Template) -> Value {
    let mut value = json!(template.manifest);
    value["dir"] = json!(template.dir);
    value["current"] = json!(template.current);
    value
}

fn line(value: &Value) -> String {
    format!("{value:#}\n")
}

fn print(text: &str) -> Result<ExitCode> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .during("write to", "stdout".as_ref())?;
    Ok(ExitCode::SUCCESS)
}
