//! JSON bodies between host and guest.

use agentlab_protocol::message::{
    Heartbeat, HeartbeatAnswer, LogBatch, Order, RedeemAnswer, RedeemRequest, Report,
};
use agentlab_protocol::secret::SecretText;
use agentlab_protocol::session::{decode_secret, encode_secret};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Outcome, Target};

pub(super) const TARGET: Target = Target {
    name: "message",
    seeds,
    words: &[
        "null",
        "true",
        "false",
        "{}",
        "[]",
        "\"\"",
        "\"kind\":",
        "\"hold\"",
        "\"job\"",
        "\"url\"",
        "\"bundle\"",
        "\"phase\":",
        "\"agent\"",
        "\"text\":",
        "\\u0000",
        "\\ud800",
        "[[[[[[[[[[[[[[[[",
        "{\"a\":{\"a\":{\"a\":",
        "1e999",
        "\u{feff}",
        "\"version\":",
        "\"artifacts\":",
    ],
    run,
    longest: 16_384,
    base_bytes: 256 << 10,
    bytes_per_byte: 512,
    inputs: 6_000,
};

const SEEDS: [&str; 8] = [
    r#"{"vmid":1000,"token":"ERERERERERERERERERERERERERERERERERERERERERE","runner_key":"VVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVU","runner_version":"0.1.0"}"#,
    r#"{"session":"2YjMo1bJZXmP3iGYKYqJZV0Yw8m4b9rjLkB0xVt8c1o","order":{"kind":"job","job":"job_0123456789ab","repository":{"kind":"url","url":"https://example.org/r.git"},"reference":"main","task":"true","agent":"shell","deadline_seconds":300,"kill_grace_seconds":10,"inner_sandbox":true,"inner_sandbox_args":["--ro-bind","/a","/b"]},"git":{"username":"git","token":"hidden-token","ssh_private_key":null,"known_hosts":"h k"},"environment":{"KEY":"hidden-value"},"authorized_keys":["ssh-ed25519 AAAA x"],"limits":{"max_file_bytes":1,"max_total_bytes":2,"max_files":3,"max_log_bytes":4},"heartbeat_seconds":5}"#,
    r#"{"session":"x","order":{"kind":"hold"},"limits":{"max_file_bytes":1,"max_total_bytes":2,"max_files":3,"max_log_bytes":4},"heartbeat_seconds":5}"#,
    r#"{"phase":"agent","message":"running"}"#,
    r#"{"cancel":true}"#,
    r#"{"first":12,"pieces":[{"stream":"stdout","text":"a line\n"},{"stream":"stderr","text":"\u001b[31mred"},{"stream":"runner","text":""}]}"#,
    r#"{"version":1,"job":"job_0123456789ab","status":"failed","failed_phase":"repository","message":"fatal: not found","exit_code":128,"base_commit":"abc","head_commit":"def","commits":1,"uncommitted":true,"agent_milliseconds":1200,"artifacts":[{"name":"files/answer.txt","role":"file","size_bytes":3,"sha256":"00"}],"left_out":["files/x: too large"],"inner_sandbox":"bubblewrap"}"#,
    "VVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVU",
];

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = SEEDS.iter().map(|seed| seed.as_bytes().to_vec()).collect();
    seeds.push(b"[".repeat(10_000));
    seeds
}

fn run(input: &[u8]) -> Outcome {
    let read: [(&str, Result<(), String>); 6] = [
        (
            "redeem",
            strict(input, |value: &RedeemRequest| {
                prints_no_secret(value, |copy| {
                    copy.token = other();
                    copy.runner_key = other();
                });
            }),
        ),
        (
            "answer",
            strict(input, |value: &RedeemAnswer| prints_no_secret(value, hide_answer)),
        ),
        ("heartbeat", strict(input, |_: &Heartbeat| {})),
        ("logs", strict(input, |_: &LogBatch| {})),
        ("report", strict(input, |_: &Report| {})),
        ("beat answer", round_trip::<HeartbeatAnswer>(input).map(drop)),
    ];
    if let Ok(text) = std::str::from_utf8(input)
        && let Some(secret) = decode_secret(text)
    {
        assert_eq!(encode_secret(&secret).expose(), text, "one secret has two texts");
    }
    let accepted = read.iter().any(|(_, result)| result.is_ok());
    let words: Vec<String> = read
        .into_iter()
        .map(|(name, result)| result.map_or_else(|error| error.replace('\n', " "), |()| name.to_owned()))
        .collect();
    Outcome {
        accepted,
        words: words.join("\n"),
    }
}

fn round_trip<T: Serialize + DeserializeOwned>(input: &[u8]) -> Result<T, String> {
    let value: T = serde_json::from_slice(input).map_err(|error| error.to_string())?;
    let Ok(written) = serde_json::to_vec(&value) else {
        panic!("a message that was read cannot be written")
    };
    let again = serde_json::from_slice::<T>(&written)
        .ok()
        .and_then(|again| serde_json::to_vec(&again).ok());
    assert_eq!(
        again.as_ref(),
        Some(&written),
        "written and read back it is another"
    );
    Ok(value)
}

/// For bodies that refuse what they do not know.
fn strict<T: Serialize + DeserializeOwned>(input: &[u8], look: impl Fn(&T)) -> Result<(), String> {
    let value = round_trip::<T>(input)?;
    look(&value);
    if let Ok(Value::Object(mut fields)) = serde_json::to_value(&value) {
        fields.insert("a key of nobody".to_owned(), Value::Null);
        assert!(
            serde_json::from_value::<T>(Value::Object(fields)).is_err(),
            "an unknown key is swallowed"
        );
    }
    Ok(())
}

fn other() -> SecretText {
    SecretText::new("another".to_owned())
}

fn hide_answer(copy: &mut RedeemAnswer) {
    copy.session = other();
    copy.environment.values_mut().for_each(|value| *value = other());
    if let Some(git) = &mut copy.git {
        git.token = git.token.as_ref().map(|_| other());
        git.ssh_private_key = git.ssh_private_key.as_ref().map(|_| other());
    }
    if let Some(login) = &mut copy.tailnet {
        login.authkey = other();
    }
    if let Order::Job(job) = &copy.order {
        assert!(!format!("{job:?}").is_empty());
    }
}

fn prints_no_secret<T: Clone + std::fmt::Debug>(value: &T, hide: impl Fn(&mut T)) {
    let mut copy = value.clone();
    hide(&mut copy);
    assert_eq!(
        format!("{value:?}"),
        format!("{copy:?}"),
        "what is printed depends on a secret"
    );
}
