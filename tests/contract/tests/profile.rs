//! `agentlab profile`.

use agentlab_tests_contract::Lab;

use crate::assert_shown;
use crate::shown::{document, shown};

const THREE: &str = "name: small\ntemplate_vmid: 9000\nnetwork: {mode: \"off\"}\nresources: {cores: 1, memory_mb: 512}\n---\n\
                     name: large\ntemplate_vmid: 9000\nnetwork: {mode: \"off\", channels: [serial]}\nstorage: {root_size_gb: 40}\n\
                     behavior: {inner_sandbox_args: [\"--unshare-pid\"], keepalive_default: true}\n---\n\
                     name: plain\ntemplate_vmid: 9000\n";

#[test]
fn profiles_are_listed_and_shown_with_their_defaults() {
    let mut lab = Lab::prepare().unwrap();
    lab.profile("more.yaml", THREE).unwrap();
    lab.start().unwrap();
    let say = |arguments: &[&str]| shown(&lab, &lab.agentlab(arguments).unwrap());
    assert_shown!("profile-list", say(&["profile", "list"]));
    assert_shown!("profile-show", say(&["profile", "show", "large"]));
    assert_shown!(
        "profile-show-json",
        document(&lab, &lab.json(&["profile", "show", "plain"]).unwrap())
    );
    assert_shown!("profile-absent", say(&["profile", "show", "lagre"]));
}

#[test]
fn a_file_of_three_profiles_loads_three() {
    let mut lab = Lab::prepare().unwrap();
    lab.profile("more.yaml", THREE).unwrap();
    lab.start().unwrap();
    let list = lab.json(&["profile", "list"]).unwrap();
    let names: Vec<_> = list["profiles"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["demo", "small", "large", "plain"]);
}

#[test]
fn a_profile_with_only_name_and_template_runs_a_job() {
    let mut lab = Lab::prepare().unwrap();
    lab.profile("demo.yaml", "name: demo\ntemplate_vmid: 9000\n")
        .unwrap();
    lab.start().unwrap();
    let job = lab.finished(&lab.detached("ok").unwrap()).unwrap();
    assert_eq!(job["state"], "COMPLETED", "{job:#}");
}

#[test]
fn validate_needs_no_daemon_and_names_every_fault_with_its_place() {
    let lab = Lab::prepare().unwrap();
    std::fs::write(lab.path("good.yaml"), THREE).unwrap();
    std::fs::write(
        lab.path("bad.yaml"),
        "name: bad\ntemplate_vmid: 99\nnetwrok:\n  mode: off\n---\nname: Bad Name\ntemplate_vmid: 9000\nresources:\n  cores: 0\n\
         ---\nname: mounts\ntemplate_vmid: 9000\nstorage:\n  host_mounts: [/etc]\n---\nname: small\ntemplate_vmid: 9000\n\
         network:\n  allow_domains: [example.org]\n",
    )
    .unwrap();
    let say = |arguments: &[&str]| shown(&lab, &lab.agentlab(arguments).unwrap());
    assert_shown!("validate-good", say(&["profile", "validate", "good.yaml"]));
    assert_shown!(
        "validate-bad",
        say(&["profile", "validate", "good.yaml", "bad.yaml"])
    );
    assert_shown!(
        "validate-bad-json",
        document(&lab, &lab.json(&["profile", "validate", "bad.yaml"]).unwrap())
    );
    assert_shown!("validate-absent", say(&["profile", "validate", "absent.yaml"]));
}
