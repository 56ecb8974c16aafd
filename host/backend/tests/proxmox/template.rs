//! Templates that nothing can be made of, on a stand-in of a node: refused before a clone is asked for.

use agentlab_backend::BackendError;
use pve_sim::{Scale, Setup, Version};

use crate::lab::spec;
use crate::ownership::backend;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_that_lacks_something_is_refused_with_the_command_that_helps_and_nothing_is_cloned() {
    for version in [Version::V8, Version::V9] {
        for (key, value, hint) in [
            ("template", None, "qm template 9000"),
            ("agent", Some("0"), "qm set 9000 --agent 1"),
            ("agent", None, "qm set 9000 --agent 1"),
            ("net0", None, "--net0 virtio,bridge=vmbr1"),
            (
                "net0",
                Some("virtio=BC:24:11:EB:96:55"),
                "--net0 virtio,bridge=vmbr1",
            ),
            ("scsi0", None, "--boot order=scsi0"),
            (
                "scsi0",
                Some("local:9000/base-9000-disk-0.qcow2"),
                "qm rescan --vmid 9000",
            ),
        ] {
            let node = Setup::lab(version, Scale(0.0)).in_process();
            let node = node.listen("127.0.0.1:0").await.unwrap();
            node.operator().configure(9000, key, value);
            let answer = backend(&node).clone_template(&spec()).await;
            assert!(
                matches!(&answer, Err(BackendError::Template { hint: Some(found), .. }) if found.contains(hint)),
                "{key}: {answer:?}"
            );
            assert_eq!(node.left(), Vec::<String>::new(), "{key}");
        }
    }
}
