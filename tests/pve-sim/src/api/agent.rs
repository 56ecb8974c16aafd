//! The guest agent: late, forgetful, and one answer per question.

use std::time::Duration;

use serde_json::{Value, json};

use super::power::is_up;
use super::status::agent_enabled;
use crate::call::Call;
use crate::wire::{Answer, Given, Refusal};
use crate::world::{Run, Vm, World};

/// How long a program that does not exist keeps the front end waiting.
const LOST_ANSWER: Duration = Duration::from_secs(5);
/// What every guest has.
const PROGRAMS: &[&str] = &[
    "/bin/sh",
    "sh",
    "/bin/true",
    "true",
    "/bin/false",
    "false",
    "/bin/echo",
    "echo",
];

/// The machine's run, if its agent can be asked.
fn reach<'world>(call: &Call, world: &'world World) -> Result<&'world Run, Refusal> {
    let vmid = call.vmid();
    let vm = world.vm(&call.node(), vmid)?;
    let run = vm
        .run
        .as_ref()
        .ok_or_else(|| Refusal::died(format!("VM {vmid} is not running")))?;
    if !vm.config.get("agent").is_some_and(|agent| agent_enabled(agent)) {
        return Err(Refusal::died("No QEMU guest agent configured"));
    }
    if run.paused || !is_up(world, run) {
        return Err(Refusal::died("QEMU guest agent is not running"));
    }
    Ok(run)
}

pub(crate) async fn ask(call: &Call) -> Answer {
    let asked = {
        let world = call.world();
        reach(call, &world).map(drop)
    };
    if let Err(refusal) = asked {
        if refusal == Refusal::died("QEMU guest agent is not running") {
            call.core.pass(Duration::from_secs(3)).await;
        }
        return Err(refusal);
    }
    let mut world = call.world();
    match call.method.name.rsplit('/').next().unwrap_or_default() {
        "ping" => Ok(json!({ "result": {} })),
        "network-get-interfaces" => {
            let vm = world.vm(&call.node(), call.vmid())?;
            Ok(json!({ "result": interfaces(&world, vm, call.vmid()) }))
        }
        "get-osinfo" => {
            Ok(json!({ "result": { "id": "debian", "name": "Debian GNU/Linux", "version-id": "12" } }))
        }
        "get-host-name" => {
            let name = world.vm(&call.node(), call.vmid())?.name(call.vmid());
            Ok(json!({ "result": { "host-name": name } }))
        }
        "exec-status" => {
            let pid = call.number("pid").unwrap_or_default();
            let run = world.vm_mut(&call.node(), call.vmid())?.run.as_mut();
            run.and_then(|run| run.executed.remove(&pid))
                .ok_or_else(|| Refusal::died("Agent error: Invalid parameter 'pid'"))
        }
        _ => super::unanswered(call),
    }
}

pub(crate) async fn exec(call: &Call) -> Answer {
    reach(call, &call.world())?;
    let command = match call.given.get("command") {
        Some(Given::Many(words)) => words.clone(),
        Some(Given::One(word)) => vec![word.clone()],
        None => Vec::new(),
    };
    let program = command.first().map(String::as_str).unwrap_or_default();
    if !PROGRAMS.contains(&program) {
        call.core.pass(LOST_ANSWER).await;
        return Err(Refusal::Gateway(596, "Broken pipe"));
    }
    let outcome = outcome(&command);
    let mut world = call.world();
    world.changes_vm(&call.who, call.vmid(), "exec in");
    let run = world.vm_mut(&call.node(), call.vmid())?.run.as_mut();
    let run = run.ok_or_else(|| Refusal::died("QEMU guest agent is not running"))?;
    let pid = 154 + u64::try_from(run.executed.len()).unwrap_or_default();
    run.executed.insert(pid, outcome);
    Ok(json!({ "pid": pid }))
}

/// The little of a shell that tests need: `echo`, its redirection to the other stream, `exit`.
fn outcome(command: &[String]) -> Value {
    let script = match command {
        [_, flag, script] if flag == "-c" => script.clone(),
        [program, rest @ ..] => {
            let name = program.rsplit('/').next().unwrap_or_default();
            match name {
                "false" => "exit 1".to_owned(),
                "echo" => format!("echo {}", rest.join(" ")),
                _ => String::new(),
            }
        }
        [] => String::new(),
    };
    let (mut out, mut err, mut code) = (String::new(), String::new(), 0);
    for statement in script.split(';').map(str::trim) {
        if let Some(text) = statement.strip_prefix("echo ") {
            match text.strip_suffix(">&2") {
                Some(text) => err.push_str(&format!("{}\n", text.trim())),
                None => out.push_str(&format!("{}\n", text.trim())),
            }
        } else if let Some(number) = statement.strip_prefix("exit ") {
            code = number.trim().parse().unwrap_or(2);
            break;
        }
    }
    let mut outcome = json!({ "exited": 1, "exitcode": code });
    for (name, text) in [("out", out), ("err", err)] {
        if !text.is_empty() {
            outcome[format!("{name}-truncated")] = json!(0);
            outcome[format!("{name}-data")] = json!(text);
        }
    }
    outcome
}

fn interfaces(world: &World, vm: &Vm, vmid: u32) -> Value {
    let statistics = json!({
        "rx-bytes": 110, "rx-packets": 1, "rx-errs": 0, "rx-dropped": 0,
        "tx-bytes": 90, "tx-packets": 1, "tx-errs": 0, "tx-dropped": 0,
    });
    let address = |text: String, kind: &str, prefix: u8| json!({ "ip-address": text, "ip-address-type": kind, "prefix": prefix });
    let interface = |name: &str, mac: &str, addresses: Vec<Value>| json!({ "name": name, "hardware-address": mac, "ip-addresses": addresses, "statistics": statistics });
    let loopback = vec![
        address("127.0.0.1".into(), "ipv4", 8),
        address("::1".into(), "ipv6", 128),
    ];
    let mut all = vec![interface("lo", "00:00:00:00:00:00", loopback)];
    if let Some(net) = vm.config.get("net0") {
        let mac = net
            .split(['=', ','])
            .nth(1)
            .unwrap_or_default()
            .to_ascii_lowercase();
        let given = vm
            .config
            .get("ipconfig0")
            .and_then(|config| config.split(',').find_map(|part| part.strip_prefix("ip=")))
            .and_then(|ip| ip.split_once('/'));
        let v4 = match given {
            Some((ip, prefix)) => address(ip.to_owned(), "ipv4", prefix.parse().unwrap_or(24)),
            None => address(
                format!("10.99.{}.{}", vmid / 250 % 250, vmid % 250 + 2),
                "ipv4",
                24,
            ),
        };
        let mut addresses = vec![v4];
        if world.guests.ipv6 {
            addresses.push(address(link_local(&mac), "ipv6", 64));
        }
        all.push(interface("eth0", &mac, addresses));
    }
    if world.guests.docker {
        let bridge = vec![address("172.17.0.1".into(), "ipv4", 16)];
        all.push(interface("docker0", "02:42:8c:5d:1a:7e", bridge));
    }
    json!(all)
}

fn link_local(mac: &str) -> String {
    let bytes: Vec<u8> = mac
        .split(':')
        .filter_map(|part| u8::from_str_radix(part, 16).ok())
        .collect();
    match bytes.as_slice() {
        [a, b, c, d, e, f] => format!("fe80::{:x}{b:02x}:{c:x}ff:fe{d:02x}:{e:x}{f:02x}", a ^ 2),
        _ => "fe80::1".into(),
    }
}
