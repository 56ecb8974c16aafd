//! A guest that is root and wants out: everything it may say, said wrongly. The tests play it themselves.

use std::time::Duration;

use agentlab_protocol::message::{ArtifactRole, HEARTBEAT_PATH, LOGS_PATH, REPORT_PATH};
use agentlab_protocol::seed::Seed;
use agentlab_tests_contract::{Guest, Lab, Message, Visitors};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;

pub(crate) struct Stage {
    pub(crate) lab: Lab,
    pub(crate) visitors: Visitors,
}

/// A job and the guest that works on it.
pub(crate) struct Cast {
    pub(crate) job: String,
    seed: Seed,
    pub(crate) guest: Guest,
}

impl Stage {
    pub(crate) fn set(more: &str) -> Self {
        Self::of(
            more,
            "artifacts: {max_file_bytes: 1000, max_total_bytes: 2500, max_files: 4}\n",
        )
    }

    /// With these lines in its configuration, and these in its profile.
    pub(crate) fn of(more: &str, of_profile: &str) -> Self {
        let mut lab = Lab::prepare().unwrap();
        lab.configure(more).unwrap();
        let visitors = lab.visitors().unwrap();
        let profile = "name: demo\ntemplate_vmid: 9000\nnetwork: {mode: \"off\"}\n";
        lab.profile("demo.yaml", &format!("{profile}{of_profile}"))
            .unwrap();
        lab.start().unwrap();
        Self { lab, visitors }
    }

    async fn booted(&self) -> (String, Seed, UnixStream) {
        let job = self.lab.detached("ok").unwrap();
        let next = tokio::time::timeout(Duration::from_secs(60), self.visitors.next()).await;
        let (seed, line) = next.expect("no machine was powered on").unwrap();
        (job, seed, line)
    }

    /// A guest that has redeemed and acknowledged.
    pub(crate) async fn guest(&self) -> Cast {
        let (job, seed, line) = self.booted().await;
        let mut guest = Guest::connect(line).await.unwrap();
        guest.redeem(&seed, 1).await.unwrap();
        guest.acknowledge().await.unwrap();
        Cast { job, seed, guest }
    }

    fn state(&self, job: &str) -> Value {
        self.lab.json(&["job", "show", job]).unwrap()["state"].clone()
    }

    pub(crate) fn artifacts(&self, job: &str) -> Vec<String> {
        let list = self.lab.json(&["job", "artifacts", job]).unwrap();
        let all = list["artifacts"].as_array().unwrap();
        all.iter()
            .map(|one| one["name"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Files that an upload left half done.
    pub(crate) fn incoming(&self) -> usize {
        std::fs::read_dir(self.lab.path("data/incoming")).unwrap().count()
    }
}

impl Cast {
    pub(crate) async fn beat(&mut self) -> u16 {
        let beat = json!({"phase": "agent", "message": "still here"});
        self.guest.post(HEARTBEAT_PATH, &beat).await.unwrap().status
    }

    pub(crate) async fn file(&mut self, name: &str, bytes: usize) -> u16 {
        let answer = self
            .guest
            .upload(name, ArtifactRole::File, vec![b'x'; bytes])
            .await;
        answer.unwrap().status
    }

    /// The last word, whose answer may be lost: the machine is taken down at once.
    pub(crate) async fn hand_in(&mut self, report: &Value) {
        if let Ok(answer) = self.guest.post(REPORT_PATH, report).await {
            assert_eq!(answer.status, 202, "{}", answer.text());
        }
    }

    pub(crate) fn report(&self) -> Value {
        json!({"version": 1, "job": self.job, "status": "completed", "exit_code": 0, "inner_sandbox": "none"})
    }
}

#[tokio::test]
async fn a_session_is_worth_nothing_on_another_sandboxs_line() {
    let stage = Stage::set("");
    let (mut one, mut two) = (stage.guest().await, stage.guest().await);
    let own = two.guest.session.clone();
    two.guest.session.clone_from(&one.guest.session);
    assert_eq!(two.beat().await, 401);
    assert_eq!(two.file("files/a", 1).await, 401);
    assert_eq!(
        two.guest.post(REPORT_PATH, &one.report()).await.unwrap().status,
        401
    );
    let answer = two.guest.send(&Message::repository()).await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (401, ""));
    for session in ["", "x", &"A".repeat(43), &"A".repeat(100_000)] {
        two.guest.session = Some(session.to_owned());
        // Headers too large for HTTP/2 are refused before anybody looks at them.
        let status = match two.guest.post(HEARTBEAT_PATH, &json!({"phase": "agent"})).await {
            Ok(answer) => answer.status,
            Err(_) => continue,
        };
        assert!(matches!(status, 401 | 431), "{session:.50}: {status}");
    }
    two.guest.session = own;
    assert_eq!((one.beat().await, stage.state(&one.job)), (200, json!("RUNNING")));
    assert!(stage.artifacts(&one.job).is_empty());
}

#[tokio::test]
async fn a_token_is_worth_nothing_once_its_answer_arrived() {
    let stage = Stage::set("");
    let mut cast = stage.guest().await;
    let again = cast.guest.try_redeem(&cast.seed, 1).await.unwrap();
    assert_eq!((again.status, again.text().as_str()), (401, ""), "the same key");
    let stolen = cast.guest.try_redeem(&cast.seed, 2).await.unwrap();
    assert_eq!(stolen, again, "another key looks the same");
    assert_eq!(
        (cast.beat().await, stage.state(&cast.job)),
        (200, json!("RUNNING"))
    );
    let told = stage.lab.agentlab(&["job", "logs", &cast.job]).unwrap().stdout;
    assert_eq!(
        told.matches("was presented with another key").count(),
        1,
        "{told}"
    );
}

#[tokio::test]
async fn every_wrong_redemption_looks_the_same() {
    let stage = Stage::set("");
    let (_, theirs, _their_line) = stage.booted().await;
    let (job, seed, line) = stage.booted().await;
    let mut guest = Guest::connect(line).await.unwrap();
    let with = |change: &dyn Fn(&mut Seed)| {
        let mut seed = seed.clone();
        change(&mut seed);
        seed
    };
    for wrong in [
        with(&|seed| seed.vmid += 1),
        with(&|seed| seed.vmid = 0),
        with(&|seed| seed.token = theirs.token.clone()),
        theirs.clone(),
    ] {
        let answer = guest.try_redeem(&wrong, 1).await.unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (401, ""));
    }
    let body = json!({"vmid": seed.vmid, "token": "short", "runner_key": "short", "runner_version": "1"});
    let answer = guest.post("/guest/v1/redeem", &body).await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (401, ""));
    guest.redeem(&seed, 1).await.unwrap();
    assert_eq!(stage.state(&job), "RUNNING");
}

#[tokio::test]
async fn a_lost_answer_is_given_again_to_the_same_key() {
    let stage = Stage::set("");
    let (job, seed, line) = stage.booted().await;
    let mut guest = Guest::connect(line).await.unwrap();
    let first = guest.try_redeem(&seed, 1).await.unwrap();
    assert_eq!(first, guest.try_redeem(&seed, 1).await.unwrap());
    stage.lab.restart_beside_its_machines().unwrap();
    let (_, line) = stage.visitors.next_line().await.unwrap();
    let mut guest = Guest::connect(line).await.unwrap();
    assert_eq!(
        first.json().unwrap()["session"],
        guest.try_redeem(&seed, 1).await.unwrap().json().unwrap()["session"]
    );
    assert_eq!(stage.state(&job), "RUNNING");
}

#[tokio::test]
async fn a_second_key_revokes_everything_fails_the_job_and_raises_an_alarm() {
    let stage = Stage::set("");
    let (job, seed, line) = stage.booted().await;
    let mut guest = Guest::connect(line).await.unwrap();
    guest.redeem(&seed, 1).await.unwrap();
    // The line may be gone with its machine before the answer, and before the next one all the more.
    if let Ok(answer) = guest.try_redeem(&seed, 2).await {
        assert_eq!((answer.status, answer.text().as_str()), (401, ""));
    }
    if let Ok(answer) = guest.post(HEARTBEAT_PATH, &json!({"phase": "agent"})).await {
        assert_eq!(answer.status, 401);
    }
    let view = stage.lab.finished(&job).unwrap();
    assert_eq!(view["state"], "FAILED", "{view:#}");
    assert_eq!(view["failure"]["code"], "sandbox_lost", "{view:#}");
    let events = stage
        .lab
        .json(&["sandbox", "logs", &seed.vmid.to_string()])
        .unwrap();
    let alarms = events["events"].as_array().unwrap().iter();
    let alarms: Vec<_> = alarms.filter(|event| event["kind"] == "alarm").collect();
    assert_eq!(alarms.len(), 1, "{events:#}");
    assert!(
        alarms[0]["message"].as_str().unwrap().contains("two keys"),
        "{alarms:?}"
    );
    assert_eq!(stage.lab.json(&["status"]).unwrap()["live_tokens"], 0);
}

#[tokio::test]
async fn a_report_of_somebody_elses_job_changes_neither() {
    let stage = Stage::set("");
    let (mut one, mut two) = (stage.guest().await, stage.guest().await);
    assert_eq!(
        two.guest.post(REPORT_PATH, &one.report()).await.unwrap().status,
        409
    );
    let mut later = two.report();
    later["version"] = json!(2);
    assert_eq!(two.guest.post(REPORT_PATH, &later).await.unwrap().status, 409);
    let mut wrong = two.report();
    wrong["exit_code"] = json!(256);
    assert_eq!(two.guest.post(REPORT_PATH, &wrong).await.unwrap().status, 422);
    for cast in [&mut one, &mut two] {
        assert_eq!(
            (cast.beat().await, stage.state(&cast.job)),
            (200, json!("RUNNING"))
        );
    }
}

#[tokio::test]
async fn a_report_is_not_believed_where_the_host_knows_better() {
    let stage = Stage::set("");
    let mut absent = stage.guest().await;
    let mut report = absent.report();
    report["artifacts"] =
        json!([{"name": "work.patch", "role": "patch", "size_bytes": 1, "sha256": "0".repeat(64)}]);
    absent.hand_in(&report).await;
    let view = stage.lab.finished(&absent.job).unwrap();
    assert_eq!(view["state"], "FAILED", "a file that never arrived: {view:#}");

    let mut proud = stage.guest().await;
    let mut report = proud.report();
    report["agent_milliseconds"] = json!(u64::MAX);
    report["commits"] = json!(u32::MAX);
    report["head_commit"] = json!("--upload-pack=id");
    report["message"] = json!("\u{1b}]0;owned\u{7}".repeat(1000));
    report["status"] = json!("failed");
    proud.hand_in(&report).await;
    let view = stage.lab.finished(&proud.job).unwrap();
    assert!(view["outcome"]["head_commit"].is_null(), "{view:#}");
    assert!(
        view["outcome"]["agent_milliseconds"].as_u64().unwrap() < 1 << 32,
        "{view:#}"
    );
    let ran = stage.lab.agentlab(&["job", "show", &proud.job]).unwrap();
    assert!(!ran.stdout.contains('\u{1b}'), "{ran:?}");
}

#[tokio::test]
async fn output_beyond_the_bound_is_dropped_and_the_job_goes_on() {
    let stage = Stage::set("log_max_bytes: 65536\n");
    let mut cast = stage.guest().await;
    let text = format!("{}\n", "flood ".repeat(10_000));
    for first in 0..100 {
        let batch = json!({"first": first, "pieces": [{"stream": "stdout", "text": text}]});
        assert_eq!(cast.guest.post(LOGS_PATH, &batch).await.unwrap().status, 204);
    }
    let log = stage.lab.path(&format!("data/logs/{}.jsonl", cast.job));
    let size = std::fs::metadata(log).unwrap().len();
    assert!(size < 66_000, "{size} bytes");
    let report = cast.report();
    cast.hand_in(&report).await;
    let view = stage.lab.finished(&cast.job).unwrap();
    assert_eq!(view["state"], "COMPLETED", "{view:#}");
    let shown = stage.lab.agentlab(&["job", "logs", &cast.job]).unwrap().stdout;
    assert!(
        shown.contains("Output beyond 65536 bytes is not kept."),
        "{}",
        shown.len()
    );
}

#[tokio::test]
async fn messages_that_are_too_large_or_not_what_the_route_takes_are_refused_and_cost_nothing() {
    let stage = Stage::set("");
    let mut cast = stage.guest().await;
    let megabytes = json!({"phase": "agent", "message": "x".repeat(4 << 20)});
    let answer = cast.guest.post(HEARTBEAT_PATH, &megabytes).await;
    // Told, or cut off in the middle of it: then the runner would come again on a line of its own.
    assert!(
        answer.as_ref().map_or(true, |answer| answer.status == 413),
        "{answer:?}"
    );
    let piece = |text: String| json!({"first": 0, "pieces": [{"stream": "stdout", "text": text}]});
    let large = cast
        .guest
        .post(LOGS_PATH, &piece("x".repeat(300 << 10)))
        .await
        .unwrap();
    assert_eq!(large.status, 413, "{}", large.text());
    let crumbs: Vec<_> = (0..10_001)
        .map(|_| json!({"stream": "stdout", "text": ""}))
        .collect();
    let many = cast
        .guest
        .post(LOGS_PATH, &json!({"first": 0, "pieces": crumbs}))
        .await
        .unwrap();
    assert_eq!(many.status, 413, "{}", many.text());
    let over = json!({"first": u64::MAX, "pieces": [{"stream": "stdout", "text": "x"}]});
    assert_eq!(cast.guest.post(LOGS_PATH, &over).await.unwrap().status, 409);
    for wrong in [
        json!({"phase": "agent", "root": true}),
        json!({"phase": "escape"}),
        json!([]),
        json!({"phase": ["agent"]}),
    ] {
        assert_eq!(
            cast.guest.post(HEARTBEAT_PATH, &wrong).await.unwrap().status,
            422,
            "{wrong}"
        );
    }
    let mut nested = Message::post(HEARTBEAT_PATH, &Value::Null);
    nested.body = "[".repeat(500_000).into();
    let answer = cast.guest.send(&nested).await.unwrap();
    assert!((400..500).contains(&answer.status), "{answer:?}");
    for (method, path) in [
        ("GET", HEARTBEAT_PATH),
        ("POST", "/v1/jobs"),
        ("GET", "/v1/status"),
        ("GET", "/"),
    ] {
        let mut foreign = Message::post(path, &Value::Null);
        foreign.method = method;
        assert_eq!(
            cast.guest.send(&foreign).await.unwrap().status,
            404,
            "{method} {path}"
        );
    }
    assert_eq!(
        (cast.beat().await, stage.state(&cast.job)),
        (200, json!("RUNNING"))
    );
}

#[tokio::test]
async fn what_it_says_of_itself_is_cut_cleaned_and_counted() {
    let stage = Stage::set("");
    let mut cast = stage.guest().await;
    let long = format!("\u{1b}[2J\n\r{}", "x".repeat(500 << 10));
    for turn in 0..260 {
        let phase = if turn % 2 == 0 { "agent" } else { "collect" };
        let beat = json!({"phase": phase, "message": if turn == 0 { &long } else { "" }});
        assert_eq!(cast.guest.post(HEARTBEAT_PATH, &beat).await.unwrap().status, 200);
    }
    let events = stage
        .lab
        .json(&["sandbox", "logs", &cast.seed.vmid.to_string()])
        .unwrap();
    let told: Vec<_> = events["events"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["kind"] == "job.progress")
        .map(|event| event["message"].as_str().unwrap())
        .collect();
    assert_eq!(told.len(), 200, "phases that flap");
    assert!(told[0].chars().count() < 250, "{}", told[0]);
    assert!(!told[0].chars().any(char::is_control), "{}", told[0]);
}

#[tokio::test]
async fn a_terminal_is_never_told_what_a_guest_wants_it_told() {
    let stage = Stage::set("");
    let mut cast = stage.guest().await;
    let text = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\rlie \u{202e}gpj.exe\n";
    let batch = json!({"first": 0, "pieces": [{"stream": "stdout", "text": text}, {"stream": "runner", "text": text}]});
    assert_eq!(cast.guest.post(LOGS_PATH, &batch).await.unwrap().status, 204);
    assert_eq!(cast.file("files/%e2%80%aegpj.exe", 1).await, 201);
    let report = cast.report();
    cast.hand_in(&report).await;
    let job = cast.job.as_str();
    for arguments in [
        &["job", "logs", "-f", job][..],
        &["job", "logs", job],
        &["job", "logs", "--plain", job],
        &["job", "artifacts", job],
        &["job", "artifacts", "download", job],
        &["job", "show", job],
        &["sandbox", "logs", "1000"],
    ] {
        let ran = stage.lab.agentlab(arguments).unwrap();
        let shown = format!("{}{}", ran.stdout, ran.stderr);
        assert_eq!(ran.code(), Some(0), "{arguments:?}: {ran:?}");
        assert!(
            !shown.contains(['\u{1b}', '\u{7}', '\r', '\u{9b}', '\u{202e}']),
            "{arguments:?}: {shown:?}"
        );
    }
}

#[tokio::test]
async fn noise_on_the_line_holds_up_neither_its_own_job_nor_another_one() {
    let stage = Stage::set("");
    let (job, seed, mut line) = stage.booted().await;
    let mut other = stage.guest().await;
    let noise: Vec<u8> = (0..1_000_000u32)
        .map(|at| u8::try_from(at * 7 % 251).unwrap())
        .collect();
    line.write_all(&noise).await.unwrap();
    let mut guest = Guest::connect(line).await.unwrap();
    guest.redeem(&seed, 1).await.unwrap();
    assert_eq!(stage.state(&job), "RUNNING");
    assert_eq!(other.beat().await, 200);
}
