//! `agentlab job run | list | show | logs`.

use std::process::Stdio;

use agentlab_testkit::job_run;
use agentlab_tests_contract::{Lab, run};

use crate::assert_shown;
use crate::shown::{document, followed, shown};

/// What a real agent could do: says something, fixes something, leaves something.
const WORK: &str =
    "print working\ncomplain careful\ncommit sum.sh echo $(($1 + $2))\nwrite answer.txt 42\nprint done";

fn on_repository<'a>(lab: &Lab, task: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    lab.job(task, more).unwrap()
}

#[test]
fn a_followed_job_shows_steps_output_and_what_it_left_and_exits_with_zero() {
    let lab = Lab::started().unwrap();
    let ran = lab.agentlab(&on_repository(&lab, WORK, &[])).unwrap();
    assert_shown!("run-completed", followed(&lab, &ran));
    let status = lab.json(&["status"]).unwrap();
    assert_eq!(status["live_tokens"], 0, "{status:#}");
    assert_eq!(
        lab.agentlab(&["sandbox", "list"]).unwrap().stdout.lines().count(),
        1
    );
}

#[test]
fn a_followed_job_in_json_is_one_document_at_its_end() {
    let lab = Lab::started().unwrap();
    let ran = lab.agentlab(&on_repository(&lab, WORK, &["--json"])).unwrap();
    assert_eq!((ran.code(), ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    assert_shown!(
        "run-completed-json",
        document(&lab, &serde_json::from_str(&ran.stdout).unwrap())
    );
}

#[test]
fn the_agents_own_exit_code_comes_back_and_its_files_too() {
    let lab = Lab::started().unwrap();
    let task = "print trying\nwrite partial.txt half\nexit 3";
    let ran = lab.agentlab(&on_repository(&lab, task, &[])).unwrap();
    assert_shown!("run-failed", followed(&lab, &ran));
    let ran = lab.agentlab(&on_repository(&lab, "exit 3", &["--json"])).unwrap();
    assert_eq!(ran.code(), Some(3), "{ran:?}");
    let job: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(job["failure"]["code"], "agent_failed", "{job:#}");
}

#[test]
fn gits_own_words_come_back_when_the_repository_cannot_be_cloned() {
    let lab = Lab::started().unwrap();
    let job = lab
        .detached("no-clone fatal: repository 'https://example.invalid/r.git/' not found")
        .unwrap();
    let ran = lab.agentlab(&["job", "logs", "-f", &job]).unwrap();
    assert_shown!("run-no-clone", followed(&lab, &ran));
}

#[test]
fn a_detached_job_prints_its_id_alone_or_its_document() {
    let lab = Lab::started().unwrap();
    let ran = lab.agentlab(&on_repository(&lab, "ok", &["--detach"])).unwrap();
    assert_shown!("detached", shown(&lab, &ran));
    let job = lab.finished(ran.stdout.trim()).unwrap();
    assert_eq!(job["state"], "COMPLETED", "{job:#}");
    let ran = lab
        .agentlab(&on_repository(&lab, "ok", &["--detach", "--json"]))
        .unwrap();
    let job: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert!(job["id"].as_str().unwrap().starts_with("job_"), "{job:#}");
    assert!(job["outcome"].is_null(), "it was not waited for: {job:#}");
}

#[test]
fn an_idempotency_key_gives_the_same_job_and_never_another_ones() {
    let lab = Lab::started().unwrap();
    let with_key = |task| {
        let more = ["--detach", "--idempotency-key", "k1"];
        lab.agentlab(&on_repository(&lab, task, &more)).unwrap()
    };
    let (first, again) = (with_key("ok"), with_key("ok"));
    assert_eq!(
        (first.code(), &first.stdout),
        (Some(0), &again.stdout),
        "{again:?}"
    );
    assert_shown!("idempotency-conflict", shown(&lab, &with_key("exit 3")));
    let list = lab.json(&["job", "list"]).unwrap();
    assert_eq!(list["jobs"].as_array().unwrap().len(), 1, "{list:#}");
}

#[test]
fn the_task_may_come_from_a_file_or_from_standard_input() {
    let lab = Lab::started().unwrap();
    lab.repository().unwrap();
    std::fs::write(lab.path("task.sh"), "print from a file\n").unwrap();
    let arguments = [
        "job",
        "run",
        "--repo",
        "repository",
        "--profile",
        "demo",
        "--task-file",
    ];
    let ran = lab.agentlab(&[&arguments[..], &["task.sh"]].concat()).unwrap();
    assert!(ran.stdout.contains("│ from a file\n"), "{ran:?}");

    let (reader, mut writer) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut writer, b"print from a pipe\n").unwrap();
    drop(writer);
    let mut command = lab.command(&[&arguments[..], &["-"]].concat());
    command.stdin(Stdio::from(reader));
    let ran = run(command).unwrap();
    assert!(ran.stdout.contains("│ from a pipe\n"), "{ran:?}");

    std::fs::write(lab.path("task.sh"), "\n").unwrap();
    let ran = lab.agentlab(&[&arguments[..], &["task.sh"]].concat()).unwrap();
    assert_shown!("empty-task", shown(&lab, &ran));
}

#[test]
fn what_cannot_run_is_refused_before_anything_is_made() {
    let lab = Lab::started().unwrap();
    lab.repository().unwrap();
    let refused = |repo: &str, profile: &str, more: &[&str]| {
        shown(&lab, &lab.agentlab(&job_run(repo, profile, "ok", more)).unwrap())
    };
    let url = "https://example.invalid/r.git";
    assert_shown!("unknown-profile", refused("repository", "dmeo", &[]));
    assert_shown!("unknown-profile-url", refused(url, "dmeo", &[]));
    assert_shown!("no-repository", refused("./nowhere", "demo", &[]));
    assert_shown!("not-a-repository", refused("profiles", "demo", &[]));
    assert_shown!("unknown-ref", refused("repository", "demo", &["--ref", "mian"]));
    assert_shown!(
        "credentials-in-url",
        refused("https://u:secret@example.invalid/r", "demo", &[])
    );
    assert_shown!("plain-http", refused("http://example.invalid/r", "demo", &[]));
    assert_shown!(
        "short-lease",
        refused(url, "demo", &["--deadline", "2h", "--ttl", "1h"])
    );
    assert_shown!("unknown-agent", refused(url, "demo", &["--agent", "claud"]));
    let list = lab.json(&["job", "list"]).unwrap();
    assert_eq!(list["jobs"].as_array().unwrap().len(), 0, "{list:#}");
    assert!(!lab.log().contains("secret"), "{}", lab.log());
}

#[test]
fn jobs_are_listed_newest_first_in_pages_and_shown_one_by_one() {
    let lab = Lab::started().unwrap();
    let mut jobs = Vec::new();
    for task in ["exit 3", "ok", "write a b"] {
        let job = lab.detached(task).unwrap();
        lab.finished(&job).unwrap();
        jobs.push(job);
    }
    assert_shown!("job-list", shown(&lab, &lab.agentlab(&["job", "list"]).unwrap()));
    assert_shown!(
        "job-show",
        shown(&lab, &lab.agentlab(&["job", "show", &jobs[0]]).unwrap())
    );
    assert_shown!(
        "job-show-json",
        document(&lab, &lab.json(&["job", "show", &jobs[2]]).unwrap())
    );

    let page = lab.json(&["job", "list", "-n", "2"]).unwrap();
    let cursor = page["next_cursor"].as_str().unwrap();
    let rest = lab.json(&["job", "list", "--cursor", cursor]).unwrap();
    let ids = |page: &serde_json::Value| -> Vec<String> {
        let page = page["jobs"].as_array().unwrap();
        page.iter()
            .map(|job| job["id"].as_str().unwrap().to_owned())
            .collect()
    };
    jobs.reverse();
    assert_eq!([ids(&page), ids(&rest)].concat(), jobs);
    let ran = lab.agentlab(&["job", "list", "-n", "2"]).unwrap();
    assert!(ran.stderr.contains("hint: there are more"), "{ran:?}");
}

#[test]
fn a_job_that_does_not_exist_is_not_found_by_any_verb() {
    let lab = Lab::started().unwrap();
    let id = "job_000000000000";
    assert_shown!(
        "no-such-job",
        shown(&lab, &lab.agentlab(&["job", "show", id]).unwrap())
    );
    assert_shown!(
        "no-such-job-json",
        document(&lab, &lab.json(&["job", "show", id]).unwrap())
    );
    for verb in [
        &["logs"][..],
        &["logs", "-f"],
        &["cancel"],
        &["artifacts"],
        &["artifacts", "download"],
        &["apply"],
    ] {
        let ran = lab.agentlab(&[&["job"], verb, &[id]].concat()).unwrap();
        assert_eq!(ran.code(), Some(3), "{verb:?}: {ran:?}");
        assert!(ran.stderr.contains(id), "{verb:?}: {ran:?}");
    }
}

#[test]
fn logs_are_the_same_story_afterwards_plain_and_in_json() {
    let lab = Lab::started().unwrap();
    let job = lab.detached("print one\ncomplain two\nprint three").unwrap();
    lab.finished(&job).unwrap();
    let ran = lab.agentlab(&["job", "logs", &job]).unwrap();
    assert_shown!("logs", followed(&lab, &ran));
    assert_shown!(
        "logs-plain",
        shown(&lab, &lab.agentlab(&["job", "logs", "--plain", &job]).unwrap())
    );
    let records = lab.json(&["job", "logs", &job]).unwrap();
    let texts: Vec<_> = records["records"]
        .as_array()
        .unwrap()
        .iter()
        .map(|record| {
            (
                record["stream"].as_str().unwrap(),
                record["text"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        texts,
        [("stdout", "one\n"), ("stderr", "two\n"), ("stdout", "three\n")]
    );
    let ran = lab.agentlab(&["--json", "job", "logs", "-f", &job]).unwrap();
    assert_eq!((ran.code(), ran.stdout.lines().count()), (Some(0), 3), "{ran:?}");
}

#[test]
fn output_is_seen_while_the_agent_still_runs() {
    let lab = Lab::started().unwrap();
    let go = lab.path("go").display().to_string();
    let task = format!("print early\nawait {go}\nprint late");
    let mut running = lab.begin(&on_repository(&lab, &task, &[])).unwrap();
    running.wait_for("early").unwrap();
    let list = lab.json(&["sandbox", "list"]).unwrap();
    assert_eq!(list["sandboxes"][0]["state"], "RUNNING", "{list:#}");
    std::fs::write(go, "").unwrap();
    running.wait_for("late").unwrap();
    assert_eq!(running.finish().unwrap().code(), Some(0));
}
