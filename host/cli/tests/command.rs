//! The whole command against a socket that answers as a test says: what it prints, where, and how it exits.

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};

    const ID: &str = "job_000000000000";

    /// Method and path, status, content type, body.
    type Route = (&'static str, u16, &'static str, String);

    struct Daemon {
        dir: tempfile::TempDir,
        requests: Arc<Mutex<Vec<String>>>,
    }

    impl Daemon {
        fn answering(routes: Vec<Route>) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
            let requests = Arc::new(Mutex::new(Vec::new()));
            let seen = Arc::clone(&requests);
            // Ends with the test's process.
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    answer(stream.unwrap(), &routes, &seen);
                }
            });
            Self { dir, requests }
        }

        fn run(&self, arguments: &[&str]) -> Ran {
            run(&self.dir.path().join("socket"), self.dir.path(), arguments)
        }

        fn asked(&self, start: &str) -> String {
            let requests = self.requests.lock().unwrap();
            requests
                .iter()
                .find(|request| request.starts_with(start))
                .cloned()
                .unwrap_or_default()
        }
    }

    #[derive(Debug)]
    struct Ran {
        code: i32,
        stdout: String,
        stderr: String,
    }

    fn run(socket: &Path, dir: &Path, arguments: &[&str]) -> Ran {
        let path = |name: &str| -> PathBuf { dir.join(name) };
        let status = Command::new(env!("CARGO_BIN_EXE_agentlab"))
            .args(arguments)
            .current_dir(dir)
            .env("AGENTLAB_SOCKET", socket)
            .stdout(File::create(path("stdout")).unwrap())
            .stderr(File::create(path("stderr")).unwrap())
            .status()
            .unwrap();
        let read = |name: &str| std::fs::read_to_string(path(name)).unwrap();
        Ran {
            code: status.code().unwrap(),
            stdout: read("stdout"),
            stderr: read("stderr"),
        }
    }

    fn answer(mut stream: UnixStream, routes: &[Route], seen: &Mutex<Vec<String>>) {
        let mut request = Vec::new();
        let mut piece = [0; 65_536];
        let text = loop {
            let text = String::from_utf8_lossy(&request).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: "));
                if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                    break text;
                }
            }
            match stream.read(&mut piece).unwrap() {
                0 => return,
                read => request.extend_from_slice(&piece[..read]),
            }
        };
        let target = text.split(" HTTP/1.1").next().unwrap_or_default().to_owned();
        let route = routes
            .iter()
            .find(|(route, ..)| target == *route || target.starts_with(&format!("{route}?")));
        let (status, kind, body) = match route {
            Some((_, status, kind, body)) => (*status, *kind, body.clone()),
            None => (
                404,
                "application/problem+json",
                problem("not_found", "No such thing", 404),
            ),
        };
        seen.lock().unwrap().push(text);
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        // A client that has seen enough may be gone.
        let _ = stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(body.as_bytes()));
    }

    fn problem(code: &str, detail: &str, status: u16) -> String {
        json!({ "type": format!("urn:agentlab:problem:{code}"), "title": code, "status": status, "detail": detail,
                "code": code, "stage": "Clone", "hint": "look there" })
        .to_string()
    }

    fn job(state: &str, more: Value) -> String {
        let mut job = json!({
            "id": ID, "state": state, "repository": { "kind": "url", "url": "https://example.org/r" },
            "task": "true", "profile": "demo", "agent": "shell", "deadline_seconds": 300,
            "created_at": "2026-01-01T00:00:00Z",
        });
        job.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        job.to_string()
    }

    fn event(seq: u64, second: u32, kind: &str, message: &str) -> String {
        let data = json!({ "seq": seq, "time": format!("2026-01-01T00:00:{second:02}.250Z"), "kind": kind, "job": ID, "message": message });
        format!("id: {seq}\nevent: {kind}\ndata: {data}\n\n")
    }

    fn log(offset: u64, stream: &str, text: &str) -> String {
        let data =
            json!({ "offset": offset, "time": "2026-01-01T00:00:02Z", "stream": stream, "text": text });
        format!("id: {offset}\nevent: log\ndata: {data}\n\n")
    }

    fn a_job_that_ends(end: String) -> Daemon {
        const JSON: &str = "application/json";
        const SSE: &str = "text/event-stream";
        let events = format!(
            "{}{}event: end\ndata: {{}}\n\n",
            event(1, 1, "sandbox.step", "Clone done (0.08 s)"),
            event(2, 3, "job.finished", "job is over \u{1b}]0;x\u{7}")
        );
        let logs = format!(
            "{}{}{}event: end\ndata: {{}}\n\n",
            log(9, "stdout", "one\ntw"),
            log(20, "stderr", "bad \u{1b}[2J\u{1b}[31mthing\u{1b}[0m\n"),
            log(30, "stdout", "o")
        );
        let artifact = json!({ "artifacts": [{ "name": "work.bundle", "kind": "bundle", "size_bytes": 1536,
            "sha256": "00", "created_at": "2026-01-01T00:00:03Z" }] });
        Daemon::answering(vec![
            ("POST /v1/jobs", 202, JSON, job("QUEUED", json!({}))),
            ("GET /v1/jobs/job_000000000000/events", 200, SSE, events),
            ("GET /v1/jobs/job_000000000000/logs", 200, SSE, logs),
            (
                "GET /v1/jobs/job_000000000000/artifacts",
                200,
                JSON,
                artifact.to_string(),
            ),
            ("GET /v1/jobs/job_000000000000", 200, JSON, end),
        ])
    }

    const RUN: [&str; 8] = [
        "job",
        "run",
        "--repo",
        "https://example.org/r",
        "--task",
        "true",
        "--profile",
        "demo",
    ];

    fn completed() -> String {
        let outcome = json!({ "exit_code": 0, "base_commit": "1111111aaaa", "head_commit": "2222222bbbb", "commits": 1,
                              "uncommitted": false, "agent_milliseconds": 400 });
        job(
            "COMPLETED",
            json!({ "outcome": outcome, "finished_at": "2026-01-01T00:00:03Z" }),
        )
    }

    #[test]
    fn a_followed_job_is_shown_as_it_happens_and_summed_up() {
        let daemon = a_job_that_ends(completed());
        let ran = daemon.run(&RUN);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
        for line in [
            "+  1.2s  Clone done (0.08 s)",
            "+  3.2s  job is over \\x1b]0;x\\x07",
            "│ one",
            "│ two",
            "│ bad \\x1b[2Jthing",
            "exit code  0",
            "commits    1 (1111111..2222222)",
            "artifacts  work.bundle  1.5 KiB",
        ] {
            assert!(
                ran.stdout.lines().any(|shown| shown == line),
                "no {line:?} in\n{}",
                ran.stdout
            );
        }
        assert!(
            ran.stdout.contains("COMPLETED  job_000000000000 after 3.0 s"),
            "{}",
            ran.stdout
        );
        assert!(
            ran.stdout.contains("agentlab job apply job_000000000000"),
            "{}",
            ran.stdout
        );
        assert!(
            !ran.stdout.contains('\u{1b}'),
            "control characters reached the terminal"
        );
        let request = daemon.asked("POST /v1/jobs ");
        assert!(
            request.contains("idempotency-key: ") && request.contains("\"profile\":\"demo\""),
            "{request}"
        );
    }

    #[test]
    fn the_agents_own_code_is_returned_and_json_is_one_document() {
        let failure = json!({ "failure": { "code": "agent_failed", "stage": "agent", "message": "it ended with 3" },
            "outcome": { "exit_code": 3, "commits": 0, "uncommitted": false, "agent_milliseconds": 1 } });
        let daemon = a_job_that_ends(job("FAILED", failure));
        let ran = daemon.run(&[&["--json"], &RUN[..]].concat());
        assert_eq!((ran.code, ran.stderr.as_str()), (3, ""), "{ran:?}");
        let document: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(
            (document["state"].as_str(), ran.stdout.starts_with("{\n  \"id\"")),
            (Some("FAILED"), true)
        );
        let ran = daemon.run(&RUN);
        assert!(
            ran.stdout.contains("agent_failed at agent: it ended with 3"),
            "{}",
            ran.stdout
        );
        let ran = daemon.run(&[&RUN[..], &["--detach"]].concat());
        assert_eq!(
            (ran.code, ran.stdout.as_str()),
            (0, "job_000000000000\n"),
            "{ran:?}"
        );
    }

    #[test]
    fn work_of_a_job_that_failed_is_not_applied_by_accident() {
        let daemon = a_job_that_ends(job("FAILED", json!({})));
        let ran = daemon.run(&["job", "apply", ID]);
        assert!(
            ran.code == 5 && ran.stderr.contains("not COMPLETED") && ran.stderr.contains("--force"),
            "{ran:?}"
        );
    }

    /// Three files, two of which have the same last name.
    fn a_job_with_artifacts() -> Daemon {
        let one = |name: &str, text: &str, second: u32| {
            json!({ "name": name, "kind": "file", "size_bytes": text.len(), "sha256": sha256(text),
                "created_at": format!("2026-01-01T00:00:0{second}Z") })
        };
        let files = [
            ("files/a/x.txt", "one", 1),
            ("files/b/x.txt", "two", 3),
            ("files/HEAD", "ref", 2),
        ];
        let list: Vec<Value> = files
            .iter()
            .map(|(name, text, second)| one(name, text, *second))
            .collect();
        let mut routes: Vec<Route> = vec![
            (
                "GET /v1/jobs/job_000000000000/artifacts/files/a/x.txt",
                200,
                "application/octet-stream",
                "one".into(),
            ),
            (
                "GET /v1/jobs/job_000000000000/artifacts/files/b/x.txt",
                200,
                "application/octet-stream",
                "two".into(),
            ),
            (
                "GET /v1/jobs/job_000000000000/artifacts/files/HEAD",
                200,
                "application/octet-stream",
                "ref".into(),
            ),
        ];
        let all = json!({ "artifacts": list }).to_string();
        routes.push((
            "GET /v1/jobs/job_000000000000/artifacts",
            200,
            "application/json",
            all,
        ));
        Daemon::answering(routes)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a test may wait for a shell that ends at once"
    )]
    fn sha256(text: &str) -> String {
        let output = Command::new("sh")
            .args(["-c", "printf %s \"$1\" | sha256sum", "sh", text])
            .output()
            .unwrap();
        String::from_utf8(output.stdout)
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .to_owned()
    }

    #[test]
    fn artifacts_are_chosen_by_path_by_name_and_by_age() {
        let daemon = a_job_with_artifacts();
        let download = |more: &[&str]| daemon.run(&[&["job", "artifacts", "download", ID], more].concat());
        let ran = download(&["--path", "files/a/x.txt"]);
        assert_eq!(
            (ran.code, ran.stdout.as_str()),
            (0, "job_000000000000/files/a/x.txt  3 B\n"),
            "{ran:?}"
        );
        let ran = download(&["--latest"]);
        assert_eq!(ran.stdout, "job_000000000000/files/b/x.txt  3 B\n", "{ran:?}");
        let ran = download(&["--name", "x.txt"]);
        assert!(
            ran.code == 2 && ran.stderr.contains("--path: files/a/x.txt, files/b/x.txt"),
            "{ran:?}"
        );
        let ran = download(&["--path", "x.txt"]);
        assert!(
            ran.code == 3 && ran.stderr.contains("left no artifact `x.txt`"),
            "{ran:?}"
        );
        let ran = download(&["--all"]);
        assert_eq!(ran.stdout.lines().count(), 3, "{ran:?}");
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "a test may wait for a shell that ends at once"
    )]
    fn a_bundle_is_the_same_twice_and_unpacks_to_what_it_says() {
        let daemon = a_job_with_artifacts();
        let path = |name: &str| daemon.dir.path().join(name);
        for out in ["one", "two"] {
            let ran = daemon.run(&["job", "artifacts", "download", ID, "--bundle", "--out", out]);
            assert_eq!(ran.code, 0, "{ran:?}");
        }
        let bytes = |out: &str| std::fs::read(path(out).join("job_000000000000.tar.gz")).unwrap();
        assert_eq!(bytes("one"), bytes("two"));
        let check = "cd one && tar -xzf *.tar.gz && cd job_000000000000 && sha256sum -c --quiet SHA256SUMS && find . -type f | sort";
        let output = Command::new("sh")
            .args(["-ec", check])
            .current_dir(daemon.dir.path())
            .output()
            .unwrap();
        let listed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(
            listed, "./SHA256SUMS\n./files/HEAD.guest\n./files/a/x.txt\n./files/b/x.txt\n",
            "{output:?}"
        );
    }

    #[test]
    fn a_bundle_with_a_file_that_is_not_the_recorded_one_is_not_left() {
        let list = json!({ "artifacts": [{ "name": "a", "kind": "file", "size_bytes": 3, "sha256": sha256("two"),
            "created_at": "2026-01-01T00:00:00Z" }] });
        let daemon = Daemon::answering(vec![
            (
                "GET /v1/jobs/job_000000000000/artifacts/a",
                200,
                "application/octet-stream",
                "one".into(),
            ),
            (
                "GET /v1/jobs/job_000000000000/artifacts",
                200,
                "application/json",
                list.to_string(),
            ),
        ]);
        let ran = daemon.run(&["job", "artifacts", "download", ID, "--bundle", "--out", "d"]);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert_eq!(std::fs::read_dir(daemon.dir.path().join("d")).unwrap().count(), 0);
    }

    fn sandbox(vmid: u32) -> Value {
        json!({ "id": format!("01890000-0000-7000-8000-{vmid:012}"), "vmid": vmid, "name": format!("n{vmid}"),
            "profile": "demo", "state": "RUNNING", "address": "10.77.0.2", "network_mode": "nat", "keepalive": false,
            "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z" })
    }

    #[test]
    fn all_that_live_are_listed_and_of_the_others_a_page() {
        let page = |vmids: &[u32], next: Option<&str>| {
            let sandboxes: Vec<Value> = vmids.iter().map(|vmid| sandbox(*vmid)).collect();
            json!({ "sandboxes": sandboxes, "next_cursor": next }).to_string()
        };
        let json = "application/json";
        let daemon = Daemon::answering(vec![
            (
                "GET /v1/sandboxes?cursor=1.a",
                200,
                json,
                page(&[1002], Some("2.b")),
            ),
            ("GET /v1/sandboxes?cursor=2.b", 200, json, page(&[1001], None)),
            ("GET /v1/sandboxes", 200, json, page(&[1003], Some("1.a"))),
        ]);
        let ran = daemon.run(&["sandbox", "list"]);
        let listed: Vec<&str> = ran.stdout.lines().skip(1).map(|line| &line[..4]).collect();
        assert_eq!(
            (ran.code, listed, ran.stderr.as_str()),
            (0, vec!["1003", "1002", "1001"], "")
        );
        for (arguments, words) in [
            (
                ["sandbox", "list", "--all"].as_slice(),
                "sandbox list --all --cursor 1.a",
            ),
            (&["sandbox", "list", "-n", "1"], "sandbox list --cursor 1.a"),
        ] {
            let ran = daemon.run(arguments);
            assert_eq!(ran.stdout.lines().count(), 2, "{ran:?}");
            assert!(ran.stderr.contains(words), "{ran:?}");
        }
    }

    #[test]
    fn a_job_that_waits_shows_its_place() {
        let waiting = job("QUEUED", json!({ "queue_position": 3 }));
        let list = format!("{{\"jobs\": [{waiting}]}}");
        let daemon = Daemon::answering(vec![
            ("GET /v1/jobs/job_000000000000", 200, "application/json", waiting),
            ("GET /v1/jobs", 200, "application/json", list),
        ]);
        for arguments in [["job", "show", ID].as_slice(), &["job", "list"]] {
            let ran = daemon.run(arguments);
            assert!(ran.stdout.contains("QUEUED, place 3"), "{ran:?}");
        }
    }

    #[test]
    fn problems_are_told_in_words_or_as_the_document() {
        let body = problem("state_conflict", "Sandbox is \u{1b}[2Jbusy", 409);
        let id = "01890000-0000-7000-8000-000000000001";
        let found = json!({ "id": id, "vmid": 1000, "name": "one", "profile": "demo", "state": "RUNNING",
            "address": "10.77.0.2", "network_mode": "nat", "keepalive": false,
            "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z" });
        let daemon = Daemon::answering(vec![
            (
                "GET /v1/sandboxes/1000",
                200,
                "application/json",
                found.to_string(),
            ),
            // By what was found: the VMID may have a new owner by now.
            (
                "POST /v1/sandboxes/01890000-0000-7000-8000-000000000001/destroy",
                409,
                "application/problem+json",
                body.clone(),
            ),
        ]);
        let ran = daemon.run(&["sandbox", "delete", "1000"]);
        assert_eq!(ran.code, 5);
        assert_eq!(
            ran.stderr,
            "error: Sandbox is \\x1b[2Jbusy (at Clone)\nhint: look there\n"
        );
        let ran = daemon.run(&["rm", "1000", "--json"]);
        assert_eq!((ran.code, ran.stderr.as_str()), (5, ""));
        assert_eq!(
            serde_json::from_str::<Value>(&ran.stdout).unwrap(),
            serde_json::from_str::<Value>(&body).unwrap()
        );
        let ran = daemon.run(&["job", "show", ID]);
        assert_eq!(ran.code, 3);
    }

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
            code == Some(1)
                && stderr.contains("`agentlab-net` could not be run")
                && stderr.contains("hint: "),
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

    #[test]
    fn an_unknown_profile_is_named_with_the_nearest_before_anything_is_packed() {
        let profiles = json!({ "profiles": [{ "name": "over-serial", "template_vmid": 9000 }] }).to_string();
        let daemon = Daemon::answering(vec![("GET /v1/profiles", 200, "application/json", profiles)]);
        let ran = daemon.run(&[
            "job",
            "run",
            "--repo",
            ".",
            "--task",
            "true",
            "--profile",
            "over-serail",
        ]);
        assert!(
            ran.code == 3 && ran.stderr.contains("did you mean `over-serial`?"),
            "{ran:?}"
        );
        assert_eq!(daemon.asked("POST"), "");
    }
}
