//! Files that a guest names, sizes and announces as it likes.

use std::path::Path;
use std::time::Duration;

use agentlab_protocol::message::{ArtifactRole, OFFSET_HEADER, SHA256_HEADER};
use agentlab_tests_contract::{Answer, Guest, Message};

use crate::hostile_guest::{Cast, Stage};

#[tokio::test]
async fn an_artifacts_name_cannot_leave_its_job() {
    let stage = Stage::set("");
    let mut cast = stage.guest().await;
    for name in [
        "files/..%2f..%2f..%2fagentlab.db",
        "..%2fx",
        "%2e%2e/x",
        "files/../../x",
        "files/%2e/x",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "files//x",
        "files/",
        "files/a%00b",
        "files/a%0ab",
        "files/a%1b%5d0;x",
        "files/a%5cb",
        "files/%ff",
        &format!("files/{}", "x".repeat(256)),
        &format!("files/{}", "x/".repeat(300)),
    ] {
        assert_eq!(cast.file(name, 1).await, 422, "{name}");
    }
    // Its own file never poses as one of the runner's, nor as a directory that is a file.
    assert_eq!(cast.file("work.bundle", 1).await, 409);
    assert_eq!(cast.file("report.json", 1).await, 409);
    assert_eq!(cast.file("files/a", 1).await, 201);
    let beneath = cast.file("files/a/b", 1).await;
    assert!((400..500).contains(&beneath), "{beneath}");
    assert_eq!(stage.artifacts(&cast.job), ["files/a"]);
    assert_eq!((cast.beat().await, stage.incoming()), (200, 0));
}

#[tokio::test]
async fn a_job_leaves_no_more_than_its_profile_allows() {
    let stage = Stage::set("");
    let mut cast = stage.guest().await;
    assert_eq!(cast.file("files/large", 1001).await, 413);
    assert_eq!(cast.file("files/huge", 3 << 20).await, 413);
    assert_eq!(cast.file("files/a", 1000).await, 201);
    assert_eq!(cast.file("files/b", 1000).await, 201);
    assert_eq!(cast.file("files/c", 501).await, 413, "all files together");
    assert_eq!(cast.file("files/c", 100).await, 201);
    assert_eq!(cast.file("files/d", 0).await, 201);
    assert_eq!(cast.file("files/e", 0).await, 413, "a fifth file");
    assert_eq!(
        cast.file("files/d", 1).await,
        409,
        "the same name with other bytes"
    );
    assert_eq!(
        stage.artifacts(&cast.job),
        ["files/a", "files/b", "files/c", "files/d"]
    );
    assert_eq!((cast.beat().await, stage.incoming()), (200, 0));
}

#[tokio::test]
async fn bytes_that_are_not_what_was_announced_are_not_kept() {
    let stage = Stage::set("");
    let mut cast = stage.guest().await;
    let mut upload = Message::upload("files/a", ArtifactRole::File, "honest");
    upload.body = "not so".into();
    assert_eq!(cast.guest.send(&upload).await.unwrap().status, 422);
    for wrong in ["", "00", &"z".repeat(64), &"0".repeat(64)] {
        for (name, value) in &mut upload.headers {
            if *name == SHA256_HEADER {
                *value = wrong.to_owned();
            }
        }
        assert_eq!(cast.guest.send(&upload).await.unwrap().status, 422, "{wrong:?}");
    }
    upload.headers.clear();
    assert_eq!(cast.guest.send(&upload).await.unwrap().status, 422);
    assert_eq!((stage.artifacts(&cast.job).len(), stage.incoming()), (0, 0));
}

const LARGE: &str = "files/large";
const BOUNDS: &str = "artifacts: {max_file_bytes: 8000000, max_total_bytes: 20000000, max_files: 9}\n";

/// A file that may be continued.
fn large() -> Vec<u8> {
    (0..500_000u32).flat_map(u32::to_le_bytes).collect()
}

/// A piece of it, wherever that is said to begin.
fn piece(whole: &[u8], offset: &str, bytes: &[u8]) -> Message {
    let mut message = Message::upload(LARGE, ArtifactRole::File, whole.to_vec());
    message.headers.push((OFFSET_HEADER, offset.to_owned()));
    message.body = bytes.to_vec().into();
    message
}

impl Cast {
    async fn piece(&mut self, whole: &[u8], offset: &str, bytes: &[u8]) -> Answer {
        self.guest.send(&piece(whole, offset, bytes)).await.unwrap()
    }

    /// How much of a file the host has.
    async fn kept(&mut self, name: &str, whole: &[u8]) -> Answer {
        let mut message = Message::upload(name, ArtifactRole::File, whole.to_vec());
        message.method = "HEAD";
        message.body = "".into();
        self.guest.send(&message).await.unwrap()
    }
}

impl Stage {
    /// Breaks an upload off in the midst of it, and says how much of it is here.
    async fn break_off(&self, cast: &mut Cast, whole: &[u8]) -> u64 {
        let half = piece(whole, "0", &whole[..whole.len() / 2]);
        let enough = async {
            while self.bytes() < 500_000 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        cast.guest.break_off(&half, enough).await.unwrap();
        let kept = cast.kept(LARGE, whole).await.offset.unwrap();
        assert!(kept >= 500_000 && kept <= length(whole) / 2, "{kept}");
        kept
    }

    /// Bytes of files that are here, whole or not.
    fn bytes(&self) -> u64 {
        let of = |directory| bytes_below(&self.lab.path(directory));
        ["data/incoming", "data/partial", "data/artifacts"]
            .map(of)
            .iter()
            .sum()
    }
}

fn bytes_below(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    let sizes = entries.map(|entry| {
        let entry = entry.unwrap();
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
            Ok(metadata) => metadata.len(),
            // Removed meanwhile.
            Err(_) => 0,
        }
    });
    sizes.sum()
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap()
}

#[tokio::test]
async fn an_upload_is_continued_from_its_own_end_only_and_a_lie_costs_no_disk() {
    let stage = Stage::of("", BOUNDS);
    let (mut cast, whole) = (stage.guest().await, large());
    let kept = stage.break_off(&mut cast, &whole).await;
    for offset in [1, kept - 1, kept + 1, length(&whole), length(&whole) + 1] {
        let answer = cast.piece(&whole, &offset.to_string(), b"more").await;
        assert_eq!((answer.status, answer.offset), (416, Some(kept)), "{offset}");
    }
    for offset in [8_000_000, u64::MAX] {
        let answer = cast.piece(&whole, &offset.to_string(), b"more").await;
        assert_eq!(answer.status, 413, "beyond every bound: {offset}");
    }
    for offset in ["-1", "", "1e3", "0x10", "18446744073709551616", "+-1", "one"] {
        assert_eq!(cast.piece(&whole, offset, b"more").await.status, 422, "{offset}");
    }
    // Nobody else's end, be it of the same name or of the same bytes.
    let mut other = stage.guest().await;
    assert_eq!(other.kept(LARGE, &whole).await.offset, Some(0));
    let answer = other.piece(&whole, &kept.to_string(), b"more").await;
    assert_eq!((answer.status, answer.offset), (416, Some(0)));
    assert_eq!(cast.kept("files/other", &whole).await.offset, Some(0));
    assert_eq!(cast.kept(LARGE, b"other bytes").await.offset, Some(0));
    assert_eq!(cast.kept("..%2fx", &whole).await.status, 422);
    assert_eq!((stage.bytes(), stage.incoming()), (kept, 0));

    let rest = &whole[usize::try_from(kept).unwrap()..];
    assert_eq!(cast.piece(&whole, &kept.to_string(), rest).await.status, 201);
    assert_eq!(stage.artifacts(&cast.job), [LARGE]);
    assert_eq!(stage.bytes(), length(&whole));
}

#[tokio::test]
async fn a_file_that_ends_elsewhere_than_was_announced_is_sent_anew() {
    let stage = Stage::of("", BOUNDS);
    let (mut cast, whole) = (stage.guest().await, large());
    for more_or_less in [1_000_000, 1] {
        let kept = stage.break_off(&mut cast, &whole).await;
        let mut rest = whole[usize::try_from(kept).unwrap()..].to_vec();
        rest.resize(rest.len() - 1 + more_or_less, 7);
        rest[0] ^= 1;
        let answer = cast.piece(&whole, &kept.to_string(), &rest).await;
        assert_eq!((answer.status, answer.offset), (416, Some(0)));
        assert_eq!((stage.bytes(), stage.incoming()), (0, 0));
    }
    assert_eq!(cast.piece(&whole, "0", &whole).await.status, 201);
    assert_eq!(stage.bytes(), length(&whole));
}

#[tokio::test]
async fn what_broke_off_goes_with_its_job_and_nobody_continues_it() {
    let stage = Stage::of("", &format!("{BOUNDS}behavior: {{keepalive_default: true}}\n"));
    let (mut cast, whole) = (stage.guest().await, large());
    let kept = stage.break_off(&mut cast, &whole).await;
    let report = cast.report();
    cast.hand_in(&report).await;
    stage.lab.finished(&cast.job).unwrap();
    assert_eq!(cast.kept(LARGE, &whole).await.status, 409);
    let answer = cast.piece(&whole, &kept.to_string(), b"more").await;
    assert_eq!(answer.status, 409);
    // By the next daemon at the latest.
    stage.lab.restart_beside_its_machines().unwrap();
    while stage.bytes() > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (_, line) = stage.visitors.next_line().await.unwrap();
    let session = cast.guest.session.take();
    cast.guest = Guest::connect(line).await.unwrap();
    cast.guest.session = session;
    assert_eq!(cast.kept(LARGE, &whole).await.status, 409);
}
