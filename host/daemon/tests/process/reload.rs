//! SIGHUP: what may change does, and what is wrong changes nothing.

use rustix::process::Signal;

use crate::lab::Lab;

/// Asks for it and waits until the service manager has heard of both ends.
fn reload(lab: &Lab) {
    lab.signal(Signal::HUP);
    let begun = lab.until("RELOADING=1");
    let time = begun
        .lines()
        .find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
    assert!(time.is_some_and(|time| time.parse::<u64>().is_ok()), "{begun}");
    lab.until("READY=1");
}

#[test]
fn profiles_and_the_level_of_the_log_change_and_other_keys_are_named() {
    let mut lab = Lab::new();
    lab.start(&[]);
    lab.profile("second");
    assert_eq!(lab.profiles(), ["demo"]);
    assert!(!lab.log().contains("DEBUG"), "{}", lab.log());

    lab.configure("log_level: debug\nkill_grace_seconds: 77\nboot_timeout: 77s\n");
    reload(&lab);
    assert_eq!(lab.profiles(), ["demo", "second"]);
    assert!(lab.log().contains("DEBUG"), "{}", lab.log());
    let alarms = lab.alarms();
    assert!(
        alarms.len() == 1 && alarms[0].contains("restart: boot_timeout, kill_grace_seconds"),
        "{alarms:?}"
    );

    lab.configure("log_level: debug\n");
    reload(&lab);
    assert_eq!(lab.alarms(), Vec::<String>::new());
}

#[test]
fn a_wrong_file_changes_nothing_and_is_named_until_it_is_right() {
    let mut lab = Lab::new();
    lab.start(&[]);
    let right = "name: demo\ntemplate_vmid: 9000\n";
    lab.profile("second");
    for (file, wrong) in [
        ("config.yaml", "max_sandbox: 3\n"),
        ("profiles/demo.yaml", "name: demo\ntemplate_vmid: nine\n"),
        ("profiles/third.yaml", right),
    ] {
        let before = std::fs::read(lab.path(file)).ok();
        std::fs::write(lab.path(file), wrong).unwrap();
        reload(&lab);
        assert_eq!(lab.profiles(), ["demo"], "{file}");
        let alarms = lab.alarms();
        assert!(
            alarms.len() == 1 && alarms[0].contains("not reloaded") && alarms[0].contains(file),
            "{alarms:?}"
        );
        assert!(lab.log().contains("the old one stands"), "{}", lab.log());
        match before {
            Some(before) => std::fs::write(lab.path(file), before).unwrap(),
            None => std::fs::remove_file(lab.path(file)).unwrap(),
        }
    }
    reload(&lab);
    assert_eq!(lab.profiles(), ["demo", "second"]);
    assert_eq!(lab.alarms(), Vec::<String>::new());
}

#[test]
fn fewer_user_ids_than_sandboxes_are_refused_by_the_running_daemon() {
    let mut lab = Lab::new();
    lab.configure("  uid_count: 20\n");
    lab.start(&[]);
    lab.configure("  uid_count: 200\nmax_sandboxes: 20\n");
    reload(&lab);
    let alarms = lab.alarms();
    assert!(
        alarms.len() == 1 && alarms[0].contains("only 20 user ids"),
        "{alarms:?}"
    );
}
