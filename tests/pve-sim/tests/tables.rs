//! The hand-written tables against the schema of genuine releases, which is not ours to copy. Say where it is with
//! `AGENTLAB_PVE_SCHEMA` and run the ignored tests.

use std::collections::BTreeMap;

use pve_sim::Version;
use pve_sim::properties::formats;
use pve_sim::schema::{Kind, Method, Parameter, methods};
use serde_json::Value;

struct Schema {
    definitions: Vec<Value>,
    methods: BTreeMap<String, Value>,
}

impl Schema {
    fn of(version: Version) -> Self {
        let path = std::env::var("AGENTLAB_PVE_SCHEMA").expect("AGENTLAB_PVE_SCHEMA names no file");
        let mut whole: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let methods = whole["api"][version.text()].take();
        Self {
            definitions: whole["defs"].as_array().unwrap().clone(),
            methods: serde_json::from_value(methods).unwrap(),
        }
    }

    /// A value with every reference followed.
    fn whole(&self, value: &Value) -> Value {
        match value {
            Value::Object(fields) if fields.len() == 1 && fields.contains_key("$d") => {
                let at = usize::try_from(fields["$d"].as_u64().unwrap()).unwrap();
                self.whole(&self.definitions[at])
            }
            Value::Object(fields) => {
                let fields = fields.iter().map(|(key, value)| (key.clone(), self.whole(value)));
                Value::Object(fields.collect())
            }
            Value::Array(items) => items.iter().map(|item| self.whole(item)).collect(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
        }
    }
}

fn type_of(kind: &Kind) -> &'static str {
    match kind {
        Kind::Integer(..) => "integer",
        Kind::Number(..) => "number",
        Kind::Boolean => "boolean",
        Kind::List => "array",
        Kind::Text(..) | Kind::Enumeration(_) | Kind::Format(_) => "string",
    }
}

fn compare(method: &Method, genuine: &Value, version: Version, found: &mut Vec<String>) {
    let name = &method.name;
    if method.protected != (genuine["protected"] == 1) {
        found.push(format!("{name}: protected {}", genuine["protected"]));
    }
    let empty = serde_json::Map::new();
    let properties = genuine["parameters"]["properties"].as_object().unwrap_or(&empty);
    for own in method
        .parameters
        .iter()
        .filter(|own| own.only.is_none_or(|only| only == version))
    {
        let Some(property) = properties.get(&own.name) else {
            found.push(format!("{name}: {} is not genuine", own.name));
            continue;
        };
        let is_vmid = own.kind == Kind::Format("vmid".into());
        let is = if is_vmid { "integer" } else { type_of(&own.kind) };
        if property["type"] != is {
            found.push(format!(
                "{name}: {} is {is}, genuine {}",
                own.name, property["type"]
            ));
        }
        // A variable of the path is always there.
        let in_path = name.contains(&format!("{{{}}}", own.name));
        if !in_path && own.optional != (property["optional"] == 1) {
            found.push(format!("{name}: {} optional {}", own.name, property["optional"]));
        }
        if own.requires.as_deref() != property["requires"].as_str() {
            found.push(format!("{name}: {} requires {}", own.name, property["requires"]));
        }
        match &own.kind {
            Kind::Enumeration(words) => {
                if property["enum"] != serde_json::json!(words) {
                    found.push(format!("{name}: {} one of {}", own.name, property["enum"]));
                }
            }
            Kind::Integer(least, most) if !is_vmid => {
                let bound = |key: &str, default: i64| {
                    let text = property[key].as_str().and_then(|text| text.parse().ok());
                    text.or(property[key].as_i64()).unwrap_or(default)
                };
                if (*least, *most) != (bound("minimum", i64::MIN), bound("maximum", i64::MAX)) {
                    found.push(format!("{name}: {} has other bounds", own.name));
                }
            }
            Kind::Text(_, most) => {
                let genuine = property["maxLength"]
                    .as_u64()
                    .map_or(usize::MAX, |most| usize::try_from(most).unwrap());
                if *most < genuine {
                    found.push(format!("{name}: {} at most {genuine}", own.name));
                }
            }
            Kind::Integer(..) | Kind::Number(..) | Kind::Boolean | Kind::List | Kind::Format(_) => {}
        }
    }
    for property in properties.keys() {
        let known = |own: &&Parameter| own.only.is_none_or(|only| only == version);
        if !method
            .parameters
            .iter()
            .filter(known)
            .any(|own| own.name == *property)
        {
            found.push(format!("{name}: {property} is missing"));
        }
    }
    permission(method, genuine, version, found);
}

/// Plain rows are compared; what is an expression has code of its own.
fn permission(method: &Method, genuine: &Value, version: Version, found: &mut Vec<String>) {
    let check = &genuine["permissions"]["check"];
    let own = &method.permission;
    if !own.starts_with('/') {
        if own == "all" && check[0] == "perm" && genuine["permissions"]["user"] != "all" {
            found.push(format!("{}: genuine permission {check}", method.name));
        }
        return;
    }
    if check[0] != "perm" {
        return;
    }
    let release = if version == Version::V8 { "8:" } else { "9:" };
    let mut words = own.split_whitespace();
    let path = words.next().unwrap();
    let privileges: Vec<&str> = words
        .filter(|word| !word.contains(':') || word.starts_with(release))
        .flat_map(|word| word.trim_start_matches(release).split('|'))
        .collect();
    if check[1] != path || check[2] != serde_json::json!(privileges) {
        found.push(format!("{}: genuine permission {check}", method.name));
    }
}

fn agree(version: Version) {
    let schema = Schema::of(version);
    let mut found = Vec::new();
    for method in methods() {
        match schema.methods.get(&method.name) {
            Some(genuine) => compare(method, &schema.whole(genuine), version, &mut found),
            None => found.push(format!("{} is not genuine", method.name)),
        }
    }
    properties_agree(&schema, version, &mut found);
    assert!(found.is_empty(), "{found:#?}");
}

/// Keys that hold several properties, and what those are.
fn properties_agree(schema: &Schema, version: Version, found: &mut Vec<String>) {
    let create = schema.whole(&schema.methods["POST /nodes/{node}/qemu"]);
    let keys = &create["parameters"]["properties"];
    for (name, key) in [
        ("net", "net[n]"),
        ("drive", "scsi[n]"),
        ("agent", "agent"),
        ("memory", "memory"),
    ] {
        let genuine = keys[key]["format"].as_object().unwrap();
        let format = formats().iter().find(|format| format.name == name).unwrap();
        let is_known = |own: &&Parameter| own.only.is_none_or(|only| only == version);
        let own: BTreeMap<&str, &Parameter> = format
            .parameters
            .iter()
            .filter(is_known)
            .map(|own| (own.name.as_str(), own))
            .collect();
        for (key, property) in genuine {
            let Some(own) = own.get(key.as_str()) else {
                found.push(format!("{name}: {key} is missing"));
                continue;
            };
            let is_alias = property.get("alias").is_some();
            if !is_alias && property["type"] != type_of(&own.kind) {
                found.push(format!("{name}: {key} is genuine {}", property["type"]));
            }
            if let (Kind::Enumeration(words), Some(genuine)) = (&own.kind, property.get("enum"))
                && *genuine != serde_json::json!(words)
            {
                found.push(format!("{name}: {key} one of {genuine}"));
            }
            let is_default = format.default_key.as_deref() == Some(key);
            if is_default != (property["default_key"] == 1) {
                found.push(format!("{name}: {key} default {}", property["default_key"]));
            }
        }
        let strange = own.keys().filter(|key| !genuine.contains_key(**key));
        found.extend(strange.map(|key| format!("{name}: {key} is not genuine")));
    }
}

#[test]
#[ignore = "needs the schema of genuine releases: AGENTLAB_PVE_SCHEMA"]
fn the_tables_agree_with_release_8() {
    agree(Version::V8);
}

#[test]
#[ignore = "needs the schema of genuine releases: AGENTLAB_PVE_SCHEMA"]
fn the_tables_agree_with_release_9() {
    agree(Version::V9);
}
