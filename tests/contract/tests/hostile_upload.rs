//! Files that a guest names, sizes and announces as it likes.

use agentlab_protocol::message::{ArtifactRole, SHA256_HEADER};
use agentlab_tests_contract::Message;

use crate::hostile_guest::Stage;

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
