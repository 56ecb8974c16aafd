//! A daemon that answers as a test says, and the command run against it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

pub(crate) const ID: &str = "job_000000000000";
pub(crate) const JSON: &str = "application/json";

/// Method and path, status, content type, body.
pub(crate) type Route = (&'static str, u16, &'static str, String);

pub(crate) struct Daemon {
    pub(crate) dir: tempfile::TempDir,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Daemon {
    pub(crate) fn answering(routes: Vec<Route>) -> Self {
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

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        run(&self.dir.path().join("socket"), self.dir.path(), arguments)
    }

    pub(crate) fn asked(&self, start: &str) -> String {
        let requests = self.requests.lock().unwrap();
        requests
            .iter()
            .find(|request| request.starts_with(start))
            .cloned()
            .unwrap_or_default()
    }
}

#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

pub(crate) fn run(socket: &Path, dir: &Path, arguments: &[&str]) -> Ran {
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

pub(crate) fn problem(code: &str, detail: &str, status: u16) -> String {
    json!({ "type": format!("urn:agentlab:problem:{code}"), "title": code, "status": status, "detail": detail,
            "code": code, "stage": "Clone", "hint": "look there" })
    .to_string()
}

pub(crate) fn job(state: &str, more: Value) -> String {
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
