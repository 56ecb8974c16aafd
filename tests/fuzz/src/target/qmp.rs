//! What a QEMU says that its guest has taken over.

use std::time::Duration;

use agentlab_backend::qemu::converse;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex, split};

use super::{Outcome, Target};
use crate::input::Input;
use crate::properties::fit_to_print;

pub(super) const TARGET: Target = Target {
    name: "qmp",
    seeds,
    words: &[
        "\n",
        "\r\n",
        "{\"QMP\": {}}\n",
        "{\"return\": {}, \"id\": 1}\n",
        "{\"return\": [], \"id\": 2}\n",
        "\"id\": 2",
        "{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-panic\"}}\n",
        "{\"error\": {\"desc\": \"no\"}}\n",
        "\\u001b",
        "\u{1b}[31m",
        "\\ud800",
        "[[[[[[[[[[[[[[[[",
        "{\"a\":{\"a\":{\"a\":",
        "null",
        "18446744073709551616",
        "1e999",
        "\u{feff}",
    ],
    run,
    longest: 40_000,
    base_bytes: 256 << 10,
    bytes_per_byte: 512,
    inputs: 600,
};

/// By the paused clock.
const PATIENCE: Duration = Duration::from_secs(5);
const QUESTIONS: [&str; 3] = ["query-status", "query-chardev", "query-version"];

fn seeds() -> Vec<Vec<u8>> {
    // Recorded from QEMU 7.2.22. The first byte is how much the line holds, the second whether it stays open.
    let recorded = include_str!("../../corpus/qmp/session.jsonl");
    let refused = recorded.replace("\"return\": {\"status\"", "\"error\": {\"desc\"");
    let mut seeds = vec![
        [b"\xff\x00", recorded.as_bytes()].concat(),
        [b"\x01\x01", recorded.as_bytes()].concat(),
        [b"\x20\x00", refused.as_bytes()].concat(),
        [b"\x20\x00", recorded.replace('\n', "\r\n\r\n").as_bytes()].concat(),
    ];
    let greeting = recorded
        .lines()
        .take(2)
        .fold(String::new(), |all, line| all + line + "\n");
    let mut long = format!("\u{20}\u{1}{greeting}").into_bytes();
    // One line in very small pieces.
    long.resize(38_000, b'x');
    seeds.push(long);
    let flood = "{\"event\": \"RTC_CHANGE\", \"data\": {}}\n".repeat(600);
    seeds.push(format!("\u{40}\u{0}{greeting}{flood}").into_bytes());
    seeds.push([b"\x40\x00".to_vec(), b"[".repeat(20_000), b"\n".to_vec()].concat());
    seeds
}

fn run(input: &[u8]) -> Outcome {
    let mut script = Input::new(input);
    let room = usize::from(script.byte()) + 1;
    let stays_open = script.byte() & 1 == 1;
    let said = script.rest();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    let Ok(runtime) = runtime else {
        panic!("no runtime")
    };
    let (answers, events) = runtime.block_on(async {
        let (ours, theirs) = duplex(room);
        let (mut reader, mut writer) = split(theirs);
        let qemu = async {
            // What we ask is read and thrown away; all that matters is what we are told.
            let mut questions = [0; 256];
            let listen = async { while let Ok(1..) = reader.read(&mut questions).await {} };
            let speak = async {
                if writer.write_all(said).await.is_ok() && stays_open {
                    std::future::pending::<()>().await;
                }
                // Sees the client's end, and no more.
                let _ = writer.shutdown().await;
            };
            tokio::join!(listen, speak);
        };
        let talk = converse(ours, &QUESTIONS, PATIENCE);
        tokio::select! {
            heard = talk => heard,
            () = qemu => panic!("a client hung up and does not return"),
            () = tokio::time::sleep(PATIENCE * 10) => panic!("a client waits for ever"),
        }
    });
    assert!(!answers.is_empty(), "neither an answer nor an error");
    assert!(
        events.len() <= said.len() / 10,
        "{} events out of {} bytes",
        events.len(),
        said.len()
    );
    let mut words = Vec::new();
    for answer in &answers {
        match answer {
            Ok(_) => words.push("answered".to_owned()),
            Err(error) => {
                fit_to_print(error);
                // Without QEMU's own words.
                words.push(error.split(": ").next().unwrap_or_default().to_owned());
            }
        }
    }
    Outcome {
        accepted: answers.iter().any(Result::is_ok),
        words: format!("{}\n{} events", words.join("\n"), events.len().min(3)),
    }
}
