//! Every line of what must be refused, at the level a user sees: the shipped `agentlabd` and `agentlab`.

use std::process::Command;

use agentlab_testkit::{Ran, job_run};
use agentlab_tests_contract::{Lab, run};

use crate::assert_shown;
use crate::shown::{document, shown};

fn check(lab: &Lab) -> Ran {
    let mut command = lab.daemon("agentlabd");
    command.arg("--check");
    run(command).unwrap()
}

/// The shipped daemon, which must end by itself. Should it ever come farther than it must, it finds no QEMU, and a
/// network that is nobody's.
fn start(lab: &Lab) -> Ran {
    let daemon = lab.daemon("agentlabd");
    if !rustix::process::geteuid().is_root() {
        return run(daemon).unwrap();
    }
    let mut alone = Command::new("unshare");
    alone
        .args(["--net", "--"])
        .arg(daemon.get_program())
        .args(daemon.get_args());
    run(alone).unwrap()
}

fn harmless() -> Lab {
    let lab = Lab::prepare().unwrap();
    lab.configure("qemu:\n  binary: /nonexistent/qemu\n").unwrap();
    lab
}

#[test]
fn an_unknown_key_of_the_configuration_is_named_with_its_place_and_the_nearest_one() {
    let lab = harmless();
    lab.configure("heartbeat_secnds: 5\n").unwrap();
    assert_shown!("config-unknown-key", shown(&lab, &check(&lab)));
    assert_shown!("config-unknown-key-at-start", shown(&lab, &start(&lab)));
}

#[test]
fn a_known_key_that_nothing_enforces_is_refused_and_says_what_to_do() {
    let lab = harmless();
    lab.configure("idle_stop_enabled: true\nmetrics_listen: 127.0.0.1:8847\n")
        .unwrap();
    assert_shown!("config-unenforced", shown(&lab, &check(&lab)));
}

#[test]
fn everything_out_of_range_is_named_at_once() {
    let lab = harmless();
    lab.configure(
        "max_sandboxes: 0\nbridge: no/name\nboot_timeout: 1s\ntemplate_vmid: 2000\nbackend: proxmox\n",
    )
    .unwrap();
    assert_shown!("config-out-of-range", shown(&lab, &check(&lab)));
}

#[test]
fn an_unknown_key_of_a_profile_is_named_with_its_place_and_the_nearest_one() {
    let lab = harmless();
    lab.profile(
        "typo.yaml",
        "name: typo\ntemplate_vmid: 9000\nresources:\n  memory: 512\n",
    )
    .unwrap();
    assert_shown!("profile-unknown-key", shown(&lab, &check(&lab)));
    let ran = lab
        .agentlab(&["profile", "validate", "profiles/typo.yaml"])
        .unwrap();
    assert_shown!("profile-unknown-key-validate", shown(&lab, &ran));
}

#[test]
fn two_profiles_of_one_name_are_refused_with_both_places() {
    let lab = harmless();
    lab.profile("first.yaml", "name: twice\ntemplate_vmid: 9000\n")
        .unwrap();
    lab.profile(
        "second.yaml",
        "name: other\ntemplate_vmid: 9000\n---\n\nname: twice\ntemplate_vmid: 9000\n",
    )
    .unwrap();
    assert_shown!("profile-twice", shown(&lab, &check(&lab)));
    assert_shown!("profile-twice-at-start", shown(&lab, &start(&lab)));
}

#[test]
fn a_good_configuration_is_called_good_with_the_number_of_its_profiles() {
    let lab = harmless();
    lab.profile(
        "three.yml",
        "name: a\ntemplate_vmid: 9000\n---\nname: b\ntemplate_vmid: 9000\n---\nname: c\ntemplate_vmid: 9000\n",
    )
    .unwrap();
    assert_shown!("config-good", shown(&lab, &check(&lab)));
}

#[test]
fn a_configuration_others_can_read_is_refused_and_one_its_group_can_read_warned_about() {
    let lab = harmless();
    for mode in [0o604, 0o602, 0o620, 0o660] {
        lab.config_mode(mode).unwrap();
        let ran = check(&lab);
        assert_eq!(ran.code(), Some(1), "{mode:o}: {ran:?}");
        assert_eq!(start(&lab).code(), Some(1), "{mode:o}");
    }
    lab.config_mode(0o604).unwrap();
    assert_shown!("config-others-read", shown(&lab, &check(&lab)));
    lab.config_mode(0o640).unwrap();
    assert_shown!("config-group-reads", shown(&lab, &check(&lab)));
    lab.config_mode(0o600).unwrap();
    assert!(!check(&lab).stdout.contains("warning"));
}

#[test]
fn what_is_not_there_is_named() {
    let lab = harmless();
    std::fs::rename(lab.path("profiles"), lab.path("elsewhere")).unwrap();
    assert_shown!("no-profiles-dir", shown(&lab, &check(&lab)));
    std::fs::remove_file(lab.path("config.yaml")).unwrap();
    assert_shown!("no-config", shown(&lab, &check(&lab)));
}

#[test]
fn a_second_daemon_on_one_directory_is_refused_and_the_first_goes_on() {
    let mut lab = harmless();
    lab.start().unwrap();
    assert_shown!("second-daemon", shown(&lab, &start(&lab)));
    assert_eq!(lab.agentlab(&["status"]).unwrap().code(), Some(0));
}

#[test]
fn a_second_daemon_on_one_socket_is_refused_before_it_touches_anything() {
    let lab = Lab::started().unwrap();
    let second = harmless();
    let socket = lab.path("run/agentlabd.sock").display().to_string();
    second.configure(&format!("socket_path: {socket}\n")).unwrap();
    let ran = start(&second);
    assert_eq!(ran.code(), Some(1), "{ran:?}");
    assert!(ran.stderr.contains("Another agentlabd (pid "), "{ran:?}");
    assert!(ran.stderr.contains(&socket), "{ran:?}");
    assert!(!second.path("data/agentlab.db").exists());
    assert_eq!(lab.agentlab(&["status"]).unwrap().code(), Some(0));
}

#[test]
fn a_file_where_the_socket_belongs_is_left_alone() {
    let mut lab = harmless();
    std::fs::create_dir(lab.path("run")).unwrap();
    std::fs::write(lab.path("run/agentlabd.sock"), "precious").unwrap();
    let ran = run(lab.daemon("agentlabd-fake")).unwrap();
    assert_eq!(ran.code(), Some(1), "{ran:?}");
    assert!(ran.stderr.contains("is a file that is no socket"), "{ran:?}");
    assert_eq!(
        std::fs::read(lab.path("run/agentlabd.sock")).unwrap(),
        b"precious"
    );
    std::fs::remove_file(lab.path("run/agentlabd.sock")).unwrap();
    lab.start().unwrap();
}

#[test]
fn a_file_where_the_data_belongs_is_named_with_the_key_that_moves_it() {
    let lab = harmless();
    std::fs::write(lab.path("data"), "precious").unwrap();
    let ran = start(&lab);
    assert_eq!(ran.code(), Some(1), "{ran:?}");
    let data = lab.path("data").display().to_string();
    assert!(
        ran.stderr.contains(&format!("hint: {data} must be a directory")),
        "{ran:?}"
    );
    assert!(ran.stderr.contains("set data_dir"), "{ran:?}");
    assert_eq!(std::fs::read(lab.path("data")).unwrap(), b"precious");
}

#[test]
fn an_empty_name_is_called_empty() {
    let lab = Lab::started().unwrap();
    for words in [
        ["sandbox", "show", ""],
        ["sandbox", "destroy", ""],
        ["profile", "show", ""],
    ] {
        let ran = lab.agentlab(&words).unwrap();
        assert_eq!(ran.code(), Some(1), "{words:?}: {ran:?}");
        assert!(
            ran.stderr.contains("hint: a name or id in it is empty"),
            "{ran:?}"
        );
    }
}

#[test]
fn a_template_that_is_missing_or_carries_another_runner_is_refused_before_anything_is_made() {
    let mut lab = Lab::prepare().unwrap();
    lab.profile(
        "more.yaml",
        "name: absent\ntemplate_vmid: 9999\n---\nname: old\ntemplate_vmid: 9001\n",
    )
    .unwrap();
    lab.flags(&["--template", "9000=0.1.7", "--template", "9001=0.0.9"]);
    lab.start().unwrap();
    lab.repository().unwrap();
    let with = |profile: &'static str| job_run("repository", profile, "ok", &[]);
    assert_shown!(
        "template-missing",
        shown(&lab, &lab.agentlab(&with("absent")).unwrap())
    );
    assert_shown!(
        "template-old-runner",
        shown(&lab, &lab.agentlab(&with("old")).unwrap())
    );
    assert_shown!(
        "template-old-runner-json",
        document(&lab, &lab.json(&with("old")).unwrap())
    );
    let list = lab.json(&["sandbox", "list", "--all"]).unwrap();
    assert_eq!(list["sandboxes"].as_array().unwrap().len(), 0, "{list:#}");
    let ran = lab.agentlab(&with("demo")).unwrap();
    assert_eq!(
        ran.code(),
        Some(0),
        "a runner of the same minor version fits: {ran:?}"
    );
}
