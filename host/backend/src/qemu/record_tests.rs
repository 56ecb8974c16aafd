use super::*;

fn record(vmid: u32) -> Record {
    let stamp: Stamp = format!(
        "agentlab:{}:{}",
        agentlab_api::SandboxId::generate(),
        "a".repeat(32)
    )
    .parse()
    .unwrap();
    let template = TemplateOrigin {
        vmid: 9000.try_into().unwrap(),
        name: "debian".into(),
        id: "0123".into(),
    };
    Record::new(vmid.try_into().unwrap(), "sandbox", &stamp, template, 2_000_000)
}

#[test]
fn a_directory_that_was_being_made_or_removed_is_cleared_at_the_next_start() {
    let run = tempfile::tempdir().unwrap();
    let machines = Machines::open(run.path()).unwrap();
    let kept = machines.create(record(1000)).unwrap();
    fs::create_dir_all(run.path().join("vm/.new-1001/x")).unwrap();
    fs::rename(
        machines.create(record(1002)).unwrap().path(),
        run.path().join("vm/.gone-1002"),
    )
    .unwrap();

    let machines = Machines::open(run.path()).unwrap();
    assert_eq!(machines.vmids().unwrap(), [kept.record.vmid]);
    assert_eq!(fs::read_dir(run.path().join("vm")).unwrap().count(), 1);
    assert!(
        matches!(machines.find(kept.record.vmid).unwrap(), Found::Ours(dir) if dir.record == kept.record)
    );
}

#[test]
fn a_directory_that_exists_is_never_taken_over() {
    let run = tempfile::tempdir().unwrap();
    let machines = Machines::open(run.path()).unwrap();
    let first = machines.create(record(1000)).unwrap();
    machines.create(record(1000)).unwrap_err();
    assert!(
        matches!(machines.find(first.record.vmid).unwrap(), Found::Ours(dir) if dir.record == first.record)
    );
}

#[test]
fn what_has_no_readable_record_of_this_vmid_is_not_ours() {
    let run = tempfile::tempdir().unwrap();
    let machines = Machines::open(run.path()).unwrap();
    let vmid: Vmid = 1000.try_into().unwrap();
    assert!(matches!(machines.find(vmid).unwrap(), Found::Nothing));
    let dir = run.path().join("vm/1000");
    fs::create_dir(&dir).unwrap();
    assert!(matches!(machines.find(vmid).unwrap(), Found::Unreadable(_)));
    let other = serde_json::to_string(&record(1001)).unwrap();
    let later = serde_json::to_string(&Record {
        format: 2,
        ..record(1000)
    })
    .unwrap();
    let unstamped = serde_json::to_string(&Record {
        stamp: "mine".into(),
        ..record(1000)
    })
    .unwrap();
    for text in [
        "",
        "{",
        "[]",
        "{\"format\":1}",
        &other,
        &later,
        &unstamped,
        &"x".repeat(70_000),
    ] {
        fs::write(dir.join(RECORD), text).unwrap();
        assert!(
            matches!(machines.find(vmid).unwrap(), Found::Unreadable(_)),
            "{text:.40}"
        );
    }
}
