//! `agentlab status`.

use std::collections::BTreeMap;

use crate::output::{Fields, ago, size, time};
use crate::{CommandResult, Context, ExitStatus};

pub(crate) async fn run(context: &Context) -> CommandResult {
    let status = context.client.status().await?;
    if context.printer.json() {
        context.printer.document(&status)?;
        return Ok(ExitStatus::Success);
    }
    let backend = &status.backend;
    let accelerator = backend
        .accelerator
        .as_ref()
        .map(|name| match &backend.accelerator_reason {
            Some(reason) => format!("{name} ({reason})"),
            None => name.clone(),
        });
    let templates = backend
        .templates
        .iter()
        .map(|one| {
            format!(
                "{} {} {} (runner {})",
                one.vmid,
                one.name,
                short(&one.id),
                one.runner_version
            )
        })
        .collect::<Vec<_>>()
        .join("\n");
    let mut fields = Fields::default();
    fields
        .add(
            "daemon",
            format!(
                "{}, up since {} ({})",
                status.version,
                time(status.started_at),
                ago(status.started_at)
            ),
        )
        .add("back end", format!("{} {}", backend.kind, backend.version))
        .add_some("accelerator", accelerator)
        .add(
            "templates",
            if templates.is_empty() {
                "none: `agentlab template build` makes one"
            } else {
                &templates
            },
        )
        .add("sandboxes", counts(&status.sandboxes))
        .add("jobs", counts(&status.jobs))
        .add("artifacts", format!("{} free", size(status.artifact_free_bytes)));
    for alarm in &status.alarms {
        fields.add("alarm", alarm);
    }
    context.printer.write(&fields.render())?;
    Ok(ExitStatus::Success)
}

fn counts(states: &BTreeMap<String, u64>) -> String {
    if states.is_empty() {
        return "none".to_owned();
    }
    states
        .iter()
        .map(|(state, count)| format!("{count} {state}"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
