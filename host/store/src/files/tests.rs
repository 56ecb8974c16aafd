use std::sync::atomic::Ordering;

use tokio::io::AsyncReadExt as _;

use super::*;

const HELLO_SHA256: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

struct Lab {
    directory: tempfile::TempDir,
    files: Files,
    job: JobId,
    /// Number of the next log record.
    next: AtomicU64,
}

fn lab() -> Lab {
    let directory = tempfile::tempdir().unwrap();
    let files = Files::open(directory.path(), 0).unwrap();
    Lab {
        directory,
        files,
        job: "job_0123456789ab".parse().unwrap(),
        next: AtomicU64::new(0),
    }
}

impl Lab {
    async fn receive(
        &self,
        name: &str,
        bytes: &[u8],
        announced: Option<&str>,
    ) -> Result<Received, StoreError> {
        let mut incoming = self.files.receive_artifact(&self.job, name, 1 << 20).await?;
        incoming.write(bytes).await?;
        incoming.finish(announced).await
    }

    async fn content(&self, name: &str) -> Option<Vec<u8>> {
        let (mut file, size) = self.files.open_artifact(&self.job, name).await.unwrap()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).await.unwrap();
        assert_eq!(log_length(&bytes), size);
        Some(bytes)
    }

    fn left_in(&self, directory: &str) -> usize {
        std::fs::read_dir(self.directory.path().join(directory))
            .unwrap()
            .count()
    }

    async fn append(&self, text: &str, max_bytes: u64) -> u64 {
        self.append_from(self.next.fetch_add(1, Ordering::Relaxed), &[text], max_bytes)
            .await
    }

    async fn append_from(&self, first: u64, texts: &[&str], max_bytes: u64) -> u64 {
        let records = texts.iter().map(|text| (LogStream::Stdout, (*text).to_owned()));
        self.files
            .append_log(&self.job, first, records.collect(), Timestamp::now(), max_bytes)
            .await
            .unwrap()
    }

    async fn texts(&self, after: u64) -> Vec<String> {
        self.files
            .read_log(&self.job, after, 100)
            .await
            .unwrap()
            .into_iter()
            .map(|record| record.text)
            .collect()
    }

    fn log_path(&self) -> PathBuf {
        self.directory
            .path()
            .join(LOGS)
            .join(format!("{}.jsonl", self.job))
    }
}

fn log_length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap()
}

#[tokio::test]
async fn an_artifact_comes_back_as_it_was_first_sent() {
    let lab = lab();
    let received = lab
        .receive(
            "files/out/hello.txt",
            b"hello",
            Some(&HELLO_SHA256.to_uppercase()),
        )
        .await
        .unwrap();
    assert_eq!(
        received,
        Received {
            sha256: HELLO_SHA256.into(),
            size_bytes: 5
        }
    );
    assert_eq!(lab.content("files/out/hello.txt").await.unwrap(), b"hello");
    assert_eq!(
        lab.receive("files/out/hello.txt", b"hello", None).await.unwrap(),
        received
    );
    let error = lab
        .receive("files/out/hello.txt", b"again", None)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Conflict(_)), "{error}");
    assert_eq!(lab.content("files/out/hello.txt").await.unwrap(), b"hello");
    assert_eq!(lab.left_in(INCOMING), 0);
}

#[tokio::test]
async fn an_artifact_larger_than_the_buffer_is_hashed_whole() {
    let lab = lab();
    let mut incoming = lab
        .files
        .receive_artifact(&lab.job, "large", 4 << 20)
        .await
        .unwrap();
    for _ in 0..30 {
        incoming.write(&[7u8; 100_000]).await.unwrap();
    }
    let received = incoming.finish(None).await.unwrap();
    let whole = vec![7u8; 3_000_000];
    assert_eq!(
        received.sha256,
        hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&whole))
    );
    assert_eq!(lab.content("large").await.unwrap(), whole);
}

/// 3 MB, and what they hash to.
fn large() -> (Vec<u8>, String) {
    let bytes: Vec<u8> = (0..3_000_000u32)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect();
    let sha256 = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&bytes));
    (bytes, sha256)
}

impl Lab {
    async fn go_on(&self, sha256: &str, offset: u64) -> Result<Incoming, StoreError> {
        let upload = (&self.job, "files/large", sha256);
        self.files.continue_artifact(upload, offset, 4 << 20).await
    }

    async fn kept(&self, sha256: &str) -> u64 {
        let kept = self.files.kept_of_artifact(&self.job, "files/large", sha256);
        kept.await.unwrap()
    }

    fn partial(&self) -> PathBuf {
        self.directory.path().join(PARTIAL).join(self.job.as_str())
    }

    fn partials(&self) -> usize {
        std::fs::read_dir(self.partial()).map_or(0, Iterator::count)
    }

    /// As another process would find it.
    fn reopened(self) -> Self {
        let files = Files::open(self.directory.path(), 0).unwrap();
        Self { files, ..self }
    }
}

#[tokio::test]
async fn an_upload_that_breaks_off_goes_on_where_it_was_also_after_a_restart() {
    let mut lab = lab();
    let (bytes, sha256) = large();
    for (cut, offset) in [700_001, 700_001, 1_500_000, 2_999_999]
        .into_iter()
        .zip([0, 700_001, 700_001, 1_500_000])
    {
        let mut incoming = lab.go_on(&sha256, log_length(&bytes[..offset])).await.unwrap();
        incoming.write(&bytes[offset..cut]).await.unwrap();
        incoming.keep().await;
        drop(incoming);
        if cut > 1_000_000 {
            lab = lab.reopened();
        }
        assert_eq!(lab.kept(&sha256).await, log_length(&bytes[..cut]));
    }
    let mut incoming = lab.go_on(&sha256, 2_999_999).await.unwrap();
    incoming.write(&bytes[2_999_999..]).await.unwrap();
    let received = incoming.finish(Some(&sha256)).await.unwrap();
    assert_eq!((received.size_bytes, &received.sha256), (3_000_000, &sha256));
    assert_eq!(lab.content("files/large").await.unwrap(), bytes);
    assert_eq!((lab.partials(), lab.kept(&sha256).await), (0, 0));
}

#[tokio::test]
async fn an_upload_goes_on_from_where_it_is_and_from_nowhere_else() {
    let lab = lab();
    let (bytes, sha256) = large();
    for offset in [1, u64::MAX] {
        let error = lab.go_on(&sha256, offset).await.unwrap_err();
        assert!(matches!(error, StoreError::Offset { kept: 0, .. }), "{error}");
    }
    assert_eq!(lab.partials(), 0, "a lie costs no file");
    let mut incoming = lab.go_on(&sha256, 0).await.unwrap();
    incoming.write(&bytes[..1_000_000]).await.unwrap();
    incoming.keep().await;
    drop(incoming);
    for offset in [1, 999_999, 1_000_001, u64::MAX] {
        let error = lab.go_on(&sha256, offset).await.unwrap_err();
        assert!(
            matches!(error, StoreError::Offset { kept: 1_000_000, .. }),
            "{error}"
        );
    }
    // Another announcement, and another name, are other files.
    assert_eq!(lab.kept(HELLO_SHA256).await, 0);
    let elsewhere = lab.files.kept_of_artifact(&lab.job, "files/other", &sha256);
    assert_eq!(elsewhere.await.unwrap(), 0);
    let mut anew = lab.go_on(&sha256, 0).await.unwrap();
    anew.write(&bytes).await.unwrap();
    assert_eq!(anew.finish(Some(&sha256)).await.unwrap().size_bytes, 3_000_000);
}

#[tokio::test]
async fn a_beginning_that_was_damaged_is_dropped_and_the_file_sent_anew() {
    let lab = lab();
    let (bytes, sha256) = large();
    let mut incoming = lab.go_on(&sha256, 0).await.unwrap();
    incoming.write(b"something else").await.unwrap();
    incoming.keep().await;
    drop(incoming);
    let mut incoming = lab.go_on(&sha256, 14).await.unwrap();
    incoming.write(&bytes[14..]).await.unwrap();
    let error = incoming.finish(Some(&sha256)).await.unwrap_err();
    assert!(matches!(error, StoreError::Offset { kept: 0, .. }), "{error}");
    assert_eq!(lab.partials(), 0);
    let mut incoming = lab.go_on(&sha256, 0).await.unwrap();
    incoming.write(b"from its first byte").await.unwrap();
    let error = incoming.finish(Some(&sha256)).await.unwrap_err();
    assert!(matches!(error, StoreError::Mismatch { .. }), "{error}");
    let mut incoming = lab.go_on(&sha256, 0).await.unwrap();
    incoming.write(&vec![0; 5 << 20]).await.unwrap_err();
    drop(incoming);
    assert_eq!(
        (lab.partials(), lab.left_in(INCOMING)),
        (0, 0),
        "nothing is kept of what is refused"
    );
}

#[tokio::test]
async fn whoever_comes_later_takes_an_upload_over() {
    let lab = lab();
    let (bytes, sha256) = large();
    let mut dead = lab.go_on(&sha256, 0).await.unwrap();
    dead.write(&bytes[..1_000_000]).await.unwrap();
    let standing = async {
        dead.superseded().await;
        dead.keep().await;
        drop(dead);
    };
    let (kept, ()) = tokio::join!(lab.kept(&sha256), standing);
    assert_eq!(kept, 1_000_000);
}

#[tokio::test]
async fn interrupted_uploads_make_room_for_others_oldest_first_and_go_with_their_job() {
    let lab = lab();
    let (bytes, _) = large();
    let announced = |at: u8| hex::encode([at; 32]);
    for at in 0..5 {
        let mut incoming = lab.go_on(&announced(at), 0).await.unwrap();
        incoming.write(&bytes[..1_000_000]).await.unwrap();
        incoming.keep().await;
        drop(incoming);
        let key = Key::new(&lab.job, "files/large", &announced(at));
        let file = std::fs::File::options()
            .write(true)
            .open(lab.partial().join(key.place().unwrap().last()))
            .unwrap();
        let age = std::time::Duration::from_secs(u64::from(50 - at) * 60);
        file.set_modified(std::time::SystemTime::now() - age).unwrap();
    }
    let room = async |spared: u8, files, bytes| {
        let upload = (&lab.job, "files/large", &*announced(spared));
        lab.files.make_room_for(upload, files, bytes).await.unwrap();
    };
    room(0, 3, u64::MAX).await;
    let left = async || {
        let mut left = Vec::new();
        for at in 0..5 {
            if lab.kept(&announced(at)).await > 0 {
                left.push(at);
            }
        }
        left
    };
    assert_eq!(left().await, [0, 2, 3, 4]);
    room(2, 3, 1_999_999).await;
    assert_eq!(left().await, [2, 4]);
    let now = Timestamp::now();
    let old = std::time::Duration::from_secs(47 * 60);
    assert_eq!(lab.files.remove_interrupted(&lab.job, old, now).await.unwrap(), 1);
    assert_eq!(left().await, [4]);
    assert_eq!(
        lab.files.interrupted_jobs().await.unwrap(),
        std::slice::from_ref(&lab.job)
    );
    lab.files.remove_job(&lab.job).await.unwrap();
    assert_eq!(
        (lab.partials(), lab.files.interrupted_jobs().await.unwrap().len()),
        (0, 0)
    );
}

#[tokio::test]
async fn a_name_that_could_leave_the_directory_is_refused() {
    let lab = lab();
    for name in [
        "",
        "/etc/passwd",
        "..",
        "a/../b",
        "a//b",
        "./a",
        "a/",
        "a\\b",
        "a\nb",
        "a\u{0}b",
    ] {
        let error = lab.files.receive_artifact(&lab.job, name, 10).await.unwrap_err();
        assert!(matches!(error, StoreError::Name(_)), "{name:?}: {error}");
        assert!(
            matches!(
                lab.files.open_artifact(&lab.job, name).await,
                Err(StoreError::Name(_))
            ),
            "{name:?}"
        );
    }
    for sha256 in ["..", "../artifacts", &"A".repeat(64), &"0".repeat(63)] {
        assert!(
            matches!(lab.files.open_bundle(sha256).await, Err(StoreError::Name(_))),
            "{sha256}"
        );
        assert!(
            matches!(lab.files.remove_bundle(sha256).await, Err(StoreError::Name(_))),
            "{sha256}"
        );
    }
}

#[tokio::test]
async fn a_planted_symlink_is_never_followed() {
    let lab = lab();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "secret").unwrap();
    let of_job = lab.directory.path().join(ARTIFACTS).join(lab.job.as_str());
    std::fs::create_dir(&of_job).unwrap();
    std::os::unix::fs::symlink(outside.path(), of_job.join("files")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("secret"), of_job.join("link")).unwrap();

    assert!(lab.files.open_artifact(&lab.job, "link").await.is_err());
    assert!(lab.files.open_artifact(&lab.job, "files/secret").await.is_err());
    assert!(lab.receive("files/new", b"x", None).await.is_err());
    assert!(!outside.path().join("new").exists());
    // A link in the place of the file itself is replaced, not written through.
    lab.receive("link", b"mine", None).await.unwrap();
    assert_eq!(
        std::fs::read_to_string(outside.path().join("secret")).unwrap(),
        "secret"
    );
    assert_eq!(lab.content("link").await.unwrap(), b"mine");
}

#[tokio::test]
async fn wrong_bytes_too_many_bytes_and_a_dropped_upload_leave_nothing() {
    let lab = lab();
    let error = lab.receive("a", b"hullo", Some(HELLO_SHA256)).await.unwrap_err();
    assert!(matches!(error, StoreError::Mismatch { .. }), "{error}");
    let mut incoming = lab.files.receive_artifact(&lab.job, "b", 4).await.unwrap();
    assert!(matches!(
        incoming.write(b"hello").await,
        Err(StoreError::TooLarge { limit: 4, .. })
    ));
    drop(incoming);
    let mut incoming = lab.files.receive_bundle(1 << 20).await.unwrap();
    incoming.write(b"hello").await.unwrap();
    drop(incoming);
    assert_eq!(lab.left_in(INCOMING), 0);
    assert_eq!(lab.left_in(BUNDLES), 0);
    assert!(lab.content("a").await.is_none() && lab.content("b").await.is_none());
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
async fn an_artifact_cannot_stand_both_for_a_file_and_a_directory() {
    let lab = lab();
    lab.receive("files/a", b"x", None).await.unwrap();
    assert!(matches!(
        lab.receive("files/a/b", b"x", None).await,
        Err(StoreError::Conflict(_))
    ));
    assert!(matches!(
        lab.receive("files", b"x", None).await,
        Err(StoreError::Conflict(_))
    ));
    assert_eq!(lab.left_in(INCOMING), 0);
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
async fn a_log_is_resumed_where_its_reader_stopped() {
    let lab = lab();
    assert!(lab.texts(0).await.is_empty());
    let mut appended = lab.files.watch_logs();
    lab.append("one\n", 1 << 20).await;
    assert!(appended.has_changed().unwrap());
    appended.mark_unchanged();
    let end = lab.append("two \u{e9}\n", 1 << 20).await;
    let records = lab.files.read_log(&lab.job, 0, 1).await.unwrap();
    assert_eq!(records.len(), 1);
    assert_eq!(lab.texts(records[0].offset).await, ["two \u{e9}\n"]);
    assert_eq!(
        lab.files.read_log(&lab.job, records[0].offset, 9).await.unwrap()[0].offset,
        end
    );
    assert!(lab.texts(end).await.is_empty());
    assert!(lab.texts(end + 1000).await.is_empty());
    // An offset that no record carried yields whole records only.
    assert_eq!(lab.texts(3).await, ["two \u{e9}\n"]);
}

#[tokio::test]
async fn a_log_says_once_that_it_is_full_and_takes_no_more() {
    let lab = lab();
    lab.append(&"x".repeat(100), 300).await;
    let full = lab.append(&"y".repeat(100), 300).await;
    assert_eq!(lab.append("small", 300).await, full);
    let texts = lab.texts(0).await;
    assert_eq!(texts.len(), 2);
    assert!(texts[1].contains("not kept"), "{texts:?}");
}

#[tokio::test]
async fn a_batch_that_is_appended_again_stands_there_once() {
    let lab = lab();
    let end = lab.append_from(0, &["one\n", "two\n"], 1 << 20).await;
    assert_eq!(lab.append_from(0, &["one\n", "two\n"], 1 << 20).await, end);
    lab.append_from(1, &["two\n", "three \u{e9}\n"], 1 << 20).await;
    // Torn in the midst of the batch: its first half stands, its second comes again.
    let bytes = std::fs::read(lab.log_path()).unwrap();
    std::fs::write(lab.log_path(), &bytes[..bytes.len() - 5]).unwrap();
    lab.append_from(1, &["two\n", "three \u{e9}\n"], 1 << 20).await;
    // What was lost with the disk's cache stays lost; numbers never go back.
    lab.append_from(9, &["ten\n"], 1 << 20).await;
    assert_eq!(lab.texts(0).await, ["one\n", "two\n", "three \u{e9}\n", "ten\n"]);
}

#[tokio::test]
async fn a_guest_cannot_print_the_number_of_a_line() {
    let lab = lab();
    for text in [
        "x,\"piece\":99}\n",
        "\u{e9}\u{e9},\"piece\":18446744073709551615}",
    ] {
        lab.append(text, 1 << 20).await;
        lab.append("after", 1 << 20).await;
    }
    assert_eq!(lab.texts(0).await.len(), 4);
}

#[tokio::test]
async fn what_was_received_and_never_recorded_is_removed_and_the_rest_stays() {
    let lab = lab();
    for name in ["work.bundle", "files/a", "files/deep/b", "files/deep/c"] {
        lab.receive(name, b"x", None).await.unwrap();
    }
    let kept = HashSet::from(["files/deep/b".to_owned()]);
    let mut gone = lab.files.keep_artifacts(&lab.job, kept.clone()).await.unwrap();
    gone.sort();
    assert_eq!(gone, ["files/a", "files/deep/c", "work.bundle"]);
    assert!(lab.files.keep_artifacts(&lab.job, kept).await.unwrap().is_empty());
    assert!(lab.content("files/deep/b").await.is_some());
    lab.files.remove_artifact(&lab.job, "files/deep/b").await.unwrap();
    lab.files.remove_artifact(&lab.job, "files/deep/b").await.unwrap();
    lab.files.remove_artifact(&lab.job, "nowhere/x").await.unwrap();
    assert!(lab.files.remove_artifact(&lab.job, "../x").await.is_err());
    assert!(
        lab.files
            .keep_artifacts(&lab.job, HashSet::new())
            .await
            .unwrap()
            .is_empty()
    );
    let other: JobId = "job_ba9876543210".parse().unwrap();
    assert!(
        lab.files
            .keep_artifacts(&other, HashSet::new())
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn a_guest_cannot_print_the_marker_of_a_full_log() {
    let lab = lab();
    lab.append("x,\"truncated\":true}\n", 1 << 20).await;
    lab.append("after", 1 << 20).await;
    assert_eq!(lab.texts(0).await.len(), 2);
}

#[tokio::test]
async fn a_line_torn_by_a_crash_is_cut_off_and_the_rest_stays() {
    let lab = lab();
    let end = lab.append("whole\n", 1 << 20).await;
    let mut bytes = std::fs::read(lab.log_path()).unwrap();
    bytes.extend_from_slice(b"{\"time\":\"2026-");
    bytes.extend_from_slice(&[0u8; 5000]);
    std::fs::write(lab.log_path(), bytes).unwrap();
    assert_eq!(lab.texts(0).await, ["whole\n"]);
    lab.append("next\n", 1 << 20).await;
    assert_eq!(lab.texts(end).await, ["next\n"]);
    assert_eq!(lab.texts(0).await, ["whole\n", "next\n"]);
}

#[tokio::test]
async fn files_are_readable_by_nobody_else() {
    use std::os::unix::fs::PermissionsExt as _;
    let lab = lab();
    lab.receive("files/a", b"x", None).await.unwrap();
    let mode = |path: &str| {
        let path = lab.directory.path().join(path.replace("JOB", lab.job.as_str()));
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode("artifacts/JOB/files"), 0o700);
    assert_eq!(mode("artifacts/JOB/files/a"), 0o600);
}
