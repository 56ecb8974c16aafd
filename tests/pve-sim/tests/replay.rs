//! What genuine nodes were asked is asked of the stand-in, in the same order, and the answers are compared: status,
//! reason phrase, message and the shape of the data, with every value that is not a measurement.
//!
//! `differences` lists what the stand-in does not reproduce, and why. An entry that no longer differs fails
//! the test as a difference without an entry does.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pve_sim::{Guests, PveSim, Request, Scale, Setup, Version};
use serde_json::Value;

const DIFFERENCES: &str = include_str!("differences");
/// Values that are measured, counted or chosen anew each time.
const MEASURED: &[&str] = &[
    "avail",
    "cpu",
    "ctime",
    "disk",
    "ip-address",
    "mem",
    "netin",
    "netout",
    "pid",
    "pstart",
    "snaptime",
    "ssl_fingerprint",
    "starttime",
    "uptime",
    "used",
    "used_fraction",
];
/// Values that name something new, and are sent back later.
const NAMES: &[&str] = &[
    "data",
    "digest",
    "hardware-address",
    "net0",
    "smbios1",
    "upid",
    "value",
    "vmgenid",
];

struct Exchange {
    note: String,
    client: bool,
    request: Value,
    status: u64,
    reason: String,
    typed: bool,
    body: Value,
}

fn recorded(version: Version) -> Vec<Exchange> {
    let text = match version {
        Version::V8 => include_str!("../../../host/backend/tests/recorded/pve-8.4.21.jsonl"),
        Version::V9 => include_str!("../../../host/backend/tests/recorded/pve-9.2.11.jsonl"),
    };
    text.lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            let response = &line["response"];
            Exchange {
                note: line["note"].as_str().unwrap().to_owned(),
                client: line["as"] == "least-privilege token",
                request: line["request"].clone(),
                status: response["status"].as_u64().unwrap(),
                reason: response["reason"].as_str().unwrap().to_owned(),
                typed: !response["content_type"].is_null(),
                body: response["body"].clone(),
            }
        })
        .collect()
}

/// The stand-in as the recorded node was: its template, volumes, pool and groups are read off the recording.
fn as_recorded(version: Version, exchanges: &[Exchange]) -> PveSim {
    let answer = |note: &str| {
        &exchanges
            .iter()
            .find(|exchange| exchange.note == note)
            .unwrap()
            .body["data"]
    };
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut setup = Setup::lab(version, Scale(1.0));
    setup.template = answer("template config")
        .as_object()
        .unwrap()
        .iter()
        .filter(|(key, _)| !matches!(key.as_str(), "digest" | "scsi0"))
        .map(|(key, value)| (key.clone(), text(value)))
        .collect();
    setup.volumes = answer("images")
        .as_array()
        .unwrap()
        .iter()
        .filter(|volume| volume["vmid"] != 9000)
        .map(|volume| {
            let owner = volume["vmid"].as_u64().unwrap().try_into().unwrap();
            (text(&volume["volid"]), owner, volume["size"].as_u64().unwrap())
        })
        .collect();
    setup.pool.1 = answer("pools")[0].get("comment").map(&text);
    let groups = answer("security groups").as_array().unwrap().iter();
    setup.groups = groups
        .map(|group| (text(&group["group"]), group.get("comment").map(&text)))
        .collect();
    setup
        .privileges
        .retain(|privilege| privilege != "VM.Config.HWType");
    setup.bridges = vec!["vmbr0".into()];
    setup.may_delete_volumes = false;
    setup.guests = Guests {
        boot: Duration::from_secs(6),
        ipv6: version == Version::V8,
        docker: false,
    };
    setup.in_process()
}

fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes()
        .map(|byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

fn form(parameters: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let pairs = parameters.as_object().into_iter().flatten();
    pairs
        .map(|(key, value)| format!("{}={}", encode(key), encode(&text(value))))
        .collect::<Vec<_>>()
        .join("&")
}

fn request(exchange: &Exchange, sim: &PveSim, renamed: &BTreeMap<String, String>) -> Request {
    let mut text = exchange.request.to_string();
    for (recorded, own) in renamed {
        text = text.replace(recorded, own);
    }
    let asked: Value = serde_json::from_str(&text).unwrap();
    let token = if exchange.client {
        sim.token()
    } else {
        sim.root_token()
    };
    let mut request = Request {
        method: asked["method"].as_str().unwrap().to_owned(),
        path: asked["path"].as_str().unwrap().to_owned(),
        authorization: match exchange.note.as_str() {
            "no token" => None,
            "bad secret (3 s)" => Some("PVEAPIToken=root@pam!root=wrong".to_owned()),
            _ => Some(format!("PVEAPIToken={token}")),
        },
        ..Request::default()
    };
    let parameters = &asked["params"];
    if matches!(request.method.as_str(), "GET" | "DELETE") {
        request.query = form(parameters);
    } else if asked["json"] == true {
        request.content_type = Some("application/json".to_owned());
        request.body = parameters.to_string().into();
    } else {
        request.content_type = Some("application/x-www-form-urlencoded".to_owned());
        request.body = form(parameters).into();
    }
    request
}

/// Lists whose order means nothing, in one order.
fn sorted(items: &[Value]) -> Vec<&Value> {
    let mut items: Vec<&Value> = items.iter().collect();
    let name = |item: &Value| {
        let found = ["n", "key", "volid", "storage", "id", "name", "group", "poolid"]
            .iter()
            .find_map(|key| item.get(key));
        found.map(Value::to_string).unwrap_or_default()
    };
    items.sort_by_key(|item| name(item));
    items
}

fn words(text: &str) -> BTreeSet<&str> {
    text.split(',').collect()
}

/// Every place where two answers differ; names that are new each time are remembered.
fn compare(
    at: &str,
    genuine: &Value,
    own: &Value,
    renamed: &mut BTreeMap<String, String>,
    found: &mut Vec<String>,
) {
    let key = at.rsplit('.').next().unwrap();
    match (genuine, own) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                match (a.get(key), b.get(key)) {
                    (Some(x), Some(y)) => compare(&format!("{at}.{key}"), x, y, renamed, found),
                    (Some(x), None) => found.push(format!("{at}.{key} is missing, genuine {x}")),
                    (None, Some(y)) => found.push(format!("{at}.{key} is not genuine: {y}")),
                    (None, None) => {}
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (x, y) in sorted(a).into_iter().zip(sorted(b)) {
                compare(at, x, y, renamed, found);
            }
        }
        (Value::Number(_), Value::Number(_)) if MEASURED.contains(&key) || at.contains(".statistics.") => {}
        (Value::String(_), Value::String(_)) if MEASURED.contains(&key) => {}
        (Value::String(x), Value::String(y)) if key == "content" => {
            if words(x) != words(y) {
                found.push(format!("{at}: genuine {x}, own {y}"));
            }
        }
        (Value::String(x), Value::String(y)) if NAMES.contains(&key) && is_name(x) => {
            rename(at, x, y, renamed, found);
        }
        (x, y) if x == y => {}
        (x, y) => found.push(format!("{at}: genuine {x}, own {y}")),
    }
}

/// Whether a value holds something chosen anew each time: a task, an address, an identifier, a digest.
fn is_name(text: &str) -> bool {
    matches!(text.len(), 17 | 36 | 40)
        || ["UPID:", "uuid=", "virtio="]
            .iter()
            .any(|start| text.starts_with(start))
}

/// Two values that may differ in hexadecimal digits only, part by part.
fn rename(
    at: &str,
    genuine: &str,
    own: &str,
    renamed: &mut BTreeMap<String, String>,
    found: &mut Vec<String>,
) {
    let shape = |text: &str| -> String {
        text.chars()
            .map(|c| if c.is_ascii_hexdigit() { 'x' } else { c })
            .collect()
    };
    if shape(genuine) != shape(own) {
        found.push(format!("{at}: genuine {genuine}, own {own}"));
        return;
    }
    let parts = |text: &str| -> Vec<String> {
        let whole = text.starts_with("UPID:");
        text.split(|c| !whole && (c == '=' || c == ','))
            .map(str::to_owned)
            .collect()
    };
    for (genuine, own) in parts(genuine).into_iter().zip(parts(own)) {
        if genuine.len() > 16 && genuine != own {
            renamed.insert(genuine, own);
        }
    }
}

async fn settle(sim: &PveSim, request: &Request, note: &str) -> pve_sim::Response {
    for _ in 0..600 {
        let response = sim.answer(request.clone()).await;
        let body = response.body.as_ref();
        let waits = match note {
            "agent up" => response.status != 200,
            _ if note.starts_with("end of task") => {
                body.is_some_and(|body| body["data"]["status"] == "running")
            }
            _ => false,
        };
        if !waits {
            return response;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{note} never came");
}

async fn replay(version: Version) -> BTreeMap<String, Vec<String>> {
    let exchanges = recorded(version);
    assert_eq!(exchanges.len(), 108);
    let sim = as_recorded(version, &exchanges);
    let mut renamed = BTreeMap::new();
    let mut differences = BTreeMap::new();
    for exchange in &exchanges {
        let request = request(exchange, &sim, &renamed);
        let own = settle(&sim, &request, &exchange.note).await;
        let mut found = Vec::new();
        if u64::from(own.status) != exchange.status {
            found.push(format!("status: genuine {}, own {}", exchange.status, own.status));
        }
        if own.reason != exchange.reason {
            found.push(format!("reason: genuine {}, own {}", exchange.reason, own.reason));
        }
        assert_eq!(
            own.body.is_some(),
            exchange.typed,
            "{}: content type",
            exchange.note
        );
        if let Some(body) = &own.body {
            compare("", &exchange.body, body, &mut renamed, &mut found);
        }
        if !found.is_empty() {
            let twice = differences.insert(exchange.note.clone(), found);
            assert!(twice.is_none(), "{} is recorded twice", exchange.note);
        }
    }
    differences
}

fn listed(version: Version) -> BTreeSet<String> {
    DIFFERENCES
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| {
            let parts: Vec<&str> = line.split('|').map(str::trim).collect();
            assert!(
                parts.len() == 3 && !parts[2].is_empty(),
                "`{line}` says no reason"
            );
            (parts[0], parts[1].to_owned())
        })
        .filter(|(release, _)| *release == version.release())
        .map(|(_, note)| note)
        .collect()
}

async fn answers_as_recorded(version: Version) {
    let differences = replay(version).await;
    let listed = listed(version);
    let unlisted: Vec<_> = differences
        .iter()
        .filter(|(note, _)| !listed.contains(*note))
        .collect();
    let gone: Vec<_> = listed
        .iter()
        .filter(|note| !differences.contains_key(*note))
        .collect();
    assert!(
        unlisted.is_empty(),
        "answers that are not the recorded ones: {unlisted:#?}"
    );
    assert!(
        gone.is_empty(),
        "reproduced by now, take it off the list: {gone:#?}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_108_exchanges_of_release_8_are_answered_as_recorded() {
    answers_as_recorded(Version::V8).await;
}

#[tokio::test(start_paused = true)]
async fn the_108_exchanges_of_release_9_are_answered_as_recorded() {
    answers_as_recorded(Version::V9).await;
}
