//! What a job left, chosen and fetched.

use std::process::Command;

use serde_json::{Value, json};

use super::stand_in::{Daemon, ID, JSON, Route};

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
    routes.push(("GET /v1/jobs/job_000000000000/artifacts", 200, JSON, all));
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
fn a_file_that_is_there_already_is_not_replaced_unasked() {
    let daemon = a_job_with_artifacts();
    let out = daemon.dir.path().join("out");
    let own = out.join("files/b/x.txt");
    std::fs::create_dir_all(own.parent().unwrap()).unwrap();
    std::fs::write(&own, "mine").unwrap();
    let download = |more: &[&str]| {
        let whole = [&["job", "artifacts", "download", ID, "--out", "out"], more].concat();
        daemon.run(&whole)
    };
    let ran = download(&[]);
    assert!(
        ran.code == 5
            && ran.stderr.contains("out/files/b/x.txt is there already")
            && ran.stderr.contains("--force"),
        "{ran:?}"
    );
    assert_eq!(std::fs::read_to_string(&own).unwrap(), "mine");
    assert!(!out.join("files/a").exists(), "not even the others were written");
    assert_eq!(download(&["--force"]).code, 0);
    assert_ne!(std::fs::read_to_string(&own).unwrap(), "mine");
    // What it wrote itself it may write again.
    assert_eq!(download(&[]).code, 0);
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
            JSON,
            list.to_string(),
        ),
    ]);
    let ran = daemon.run(&["job", "artifacts", "download", ID, "--bundle", "--out", "d"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert_eq!(std::fs::read_dir(daemon.dir.path().join("d")).unwrap().count(), 0);
}
