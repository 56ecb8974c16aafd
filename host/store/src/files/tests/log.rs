//! What jobs print.

use super::*;

impl Lab {
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
