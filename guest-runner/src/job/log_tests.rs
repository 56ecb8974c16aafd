use super::*;

#[test]
fn a_character_cut_in_two_arrives_whole_and_rubbish_is_replaced() {
    let (mut bytes, mut text) = (vec![b'a', 0xc3], String::new());
    decode(&mut bytes, &mut text, false);
    assert_eq!((text.as_str(), bytes.as_slice()), ("a", &[0xc3][..]));
    bytes.extend([0xa9, 0xff, b'b', 0xe2, 0x82]);
    decode(&mut bytes, &mut text, true);
    assert_eq!((text.as_str(), bytes.len()), ("a\u{e9}\u{fffd}b\u{fffd}", 0));
}

#[test]
fn the_worst_batch_is_smaller_than_what_the_host_takes() {
    let directory = tempfile::tempdir().unwrap();
    let log = JobLog::create(
        &directory.path().join("log"),
        Arc::new(Needles::new([])),
        u64::MAX,
        0,
    )
    .unwrap();
    for index in 0..20_000 {
        let stream = if index % 2 == 0 {
            Stream::Stdout
        } else {
            Stream::Stderr
        };
        log.state().append(stream, "\u{1}".repeat(1 + index % 9));
    }
    let mut next = 0;
    let mut text = 0;
    while let Some((batch, _)) = log.state().batch() {
        assert!(serde_json::to_vec(&batch).unwrap().len() < 1_000_000);
        assert_eq!(batch.first, next);
        next += u64::try_from(batch.pieces.len()).unwrap();
        text += batch.pieces.iter().map(|piece| piece.text.len()).sum::<usize>();
    }
    assert_eq!(text, (0..20_000).map(|index| 1 + index % 9).sum::<usize>());
}

#[test]
fn a_full_log_is_cut_once_and_the_runner_still_has_a_word() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let log = JobLog::create(&path, Arc::new(Needles::new([])), RUNNER_RESERVE + 100, 0).unwrap();
    for _ in 0..50 {
        log.state().append(Stream::Stdout, "0123456789".to_owned());
    }
    log.runner("the agent ended");
    let text = std::fs::read_to_string(log.close().unwrap()).unwrap();
    assert!(text.len() < 200, "{text}");
    assert_eq!(text.matches("was left out").count(), 1);
    assert!(text.ends_with("the agent ended\n"), "{text}");
}
