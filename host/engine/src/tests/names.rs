//! Names: who may ask for which, and what is told when nobody answers.

use agentlab_api::AllowEntry;

use super::lab::{Lab, vmid};
use crate::port::{Disturbance, Trust};

#[tokio::test]
async fn a_sandbox_is_trusted_with_its_list_only_once_the_list_is_told_also_after_a_restart() {
    let mut lab = Lab::stopped().await;
    lab.profile["network"] =
        serde_json::json!({"mode": "allowlist", "allow": ["Example.com", "192.88.100.0/24 tcp/443"]});
    lab.start().await;
    let job = lab.run().await;
    lab.running(&job).await;
    assert_eq!(lab.wires.trust(vmid(1000)), Some(Trust::Allowlist));
    let list: Vec<AllowEntry> = ["example.com", "192.88.100.0/24 tcp/443"]
        .map(|entry| entry.parse().unwrap())
        .to_vec();
    assert_eq!(lab.wires.take_allowed(vmid(1000)), Some(list.clone()));
    lab.stop().await;
    lab.start().await;
    lab.until("told again", || {
        lab.wires.take_allowed(vmid(1000)).as_ref() == Some(&list)
    })
    .await;
}

#[tokio::test]
async fn an_alarm_stands_while_names_are_not_resolved() {
    let lab = Lab::new().await;
    let alarms = || {
        let engine = lab.engine().clone();
        engine.shared.alarms()
    };
    lab.wires.disturb(Disturbance::Unresolved("it ended".into()));
    lab.until("alarm", || {
        alarms() == ["Names of sandboxes are not resolved: it ended"]
    })
    .await;
    lab.wires
        .disturb(Disturbance::Unresolved("no upstream answers".into()));
    lab.until("the other one instead", || {
        alarms() == ["Names of sandboxes are not resolved: no upstream answers"]
    })
    .await;
    lab.wires.disturb(Disturbance::Resolved);
    lab.until("no alarm", || alarms().is_empty()).await;
}
