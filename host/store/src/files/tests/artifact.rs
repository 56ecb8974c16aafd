//! What arrives whole.

use super::*;

#[tokio::test]
async fn bytes_are_stored_once_however_often_they_are_sent() {
    let lab = lab();
    let received = lab
        .receive(b"hello", Some(&HELLO_SHA256.to_uppercase()))
        .await
        .unwrap();
    assert_eq!(
        received,
        Received {
            sha256: HELLO_SHA256.into(),
            size_bytes: 5
        }
    );
    let shard = format!("{ARTIFACTS}/{}", &HELLO_SHA256[..2]);
    for _ in 0..2 {
        assert_eq!(lab.receive(b"hello", None).await.unwrap(), received);
        assert_eq!((lab.left_in(&shard), lab.left_in(INCOMING)), (1, 0));
        assert_eq!(lab.content(HELLO_SHA256).await.unwrap(), b"hello");
        // What a disk has damaged is mended by whoever has it whole.
        std::fs::write(lab.stored_path(HELLO_SHA256), "hullo").unwrap();
    }
}

#[tokio::test]
async fn an_artifact_larger_than_the_buffer_is_hashed_whole() {
    let lab = lab();
    let whole = vec![7u8; 3_000_000];
    let hold = lab.files.hold(&sum(&whole)).unwrap();
    let mut incoming = lab.files.receive_artifact(&hold, 4 << 20).await.unwrap();
    for piece in whole.chunks(100_000) {
        incoming.write(piece).await.unwrap();
    }
    let received = incoming.finish(None).await.unwrap();
    assert_eq!(received.sha256, sum(&whole));
    assert_eq!(lab.content(&received.sha256).await.unwrap(), whole);
}

#[tokio::test]
async fn what_is_no_hash_could_lead_elsewhere_and_is_refused() {
    let lab = lab();
    let no_hash = |result: Result<(), StoreError>| matches!(result, Err(StoreError::Name(_)));
    for text in [
        "",
        "..",
        "../artifacts",
        "\u{e9}",
        &"A".repeat(64),
        &"0".repeat(63),
    ] {
        assert!(no_hash(lab.files.open_artifact(text).await.map(drop)), "{text}");
        assert!(no_hash(lab.files.hold(text).map(drop)), "{text}");
        assert!(no_hash(lab.files.open_bundle(text).await.map(drop)), "{text}");
        assert!(no_hash(lab.files.remove_bundle(text).await), "{text}");
    }
}

#[tokio::test]
async fn a_planted_symlink_is_never_followed() {
    let lab = lab();
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join(HELLO_SHA256);
    std::fs::write(&secret, "secret").unwrap();
    let shard = lab.stored_path(HELLO_SHA256).parent().unwrap().to_owned();
    std::os::unix::fs::symlink(outside.path(), &shard).unwrap();
    assert!(lab.files.open_artifact(HELLO_SHA256).await.is_err());
    assert!(lab.receive(b"hello", None).await.is_err());

    // A link in the place of the file itself is replaced, not written through.
    std::fs::remove_file(&shard).unwrap();
    std::fs::create_dir(&shard).unwrap();
    std::os::unix::fs::symlink(&secret, shard.join(HELLO_SHA256)).unwrap();
    assert!(lab.files.open_artifact(HELLO_SHA256).await.is_err());
    lab.receive(b"hello", None).await.unwrap();
    assert_eq!(lab.content(HELLO_SHA256).await.unwrap(), b"hello");
    assert_eq!(std::fs::read_to_string(secret).unwrap(), "secret");
}

#[tokio::test]
async fn wrong_bytes_too_many_bytes_and_a_dropped_upload_leave_nothing() {
    let lab = lab();
    let error = lab.receive(b"hullo", Some(HELLO_SHA256)).await.unwrap_err();
    assert!(matches!(error, StoreError::Mismatch { .. }), "{error}");
    let hold = lab.files.hold(HELLO_SHA256).unwrap();
    let mut incoming = lab.files.receive_artifact(&hold, 4).await.unwrap();
    assert!(matches!(
        incoming.write(b"hello").await,
        Err(StoreError::TooLarge { limit: 4, .. })
    ));
    drop(incoming);
    let mut incoming = lab.files.receive_bundle(1 << 20).await.unwrap();
    incoming.write(b"hello").await.unwrap();
    drop(incoming);
    let left = [INCOMING, BUNDLES, ARTIFACTS].map(|directory| lab.left_in(directory));
    assert_eq!(left, [0, 0, 0]);
}

#[tokio::test]
async fn an_interrupted_upload_is_gone_after_the_next_start() {
    let lab = lab();
    std::fs::write(lab.directory.path().join(INCOMING).join("17"), "half").unwrap();
    drop(Files::open(lab.directory.path(), 0).unwrap());
    assert_eq!(lab.left_in(INCOMING), 0);
}

#[tokio::test]
async fn nothing_is_received_below_the_disk_floor() {
    let directory = tempfile::tempdir().unwrap();
    let files = Files::open(directory.path(), u64::MAX).unwrap();
    let error = files.receive_bundle(10).await.unwrap_err();
    assert!(matches!(error, StoreError::DiskFloor { .. }), "{error}");
}

#[tokio::test]
async fn a_bundle_is_found_by_its_hash_until_it_is_removed() {
    let lab = lab();
    let mut incoming = lab.files.receive_bundle(10).await.unwrap();
    incoming.write(b"hello").await.unwrap();
    incoming.finish(None).await.unwrap();
    let (_, size) = lab.files.open_bundle(HELLO_SHA256).await.unwrap().unwrap();
    assert_eq!(size, 5);
    lab.files.remove_bundle(HELLO_SHA256).await.unwrap();
    lab.files.remove_bundle(HELLO_SHA256).await.unwrap();
    assert!(lab.files.open_bundle(HELLO_SHA256).await.unwrap().is_none());
}

#[tokio::test]
async fn files_are_readable_by_nobody_else() {
    use std::os::unix::fs::PermissionsExt as _;
    let lab = lab();
    lab.receive(b"hello", None).await.unwrap();
    let path = lab.stored_path(HELLO_SHA256);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o700, 0o600));
}
