//! Seeds that go by cloud-init: for templates that want that, and for tokens that may not set SMBIOS.

use std::path::Path;
use std::sync::Arc;

use agentlab_backend::proxmox::connect;
use agentlab_backend::{Backend, BackendError, PowerOn, SnippetStore};
use pve_sim::{PveSim, Scale, Setup, Version};

use crate::lab::{options, shape, spec, stamp, vmid};
use crate::ownership::settings;

const QUICK: Scale = Scale(0.01);

/// A node whose template has a cloud-init drive.
async fn node(version: Version, may_set_hardware: bool, description: &str) -> PveSim {
    let mut setup = Setup::lab(version, QUICK);
    let drive = "local:9000/vm-9000-cloudinit.qcow2";
    setup.volumes.push((drive.into(), 9000, 4 << 20));
    setup
        .template
        .insert("ide2".into(), format!("{drive},media=cdrom"));
    setup.template.insert("description".into(), description.into());
    if !may_set_hardware {
        setup
            .privileges
            .retain(|privilege| privilege != "VM.Config.HWType");
    }
    setup.in_process().listen("127.0.0.1:0").await.unwrap()
}

fn backend(node: &PveSim, dir: Option<&Path>) -> Arc<dyn Backend> {
    let mut options = options();
    options.node = None;
    options.snippets = dir.map(|dir| SnippetStore {
        dir: dir.to_owned(),
        storage: "local".into(),
    });
    connect(settings(node, options)).unwrap()
}

/// Of the only file there.
fn text_of(dir: &Path) -> String {
    let mut entries = std::fs::read_dir(dir).unwrap();
    std::fs::read_to_string(entries.next().unwrap().unwrap().path()).unwrap()
}

fn files(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_goes_by_cloud_init_where_the_template_wants_it_or_the_token_may_no_other() {
    let wants = "Debian 13\nagentlab-seed: cloud-init";
    for (version, may_set_hardware, description) in
        [(Version::V8, true, wants), (Version::V9, false, "Debian 13")]
    {
        let node = node(version, may_set_hardware, description).await;
        let dir = tempfile::tempdir().unwrap();
        let backend = backend(&node, Some(dir.path()));
        let (at, stamp) = (vmid(1000), stamp());
        backend.clone_template(&spec()).await.unwrap();
        backend.configure(at, &stamp, &shape()).await.unwrap();
        let before = node.operator().config(1000).unwrap();
        let volume = format!("local:snippets/agentlab-1000-{}.yaml", stamp.nonce);
        if description == wants {
            // The call that configures it names its snippet, which tells nothing yet.
            assert_eq!(before["cicustom"], format!("user={volume}"));
            assert_eq!(text_of(dir.path()), "#cloud-config\n");
        } else {
            assert_eq!((before.get("cicustom"), files(dir.path())), (None, 0));
        }
        assert!(!backend.has_seed(at).await.unwrap());
        for seed in [b"first", b"other"] {
            backend.place_seed(at, &stamp, seed).await.unwrap();
        }
        assert!(backend.has_seed(at).await.unwrap());
        assert_eq!(files(dir.path()), 1);
        assert!(text_of(dir.path()).contains("/run/agentlab/seed"));
        let placed = node.operator().config(1000).unwrap();
        assert_eq!(placed["cicustom"], format!("user={volume}"));
        assert_eq!(placed.get("smbios1"), before.get("smbios1"));
        node.operator().add_snippet(&volume);
        backend.power_on(at, &stamp, PowerOn { nic: None }).await.unwrap();
        for _ in 0..2 {
            backend.remove_seed(at, &stamp).await.unwrap();
            assert!(!backend.has_seed(at).await.unwrap());
            assert_eq!(files(dir.path()), 0);
        }
        // A machine that goes takes its snippet along, and one that somebody else took away leaves none for long.
        backend.place_seed(at, &stamp, b"again").await.unwrap();
        backend.destroy(at, &stamp).await.unwrap();
        assert_eq!(files(dir.path()), 0);
        backend.clone_template(&spec()).await.unwrap();
        backend.place_seed(at, &stamp, b"again").await.unwrap();
        backend.adopt().await.unwrap();
        assert_eq!(
            files(dir.path()),
            1,
            "the snippet of a machine that is there was swept"
        );
        node.operator().destroy(1000);
        backend.adopt().await.unwrap();
        assert_eq!(files(dir.path()), 0);
        backend.remove_seed(at, &stamp).await.unwrap();
        assert_eq!(node.audit().foreign_touched, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_somebody_made_his_own_keeps_a_file_that_it_names_and_no_seed_in_it() {
    let wants = "Debian 13\nagentlab-seed: cloud-init";
    let (at, ours) = (vmid(1000), stamp());
    let node = node(Version::V9, true, wants).await;
    let dir = tempfile::tempdir().unwrap();
    let backend = backend(&node, Some(dir.path()));
    backend.clone_template(&spec()).await.unwrap();
    backend.configure(at, &ours, &shape()).await.unwrap();
    backend.place_seed(at, &ours, b"seed").await.unwrap();
    node.operator().configure(1000, "description", Some("mine"));
    for answer in [
        backend.remove_seed(at, &ours).await,
        backend.destroy(at, &ours).await,
    ] {
        assert!(matches!(answer, Err(BackendError::NotOurs { .. })), "{answer:?}");
        assert_eq!(text_of(dir.path()), "#cloud-config\n");
    }
    node.operator().configure(1000, "cicustom", None);
    backend.remove_seed(at, &ours).await.unwrap_err();
    assert_eq!(files(dir.path()), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_way_for_its_seed_a_machine_says_what_would_be_one() {
    let node = node(Version::V9, false, "Debian 13").await;
    let backend = backend(&node, None);
    backend.clone_template(&spec()).await.unwrap();
    let answer = backend.place_seed(vmid(1000), &stamp(), b"seed").await;
    assert!(
        matches!(&answer, Err(BackendError::Refused { hint: Some(hint), .. })
            if hint.contains("VM.Config.HWType") && hint.contains("snippet_storage")),
        "{answer:?}"
    );
    backend.destroy(vmid(1000), &stamp()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snippet_that_a_killed_daemon_left_goes_with_its_next_start_wherever_it_was_killed() {
    let wants = "Debian 13\nagentlab-seed: cloud-init";
    let (at, ours) = (vmid(1000), stamp());
    for is_named in [false, true] {
        let node = node(Version::V9, true, wants).await;
        let dir = tempfile::tempdir().unwrap();
        let killed = backend(&node, Some(dir.path()));
        killed.clone_template(&spec()).await.unwrap();
        killed.configure(at, &ours, &shape()).await.unwrap();
        killed.place_seed(at, &ours, b"seed").await.unwrap();
        if !is_named {
            // The file is written first; nobody got to name it.
            node.operator().configure(1000, "cicustom", None);
        }
        drop(killed);
        let next = backend(&node, Some(dir.path()));
        next.adopt().await.unwrap();
        assert_eq!(
            files(dir.path()),
            1,
            "its machine is there, and may be about to read it"
        );
        // The next daemon undoes the step, or destroys the machine, from what it has recorded.
        if is_named {
            next.remove_seed(at, &ours).await.unwrap();
            assert!(!node.operator().config(1000).unwrap().contains_key("cicustom"));
        } else {
            next.destroy(at, &ours).await.unwrap();
        }
        assert_eq!(files(dir.path()), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_leaves_alone_what_others_keep_among_snippets() {
    let node = node(Version::V9, true, "Debian 13").await;
    let dir = tempfile::tempdir().unwrap();
    let nonce = "b".repeat(32);
    // A number that another daemon's machine has, which we do not see; and one that nobody has any more.
    assert!(node.operator().create_foreign(4000));
    let mut kept = vec![
        format!("agentlab-4000-{nonce}.yaml"),
        format!(".agentlab-4000-{nonce}.yaml"),
        "agentlab-1000-notes.yaml".to_owned(),
        "vendor.yaml".to_owned(),
    ];
    kept.sort();
    let gone = format!("agentlab-4001-{nonce}.yaml");
    for name in kept.iter().chain([&gone]) {
        std::fs::write(dir.path().join(name), "x").unwrap();
    }
    backend(&node, Some(dir.path())).adopt().await.unwrap();
    let entries = std::fs::read_dir(dir.path()).unwrap();
    let mut left: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, kept);
}
