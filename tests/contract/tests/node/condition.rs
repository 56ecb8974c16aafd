//! A node that does not answer, and a cluster without quorum: an operator sees either wherever he looks, and from neither
//! is anything concluded.

use std::time::{Duration, Instant};

use agentlab_tests_contract::Lab;
use pve_sim::{PveSim, Rates, Version};
use serde_json::Value;
use tokio::time::sleep;

use super::workspace::lab_on;

const PATIENCE: Duration = Duration::from_secs(300);

/// A daemon on a node that has one sandbox, which waits for its guest.
async fn begin() -> (PveSim, Lab) {
    let (node, mut lab) = lab_on(Version::V9).await;
    lab.configure("reconcile_interval: 1s\nboot_timeout: 1h\n")
        .unwrap();
    lab.start().unwrap();
    lab.agentlab(&["sandbox", "new", "--profile", "demo", "--name", "one", "--detach"])
        .unwrap();
    until_state(&lab, "one", "BOOTING").await;
    (node, lab)
}

fn show(lab: &Lab, sandbox: &str) -> Value {
    lab.json(&["sandbox", "show", sandbox]).unwrap()
}

/// Waits for something that has to come; a test that waits for ever says nothing.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn until_state(lab: &Lab, sandbox: &str, state: &str) {
    until(state, || show(lab, sandbox)["state"] == state).await;
}

fn trouble(lab: &Lab) -> Value {
    lab.json(&["status"]).unwrap()["backend"]["trouble"].take()
}

async fn until_trouble(lab: &Lab, kind: Value) -> Value {
    until(&kind.to_string(), || trouble(lab)["kind"] == kind).await;
    trouble(lab)
}

/// What is wrong stands in every answer, for programs and for people, and the sandbox is what it was.
fn is_seen_everywhere(lab: &Lab, trouble: &Value, words: &str) {
    let list = lab.json(&["sandbox", "list"]).unwrap();
    assert_eq!(list["backend_trouble"]["kind"], trouble["kind"], "{list:#}");
    let shown = show(lab, "one");
    assert_eq!(shown["backend_trouble"]["kind"], trouble["kind"], "{shown:#}");
    assert_eq!(shown["state"], "BOOTING", "something was concluded: {shown:#}");
    assert_eq!(shown["failure"], Value::Null);
    let say = |words: &[&str]| lab.agentlab(words).unwrap();
    for said in [
        say(&["sandbox", "list"]).stderr,
        say(&["sandbox", "show", "one"]).stdout,
    ] {
        assert!(said.contains(&format!("the back end {words} since")), "{said}");
    }
    let status = say(&["status"]).stdout;
    assert!(status.contains(&format!("The back end {words}")), "{status}");
    let config = lab.path("config.yaml").display().to_string();
    let doctor = say(&["doctor", "--json", "--config", &config]).stdout;
    let doctor: Value = serde_json::from_str(&doctor).unwrap();
    let row =
        doctor["checks"].as_array().unwrap().iter().find(|row| {
            row["check"] == "back end" && row["state"] == "fail" && row.to_string().contains(words)
        });
    assert!(row.is_some(), "{doctor:#}");
}

async fn is_well_again(node: &PveSim, lab: &Lab) {
    until_trouble(lab, Value::Null).await;
    assert_eq!(show(lab, "one")["state"], "BOOTING");
    assert!(
        lab.json(&["sandbox", "list"])
            .unwrap()
            .get("backend_trouble")
            .is_none()
    );
    for one in lab.json(&["sandbox", "list"]).unwrap()["sandboxes"]
        .as_array()
        .unwrap()
    {
        let name = one["name"].as_str().unwrap();
        lab.agentlab(&["sandbox", "destroy", "--force", name]).unwrap();
    }
    until("nothing is left", || node.left().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_be_reached_is_seen_everywhere_and_nothing_is_concluded() {
    let (node, lab) = begin().await;
    let away = Rates {
        gateway_before: 1000,
        ..Rates::default()
    };
    node.plan_faults(1, away);
    let trouble = until_trouble(&lab, "unreachable".into()).await;
    is_seen_everywhere(&lab, &trouble, "cannot be reached");
    node.plan_faults(0, Rates::default());
    is_well_again(&node, &lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_without_quorum_is_seen_everywhere_and_what_is_asked_for_waits() {
    let (node, lab) = begin().await;
    node.operator().set_quorate(false);
    lab.agentlab(&["sandbox", "new", "--profile", "demo", "--name", "two", "--detach"])
        .unwrap();
    let trouble = until_trouble(&lab, "takes_no_changes".into()).await;
    assert!(
        trouble["reason"].as_str().unwrap().contains("not quorate"),
        "{trouble}"
    );
    is_seen_everywhere(&lab, &trouble, "takes no changes");
    assert_eq!(show(&lab, "two")["state"], "PROVISIONING");
    node.operator().set_quorate(true);
    until_state(&lab, "two", "BOOTING").await;
    is_well_again(&node, &lab).await;
}
