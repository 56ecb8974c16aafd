//! The permission column of the method table.

use crate::Version;
use crate::call::Call;
use crate::wire::Refusal;

/// Refuses a call whose caller may not make it, before anything else is looked at.
pub(crate) fn check(call: &Call) -> Result<(), Refusal> {
    match call.method.permission.as_str() {
        "all" => Ok(()),
        "clone" => clone(call),
        "create" => create(call),
        "download" => download(call),
        "acl" => {
            let path = call.need("path");
            call.require(&path, &["Permissions.Modify"])
        }
        "users" | "tokens" => users(call),
        row => on_path(call, row),
    }
}

fn on_path(call: &Call, row: &str) -> Result<(), Refusal> {
    let mut words = row.split_whitespace();
    let path = filled(call, words.next().unwrap_or("/"));
    let own = match call.version {
        Version::V8 => "8:",
        Version::V9 => "9:",
    };
    for word in words {
        let word = match word.split_at_checked(2) {
            Some((release @ ("8:" | "9:"), _)) if release != own => continue,
            Some(("8:" | "9:", rest)) => rest,
            _ => word,
        };
        let any_of: Vec<&str> = word.split('|').collect();
        call.require(&path, &any_of)?;
    }
    Ok(())
}

fn filled(call: &Call, path: &str) -> String {
    path.split('/')
        .map(
            |part| match part.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
                Some(name) => call.need(name),
                None => part.to_owned(),
            },
        )
        .collect::<Vec<_>>()
        .join("/")
}

/// Both sides of an and/or expression fail with the same bare sentence.
fn clone(call: &Call) -> Result<(), Refusal> {
    let world = call.world();
    let may = |path: String, privilege| world.may(&call.who, &path, privilege);
    let source = may(format!("/vms/{}", call.need("vmid")), "VM.Clone");
    let pool = call.text("pool");
    let target = may(format!("/vms/{}", call.need("newid")), "VM.Allocate")
        || pool
            .as_ref()
            .is_some_and(|pool| may(format!("/pool/{pool}"), "VM.Allocate"));
    if !source || !target {
        return Err(Refusal::Forbidden("Permission check failed".into()));
    }
    match pool.filter(|pool| !world.pools.contains_key(pool)) {
        Some(pool) => Err(Refusal::Forbidden(format!("pool '{pool}' does not exist"))),
        None => Ok(()),
    }
}

/// A node that fetches what it is told to can be used to look around in its network.
fn download(call: &Call) -> Result<(), Refusal> {
    let world = call.world();
    let may = |path: &str, privilege| world.may(&call.who, path, privilege);
    let storage = may(
        &format!("/storage/{}", call.need("storage")),
        "Datastore.AllocateTemplate",
    );
    let network = may(&format!("/nodes/{}", call.need("node")), "Sys.AccessNetwork")
        || (may("/", "Sys.Audit") && may("/", "Sys.Modify"));
    if storage && network {
        return Ok(());
    }
    Err(Refusal::Forbidden("Permission check failed".into()))
}

fn create(call: &Call) -> Result<(), Refusal> {
    let world = call.world();
    let on_vm = world.may(&call.who, &format!("/vms/{}", call.need("vmid")), "VM.Allocate");
    let pool = call.text("pool");
    if let Some(pool) = pool.as_ref().filter(|pool| !world.pools.contains_key(*pool)) {
        return Err(Refusal::Forbidden(format!("pool '{pool}' does not exist")));
    }
    let in_pool = pool.is_some_and(|pool| world.may(&call.who, &format!("/pool/{pool}"), "VM.Allocate"));
    if on_vm || in_pool {
        return Ok(());
    }
    Err(Refusal::Forbidden("Permission check failed".into()))
}

/// A token is not its user: it may look after accounts only with the privilege for it.
fn users(call: &Call) -> Result<(), Refusal> {
    if call.who.is_root() || call.who.full() == call.need("userid") {
        return Ok(());
    }
    call.require("/access/groups", &["User.Modify"])
}
