//! Many at once, on a node where everything works and every lock is real.

use std::time::Duration;

use agentlab_api::{JobState, SandboxRequest, SandboxState};
use agentlab_store::EventFilter;
use bytes::Bytes;
use pve_sim::{PveSim, Request};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{Schedule, Version};

#[test]
fn a_hundred_jobs_asked_for_at_once_all_complete_and_no_lock_is_mentioned() {
    let schedule = Schedule::fair(Version::V9, 100);
    schedule.live();
    let jobs = schedule.jobs.borrow();
    assert_eq!(jobs.len(), 100);
    for job in jobs.iter().flatten() {
        assert_eq!(job.state, JobState::Completed, "{job:#?}");
    }
    let refusals = schedule.world.sim.audit().refusals;
    let locked: Vec<_> = refusals
        .keys()
        .filter(|refusal| refusal.contains("lock"))
        .collect();
    assert!(
        locked.is_empty(),
        "the node's own queue is never fallen back on: {locked:?}"
    );
    schedule.world.process(None, async |daemon| {
        let told = daemon.store.events(&EventFilter::default(), 0, 100_000).await;
        for event in told.unwrap() {
            assert!(!event.message.contains("lock"), "{event:#?}");
        }
    });
}

#[test]
fn a_job_gets_a_number_though_the_first_twenty_have_machines_that_its_daemon_may_not_see() {
    let schedule = Schedule::fair(Version::V8, 1);
    let node = &schedule.world.sim;
    let theirs: Vec<u32> = (1000..1020).collect();
    assert!(theirs.iter().all(|vmid| node.operator().create_foreign(*vmid)));
    let vms: Vec<String> = theirs.iter().map(u32::to_string).collect();
    let out_of_the_pool = Request {
        method: "PUT".into(),
        path: "/pools/agentlab".into(),
        authorization: Some(format!("PVEAPIToken={}", node.root_token())),
        content_type: Some("application/json".into()),
        body: json!({ "vms": vms.join(","), "delete": 1 }).to_string().into(),
        ..Request::default()
    };
    let answer = super::world::runtime().block_on(node.answer(out_of_the_pool));
    assert_eq!(answer.status, 200, "{answer:?}");
    schedule.live();
    let jobs = schedule.jobs.borrow();
    let job = jobs[0].as_ref().unwrap();
    assert_eq!(
        (job.state, job.vmid.map(u32::from)),
        (JobState::Completed, Some(1020)),
        "{job:#?}"
    );
}

/// Calls of clients so far.
fn calls(schedule: &Schedule) -> u64 {
    schedule.world.sim.audit().calls.values().sum()
}

#[test]
fn an_idle_daemon_asks_a_node_ten_questions_a_minute_at_most_however_many_sandboxes_run() {
    for count in [1, 30] {
        let schedule = Schedule::fair(Version::V9, 0);
        let finished = schedule.world.process(None, async |daemon| {
            let asked = async {
                for _ in 0..count {
                    let request = SandboxRequest {
                        profile: "demo".into(),
                        name: None,
                        ttl_minutes: None,
                        workspace: None,
                        workspace_wait_seconds: None,
                    };
                    daemon.engine.create_sandbox(request).await.unwrap();
                }
                let running = async || {
                    let all = daemon.store.sandboxes(false).await.unwrap();
                    all.iter()
                        .filter(|one| one.state == SandboxState::Running)
                        .count()
                };
                while running().await < count {
                    sleep(Duration::from_secs(1)).await;
                }
                sleep(Duration::from_secs(120)).await;
                let before = calls(&schedule);
                sleep(Duration::from_secs(600)).await;
                calls(&schedule) - before
            };
            let asked = tokio::select! {
                asked = asked => asked,
                () = schedule.surroundings(daemon) => unreachable!(),
            };
            println!("{count} sandboxes, idle: {asked} calls in ten minutes");
            assert!(asked <= 100, "{:#?}", schedule.world.sim.audit().calls);
        });
        assert!(finished);
    }
}

/// When the node carried out the start of a machine, in its own time.
fn started_at(schedule: &Schedule, vmid: u32) -> Duration {
    let changes = schedule.world.sim.audit().changes;
    let end = format!("start VM {vmid}");
    let line = changes.iter().find(|line| line.ends_with(&end)).unwrap();
    let seconds: f64 = line.split_whitespace().next().unwrap().parse().unwrap();
    Duration::from_secs_f64(seconds)
}

/// The same calls by hand, a task looked at every 50 ms.
async fn by_hand(node: &PveSim) {
    let ask = async |method: &str, path: &str, body: Value| {
        let request = Request {
            method: method.into(),
            path: format!("/nodes/{}{path}", node.node()),
            authorization: Some(format!("PVEAPIToken={}", node.token())),
            content_type: (method != "GET").then(|| "application/json".into()),
            body: if method == "GET" {
                Bytes::new()
            } else {
                body.to_string().into()
            },
            ..Request::default()
        };
        let response = node.answer(request).await;
        assert_eq!(response.status, 200, "{method} {path}: {response:?}");
        response.body.unwrap()["data"].clone()
    };
    let follow = async |upid: Value| {
        let path = format!("/tasks/{}/status", upid.as_str().unwrap());
        while ask("GET", &path, Value::Null).await["status"] == "running" {
            sleep(Duration::from_millis(50)).await;
        }
    };
    follow(
        ask(
            "POST",
            "/qemu/9000/clone",
            json!({ "newid": 1000, "pool": "agentlab" }),
        )
        .await,
    )
    .await;
    let shape =
        json!({ "cores": 1, "memory": 512, "protection": 0, "onboot": 0, "net0": "virtio,bridge=vmbr1" });
    ask("PUT", "/qemu/1000/config", shape).await;
    let uuid = "00000000-0000-0000-0000-000000000000";
    let seed = json!({ "smbios1": format!("uuid={uuid},base64=1,serial=c2VlZA==") });
    ask("PUT", "/qemu/1000/config", seed).await;
    follow(ask("POST", "/qemu/1000/status/start", json!({})).await).await;
}

#[test]
fn a_sandbox_starts_a_quarter_of_a_second_later_than_by_hand_at_most() {
    let hand = Schedule::fair(Version::V9, 0);
    let runtime = super::world::runtime();
    runtime.block_on(by_hand(&hand.world.sim));
    let ours = Schedule::fair(Version::V9, 1);
    ours.live();
    let (hand, ours) = (started_at(&hand, 1000), started_at(&ours, 1000));
    println!("started after {ours:?}, by hand after {hand:?}");
    assert!(
        ours <= hand + Duration::from_millis(250),
        "{ours:?}, by hand {hand:?}"
    );
}
