//! What a profile bounds, as it stands in PVE.

use std::net::Ipv4Addr;

use agentlab_backend::{BackendError, Limits, NetworkPlace, Shape};
use pve_sim::{Scale, Setup, Version};

use crate::lab::{shape, spec, stamp, vmid};
use crate::ownership::backend;

const QUICK: Scale = Scale(0.01);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bounds_and_address_reach_pve_and_pinning_is_for_root_alone() {
    for version in [Version::V8, Version::V9] {
        let mut setup = Setup::lab(version, QUICK);
        let drive = "local:9000/vm-9000-cloudinit.qcow2";
        setup.volumes.push((drive.into(), 9000, 4 << 20));
        setup
            .template
            .insert("ide2".into(), format!("{drive},media=cdrom"));
        let node = setup.in_process().listen("127.0.0.1:0").await.unwrap();
        let backend = backend(&node);
        let (at, stamp) = (vmid(1000), stamp());
        backend.clone_template(&spec()).await.unwrap();
        let mut shape = Shape {
            memory_mb: 2048,
            limits: Limits {
                cpu_percent: Some(50),
                processors: None,
                balloon_mb: Some(1024),
                ..Limits::default()
            },
            place: Some(NetworkPlace {
                address: Ipv4Addr::new(10, 77, 3, 232),
                prefix: 16,
                gateway: Ipv4Addr::new(10, 77, 0, 1),
            }),
            ..shape()
        };
        backend.configure(at, &stamp, &shape).await.unwrap();
        let made = node.operator().config(1000).unwrap();
        for (key, value) in [
            ("cpulimit", "0.5"),
            ("balloon", "1024"),
            ("ipconfig0", "ip=10.77.3.232/16,gw=10.77.0.1"),
            ("nameserver", "10.77.0.1"),
            ("ciupgrade", "0"),
        ] {
            assert_eq!(made.get(key).map(String::as_str), Some(value), "{key}");
        }
        // The same shape again changes nothing.
        backend.configure(at, &stamp, &shape).await.unwrap();
        assert_eq!(node.operator().config(1000).unwrap(), made);
        shape.limits.processors = Some("0-3".into());
        let answer = backend.configure(at, &stamp, &shape).await;
        assert!(
            matches!(&answer, Err(BackendError::Refused { hint: Some(hint), .. }) if hint.contains("backend: shell")),
            "{answer:?}"
        );
        assert_eq!(node.operator().config(1000).unwrap(), made);
        backend.destroy(at, &stamp).await.unwrap();
        assert_eq!(node.left(), Vec::<String>::new());
    }
}
