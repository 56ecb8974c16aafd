//! Users, tokens, roles and access lists.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::unanswered;
use crate::access::{Held, Identity, Token, User, is_path};
use crate::call::{Call, NOTHING};
use crate::wire::{Answer, Refusal};
use crate::world::World;

pub(crate) fn perform(call: &Call) -> Answer {
    match call.method.name.as_str() {
        "GET /access/permissions" => permissions(call),
        "GET /access/acl" => Ok(entries(call)),
        "PUT /access/acl" => change_entries(call),
        "GET /access/roles" => Ok(roles(&call.world())),
        "GET /access/roles/{roleid}" => show_role(call),
        "POST /access/roles" => create_role(call),
        "PUT /access/roles/{roleid}" => change_role(call),
        "DELETE /access/roles/{roleid}" => delete_role(call),
        "GET /access/users" => Ok(users(call)),
        "GET /access/users/{userid}" => show_user(call),
        "POST /access/users" => create_user(call),
        "PUT /access/users/{userid}" => change_user(call),
        "DELETE /access/users/{userid}" => delete_user(call),
        "GET /access/users/{userid}/token" => tokens(call),
        "GET /access/users/{userid}/token/{tokenid}" => show_token(call),
        "POST /access/users/{userid}/token/{tokenid}" => create_token(call),
        "PUT /access/users/{userid}/token/{tokenid}" => change_token(call),
        "DELETE /access/users/{userid}/token/{tokenid}" => delete_token(call),
        _ => unanswered(call),
    }
}

fn permissions(call: &Call) -> Answer {
    let wanted = call.text("userid").unwrap_or_else(|| call.who.full());
    let who = match wanted.split_once('!') {
        Some((user, token)) => Identity {
            user: user.to_owned(),
            token: Some(token.to_owned()),
        },
        None => Identity {
            user: wanted.clone(),
            token: None,
        },
    };
    if who != call.who {
        call.require("/access", &["Sys.Audit"])?;
    }
    let world = call.world();
    let pools = |path: &str| world.pool_of_path(path);
    let members: Vec<String> = world
        .pools
        .values()
        .flat_map(|pool| {
            let vms = pool.vms.iter().map(|vmid| format!("/vms/{vmid}"));
            vms.chain(pool.storages.iter().map(|storage| format!("/storage/{storage}")))
        })
        .collect();
    let held = match call.text("path") {
        Some(path) => BTreeMap::from([(path.clone(), world.access.held(&who, &path, &pools))]),
        None => world.access.effective(&who, &members, &pools),
    };
    Ok(held
        .iter()
        .map(|(path, held)| (path.clone(), numbers(held)))
        .collect::<Map<_, _>>()
        .into())
}

fn numbers(held: &Held) -> Value {
    held.iter()
        .map(|(privilege, below)| (privilege.clone(), json!(u8::from(*below))))
        .collect::<Map<_, _>>()
        .into()
}

fn entries(call: &Call) -> Value {
    let world = call.world();
    world
        .access
        .entries
        .iter()
        .filter(|((path, _, _), _)| world.may(&call.who, path, "Permissions.Modify"))
        .map(|((path, who, role), below)| {
            json!({
                "path": path, "ugid": who, "roleid": role, "propagate": u8::from(*below),
                "type": if who.contains('!') { "token" } else { "user" },
            })
        })
        .collect()
}

fn change_entries(call: &Call) -> Answer {
    let path = call.need("path");
    if !is_path(&path) {
        return Err(Refusal::parameter("path", "invalid ACL path"));
    }
    let mut world = call.world();
    let below = call
        .text("propagate")
        .is_none_or(|text| crate::schema::flag(&text) != Some(false));
    let list = |name| call.text(name).unwrap_or_default();
    let names: Vec<String> = [list("users"), list("tokens")]
        .iter()
        .flat_map(|list| list.split([',', ';', ' ']))
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect();
    for role in list("roles").split([',', ';', ' ']) {
        if !world.access.roles.contains_key(role) {
            return Err(Refusal::died(format!(
                "update ACL failed: role '{role}' does not exist"
            )));
        }
        for name in &names {
            known(&world, name)?;
            let entry = (path.clone(), name.clone(), role.to_owned());
            if call.flag("delete") {
                world.access.entries.remove(&entry);
            } else {
                world.access.entries.insert(entry, below);
            }
        }
    }
    Ok(NOTHING)
}

fn known(world: &World, name: &str) -> Result<(), Refusal> {
    let (user, token) = match name.split_once('!') {
        Some((user, token)) => (user, Some(token)),
        None => (name, None),
    };
    let found = world.access.users.get(user);
    let there = found.is_some_and(|found| token.is_none_or(|token| found.tokens.contains_key(token)));
    if there {
        return Ok(());
    }
    let kind = if token.is_some() { "token" } else { "user" };
    Err(Refusal::died(format!(
        "update ACL failed: no such {kind} ('{name}')"
    )))
}

fn roles(world: &World) -> Value {
    world
        .access
        .roles
        .iter()
        .map(|(name, privileges)| {
            let privileges: Vec<&str> = privileges.iter().map(String::as_str).collect();
            let special = is_special(name);
            json!({ "roleid": name, "privs": privileges.join(","), "special": u8::from(special) })
        })
        .collect()
}

fn is_special(name: &str) -> bool {
    name.starts_with("PVE") || matches!(name, "Administrator" | "NoAccess")
}

fn missing_role(name: &str) -> Refusal {
    Refusal::died(format!("role '{name}' does not exist"))
}

fn show_role(call: &Call) -> Answer {
    let world = call.world();
    let name = call.need("roleid");
    let role = world.access.roles.get(&name).ok_or_else(|| missing_role(&name))?;
    Ok(role
        .iter()
        .map(|privilege| (privilege.clone(), json!(1)))
        .collect::<Map<_, _>>()
        .into())
}

fn privileges(call: &Call) -> Result<BTreeSet<String>, Refusal> {
    let world = call.world();
    let mut wanted = BTreeSet::new();
    for name in call
        .text("privs")
        .unwrap_or_default()
        .split([',', ' ', ';'])
        .filter(|name| !name.is_empty())
    {
        if !world.access.privileges().any(|known| known == name) {
            return Err(Refusal::parameter(
                "privs",
                format!("invalid format - invalid privilege '{name}'\n"),
            ));
        }
        wanted.insert(name.to_owned());
    }
    Ok(wanted)
}

fn create_role(call: &Call) -> Answer {
    let name = call.need("roleid");
    let wanted = privileges(call)?;
    if name.to_ascii_lowercase().starts_with("pve") {
        return Err(Refusal::parameter(
            "roleid",
            "cannot use role ID starting with the (case-insensitive) 'PVE' namespace",
        ));
    }
    let mut world = call.world();
    if world.access.roles.contains_key(&name) {
        return Err(Refusal::died(format!(
            "create role failed: role '{name}' already exists"
        )));
    }
    world.access.roles.insert(name, wanted);
    Ok(NOTHING)
}

fn change_role(call: &Call) -> Answer {
    let name = call.need("roleid");
    let wanted = privileges(call)?;
    let mut world = call.world();
    if is_special(&name) {
        return Err(Refusal::died(format!(
            "auto-generated role '{name}' cannot be modified"
        )));
    }
    let role = world
        .access
        .roles
        .get_mut(&name)
        .ok_or_else(|| missing_role(&name))?;
    if !call.flag("append") {
        role.clear();
    }
    role.extend(wanted);
    Ok(NOTHING)
}

fn delete_role(call: &Call) -> Answer {
    let name = call.need("roleid");
    let mut world = call.world();
    if is_special(&name) {
        return Err(Refusal::died(format!(
            "auto-generated role '{name}' cannot be deleted"
        )));
    }
    world
        .access
        .roles
        .remove(&name)
        .ok_or_else(|| missing_role(&name))?;
    world.access.entries.retain(|(_, _, role), _| *role != name);
    Ok(NOTHING)
}

fn missing_user(name: &str) -> Refusal {
    Refusal::died(format!("no such user ('{name}')"))
}

fn user_fields(name: &str, user: &User) -> Value {
    let mut entry = json!({ "userid": name, "enable": u8::from(user.enabled), "expire": user.expire });
    if let Some(comment) = &user.comment {
        entry["comment"] = json!(comment);
    }
    if let Some((_, realm)) = name.split_once('@') {
        entry["realm-type"] = json!(realm);
    }
    entry
}

fn users(call: &Call) -> Value {
    let world = call.world();
    let all =
        world.may(&call.who, "/access/groups", "User.Modify") || world.may(&call.who, "/access", "Sys.Audit");
    world
        .access
        .users
        .iter()
        .filter(|(name, _)| all || **name == call.who.user)
        .map(|(name, user)| user_fields(name, user))
        .collect()
}

fn show_user(call: &Call) -> Answer {
    let world = call.world();
    let name = call.need("userid");
    let user = world.access.users.get(&name).ok_or_else(|| missing_user(&name))?;
    Ok(user_fields(&name, user))
}

fn create_user(call: &Call) -> Answer {
    let mut world = call.world();
    let name = call.need("userid");
    if world.access.users.contains_key(&name) {
        return Err(Refusal::died(format!(
            "create user failed: user '{name}' already exists"
        )));
    }
    let user = world.access.add_user(&name);
    user.comment = call.text("comment");
    user.expire = call.number("expire").unwrap_or(0);
    user.enabled = call
        .text("enable")
        .is_none_or(|text| crate::schema::flag(&text) != Some(false));
    Ok(NOTHING)
}

fn change_user(call: &Call) -> Answer {
    let mut world = call.world();
    let name = call.need("userid");
    let user = world
        .access
        .users
        .get_mut(&name)
        .ok_or_else(|| missing_user(&name))?;
    if let Some(enable) = call.text("enable") {
        user.enabled = crate::schema::flag(&enable) == Some(true);
    }
    if let Some(expire) = call.number("expire") {
        user.expire = expire;
    }
    if let Some(comment) = call.text("comment") {
        user.comment = Some(comment);
    }
    Ok(NOTHING)
}

fn delete_user(call: &Call) -> Answer {
    let mut world = call.world();
    let name = call.need("userid");
    world
        .access
        .users
        .remove(&name)
        .ok_or_else(|| missing_user(&name))?;
    let token = format!("{name}!");
    world
        .access
        .entries
        .retain(|(_, who, _), _| *who != name && !who.starts_with(&token));
    Ok(NOTHING)
}

fn token_fields(name: &str, token: &Token) -> Value {
    let mut entry =
        json!({ "tokenid": name, "privsep": u8::from(token.privsep).to_string(), "expire": token.expire });
    if let Some(comment) = &token.comment {
        entry["comment"] = json!(comment);
    }
    entry
}

fn tokens(call: &Call) -> Answer {
    let world = call.world();
    let name = call.need("userid");
    let user = world.access.users.get(&name).ok_or_else(|| missing_user(&name))?;
    Ok(user
        .tokens
        .iter()
        .map(|(name, token)| token_fields(name, token))
        .collect())
}

fn no_token(name: &str) -> Refusal {
    Refusal::died(format!("no such token '{name}' for user"))
}

fn show_token(call: &Call) -> Answer {
    let world = call.world();
    let (user, name) = (call.need("userid"), call.need("tokenid"));
    let token = world
        .access
        .users
        .get(&user)
        .and_then(|user| user.tokens.get(&name));
    let mut fields = token_fields(&name, token.ok_or_else(|| no_token(&name))?);
    if let Some(fields) = fields.as_object_mut() {
        fields.remove("tokenid");
    }
    Ok(fields)
}

fn create_token(call: &Call) -> Answer {
    let mut world = call.world();
    let (name, id) = (call.need("userid"), call.need("tokenid"));
    let secret = world.random.uuid();
    let user = world
        .access
        .users
        .get_mut(&name)
        .ok_or_else(|| missing_user(&name))?;
    if user.tokens.contains_key(&id) {
        return Err(Refusal::parameter("tokenid", "Token already exists."));
    }
    let token = Token {
        secret: secret.clone(),
        privsep: call
            .text("privsep")
            .is_none_or(|text| crate::schema::flag(&text) != Some(false)),
        expire: call.number("expire").unwrap_or(0),
        comment: call.text("comment"),
    };
    let info = json!({ "privsep": u8::from(token.privsep).to_string() });
    user.tokens.insert(id.clone(), token);
    Ok(json!({ "full-tokenid": format!("{name}!{id}"), "info": info, "value": secret }))
}

fn change_token(call: &Call) -> Answer {
    let mut world = call.world();
    let (name, id) = (call.need("userid"), call.need("tokenid"));
    let fresh = world.random.uuid();
    let user = world
        .access
        .users
        .get_mut(&name)
        .ok_or_else(|| missing_user(&name))?;
    let token = user.tokens.get_mut(&id).ok_or_else(|| no_token(&id))?;
    if let Some(expire) = call.number("expire") {
        token.expire = expire;
    }
    if let Some(privsep) = call.text("privsep") {
        token.privsep = crate::schema::flag(&privsep) == Some(true);
    }
    if let Some(comment) = call.text("comment") {
        token.comment = Some(comment);
    }
    let mut fields = token_fields(&id, token);
    if call.flag("regenerate") {
        token.secret.clone_from(&fresh);
        fields["value"] = json!(fresh);
        fields["full-tokenid"] = json!(format!("{name}!{id}"));
    }
    Ok(fields)
}

fn delete_token(call: &Call) -> Answer {
    let mut world = call.world();
    let (name, id) = (call.need("userid"), call.need("tokenid"));
    let user = world
        .access
        .users
        .get_mut(&name)
        .ok_or_else(|| missing_user(&name))?;
    user.tokens.remove(&id).ok_or_else(|| no_token(&id))?;
    let full = format!("{name}!{id}");
    world.access.entries.retain(|(_, who, _), _| *who != full);
    Ok(NOTHING)
}
