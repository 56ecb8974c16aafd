//! How jobs end and what they leave: cancel, Ctrl-C, artifacts, download, apply.

use agentlab_tests_contract::Lab;

use crate::assert_shown;
use crate::shown::{document, followed, shown};

const WORK: &str = "commit sum.sh echo $(($1 + $2))\nwrite out/answer.txt 42\nwrite a.txt b";

fn worked(lab: &Lab, task: &str) -> String {
    let job = lab.json(&lab.job(task, &[]).unwrap()).unwrap();
    job["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_cancelled_job_ends_as_cancelled_and_keeps_what_it_made() {
    let lab = Lab::started().unwrap();
    let job = lab.detached("write made.txt before\nprint begun\nhang").unwrap();
    let mut following = lab.begin(&["job", "logs", "-f", &job]).unwrap();
    following.wait_for("begun").unwrap();
    assert_shown!(
        "cancel",
        shown(&lab, &lab.agentlab(&["job", "cancel", &job]).unwrap())
    );
    let ran = following.finish().unwrap();
    assert_shown!("cancelled", followed(&lab, &ran));
    let list = lab.json(&["job", "artifacts", &job]).unwrap();
    assert_eq!(list["artifacts"][0]["name"], "files/made.txt", "{list:#}");
    assert_shown!(
        "cancel-again",
        shown(&lab, &lab.agentlab(&["job", "cancel", &job]).unwrap())
    );
}

#[test]
fn a_job_whose_lease_ends_times_out_for_that_and_keeps_what_it_made() {
    let lab = Lab::started().unwrap();
    let more = ["--detach", "--ttl", "1m", "--deadline", "1m"];
    let task = lab
        .job("commit sum.sh x\nwrite made.txt before\nprint begun\nhang", &more)
        .unwrap();
    let begun = lab.json(&task).unwrap();
    let job = begun["id"].as_str().unwrap();
    let ran = lab.agentlab(&["job", "logs", "-f", job]).unwrap();
    assert_eq!(ran.code(), Some(7), "{ran:?}");
    let view = lab.json(&["job", "show", job]).unwrap();
    assert_eq!(view["state"], "TIMEOUT", "{view:#}");
    assert_eq!(view["failure"]["stage"], "Lease", "{view:#}");
    assert_eq!(view["failure"]["message"], "The lease of its sandbox ran out");
    assert_eq!(view["outcome"]["commits"], 1, "{view:#}");
    let list = lab.json(&["job", "artifacts", job]).unwrap();
    let all = list["artifacts"].as_array().unwrap();
    let names: Vec<_> = all.iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        ["files/made.txt", "report.json", "work.bundle", "work.patch"]
    );
}

#[test]
fn each_way_to_fail_has_its_code_in_the_api_and_says_so_to_whoever_follows() {
    let lab = Lab::started().unwrap();
    for (task, state, code) in [
        ("no-clone fatal: gone", "FAILED", "repository_unavailable"),
        ("fail clone", "FAILED", "repository_unavailable"),
        ("exit 3", "FAILED", "agent_failed"),
        ("fail agent_exit", "FAILED", "agent_failed"),
        ("late", "TIMEOUT", "agent_timeout"),
        ("fail oom", "FAILED", "out_of_memory"),
        ("fail disk_full", "FAILED", "guest_disk_full"),
        ("fail policy", "FAILED", "policy_unenforced"),
        ("fail workspace", "FAILED", "workspace_unusable"),
        ("fail lost", "FAILED", "sandbox_lost"),
        ("power-off", "FAILED", "sandbox_lost"),
    ] {
        let job = lab.detached(task).unwrap();
        let ended = lab.finished(&job).unwrap();
        assert_eq!(
            (&ended["state"], &ended["failure"]["code"]),
            (&state.into(), &code.into()),
            "{task}"
        );
        let told = lab.agentlab(&["job", "logs", &job]).unwrap().stdout;
        assert!(told.contains(&format!("is {state}")), "{task}: {told}");
    }
    let job = lab.detached("print begun\nhang").unwrap();
    let mut following = lab.begin(&["job", "logs", "-f", &job]).unwrap();
    following.wait_for("begun").unwrap();
    let cancelled = lab.agentlab(&["job", "cancel", &job]).unwrap();
    assert_eq!(cancelled.code(), Some(0), "{cancelled:?}");
    following.finish().unwrap();
    let ended = lab.finished(&job).unwrap();
    assert_eq!(
        (&ended["state"], &ended["failure"]["code"]),
        (&"CANCELLED".into(), &"cancelled".into())
    );
}

#[test]
fn ctrl_c_detaches_and_says_how_to_follow_again_and_the_job_goes_on() {
    let lab = Lab::started().unwrap();
    let go = lab.path("go").display().to_string();
    let task = format!("print begun\nawait {go}\nprint ended");
    let mut running = lab.begin(&lab.job(&task, &[]).unwrap()).unwrap();
    running.wait_for("begun").unwrap();
    running.interrupt().unwrap();
    let ran = running.finish().unwrap();
    assert_eq!(ran.code(), Some(130), "{ran:?}");
    assert_shown!("detached-by-ctrl-c", {
        let stdout = String::new();
        shown(&lab, &agentlab_testkit::Ran { stdout, ..ran })
    });
    let list = lab.json(&["job", "list"]).unwrap();
    assert_eq!(list["jobs"][0]["state"], "RUNNING", "{list:#}");

    std::fs::write(go, "").unwrap();
    let job = list["jobs"][0]["id"].as_str().unwrap();
    let ran = lab.agentlab(&["job", "logs", "-f", job]).unwrap();
    assert_eq!(ran.code(), Some(0), "{ran:?}");
    for words in ["│ begun", "│ ended", "COMPLETED"] {
        assert!(ran.stdout.contains(words), "no {words:?} in {ran:?}");
    }
}

#[test]
fn a_vm_that_dies_under_its_job_fails_it_as_lost_without_delay() {
    let lab = Lab::started().unwrap();
    let job = lab.detached("print begun\npower-off").unwrap();
    let ran = lab.agentlab(&["job", "logs", "-f", &job]).unwrap();
    assert_shown!("lost", followed(&lab, &ran));
}

#[test]
fn whoever_follows_is_told_that_the_token_was_in_foreign_hands() {
    let lab = Lab::started().unwrap();
    let job = lab.detached("second-key").unwrap();
    let ran = lab.agentlab(&["job", "logs", "-f", &job]).unwrap();
    assert_shown!("second-key", followed(&lab, &ran));
}

#[test]
fn a_guest_that_floods_and_lies_ends_no_other_way_than_its_agent_did() {
    let mut lab = Lab::prepare().unwrap();
    lab.configure("log_max_bytes: 100000\n").unwrap();
    lab.start().unwrap();
    let job = lab
        .detached("flood 4\nbad-report\nprint unheard\nexit 3")
        .unwrap();
    let ran = lab.agentlab(&["job", "logs", "-f", &job]).unwrap();
    assert_eq!(ran.code(), Some(3), "{}\n{}", ran.stderr, lab.log());
    assert!(
        ran.stdout.len() < 150_000,
        "{} bytes were shown",
        ran.stdout.len()
    );
    assert!(
        ran.stdout.contains("┊ Output beyond 100000 bytes is not kept."),
        "{}",
        ran.stdout
    );
    assert!(!ran.stdout.contains("unheard"));
}

#[test]
fn artifacts_are_listed_and_downloaded_whole() {
    let lab = Lab::started().unwrap();
    let job = worked(&lab, WORK);
    let say = |arguments: &[&str]| shown(&lab, &lab.agentlab(arguments).unwrap());
    let download = |more: &[&str]| say(&[&["job", "artifacts", "download", &job], more].concat());
    let list = lab.json(&["job", "artifacts", &job]).unwrap();
    let names: Vec<_> = list["artifacts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["name"].as_str().unwrap(), one["kind"].as_str().unwrap()))
        .collect();
    assert_eq!(
        names,
        [
            ("files/a.txt", "file"),
            ("files/out/answer.txt", "file"),
            ("report.json", "report"),
            ("work.bundle", "bundle"),
            ("work.patch", "patch"),
        ]
    );
    let files = worked(&lab, "write out/answer.txt 42");
    let small = [
        "job",
        "artifacts",
        "download",
        &files,
        "--name",
        "files/out/answer.txt",
    ];
    assert_shown!("download-one", say(&[&small[..], &["--out", "here"]].concat()));
    assert_eq!(
        std::fs::read(lab.path("here/files/out/answer.txt")).unwrap(),
        b"42"
    );
    assert_shown!("download-absent", download(&["--name", "nothing"]));

    let ran = lab.agentlab(&["job", "artifacts", "download", &job]).unwrap();
    assert_eq!((ran.code(), ran.stdout.lines().count()), (Some(0), 5), "{ran:?}");
    let patch = std::fs::read_to_string(lab.path(&job).join("work.patch")).unwrap();
    assert!(patch.contains("Subject: [PATCH] Change sum.sh"), "{patch}");
    let text = say(&["job", "artifacts", &files]);
    assert!(
        text.contains("NAME") && text.contains("files/out/answer.txt"),
        "{text}"
    );
}

#[test]
fn a_damaged_artifact_is_noticed_and_leaves_no_file() {
    let lab = Lab::started().unwrap();
    let job = worked(&lab, "write a.txt good");
    let list = lab.json(&["job", "artifacts", &job]).unwrap();
    let stored = lab.stored(list["artifacts"][0]["sha256"].as_str().unwrap());
    assert_eq!(std::fs::read(&stored).unwrap(), b"good");
    std::fs::write(&stored, "evil").unwrap();
    let arguments = [
        "job",
        "artifacts",
        "download",
        &job,
        "--name",
        "files/a.txt",
        "--out",
        "here",
    ];
    let ran = lab.agentlab(&arguments).unwrap();
    assert_shown!("download-damaged", shown(&lab, &ran));
    assert!(!lab.path("here/files/a.txt").exists());
}

#[test]
fn work_is_applied_into_a_ref_of_its_own_and_nothing_is_checked_out() {
    let lab = Lab::started().unwrap();
    let job = worked(&lab, WORK);
    let repository = lab.repository().unwrap();
    let head = repository.git(&["rev-parse", "HEAD"]).unwrap();
    let arguments = ["job", "apply", &job, "--repo", "repository"];
    assert_shown!("apply", shown(&lab, &lab.agentlab(&arguments).unwrap()));
    let reference = format!("refs/agentlab/{job}");
    let subject = repository.git(&["log", "-1", "--format=%s", &reference]).unwrap();
    assert_eq!(subject, "Change sum.sh\n");
    assert_eq!(repository.git(&["rev-parse", "HEAD"]).unwrap(), head);
    assert_eq!(repository.git(&["status", "--porcelain"]).unwrap(), "");

    let branch = [&arguments[..], &["--branch", "fix"]].concat();
    assert_shown!("apply-json", document(&lab, &lab.json(&branch).unwrap()));
    assert_shown!("apply-branch-taken", shown(&lab, &lab.agentlab(&branch).unwrap()));
}

#[test]
fn work_with_a_secret_in_it_is_shown_so_and_applied_only_when_that_is_allowed() {
    let lab = Lab::started().unwrap();
    let job = worked(&lab, "commit sum.sh echo s3cr3t\nexpose API_KEY sum.sh");
    let say = |arguments: &[&str]| shown(&lab, &lab.agentlab(arguments).unwrap());
    let apply = ["job", "apply", &job, "--repo", "repository"];
    assert_shown!("apply-secret", say(&apply));
    let review = [
        "job",
        "review",
        &job,
        "--repo",
        "repository",
        "--strict",
        "--no-diff",
    ];
    let reviewed = lab.agentlab(&review).unwrap();
    assert_eq!(reviewed.code(), Some(1), "{reviewed:?}");
    assert!(
        reviewed.stdout.ends_with("not altered\n  API_KEY in sum.sh\n"),
        "{reviewed:?}"
    );
    assert_shown!("job-show-secret", say(&["job", "show", &job]));
    let told = lab.agentlab(&["job", "logs", &job]).unwrap().stdout;
    assert!(
        told.contains("The agent wrote a secret it was given into its work: API_KEY in sum.sh"),
        "{told}"
    );
    let allowed = [&apply[..], &["--allow-secrets"]].concat();
    let ran = lab.agentlab(&allowed).unwrap();
    assert_eq!(ran.code(), Some(0), "{ran:?}");
}

#[test]
fn work_that_was_not_searched_for_secrets_is_shown_so_and_applied_only_when_that_is_allowed() {
    let lab = Lab::started().unwrap();
    let job = worked(
        &lab,
        "commit sum.sh echo 5\nunsearched `git cat-file` failed: \\e[2J",
    );
    let say = |arguments: &[&str]| shown(&lab, &lab.agentlab(arguments).unwrap());
    let apply = ["job", "apply", &job, "--repo", "repository"];
    assert_shown!("apply-unsearched", say(&apply));
    let review = ["job", "review", &job, "--repo", "repository"];
    let strict = [&review[..], &["--strict", "--no-diff"]].concat();
    let reviewed = lab.agentlab(&strict).unwrap();
    assert_eq!(reviewed.code(), Some(1), "{reviewed:?}");
    let last = reviewed.stdout.lines().last().unwrap();
    assert!(
        last.starts_with("NOT SEARCHED FOR SECRETS") && last.ends_with(": `git cat-file` failed:  [2J"),
        "{last:?}"
    );
    let document = lab.json(&review).unwrap();
    assert_eq!(
        document["secrets_unsearched"], "`git cat-file` failed:  [2J",
        "{document}"
    );
    let shown = lab.agentlab(&["job", "show", &job]).unwrap().stdout;
    assert!(shown.contains("not searched to its end"), "{shown}");
    let told = lab.agentlab(&["job", "logs", &job]).unwrap().stdout;
    assert!(told.contains("The work was not searched to its end"), "{told}");
    let allowed = [&apply[..], &["--allow-secrets"]].concat();
    let ran = lab.agentlab(&allowed).unwrap();
    assert_eq!(ran.code(), Some(0), "{ran:?}");
}

#[test]
fn work_that_is_not_there_or_not_finished_is_not_applied() {
    let lab = Lab::started().unwrap();
    let apply = |job: &str, more: &[&str]| {
        let arguments = ["job", "apply", job, "--repo", "repository"];
        shown(&lab, &lab.agentlab(&[&arguments[..], more].concat()).unwrap())
    };
    let failed = worked(&lab, "commit sum.sh x\nexit 3");
    assert_shown!("apply-failed", apply(&failed, &[]));
    assert_shown!("apply-forced", apply(&failed, &["--force"]));
    let empty = worked(&lab, "ok");
    assert_shown!("apply-nothing", apply(&empty, &[]));
    let running = lab.detached("print begun\nhang").unwrap();
    let mut following = lab.begin(&["job", "logs", "-f", &running]).unwrap();
    following.wait_for("begun").unwrap();
    assert_shown!("apply-running", apply(&running, &[]));
    following.interrupt().unwrap();
    following.finish().unwrap();
}
