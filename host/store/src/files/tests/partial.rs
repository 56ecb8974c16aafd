//! Uploads that break off.

use super::*;

/// 3 MB, and what they hash to.
fn large() -> (Vec<u8>, String) {
    let bytes: Vec<u8> = (0..3_000_000u32)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect();
    let sha256 = sum(&bytes);
    (bytes, sha256)
}

impl Lab {
    async fn go_on(&self, sha256: &str, offset: u64) -> Result<Incoming, StoreError> {
        let hold = self.files.hold(sha256)?;
        let name = (&self.job, "files/large");
        self.files.continue_artifact(&hold, name, offset, 4 << 20).await
    }

    /// Sends so much more of an upload before it breaks off.
    async fn cut(&self, sha256: &str, offset: usize, bytes: &[u8]) {
        let offset = u64::try_from(offset).unwrap();
        let mut incoming = self.go_on(sha256, offset).await.unwrap();
        incoming.write(bytes).await.unwrap();
        incoming.keep().await;
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
        lab.cut(&sha256, offset, &bytes[offset..cut]).await;
        if cut > 1_000_000 {
            lab = lab.reopened();
        }
        assert_eq!(lab.kept(&sha256).await, length(&bytes[..cut]));
    }
    let mut incoming = lab.go_on(&sha256, 2_999_999).await.unwrap();
    incoming.write(&bytes[2_999_999..]).await.unwrap();
    let received = incoming.finish(Some(&sha256)).await.unwrap();
    assert_eq!((received.size_bytes, &received.sha256), (3_000_000, &sha256));
    assert_eq!(lab.content(&sha256).await.unwrap(), bytes);
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
    lab.cut(&sha256, 0, &bytes[..1_000_000]).await;
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
    lab.cut(&sha256, 0, b"something else").await;
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
        lab.cut(&announced(at), 0, &bytes[..1_000_000]).await;
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
