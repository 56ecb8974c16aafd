//! A daemon that is killed at any moment leaves only what a machine's stamp can remove.

use std::path::PathBuf;
use std::time::Duration;

use agentlab_backend::qemu::{AcceleratorChoice, Qemu, QemuOptions};
use agentlab_backend::{Backend, CloneSpec, Machines, Seeds};
use tokio::process::Command;

use super::QemuRig;
use crate::suite::{Rig, no_cable, shape, spec};

/// Tells the test below, run in a process of its own, whose directories to live in.
const LIVES_IN: &str = "AGENTLAB_CONTRACT_LIVES_IN";
const ROUNDS: u64 = 12;

/// The same at every birth, as the journal would have it.
fn the_spec() -> CloneSpec {
    let stamp = "agentlab:01890000-0000-7000-8000-000000000001:00000000000000000000000000000000";
    CloneSpec {
        stamp: stamp.parse().unwrap(),
        ..spec(1000)
    }
}

async fn life(qemu: &Qemu) {
    let spec = the_spec();
    qemu.clone_template(&spec).await.unwrap();
    qemu.configure(spec.vmid, &spec.stamp, &shape()).await.unwrap();
    qemu.place_seed(spec.vmid, &spec.stamp, b"seed").await.unwrap();
    qemu.power_on(spec.vmid, &spec.stamp, no_cable()).await.unwrap();
    qemu.remove_seed(spec.vmid, &spec.stamp).await.unwrap();
    qemu.destroy(spec.vmid, &spec.stamp).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_life_leaves_nothing_and_another_can_follow() {
    let Ok(dirs) = std::env::var(LIVES_IN) else {
        let Some(rig) = QemuRig::open().await else { return };
        for _ in 0..2 {
            life(rig.qemu()).await;
        }
        assert_eq!(rig.leftovers(), Vec::<String>::new());
        return;
    };
    let [run_dir, template_dir, first_uid] = dirs.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{dirs}")
    };
    let first_uid: u32 = first_uid.parse().unwrap();
    let options = QemuOptions {
        uid_range: (first_uid, first_uid + super::UIDS_PER_RIG - 1),
        accelerator: AcceleratorChoice::Tcg,
        concurrent_starts: Some(8),
        disk_floor_mb: 1,
        ..QemuOptions::new(PathBuf::from(run_dir), PathBuf::from(template_dir))
    };
    let qemu = Qemu::open(options).await.unwrap();
    qemu.adopt().await.unwrap();
    loop {
        life(&qemu).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_at_any_moment_leaves_only_what_the_stamp_removes() {
    let Some(mut rig) = QemuRig::open().await else {
        return;
    };
    let dirs = [&rig.options.run_dir, &rig.options.template_dir].map(|dir| dir.to_str().unwrap().to_owned());
    let dirs = format!("{} {} {}", dirs[0], dirs[1], rig.options.uid_range.0);
    let mut state = 7_u64;
    for round in 0..ROUNDS {
        rig.qemu = None;
        let mut daemon = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "qemu::killed::one_life_leaves_nothing_and_another_can_follow",
            ])
            .env(LIVES_IN, &dirs)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        tokio::time::sleep(Duration::from_millis(60 + state % 500)).await;
        assert_eq!(
            daemon.try_wait().unwrap(),
            None,
            "the daemon ended by itself in round {round}"
        );
        daemon.kill().await.unwrap();

        rig.restart().await;
        let spec = the_spec();
        for machine in rig.qemu().adopt().await.unwrap() {
            assert_eq!(
                (machine.vmid, machine.stamp),
                (spec.vmid, Some(spec.stamp.clone())),
                "round {round}"
            );
        }
        if round % 2 == 0 {
            // Going on where it stopped works from anywhere.
            life(rig.qemu()).await;
        } else {
            rig.qemu().destroy(spec.vmid, &spec.stamp).await.unwrap();
        }
        assert_eq!(rig.leftovers(), Vec::<String>::new(), "round {round}");
    }
}
