//! Bytes that no record names.

use super::*;

impl Lab {
    /// What the store does with the database's answer.
    async fn remove_but(&self, loose: Vec<bytes::Loose>, recorded: &[&str]) -> usize {
        let recorded = recorded.iter().map(|sha256| (*sha256).to_owned()).collect();
        self.files.remove_loose(loose, recorded).await.unwrap()
    }

    async fn is_here(&self) -> bool {
        self.content(HELLO_SHA256).await.is_some()
    }

    fn loosen(&self) -> Vec<bytes::Loose> {
        self.files.loosen([HELLO_SHA256.to_owned()]);
        self.files.loose()
    }
}

#[tokio::test]
async fn they_go_when_nobody_holds_them_and_stay_where_a_record_does() {
    let lab = lab();
    lab.receive(b"hello", None).await.unwrap();
    assert!(
        lab.files.loose().is_empty(),
        "what was recorded is not asked about"
    );
    assert_eq!(lab.remove_but(lab.loosen(), &[HELLO_SHA256]).await, 0);
    assert!(lab.is_here().await && lab.files.loose().is_empty());
    assert_eq!(lab.remove_but(lab.loosen(), &[]).await, 1);
    assert!(!lab.is_here().await);
    assert_eq!(
        (lab.remove_but(lab.loosen(), &[]).await, lab.left_in(INCOMING)),
        (0, 0)
    );
}

#[tokio::test]
async fn the_last_of_several_uploads_that_is_not_recorded_lets_go_of_them() {
    let lab = lab();
    lab.receive(b"hello", None).await.unwrap();
    let hold = || lab.files.hold(HELLO_SHA256).unwrap();
    let (first, second) = (hold(), hold());
    drop(first);
    assert!(lab.loosen().is_empty(), "the second one is still under way");
    drop(second);
    assert_eq!(lab.files.loose().len(), 1);
    let third = hold();
    assert!(lab.files.loose().is_empty());
    third.recorded();
    assert!(lab.files.loose().is_empty() && lab.is_here().await);
}

#[tokio::test]
async fn an_old_answer_of_the_database_removes_nothing_that_arrived_since() {
    let lab = lab();
    lab.receive(b"hello", None).await.unwrap();
    let old = lab.loosen();
    // Nothing was recorded when it was asked. Then the same bytes arrive for another job.
    lab.receive(b"hello", None).await.unwrap();
    assert_eq!(lab.remove_but(old.clone(), &[]).await, 0);
    // And once more, together with an upload that comes to nothing.
    let refused = lab.files.hold(HELLO_SHA256).unwrap();
    lab.receive(b"hello", None).await.unwrap();
    drop(refused);
    assert_eq!(lab.remove_but(old, &[]).await, 0);
    assert!(lab.is_here().await);
    assert_eq!(lab.files.loose().len(), 1, "to be asked about anew");
}
