//! What is left of volumes when a daemon dies at the worst moment.

use std::sync::Arc;

use agentlab_backend::{Backend, PveOptions};
use pve_sim::{PveSim, Scale, Setup, Version};
use serde_json::json;

use crate::asker::Asker;
use crate::client::{connect, options, vmid};

const OWNER: u32 = 777;

fn with_volumes(sim: &PveSim) -> PveOptions {
    let mut options = options(sim);
    options.storage = Some("local".into());
    options.volume_owner = Some(vmid(OWNER));
    options
}

/// The clone call of a daemon that is dead by now, on its way for so long that the next one has looked meanwhile.
async fn late_copy(client: &Asker, volume: &str, line: &str, machine: u32) {
    let owner = format!("{{node}}/qemu/{OWNER}");
    let into = json!({ "scsi1": volume });
    client.data("PUT", &format!("{owner}/config"), into).await;
    let spec = json!({
        "newid": machine, "name": "agentlab-copy", "description": line, "full": 1, "pool": "agentlab",
    });
    let ended = client.task("POST", &format!("{owner}/clone"), spec).await;
    assert_eq!(ended, "OK");
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_pve_began_after_its_daemon_had_died_is_swept_and_nobody_elses_machine_is() {
    for version in [Version::V8, Version::V9] {
        let client = Asker::of(Setup::lab(version, Scale(1.0)));
        let sim = client.sim.clone();
        let start = || -> Arc<dyn Backend> { connect(&sim, with_volumes(&sim)) };
        let volume = start().create_volume("ws-1", 1).await.unwrap();
        start().take_volume_snapshot(&volume, "one").await.unwrap();
        for at_start in [true, false] {
            let line = "agentlab-copy name=ws-2 vmid=1999 owner=777";
            late_copy(&client, &volume, line, 1999).await;
            // Another number, or another owner, or a person's own machine: each is somebody's.
            let copied = "agentlab-copy name=ws-2 vmid=1998 owner=776";
            late_copy(&client, &volume, copied, 1998).await;
            late_copy(&client, &volume, line, 1997).await;
            assert!(sim.operator().create_foreign(1996));
            sim.operator().configure(1996, "name", Some("agentlab-copy"));
            // What cannot go yet holds up nothing.
            sim.operator().configure(1999, "lock", Some("backup"));
            start().take_volume_snapshot(&volume, "meanwhile").await.unwrap();
            sim.operator().configure(1999, "lock", None);
            let next = start();
            if at_start {
                next.settle_volumes().await.unwrap();
            } else {
                next.take_volume_snapshot(&volume, "two").await.unwrap();
            }
            assert_eq!(sim.operator().clients_machines(), [OWNER, 1997, 1998]);
            assert!(sim.operator().config(1996).is_some());
            let left = sim.left();
            assert!(!left.iter().any(|one| one.contains("vm-1999-")), "{left:?}");
            assert!(left.contains(&format!("volume {volume}")), "{left:?}");
            for other in [1996, 1997, 1998] {
                sim.operator().destroy(other);
            }
        }
        assert_eq!(sim.audit().foreign_touched, Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn where_nothing_was_ever_copied_a_start_asks_once_and_changes_nothing() {
    let sim = Setup::lab(Version::V9, Scale(1.0)).in_process();
    connect(&sim, with_volumes(&sim)).settle_volumes().await.unwrap();
    assert_eq!(sim.audit().changes, Vec::<String>::new());
}
