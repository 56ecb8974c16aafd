use serde_json::json;

use super::*;

fn answered(status: u16, message: &str) -> Kind {
    let body = json!({ "data": null, "message": message }).to_string();
    Refusal::answered(status, "reason", body.as_bytes()).kind
}

/// The genuine sentences of 8.4.21 and 9.2.11, wherever they come from.
#[test]
fn every_sentence_means_the_same_as_answer_as_task_and_as_command() {
    let table = [
        (
            "Configuration file 'nodes/pve8/qemu-server/9999.conf' does not exist\n",
            Kind::NoMachine,
        ),
        (
            "unable to find configuration file for VM 8999 on node 'pve8'\n",
            Kind::NoMachine,
        ),
        (
            "unable to create VM 410: config file already exists\n",
            Kind::Taken,
        ),
        (
            "unable to create VM 100 - VM 100 already exists on node 'pve8'\n",
            Kind::Taken,
        ),
        ("VM is locked (backup)\n", Kind::Locked("backup".into())),
        (
            "can't lock file '/var/lock/qemu-server/lock-9000.conf' - got timeout\n",
            Kind::LockTimeout,
        ),
        (
            "clone failed: can't lock file '/var/lock/pve-manager/pve-storage-local' - got timeout",
            Kind::LockTimeout,
        ),
        (
            "cfs-lock 'storage-nfs' error: got lock request timeout",
            Kind::LockTimeout,
        ),
        (
            "'storage-nfs'-locked command timed out - aborting",
            Kind::LockTimeout,
        ),
        ("checksum mismatch (file change by other user?)\n", Kind::Digest),
        ("storage 'nost' does not exist\n", Kind::NoStorage),
        ("pool 'x' does not exist\n", Kind::NoPool),
        ("snapshot 'nope' does not exist", Kind::NoSnapshot),
        ("snapshot name 'clean' already used", Kind::SnapshotTaken),
        (
            "Snapshot with name 'live' already exists on device 'drive-scsi1'",
            Kind::SnapshotTaken,
        ),
        ("cluster not ready - no quorum?\n", Kind::NoQuorum),
        ("QEMU guest agent is not running\n", Kind::AgentDown),
        ("No QEMU guest agent configured\n", Kind::AgentAbsent),
        ("VM 410 is not running\n", Kind::NotRunning),
        ("VM 100 not running", Kind::NotRunning),
        ("VM 410 already running", Kind::AlreadyRunning),
        ("VM 410 is running - destroy failed\n", Kind::Running),
        ("can't remove VM 140 - protection mode enabled\n", Kind::Protected),
        (
            "base volume 'local:9000/base-9000-disk-0.qcow2' is still in use by linked cloned\n",
            Kind::BaseInUse,
        ),
        (
            "Linked clone feature is not supported for 'local:9000/vm-9000-disk-0.qcow2' (scsi0)\n",
            Kind::NoLinkedClone,
        ),
        ("you can't start a vm if it's a template\n", Kind::IsTemplate),
        ("only root can set 'args' config\n", Kind::RootOnly),
        (
            "disk image '/var/lib/vz/images/777/vm-777-rec.qcow2' already exists\n",
            Kind::VolumeTaken,
        ),
        (
            "hostname lookup 'nonode' failed - failed to get address info for: nonode: Temporary failure\n",
            Kind::NoNode,
        ),
        (
            "KVM virtualisation configured, but not available. Either disable in VM configuration or enable in BIOS.\n",
            Kind::NoKvm,
        ),
        ("something nobody has seen\n", Kind::Other),
    ];
    for (sentence, kind) in table {
        assert_eq!(answered(500, sentence), kind, "{sentence}");
        assert_eq!(Refusal::task(sentence.trim(), &[]).kind, kind, "{sentence}");
        assert_eq!(Refusal::command(sentence).kind, kind, "{sentence}");
    }
}

#[test]
fn a_missing_privilege_is_named_with_its_path() {
    let refusal = Refusal::answered(
        403,
        "",
        br#"{"data":null,"message":"Permission check failed (/vms/200, VM.Config.Cloudinit|VM.Config.Network)\n"}"#,
    );
    let named = Some((
        "/vms/200".to_owned(),
        "VM.Config.Cloudinit|VM.Config.Network".to_owned(),
    ));
    assert_eq!(refusal.kind, Kind::Permission(named));
    let vmid = Vmid::try_from(200).unwrap();
    let error = refusal.into_error("proxmox", "configure", vmid);
    assert!(
        matches!(&error, BackendError::Refused { hint: Some(hint), .. }
            if hint.contains("VM.Config.Cloudinit or VM.Config.Network on /vms/200")),
        "{error:?}"
    );
    assert_eq!(answered(403, "Permission check failed\n"), Kind::Permission(None));
    // A 403 whose sentence says something better.
    assert_eq!(answered(403, "pool 'x' does not exist\n"), Kind::NoPool);
}

#[test]
fn an_empty_answer_says_what_its_status_says() {
    let refused = Refusal::answered(401, "Authentication failed!", b"");
    assert_eq!(
        (refused.kind, refused.words.as_str()),
        (Kind::Unauthenticated, "401 Authentication failed!")
    );
    for status in [595, 596, 599, 502, 503, 504] {
        assert_eq!(Refusal::answered(status, "", b"").kind, Kind::Unknown, "{status}");
    }
    assert_eq!(
        Refusal::answered(500, "", b"malformed JSON string").kind,
        Kind::Other
    );
}

#[test]
fn parameters_are_named_and_a_taken_number_is_told_from_a_wrong_one() {
    let body = br#"{"message":"Parameter verification failed.\n","errors":{"vmid":"VM 9000 already exists"},"data":null}"#;
    assert_eq!(Refusal::answered(400, "", body).kind, Kind::Taken);
    let body = br#"{"message":"Parameter verification failed.\n","data":null,"errors":{"allow-ksm":"property is not defined in schema and the schema does not allow additional properties"}}"#;
    let refused = Refusal::answered(400, "", body);
    assert!(
        matches!(&refused.kind, Kind::Invalid(errors) if errors[0].0 == "allow-ksm"),
        "{refused:?}"
    );
    assert!(
        refused.words.contains("allow-ksm: property is not defined"),
        "{refused}"
    );
    let refused = Refusal::command(
        "400 Parameter verification failed.\nname: invalid format - value does not look like a valid DNS name\n\nqm clone <vmid> <newid> [OPTIONS]\n",
    );
    assert!(
        matches!(&refused.kind, Kind::Invalid(errors) if errors[0].0 == "name"),
        "{refused:?}"
    );
    assert!(!refused.words.contains("[OPTIONS]"), "{refused}");
    let refused =
        Refusal::command("Unknown option: allow-ksm\n400 unable to parse option\nqm set <vmid> [OPTIONS]\n");
    let named = vec![("allow-ksm".to_owned(), "Unknown option".to_owned())];
    assert_eq!(refused.kind, Kind::Invalid(named));
    let body =
        br#"{"errors":{"upid":"no such task"},"data":null,"message":"Parameter verification failed.\n"}"#;
    assert_eq!(Refusal::answered(400, "", body).kind, Kind::NoTask);
}

#[test]
fn what_a_task_logged_comes_with_its_end_and_cannot_draw_on_a_terminal() {
    let log = [
        "create linked clone\u{1b}[2J".to_owned(),
        "TASK ERROR: boom".to_owned(),
    ];
    let refusal = Refusal::task("boom", &log);
    assert_eq!(refusal.words, "boom; its log: create linked clone\\u{1b}[2J");
    for lost in ["unexpected status", "unable to read tail (got 0 bytes)"] {
        assert_eq!(Refusal::task(lost, &[]).kind, Kind::Unknown, "{lost}");
    }
}

#[test]
fn storages_of_every_kind_are_understood() {
    let table = [
        (
            "can't clone VM to node 'pve1' (VM uses local storage)\n",
            Kind::LocalTemplate,
        ),
        (
            "Logical Volume \"vm-777-w\" already exists in volume group \"pve\"",
            Kind::VolumeTaken,
        ),
        (
            "zfs error: cannot create 'rpool/data/vm-777-w': dataset already exists",
            Kind::VolumeTaken,
        ),
        (
            "rbd create 'vm-777-w' error: rbd: create error: (17) File exists",
            Kind::VolumeTaken,
        ),
        (
            "lvcreate 'pve/vm-1000-disk-0' error: Cannot create new thin volume, free space in thin pool pve/data \
             reached threshold.",
            Kind::StorageFull,
        ),
        (
            "unable to activate storage 'usb' - directory is expected to be a mount point but is not mounted: '/mnt'",
            Kind::NoStorage,
        ),
    ];
    for (sentence, kind) in table {
        assert_eq!(answered(500, sentence), kind, "{sentence}");
    }
}

#[test]
fn a_lock_whose_holder_died_is_told_with_the_commands_that_end_it() {
    let vmid: Vmid = 1000.try_into().unwrap();
    let hint = |lock: &str| {
        let error =
            Refusal::new(Kind::Locked(lock.to_owned()), "locked").into_error("proxmox", "destroy", vmid);
        let crate::BackendError::Busy { hint: Some(hint), .. } = error else {
            panic!("{error:?}")
        };
        hint
    };
    assert!(hint("backup").ends_with("`qm unlock 1000`"), "{}", hint("backup"));
    let half = "`qm unlock 1000 && qm destroy 1000 --purge 1 --destroy-unreferenced-disks 1`";
    assert!(hint("clone").ends_with(half), "{}", hint("clone"));
}

/// The whole command stands in what PVE says of a start that took too long, and in it the seed as the guest gets it.
#[test]
fn a_start_that_fails_says_why_and_nothing_of_a_seed() {
    let seed = "QUxzZA".repeat(40);
    let options = "-device 'pci-bridge,id=pci.1,chassis_nr=1,bus=pci.0,addr=0x1e' ".repeat(40);
    let command = format!(
        "/usr/bin/kvm -id 1000 -name 'sandbox-1000,debug-threads=on' -smbios \
         'type=1,uuid=7d2ab580-26da-44b3-8f0d-0395a2723def,serial={seed}' {options}"
    );
    let ends = [
        format!("start failed: command '{command}' failed: got timeout"),
        format!("start failed: command '{command}' failed: exit code 1"),
        format!("kvm: -smbios type=1,serial={seed}: got timeout"),
    ];
    for end in ends {
        let log = [format!("{command}: exit code 1")];
        for refusal in [
            Refusal::task(&end, &[]),
            Refusal::task(&end, &log),
            Refusal::command(&end),
        ] {
            assert!(!refusal.words.contains(&seed[..32]), "{refusal}");
            assert!(
                refusal.words.contains("got timeout") || refusal.words.contains("exit code 1"),
                "{refusal}"
            );
        }
    }
    let short =
        "command '/sbin/zfs get -o value origin tank/vm-1000' failed: exit code 1; serial=agentlab-work";
    assert_eq!(Refusal::task(short, &[]).words, short);
}
