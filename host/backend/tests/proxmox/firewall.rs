//! PVE's own firewall, for machines whose profile asks for it.

use agentlab_backend::{BackendError, Firewall, Limits, PowerOn, Shape};
use pve_sim::{Scale, Setup, Version};

use crate::lab::{shape, spec, stamp, vmid};
use crate::ownership::backend;

const QUICK: Scale = Scale(0.01);

fn walled(group: Option<&str>) -> Shape {
    let firewall = Firewall {
        group: group.map(str::to_owned),
    };
    Shape {
        limits: Limits {
            firewall: Some(firewall),
            ..Limits::default()
        },
        ..shape()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_firewall_that_is_asked_for_stands_in_place_of_the_templates_and_is_looked_at_before_each_start() {
    for version in [Version::V8, Version::V9] {
        let mut setup = Setup::lab(version, QUICK);
        setup.groups.push(("web".into(), None));
        let node = setup.in_process().listen("127.0.0.1:0").await.unwrap();
        let (backend, operator) = (backend(&node), node.operator());
        operator.configure_firewall(9000, "policy_in", "ACCEPT");
        operator.add_firewall_rule(9000, &[("type", "in"), ("action", "ACCEPT"), ("enable", "1")]);
        backend.clone_template(&spec()).await.unwrap();
        let ask = |shape: Shape| {
            let backend = &backend;
            async move { backend.configure(vmid(1000), &stamp(), &shape).await }
        };
        let absent = ask(walled(Some("absent"))).await;
        assert!(
            matches!(&absent, Err(BackendError::Refused { hint: Some(hint), .. }) if hint.contains("--group absent")),
            "{absent:?}"
        );
        for _ in 0..2 {
            ask(walled(Some("web"))).await.unwrap();
            let (options, rules) = operator.firewall(1000).unwrap();
            assert_eq!(
                (options["enable"].as_str(), options["policy_in"].as_str()),
                ("1", "DROP")
            );
            assert_eq!((rules.len(), rules[0]["action"].as_str()), (1, "web"));
            assert_eq!(rules[0]["enable"], "1");
        }
        assert!(operator.config(1000).unwrap()["net0"].ends_with("bridge=vmbr1,firewall=1"));
        backend
            .power_on(vmid(1000), &stamp(), PowerOn { nic: None })
            .await
            .unwrap();
        backend.power_off(vmid(1000), &stamp()).await.unwrap();
        // Somebody opens it.
        operator.configure_firewall(1000, "enable", "0");
        let answer = backend
            .power_on(vmid(1000), &stamp(), PowerOn { nic: None })
            .await;
        assert!(
            matches!(&answer, Err(BackendError::Refused { reason, .. }) if reason.contains("firewall")),
            "{answer:?}"
        );
        ask(walled(None)).await.unwrap();
        let (options, rules) = operator.firewall(1000).unwrap();
        assert_eq!((options["enable"].as_str(), rules.len()), ("1", 0));
        ask(shape()).await.unwrap();
        assert!(operator.config(1000).unwrap()["net0"].ends_with("bridge=vmbr1,firewall=0"));
        backend
            .power_on(vmid(1000), &stamp(), PowerOn { nic: None })
            .await
            .unwrap();
        backend.destroy(vmid(1000), &stamp()).await.unwrap();
        assert_eq!(node.audit().foreign_touched, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nic_that_somebody_took_from_behind_the_firewall_does_not_start() {
    let node = Setup::lab(Version::V9, QUICK).in_process();
    let node = node.listen("127.0.0.1:0").await.unwrap();
    let backend = backend(&node);
    backend.clone_template(&spec()).await.unwrap();
    backend
        .configure(vmid(1000), &stamp(), &walled(None))
        .await
        .unwrap();
    let net0 = node.operator().config(1000).unwrap()["net0"].replace("firewall=1", "firewall=0");
    node.operator().configure(1000, "net0", Some(&net0));
    let answer = backend
        .power_on(vmid(1000), &stamp(), PowerOn { nic: None })
        .await;
    assert!(
        matches!(&answer, Err(BackendError::Refused { reason, .. }) if reason.contains("asks for")),
        "{answer:?}"
    );
}
