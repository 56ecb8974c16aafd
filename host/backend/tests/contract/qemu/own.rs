//! What only real processes and files can get wrong.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};
use std::{fs, os::fd::OwnedFd};

use agentlab_backend::qemu::Qemu;
use agentlab_backend::{
    Backend, BackendError, Channels, CloneSpec, Machines, Nic, Power, PowerOn, Seeds, Shape,
};
use rustix::process::Signal;

use super::{QemuRig, status, tiny};
use crate::suite::{Rig, cloned, made, no_cable, power, running, shape, spec, switch_on, vmid};

const MIB: u64 = 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_runs_as_nobody_behind_seccomp_with_descriptors_instead_of_paths() {
    let Some(rig) = QemuRig::open().await else { return };
    let spec = cloned(rig.qemu(), 1000).await;
    rig.qemu()
        .place_seed(spec.vmid, &spec.stamp, b"secret seed")
        .await
        .unwrap();
    switch_on(rig.qemu(), &spec).await;
    let pids = rig.processes();
    let [pid] = pids[..] else { panic!("{pids:?}") };
    let uid = fs::metadata(rig.dir(spec.vmid).join("overlay.qcow2"))
        .unwrap()
        .uid();
    assert_eq!(
        status(pid, "Uid").unwrap().split_whitespace().collect::<Vec<_>>(),
        vec![uid.to_string(); 4]
    );
    assert_eq!(
        status(pid, "Gid").unwrap().split_whitespace().collect::<Vec<_>>(),
        vec![uid.to_string(); 4]
    );
    assert_eq!(status(pid, "Groups").unwrap(), "");
    for none in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status(pid, none).unwrap(), "0000000000000000", "{none}");
    }
    assert_eq!(status(pid, "Seccomp").unwrap(), "2");
    assert_eq!(status(pid, "NoNewPrivs").unwrap(), "1");
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/environ")).unwrap(), "");
    assert_eq!(
        fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))
            .unwrap()
            .trim(),
        "500"
    );

    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let hard = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().rev().nth(1).unwrap().to_owned()
    };
    assert_eq!(hard("Max core file size"), "0");
    assert_eq!(hard("Max file size"), (2 * 64 * MIB + 256 * MIB).to_string());
    assert_eq!(
        (hard("Max open files"), hard("Max processes")),
        ("1024".to_owned(), "512".to_owned())
    );

    let line = String::from_utf8(fs::read(format!("/proc/{pid}/cmdline")).unwrap()).unwrap();
    for path in [&rig.options.run_dir, &rig.options.template_dir] {
        assert!(!line.contains(path.to_str().unwrap()), "{line:?}");
    }
    assert!(!line.contains("secret"), "{line:?}");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .nth(3)
        .unwrap()
        .to_owned();
    assert_eq!(session, pid.to_string(), "no session of its own");
    let directory = fs::metadata(rig.dir(spec.vmid)).unwrap();
    assert_eq!(
        (directory.permissions().mode() & 0o7777, directory.uid()),
        (0o700, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_machine_gets_no_descriptor_of_another_or_of_ours() {
    let Some(rig) = QemuRig::open().await else { return };
    // What a careless parent of the daemon left open.
    let ours = rig.run.path().join("ours");
    let careless = fs::File::create(&ours).unwrap();
    rustix::io::fcntl_setfd(&careless, rustix::io::FdFlags::empty()).unwrap();
    let specs: Vec<CloneSpec> = {
        let mut specs = Vec::new();
        for raw in 1000..1004 {
            specs.push(cloned(rig.qemu(), raw).await);
        }
        specs
    };
    let start = |spec: &CloneSpec| {
        let (vmid, stamp) = (spec.vmid, spec.stamp.clone());
        let qemu = rig.qemu();
        async move { qemu.power_on(vmid, &stamp, no_cable()).await.unwrap() }
    };
    tokio::join!(
        start(&specs[0]),
        start(&specs[1]),
        start(&specs[2]),
        start(&specs[3])
    );
    let pids = rig.processes();
    assert_eq!(pids.len(), 4);
    let vm_dir = rig.options.run_dir.join("vm");
    for pid in pids {
        let open: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .collect();
        assert!(!open.contains(&ours), "process {pid} holds {open:?}");
        let mut owners: Vec<String> = open
            .iter()
            .filter_map(|file| {
                file.strip_prefix(&vm_dir)
                    .ok()?
                    .iter()
                    .next()?
                    .to_str()
                    .map(str::to_owned)
            })
            .collect();
        owners.sort_unstable();
        owners.dedup();
        assert_eq!(owners.len(), 1, "process {pid} holds files of {owners:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_lies_readable_only_for_its_machine_and_goes_with_it() {
    let Some(rig) = QemuRig::open().await else { return };
    let spec = cloned(rig.qemu(), 1000).await;
    rig.qemu()
        .place_seed(spec.vmid, &spec.stamp, b"seed")
        .await
        .unwrap();
    let path = rig.dir(spec.vmid).join("seed");
    let found = fs::metadata(&path).unwrap();
    let overlay = fs::metadata(rig.dir(spec.vmid).join("overlay.qcow2")).unwrap();
    assert_eq!(
        (found.permissions().mode() & 0o7777, found.uid()),
        (0o400, overlay.uid())
    );
    assert_eq!(overlay.permissions().mode() & 0o7777, 0o600);
    rig.qemu().remove_seed(spec.vmid, &spec.stamp).await.unwrap();
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_qemu_times_out_without_holding_others_up_and_can_be_destroyed() {
    let Some(rig) = QemuRig::open().await else { return };
    let frozen = running(rig.qemu(), 1000).await;
    let other = running(rig.qemu(), 1001).await;
    rig.signal(frozen.vmid, Signal::STOP);
    let began = Instant::now();
    let answer = rig.qemu().inspect(frozen.vmid).await;
    assert!(matches!(answer, Err(BackendError::TimedOut { .. })), "{answer:?}");
    let answer = rig.qemu().suspend(frozen.vmid, &frozen.stamp).await;
    assert!(matches!(answer, Err(BackendError::TimedOut { .. })), "{answer:?}");
    assert_eq!(rig.qemu().list().await.unwrap().len(), 2);
    assert_eq!(power(rig.qemu(), other.vmid).await, Some(Power::Running));
    rig.qemu().destroy(frozen.vmid, &frozen.stamp).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert_eq!(rig.processes().len(), 1);
    assert_eq!(rig.qemu().inspect(frozen.vmid).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_qemu_goes_on_when_thawed() {
    let Some(rig) = QemuRig::open().await else { return };
    let spec = running(rig.qemu(), 1000).await;
    rig.signal(spec.vmid, Signal::STOP);
    rig.qemu().inspect(spec.vmid).await.unwrap_err();
    rig.signal(spec.vmid, Signal::CONT);
    assert_eq!(power(rig.qemu(), spec.vmid).await, Some(Power::Running));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_that_dies_at_once_is_an_error_in_its_own_words_and_leaves_no_process() {
    let Some(rig) = QemuRig::open().await else { return };
    let spec = cloned(rig.qemu(), 1000).await;
    let not_a_tap: OwnedFd = fs::File::open("/dev/null").unwrap().into();
    let nic = Some(Nic { tap: Some(not_a_tap) });
    let answer = rig.qemu().power_on(spec.vmid, &spec.stamp, PowerOn { nic }).await;
    let Err(BackendError::Refused { reason, .. }) = answer else {
        panic!("{answer:?}")
    };
    assert!(reason.contains("netdev tap"), "{reason}");
    assert!(rig.processes().is_empty());
    assert_eq!(power(rig.qemu(), spec.vmid).await, Some(Power::Stopped));

    let too_much = Shape {
        memory_mb: u32::MAX,
        ..shape()
    };
    rig.qemu()
        .configure(spec.vmid, &spec.stamp, &too_much)
        .await
        .unwrap();
    let answer = rig.qemu().power_on(spec.vmid, &spec.stamp, no_cable()).await;
    let Err(BackendError::Refused { reason, .. }) = answer else {
        panic!("{answer:?}")
    };
    assert!(reason.contains("memory") || reason.contains("RAM"), "{reason}");

    rig.qemu()
        .configure(spec.vmid, &spec.stamp, &shape())
        .await
        .unwrap();
    switch_on(rig.qemu(), &spec).await;
}

async fn cloned_from(rig: &QemuRig, template: u32) -> CloneSpec {
    let template = vmid(template);
    made(
        rig.qemu(),
        CloneSpec {
            template,
            ..spec(1000)
        },
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_resets_itself_ends_its_machine() {
    let Some(rig) = QemuRig::open().await else { return };
    let spec = cloned_from(&rig, tiny::RESETS).await;
    // It may be gone before the monitor answers; either way it is stopped in the end.
    drop(rig.qemu().power_on(spec.vmid, &spec.stamp, no_cable()).await);
    tokio::time::timeout(Duration::from_secs(60), rig.qemu().stopped(spec.vmid))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(power(rig.qemu(), spec.vmid).await, Some(Power::Stopped));
    rig.await_hello(spec.vmid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_floods_its_console_fills_no_disk() {
    let Some(rig) = QemuRig::open().await else { return };
    let spec = cloned_from(&rig, tiny::FLOODS).await;
    switch_on(rig.qemu(), &spec).await;
    let log = rig.dir(spec.vmid).join("console.log");
    let (mut largest, mut was_cut, mut before) = (0, false, 0);
    for _ in 0..1200 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let length = fs::metadata(&log).unwrap().len();
        was_cut |= length < before;
        before = length;
        largest = largest.max(length);
        if was_cut {
            break;
        }
    }
    assert!(was_cut, "{largest} bytes were never cut");
    assert!(largest < 64 * 1024 * 1024, "{largest} bytes");
    rig.await_hello(spec.vmid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_killed_half_way_is_shown_with_its_stamp_and_completed_by_repeating_it() {
    let Some(mut rig) = QemuRig::open().await else {
        return;
    };
    let spec = cloned(rig.qemu(), 1000).await;
    fs::remove_file(rig.dir(spec.vmid).join("overlay.qcow2")).unwrap();
    fs::write(rig.dir(spec.vmid).join("overlay.qcow2.new"), "half").unwrap();
    rig.restart().await;
    let found = rig.qemu().inspect(spec.vmid).await.unwrap().unwrap();
    assert_eq!(found.stamp, Some(spec.stamp.clone()));
    let answer = rig.qemu().power_on(spec.vmid, &spec.stamp, no_cable()).await;
    assert!(
        matches!(answer, Err(BackendError::Refused { hint: Some(_), .. })),
        "{answer:?}"
    );
    rig.qemu().clone_template(&spec).await.unwrap();
    switch_on(rig.qemu(), &spec).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_whose_record_was_never_written_is_found_by_its_user() {
    let Some(mut rig) = QemuRig::open().await else {
        return;
    };
    let spec = running(rig.qemu(), 1000).await;
    fs::remove_file(rig.dir(spec.vmid).join("process.json")).unwrap();
    rig.restart().await;
    assert_eq!(rig.qemu().adopt().await.unwrap()[0].power, Power::Running);
    fs::remove_file(rig.dir(spec.vmid).join("process.json")).unwrap();
    rig.qemu().destroy(spec.vmid, &spec.stamp).await.unwrap();
    assert_eq!(rig.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_without_a_readable_record_is_never_touched() {
    let Some(rig) = QemuRig::open().await else { return };
    let spec = cloned(rig.qemu(), 1000).await;
    let record = rig.dir(spec.vmid).join("machine.json");
    fs::write(&record, "{").unwrap();
    assert_eq!(rig.qemu().list().await.unwrap()[0].stamp, None);
    let answer = rig.qemu().destroy(spec.vmid, &spec.stamp).await;
    assert!(matches!(answer, Err(BackendError::NotOurs { .. })), "{answer:?}");
    let answer = rig.qemu().clone_template(&spec).await;
    assert!(matches!(answer, Err(BackendError::Conflict { .. })), "{answer:?}");
    assert!(rig.dir(spec.vmid).join("overlay.qcow2").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_same_directory_is_refused() {
    let Some(mut rig) = QemuRig::open().await else {
        return;
    };
    let refused = Qemu::open(rig.options.clone())
        .await
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(refused.contains("used by another process"), "{refused}");
    rig.restart().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_deleted_under_a_stopped_machine_is_named_at_power_on() {
    let Some(rig) = QemuRig::open().await else { return };
    let spec = cloned(rig.qemu(), 1000).await;
    rig.remove_template().await;
    switch_on(rig.qemu(), &spec).await;
    rig.qemu().power_off(spec.vmid, &spec.stamp).await.unwrap();
    fs::remove_dir_all(
        rig.options
            .template_dir
            .join(format!("{:064x}", crate::suite::TEMPLATE)),
    )
    .unwrap();
    let answer = rig.qemu().power_on(spec.vmid, &spec.stamp, no_cable()).await;
    assert!(
        matches!(&answer, Err(BackendError::Template { hint: Some(hint), .. }) if hint.contains("build tiny")),
        "{answer:?}"
    );
    rig.qemu().destroy(spec.vmid, &spec.stamp).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn starts_beyond_the_cap_wait_for_a_guest_that_boots() {
    let Some(mut rig) = QemuRig::open().await else {
        return;
    };
    rig.options.concurrent_starts = Some(1);
    rig.restart().await;
    let first = running(rig.qemu(), 1000).await;
    let second = cloned(rig.qemu(), 1001).await;
    let waiting = rig.qemu().power_on(second.vmid, &second.stamp, no_cable());
    let waited = tokio::time::timeout(Duration::from_secs(1), waiting).await;
    assert!(waited.is_err(), "{waited:?}");
    rig.qemu().destroy(first.vmid, &first.stamp).await.unwrap();
    rig.qemu()
        .power_on(second.vmid, &second.stamp, no_cable())
        .await
        .unwrap();
    assert_eq!(power(rig.qemu(), second.vmid).await, Some(Power::Running));
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_and_info_say_what_is_there() {
    let Some(rig) = QemuRig::open().await else { return };
    let spec = running(rig.qemu(), 1000).await;
    rig.await_hello(spec.vmid).await;
    let usage = rig.qemu().usage(spec.vmid).await.unwrap();
    assert!(
        usage.cpu_seconds > 0.0 && usage.memory_bytes > 1024 * 1024,
        "{usage:?}"
    );
    let info = rig.qemu().info().await.unwrap();
    assert_eq!((info.kind, info.accelerator.as_deref()), ("qemu", Some("tcg")));
    assert!(
        info.version.starts_with("QEMU ") && info.accelerator_reason.is_some(),
        "{info:?}"
    );
    assert!(rig.qemu().console(spec.vmid, 10).await.unwrap().len() == 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_machine_holds_its_template_disk_by_a_second_link() {
    let Some(rig) = QemuRig::open().await else { return };
    let spec = cloned(rig.qemu(), 1000).await;
    let base = rig.dir(spec.vmid).join("base.ext4");
    assert_eq!(fs::metadata(&base).unwrap().nlink(), 2);
    let another = cloned(rig.qemu(), 1001).await;
    assert_eq!(fs::metadata(&base).unwrap().nlink(), 3);
    rig.qemu().destroy(another.vmid, &another.stamp).await.unwrap();
    assert_eq!(fs::metadata(&base).unwrap().nlink(), 2);
    rig.qemu().destroy(spec.vmid, &spec.stamp).await.unwrap();
    assert!(!base.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_of_another_daemon_under_the_same_user_is_left_alone() {
    let Some(rig) = QemuRig::open().await else { return };
    let spec = cloned(rig.qemu(), 1000).await;
    let uid = fs::metadata(rig.dir(spec.vmid).join("overlay.qcow2"))
        .unwrap()
        .uid();
    let mut stranger = std::os::unix::process::CommandExt::uid(&mut std::process::Command::new("sleep"), uid)
        .arg("60")
        .spawn()
        .unwrap();
    assert_eq!(power(rig.qemu(), spec.vmid).await, Some(Power::Stopped));
    rig.qemu().power_off(spec.vmid, &spec.stamp).await.unwrap();
    rig.qemu().destroy(spec.vmid, &spec.stamp).await.unwrap();
    assert!(
        stranger.try_wait().unwrap().is_none(),
        "another's process was ended"
    );

    let next = cloned(rig.qemu(), 1000).await;
    let taken = fs::metadata(rig.dir(next.vmid).join("overlay.qcow2"))
        .unwrap()
        .uid();
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert_ne!(
        taken, uid,
        "a user under which something runs was given to a machine"
    );
}
