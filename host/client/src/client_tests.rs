//! The client against a socket that says exactly what a test wants, bad endings included.

use std::io::ErrorKind;
use std::path::PathBuf;

use agentlab_api::{ArtifactKind, ArtifactView, ErrorCode, JobId, LogRecord, Problem};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::task::JoinSet;

use crate::{Client, ClientError};

/// Answers one connection after the other with these bytes and closes each; gives what was asked.
struct Daemon {
    _dir: tempfile::TempDir,
    socket: PathBuf,
    tasks: JoinSet<Vec<String>>,
}

impl Daemon {
    fn saying(answers: Vec<String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut requests = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                let mut piece = [0; 4096];
                while !is_whole(&request) {
                    let read = stream.read(&mut piece).await.unwrap();
                    request.extend_from_slice(&piece[..read]);
                }
                requests.push(String::from_utf8(request).unwrap());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            requests
        });
        Self {
            _dir: dir,
            socket,
            tasks,
        }
    }

    async fn requests(mut self) -> Vec<String> {
        self.tasks.join_next().await.unwrap().unwrap()
    }
}

/// Whether head and announced body are there.
fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |n| n.parse().unwrap());
    body.len() >= length
}

fn answer(status: &str, kind: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// An event stream that breaks off after its body: more was announced than comes.
fn broken_stream(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\r\n{body}",
        body.len() + 100
    )
}

fn log(offset: u64, text: &str) -> String {
    format!(
        "id: {offset}\nevent: log\ndata: {{\"offset\":{offset},\"time\":\"2026-01-01T00:00:00Z\",\"stream\":\"stdout\",\"text\":\"{text}\"}}\n\n"
    )
}

fn job() -> JobId {
    "job_000000000000".parse().unwrap()
}

#[tokio::test]
async fn a_lost_connection_is_taken_up_again_where_it_broke() {
    let cut_in_a_record = format!("{}{}id: 6\nevent: log\ndata: {{\"off", log(2, "a"), log(4, "b"));
    let rest = format!(": keep-alive\n\n{}event: end\ndata: {{}}\n\n", log(6, "c"));
    let daemon = Daemon::saying(vec![
        broken_stream(&cut_in_a_record),
        broken_stream(""),
        answer("200 OK", "text/event-stream", &rest),
    ]);
    let mut stream = Client::unix(&daemon.socket)
        .follow_job_log(&job(), None)
        .await
        .unwrap();
    let mut text = String::new();
    while let Some(LogRecord { text: piece, .. }) = stream.next().await.unwrap() {
        text.push_str(&piece);
    }
    assert_eq!(text, "abc");
    assert!(
        stream.next().await.unwrap().is_none(),
        "an ended stream stays ended"
    );
    let requests = daemon.requests().await;
    assert!(requests[0].contains("accept: text/event-stream") && !requests[0].contains("last-event-id"));
    assert!(requests[1].contains("last-event-id: 4\r\n") && requests[2].contains("last-event-id: 4\r\n"));
}

#[tokio::test]
async fn a_refusal_in_the_middle_of_following_ends_it() {
    let problem = serde_json::to_string(&Problem::new(ErrorCode::NotFound, "no such job")).unwrap();
    let refusal = answer("404 Not Found", "application/problem+json", &problem);
    let daemon = Daemon::saying(vec![broken_stream(&log(2, "a")), refusal]);
    let mut stream = Client::unix(&daemon.socket)
        .follow_job_log(&job(), None)
        .await
        .unwrap();
    assert!(stream.next().await.unwrap().is_some());
    assert!(
        matches!(stream.next().await, Err(ClientError::Problem(problem)) if problem.code == ErrorCode::NotFound)
    );
}

#[tokio::test]
async fn a_stream_given_up_with_a_reason_fails_with_it_and_a_stopping_daemon_is_looked_for_again() {
    let given_up = |code| {
        let problem = serde_json::to_string(&Problem::new(code, "x")).unwrap();
        answer(
            "200 OK",
            "text/event-stream",
            &format!("event: error\ndata: {problem}\n\n"),
        )
    };
    let end = answer(
        "200 OK",
        "text/event-stream",
        &format!("{}event: end\ndata: {{}}\n\n", log(2, "a")),
    );
    let daemon = Daemon::saying(vec![
        given_up(ErrorCode::ShuttingDown),
        end,
        given_up(ErrorCode::Internal),
    ]);
    let client = Client::unix(&daemon.socket);
    let mut stream = client.follow_job_log(&job(), None).await.unwrap();
    assert!(stream.next().await.unwrap().is_some() && stream.next().await.unwrap().is_none());
    let mut stream = client.follow_job_log(&job(), None).await.unwrap();
    assert!(
        matches!(stream.next().await, Err(ClientError::Problem(problem)) if problem.code == ErrorCode::Internal)
    );
}

#[tokio::test]
async fn the_daemons_problem_is_handed_on_whole() {
    let said = Problem::new(ErrorCode::UnknownProfile, "No profile `dmo`")
        .with_hint("did you mean `demo`?")
        .with_stage("Reserve");
    let body = serde_json::to_string(&said).unwrap();
    let daemon = Daemon::saying(vec![answer(
        "422 Unprocessable Entity",
        "application/problem+json",
        &body,
    )]);
    let error = Client::unix(&daemon.socket).status().await.unwrap_err();
    assert_eq!(error.hint().as_deref(), Some("did you mean `demo`?"));
    assert!(matches!(error, ClientError::Problem(problem) if *problem == said));
}

#[tokio::test]
async fn what_is_no_daemon_of_ours_is_said_to_be_none() {
    for bytes in [
        answer("502 Bad Gateway", "text/html", "<html>"),
        answer("200 OK", "application/json", "{\"versi"),
        "SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned(),
        String::new(),
    ] {
        let daemon = Daemon::saying(vec![bytes.clone()]);
        let error = Client::unix(&daemon.socket).status().await.unwrap_err();
        assert!(
            matches!(error, ClientError::Protocol(_)),
            "{bytes:?} gave {error:?}"
        );
    }
}

#[tokio::test]
async fn nobody_listening_is_told_from_a_closed_door() {
    let dir = tempfile::tempdir().unwrap();
    let error = Client::unix(dir.path().join("absent"))
        .status()
        .await
        .unwrap_err();
    assert!(error.hint().unwrap().contains("systemctl status agentlabd") && !error.is_permission());
    let denied = ClientError::Unreachable {
        socket: "/s".into(),
        source: ErrorKind::PermissionDenied.into(),
    };
    assert!(denied.hint().unwrap().contains("group `agentlab`") && denied.is_permission());
}

#[tokio::test]
async fn bytes_that_are_not_those_recorded_are_refused() {
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let recorded = |sha256: &str| ArtifactView {
        name: "files/a b".to_owned(),
        kind: ArtifactKind::File,
        size_bytes: 3,
        sha256: sha256.to_owned(),
        created_at: "2026-01-01T00:00:00Z".parse().unwrap(),
    };
    let answers = || vec![answer("200 OK", "application/octet-stream", "abc")];
    let daemon = Daemon::saying(answers());
    let mut bytes = Vec::new();
    Client::unix(&daemon.socket)
        .download(&job(), &recorded(digest), &mut bytes)
        .await
        .unwrap();
    assert_eq!(bytes, b"abc");
    assert!(
        daemon.requests().await[0]
            .starts_with("GET /v1/jobs/job_000000000000/artifacts/files/a%20b HTTP/1.1")
    );
    let daemon = Daemon::saying(answers());
    let error = Client::unix(&daemon.socket)
        .download(&job(), &recorded("00"), &mut Vec::new())
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Mismatch { .. }));
    let daemon = Daemon::saying(answers());
    let mut full = std::io::Cursor::new(vec![0; 2].into_boxed_slice());
    let error = Client::unix(&daemon.socket)
        .download(&job(), &recorded(digest), &mut full)
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            ClientError::File {
                action: "Writing",
                ..
            }
        ),
        "what is wrong here is not blamed on the daemon: {error}"
    );
}

#[tokio::test]
async fn a_bundle_is_sent_with_its_length_and_its_hash_compared() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "abc").unwrap();
    let body =
        "{\"sha256\":\"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\",\"size_bytes\":3}";
    let daemon = Daemon::saying(vec![answer("201 Created", "application/json", body)]);
    let uploaded = Client::unix(&daemon.socket)
        .upload_bundle(file.path())
        .await
        .unwrap();
    assert_eq!(uploaded.size_bytes, 3);
    let request = daemon.requests().await.remove(0);
    assert!(
        request.contains("content-length: 3\r\n") && !request.contains("chunked"),
        "{request}"
    );
    let daemon = Daemon::saying(vec![answer(
        "201 Created",
        "application/json",
        "{\"sha256\":\"00\",\"size_bytes\":3}",
    )]);
    let error = Client::unix(&daemon.socket)
        .upload_bundle(file.path())
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Mismatch { .. }));
}
