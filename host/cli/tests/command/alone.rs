//! What the command does without a daemon.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::stand_in::run;

#[test]
fn without_a_daemon_the_code_is_six_and_the_hint_says_what_to_look_at() {
    let dir = tempfile::tempdir().unwrap();
    let ran = run(&dir.path().join("absent"), dir.path(), &["status"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (6, ""));
    assert!(
        ran.stderr.starts_with("error: No daemon could be reached at "),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr.contains("\nhint: is agentlabd running?"),
        "{}",
        ran.stderr
    );
    let ran = run(&dir.path().join("absent"), dir.path(), &["--json", "status"]);
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        (ran.code, document["code"].as_str()),
        (6, Some("daemon_unreachable"))
    );
}

#[test]
fn usage_is_two_also_in_json_and_nothing_at_all_is_help() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = dir.path().join("absent");
    let ran = run(&nowhere, dir.path(), &["job", "runn"]);
    assert!(ran.code == 2 && ran.stderr.contains("'run'"), "{ran:?}");
    let ran = run(&nowhere, dir.path(), &["--json", "stauts"]);
    assert_eq!(
        serde_json::from_str::<Value>(&ran.stdout).unwrap()["code"],
        "invalid_value"
    );
    assert_eq!(ran.code, 2);
    let ran = run(&nowhere, dir.path(), &[]);
    assert!(ran.code == 0 && ran.stdout.contains("Usage: agentlab"), "{ran:?}");
    let ran = run(&nowhere, dir.path(), &["--version"]);
    assert!(
        ran.code == 0 && ran.stdout.starts_with("version=") && ran.stdout.lines().count() == 1,
        "{ran:?}"
    );
    let ran = run(&nowhere, dir.path(), &["completion", "bash"]);
    assert!(ran.code == 0 && ran.stdout.contains("complete"), "{}", ran.stderr);
}

#[test]
fn a_missing_helper_is_named_and_one_beside_the_command_is_run() {
    let dir = tempfile::tempdir().unwrap();
    let alone = dir.path().join("agentlab");
    // By a child: while another test begins a process, that may hold open what this process writes, and what is open
    // for writing cannot be run.
    let install = |from: &Path, to: &Path| {
        let installed = Command::new("install").args([from, to]).status();
        assert!(installed.unwrap().success());
    };
    install(Path::new(env!("CARGO_BIN_EXE_agentlab")), &alone);
    let run = || {
        let stderr = dir.path().join("stderr");
        let status = Command::new(&alone)
            .args(["net", "status", "--help"])
            .env("PATH", "/nonexistent")
            .stderr(File::create(&stderr).unwrap())
            .status()
            .unwrap();
        (status.code(), std::fs::read_to_string(stderr).unwrap())
    };
    let (code, stderr) = run();
    assert!(
        code == Some(1) && stderr.contains("`agentlab-net` could not be run") && stderr.contains("hint: "),
        "{stderr}"
    );
    let draft = dir.path().join("draft");
    std::fs::write(&draft, "#!/bin/sh\n[ \"$*\" = 'status --help' ] && exit 23\n").unwrap();
    install(&draft, &dir.path().join("agentlab-net"));
    assert_eq!(run().0, Some(23));
}

#[test]
fn profiles_are_validated_without_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.yaml"), "name: a\ntemplate_vmid: 9000\n").unwrap();
    std::fs::write(dir.path().join("b.yaml"), "name: a\ntemplate_vmid: 9000\n").unwrap();
    let nowhere = dir.path().join("absent");
    let ran = run(&nowhere, dir.path(), &["profile", "validate", "a.yaml"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "a.yaml:1: a is valid\n"));
    let ran = run(&nowhere, dir.path(), &["profile", "validate", "a.yaml", "b.yaml"]);
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (1, "error: b.yaml:1:1: profile `a` stands already at a.yaml:1\n")
    );
    let ran = run(
        &nowhere,
        dir.path(),
        &["--json", "profile", "validate", "b.yaml", "a.yaml"],
    );
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert!(
        document["errors"][0]["detail"]
            .as_str()
            .unwrap()
            .starts_with("a.yaml:1:1: "),
        "{document}"
    );
}
