//! `--workspace-wait`.

use agentlab_testkit::job_run;
use agentlab_tests_contract::Lab;

/// Asks for a sandbox that has the workspace.
const NEW: [&str; 7] = [
    "sandbox",
    "new",
    "--profile",
    "demo",
    "--workspace",
    "work",
    "--detach",
];

/// A lab with a workspace that a sandbox has.
fn lab() -> Lab {
    let lab = Lab::started().unwrap();
    lab.json(&["workspace", "create", "work", "--size", "1G"])
        .unwrap();
    lab.json(&NEW).unwrap();
    lab
}

fn sandboxes(lab: &Lab) -> usize {
    let list = lab.json(&["sandbox", "list", "--all"]).unwrap();
    list["sandboxes"].as_array().unwrap().len()
}

#[test]
fn a_busy_workspace_is_waited_for_with_a_line_that_says_who_has_it_and_is_refused_in_the_end() {
    let lab = lab();
    let refused = lab.agentlab(&NEW).unwrap();
    assert_eq!(refused.code(), Some(5), "{refused:?}");
    assert!(!refused.stderr.contains("waiting"), "{refused:?}");
    let job = job_run(
        "https://example.invalid/r.git",
        "demo",
        "x",
        &["--workspace", "work"],
    );
    for words in [&NEW[..], &job] {
        let words: Vec<&str> = words.iter().copied().chain(["--workspace-wait", "1s"]).collect();
        let refused = lab.agentlab(&words).unwrap();
        assert_eq!(refused.code(), Some(5), "{refused:?}");
        let lines: Vec<&str> = refused.stderr.lines().collect();
        assert!(
            lines[0].contains("waiting") && lines[0].contains("sandbox 1000"),
            "{refused:?}"
        );
        assert!(
            lines[1].contains("sandbox 1000") && lines[1].contains("waited 1 s"),
            "{refused:?}"
        );
    }
    let no_workspace = ["sandbox", "new", "--profile", "demo", "--workspace-wait", "1s"];
    assert_eq!(lab.agentlab(&no_workspace).unwrap().code(), Some(2));
    assert_eq!(sandboxes(&lab), 1);
}

#[test]
fn whoever_waits_gets_the_workspace_when_it_is_free_and_nothing_after_ctrl_c() {
    let lab = lab();
    let waiting = || {
        let words: Vec<&str> = NEW.into_iter().chain(["--workspace-wait", "10m"]).collect();
        let mut waiting = lab.begin(&words).unwrap();
        waiting.wait_for_note("sandbox 1000").unwrap();
        waiting
    };
    let gave_up = waiting();
    gave_up.interrupt().unwrap();
    assert_eq!(gave_up.finish().unwrap().code(), Some(130));
    let waits = waiting();
    lab.agentlab(&["sandbox", "destroy", "1000", "--force"]).unwrap();
    let got = waits.finish().unwrap();
    assert_eq!(got.code(), Some(0), "{got:?}");
    let view = lab.json(&["workspace", "show", "work"]).unwrap();
    assert_eq!(view["vmid"].to_string(), got.stdout.trim(), "{view}");
    assert_eq!(sandboxes(&lab), 2);
}
