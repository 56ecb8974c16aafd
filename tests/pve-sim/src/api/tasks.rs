//! Worker tasks, looked at and ended.

use serde_json::{Value, json};

use super::unanswered;
use crate::call::{Call, NOTHING};
use crate::task::{Ending, Task, is_upid};
use crate::wire::{Answer, Refusal};
use crate::world::World;

pub(crate) fn perform(call: &Call) -> Answer {
    match call.method.name.as_str() {
        "GET /nodes/{node}/tasks" | "GET /cluster/tasks" => Ok(list(call)),
        "GET /nodes/{node}/tasks/{upid}" => Ok(json!([{ "name": "log" }, { "name": "status" }])),
        "GET /nodes/{node}/tasks/{upid}/status" => {
            let world = call.world();
            Ok(find(call, &world, "Sys.Audit")?.status())
        }
        "GET /nodes/{node}/tasks/{upid}/log" => log(call),
        "DELETE /nodes/{node}/tasks/{upid}" => {
            let world = call.world();
            let task = find(call, &world, "Sys.Modify")?;
            if task.end.is_none() {
                task.signal.set(Ending::Abort);
                call.core.timeline.touch();
            }
            Ok(NOTHING)
        }
        _ => unanswered(call),
    }
}

fn find<'world>(call: &Call, world: &'world World, privilege: &str) -> Result<&'world Task, Refusal> {
    let upid = call.need("upid");
    if !is_upid(&upid) {
        return Err(Refusal::parameter("upid", "unable to parse worker upid"));
    }
    let node = call.node();
    let task = world
        .tasks
        .iter()
        .find(|task| task.upid == upid && task.node == node)
        .ok_or_else(|| Refusal::parameter("upid", "no such task"))?;
    let path = format!("/nodes/{node}");
    if task.who == call.who || world.may(&call.who, &path, privilege) {
        return Ok(task);
    }
    Err(Refusal::Forbidden(format!(
        "Permission check failed ({path}, {privilege})"
    )))
}

fn log(call: &Call) -> Answer {
    let world = call.world();
    let task = find(call, &world, "Sys.Audit")?;
    let number = |name, default| {
        call.number(name)
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or(default)
    };
    let (start, limit) = (number("start", 0), number("limit", 50));
    let limit = if limit == 0 { usize::MAX } else { limit };
    let lines: Vec<Value> = task
        .log
        .iter()
        .enumerate()
        .skip(start)
        .take(limit)
        .map(|(at, line)| json!({ "n": at + 1, "t": line }))
        .collect();
    Ok(json!(lines))
}

/// Whether a total stands beside the data.
pub(crate) fn is_counted(call: &Call) -> bool {
    matches!(
        call.method.name.as_str(),
        "GET /nodes/{node}/tasks" | "GET /nodes/{node}/tasks/{upid}/log"
    )
}

/// How many lines or tasks there are in all.
pub(crate) fn total(call: &Call) -> usize {
    let world = call.world();
    match call.text("upid") {
        Some(upid) => world
            .tasks
            .iter()
            .find(|task| task.upid == upid)
            .map_or(0, |task| task.log.len()),
        None => world.tasks.len(),
    }
}

fn list(call: &Call) -> Value {
    let world = call.world();
    let node = call.text("node");
    let all = node
        .as_ref()
        .is_none_or(|node| world.may(&call.who, &format!("/nodes/{node}"), "Sys.Audit"))
        && world.may(&call.who, "/", "Sys.Audit");
    let source = call.text("source").unwrap_or_else(|| "archive".into());
    let number = |name, default| {
        call.number(name)
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or(default)
    };
    world
        .tasks
        .iter()
        .rev()
        .filter(|task| node.as_ref().is_none_or(|node| task.node == *node))
        .filter(|task| all || task.who == call.who)
        .filter(|task| match source.as_str() {
            "archive" => task.end.is_some(),
            "active" => task.end.is_none(),
            _ => true,
        })
        .filter(|task| call.text("vmid").is_none_or(|vmid| task.id == vmid))
        .filter(|task| call.text("typefilter").is_none_or(|kind| task.kind == kind))
        .filter(|task| call.number("since").is_none_or(|since| task.start >= since))
        .filter(|task| {
            call.text("statusfilter")
                .is_none_or(|wanted| wanted.split(',').any(|wanted| wanted == task.outcome()))
        })
        .skip(number("start", 0))
        .take(number("limit", 50))
        .map(Task::listed)
        .collect()
}
