//! A daemon that is killed at each of its calls to a node: before the call arrives, and before its answer does.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use agentlab_backend::proxmox::{Asked, InProcess, Said};
use agentlab_backend::{Backend, CloneSpec, PowerOn, PveOptions, SnippetStore};
use async_trait::async_trait;
use pve_sim::{PveSim, Scale, Setup, Version};
use tokio::sync::Notify;

use crate::client::{Node, connect, connect_by, options, shape, spec};

const TEMPLATE_DRIVE: &str = "local:9000/vm-9000-cloudinit.qcow2";

/// The way to a node of a daemon that has so many calls to live.
#[derive(Debug)]
struct Dying {
    node: Node,
    left: AtomicUsize,
    is_heard: bool,
    dead: Arc<Notify>,
}

#[async_trait]
impl InProcess for Dying {
    async fn exchange(&self, asked: Asked<'_>) -> Option<Said> {
        if self.left.fetch_sub(1, Ordering::SeqCst) > 1 {
            return self.node.exchange(asked).await;
        }
        if self.is_heard {
            self.node.exchange(asked).await;
        }
        self.dead.notify_one();
        std::future::pending().await
    }
}

/// A node whose template wants its seeds by cloud-init.
fn node(version: Version, spec: &CloneSpec) -> PveSim {
    let mut setup = Setup::lab(version, Scale(1.0));
    setup.volumes.push((TEMPLATE_DRIVE.into(), 9000, 4 << 20));
    let drive = format!("{TEMPLATE_DRIVE},media=cdrom");
    setup.template.insert("ide2".into(), drive);
    let wants = "Debian 13\nagentlab-seed: cloud-init";
    setup.template.insert("description".into(), wants.into());
    let sim = setup.in_process();
    // The stand-in sees no files, and asks at a start whether this one is there.
    let snippet = format!("local:snippets/agentlab-{}-{}.yaml", spec.vmid, spec.stamp.nonce);
    sim.operator().add_snippet(&snippet);
    sim
}

fn with_snippets(sim: &PveSim, dir: &Path) -> PveOptions {
    let mut options = options(sim);
    options.snippets = Some(SnippetStore {
        dir: dir.to_owned(),
        storage: "local".into(),
    });
    options
}

async fn live(backend: &Arc<dyn Backend>, spec: &CloneSpec) {
    let (at, stamp) = (spec.vmid, &spec.stamp);
    backend.clone_template(spec).await.unwrap();
    backend.configure(at, stamp, &shape()).await.unwrap();
    backend.place_seed(at, stamp, b"seed").await.unwrap();
    backend.power_on(at, stamp, PowerOn { nic: None }).await.unwrap();
    backend.remove_seed(at, stamp).await.unwrap();
    backend.power_off(at, stamp).await.unwrap();
    backend.destroy(at, stamp).await.unwrap();
}

/// True when it lived to its end.
async fn lives_through(calls: usize, is_heard: bool, version: Version) -> bool {
    let spec = spec(1000);
    let (sim, dir) = (node(version, &spec), tempfile::tempdir().unwrap());
    let dead = Arc::new(Notify::new());
    let way = Dying {
        node: Node(sim.clone()),
        left: AtomicUsize::new(calls),
        is_heard,
        dead: dead.clone(),
    };
    let killed = connect_by(&sim, with_snippets(&sim, dir.path()), Arc::new(way));
    let lived = tokio::select! {
        () = live(&killed, &spec) => true,
        () = dead.notified() => false,
    };
    drop(killed);
    // The next one knows the stamp from its journal. What was begun it finds, or makes again, and ends.
    let next = connect(&sim, with_snippets(&sim, dir.path()));
    next.adopt().await.unwrap();
    if !lived {
        next.clone_template(&spec).await.unwrap();
    }
    next.destroy(spec.vmid, &spec.stamp).await.unwrap();
    let of = format!("killed at call {calls}, heard: {is_heard}");
    let files = std::fs::read_dir(dir.path()).unwrap().count();
    let mut left = sim.left();
    left.retain(|what| !what.starts_with("snippet "));
    assert_eq!((left, files), (Vec::<String>::new(), 0), "{of}");
    assert_eq!(sim.audit().foreign_touched, Vec::<String>::new(), "{of}");
    lived
}

#[tokio::test(start_paused = true)]
async fn a_daemon_killed_at_any_of_its_calls_leaves_no_machine_and_no_snippet() {
    for (version, is_heard) in [(Version::V8, true), (Version::V9, false)] {
        let mut calls = 1;
        while !lives_through(calls, is_heard, version).await {
            calls += 1;
        }
        assert!(calls > 20, "a whole life was {calls} calls");
    }
}
