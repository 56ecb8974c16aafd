//! The methods themselves, one file per noun.

mod accounts;
mod agent;
pub(crate) mod clone;
mod cluster;
mod config;
mod create;
mod destroy;
mod drive;
mod firewall;
mod imports;
mod may;
mod plug;
mod pools;
pub(crate) mod power;
pub(crate) mod resources;
mod snapshots;
mod status;
mod storages;
pub(crate) mod tasks;
mod template;

use std::sync::Arc;

use serde_json::json;

use crate::call::Call;
use crate::wire::{Answer, Refusal};

/// Answers a call that is allowed and well formed.
pub(crate) async fn perform(call: Arc<Call>) -> Answer {
    let call = &*call;
    match call.method.name.as_str() {
        "POST /nodes/{node}/qemu" => create::create(call),
        "DELETE /nodes/{node}/qemu/{vmid}" => destroy::destroy(call),
        "PUT /nodes/{node}/qemu/{vmid}/config" => config::put(call).await,
        "POST /nodes/{node}/qemu/{vmid}/config" => config::post(call),
        "POST /nodes/{node}/qemu/{vmid}/clone" => clone::clone(call),
        "POST /nodes/{node}/qemu/{vmid}/template" => template::convert(call),
        "PUT /nodes/{node}/qemu/{vmid}/resize" => drive::resize(call),
        "PUT /nodes/{node}/qemu/{vmid}/unlink" => config::unlink(call).await,
        "POST /nodes/{node}/qemu/{vmid}/move_disk" => drive::relocate(call),
        "POST /nodes/{node}/storage/{storage}/content" => storages::allocate(call).await,
        "POST /nodes/{node}/storage/{storage}/upload" => imports::upload(call),
        "POST /nodes/{node}/storage/{storage}/download-url" => imports::download(call),
        "POST /nodes/{node}/qemu/{vmid}/agent/exec" => agent::exec(call).await,
        "PUT /nodes/{node}/qemu/{vmid}/cloudinit" => Ok(json!(null)),
        "PUT /nodes/{node}/qemu/{vmid}/firewall/options" => firewall::change(call),
        "POST /nodes/{node}/qemu/{vmid}/firewall/rules" => firewall::add_rule(call),
        "DELETE /nodes/{node}/qemu/{vmid}/firewall/rules/{pos}" => firewall::remove_rule(call),
        name if name.contains("/agent/") => agent::ask(call).await,
        name if name.contains("/status/") => power::perform(call),
        name if name.contains("/snapshot") => snapshots::perform(call),
        name if name.contains("/tasks") => tasks::perform(call),
        name if name.contains("/storage") => storages::perform(call),
        name if name.contains(" /pools") => pools::perform(call),
        name if name.contains(" /access") => accounts::perform(call),
        name if name.contains("/firewall") => firewall::perform(call),
        name if name.contains("/qemu") => status::perform(call),
        _ => cluster::perform(call),
    }
}

/// A method that is in the table and has no code: an oversight of ours.
fn unanswered(call: &Call) -> Answer {
    Err(Refusal::NotImplemented(format!(
        "Method '{}' not implemented",
        call.method.name
    )))
}
