//! QEMU's monitor protocol, the dozen words of it that we speak.
//!
//! QEMU may have been taken over by its guest, so its answers are data: lines are bounded, unknown fields and
//! answers to nobody's question are skipped, every command has a deadline, and after any failure the connection is
//! dropped and made anew by whoever asks next.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

/// Longer lines are not QEMU's: its longest answer of those we ask for has a few KiB.
const MAX_LINE: usize = 1024 * 1024;
/// Events kept for a reader that comes later; older ones are dropped.
const MAX_EVENTS: usize = 64;
/// Longer events are not kept: QEMU's have a few hundred bytes, and a line of a MiB parses into ten.
const MAX_EVENT_LINE: usize = 4096;
/// Of QEMU's own words, what goes into an error.
const MAX_WORDS: usize = 400;

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum QmpError {
    #[error("QEMU did not answer `{command}` within {} s", .after.as_secs_f64())]
    TimedOut { command: String, after: Duration },
    #[error("QEMU closed its monitor")]
    Closed,
    #[error("QEMU's monitor failed")]
    Io(#[from] std::io::Error),
    #[error("QEMU's monitor answered nonsense: {0}")]
    Garbage(String),
    #[error("QEMU refused `{command}`: {reason}")]
    Refused { command: String, reason: String },
}

/// Something QEMU said without being asked.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) data: Value,
}

/// One line of the protocol.
#[derive(Debug, PartialEq)]
enum Message {
    Greeting,
    Return { id: Option<u64>, value: Value },
    Error { id: Option<u64>, reason: String },
    Event(Event),
}

fn shortened(text: &str) -> String {
    text.chars()
        .take(MAX_WORDS)
        .flat_map(char::escape_debug)
        .collect()
}

fn parse(line: &[u8]) -> Result<Message, QmpError> {
    let garbage = || QmpError::Garbage(shortened(&String::from_utf8_lossy(line)));
    let Ok(Value::Object(mut fields)) = serde_json::from_slice::<Value>(line) else {
        return Err(garbage());
    };
    let id = fields.get("id").and_then(Value::as_u64);
    if let Some(value) = fields.remove("return") {
        return Ok(Message::Return { id, value });
    }
    if let Some(error) = fields.get("error") {
        let word = |key: &str| {
            error
                .get(key)
                .and_then(Value::as_str)
                .unwrap_or("without a reason")
        };
        return Ok(Message::Error {
            id,
            reason: shortened(word("desc")),
        });
    }
    if let Some(Value::String(name)) = fields.remove("event") {
        return Ok(Message::Event(Event {
            name,
            data: fields.remove("data").unwrap_or(Value::Null),
        }));
    }
    if fields.contains_key("QMP") {
        Ok(Message::Greeting)
    } else {
        Err(garbage())
    }
}

/// A connection that has exchanged greetings.
#[derive(Debug)]
pub(super) struct Qmp<S> {
    stream: S,
    buffer: Vec<u8>,
    /// Bytes at the front of `buffer` that are known to hold no end of line: a line that arrives byte by byte must
    /// not be searched from its beginning for each of them.
    searched: usize,
    events: VecDeque<Event>,
    next_id: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Qmp<S> {
    /// Waits for QEMU's greeting and leaves negotiation mode.
    pub(super) async fn greet(stream: S, deadline: Duration) -> Result<Self, QmpError> {
        let until = Instant::now() + deadline;
        let mut qmp = Self {
            stream,
            buffer: Vec::new(),
            searched: 0,
            events: VecDeque::new(),
            next_id: 1,
        };
        let late = || QmpError::TimedOut {
            command: "greeting".to_owned(),
            after: deadline,
        };
        match timeout_at(until, qmp.read_message())
            .await
            .map_err(|_| late())??
        {
            Message::Greeting => {}
            other @ (Message::Return { .. } | Message::Error { .. } | Message::Event(_)) => {
                return Err(QmpError::Garbage(format!(
                    "no greeting but {}",
                    shortened(&format!("{other:?}"))
                )));
            }
        }
        let left = until.saturating_duration_since(Instant::now());
        qmp.execute("qmp_capabilities", Value::Null, left).await?;
        Ok(qmp)
    }

    /// Asks one command and waits for its answer; events met on the way are kept. After an error other than
    /// [`QmpError::Refused`] the connection is of no more use.
    pub(super) async fn execute(
        &mut self,
        command: &str,
        arguments: Value,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        let late = || QmpError::TimedOut {
            command: command.to_owned(),
            after: deadline,
        };
        timeout_at(Instant::now() + deadline, self.ask(command, arguments))
            .await
            .map_err(|_| late())?
    }

    async fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let id = self.next_id;
        self.next_id += 1;
        let mut request = json!({ "execute": command, "id": id });
        if let (Some(fields), false) = (request.as_object_mut(), arguments.is_null()) {
            fields.insert("arguments".to_owned(), arguments);
        }
        let mut line = request.to_string().into_bytes();
        line.push(b'\n');
        self.stream.write_all(&line).await?;
        self.stream.flush().await?;
        loop {
            match self.read_message().await? {
                Message::Return {
                    id: Some(found),
                    value,
                } if found == id => return Ok(value),
                Message::Error { id: found, reason } if found == Some(id) || found.is_none() => {
                    return Err(QmpError::Refused {
                        command: command.to_owned(),
                        reason,
                    });
                }
                Message::Event(event) => self.keep(event),
                // Answers to a question that nobody asks any more.
                Message::Greeting | Message::Return { .. } | Message::Error { .. } => {}
            }
        }
    }

    /// The next event, kept or still to come.
    pub(super) async fn next_event(&mut self, deadline: Duration) -> Result<Event, QmpError> {
        let until = Instant::now() + deadline;
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            let late = || QmpError::TimedOut {
                command: "event".to_owned(),
                after: deadline,
            };
            if let Message::Event(event) = timeout_at(until, self.read_message())
                .await
                .map_err(|_| late())??
            {
                self.keep(event);
            }
        }
    }

    fn keep(&mut self, event: Event) {
        if self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Cancelled half-way it loses nothing: what was read stays in the buffer.
    async fn read_message(&mut self) -> Result<Message, QmpError> {
        loop {
            let fresh = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(end) = fresh.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=self.searched + end).collect();
                self.searched = 0;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                let message = parse(&line)?;
                if line.len() <= MAX_EVENT_LINE || !matches!(message, Message::Event(_)) {
                    return Ok(message);
                }
                continue;
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > MAX_LINE {
                return Err(QmpError::Garbage(format!("a line of more than {MAX_LINE} bytes")));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(QmpError::Closed);
            }
        }
    }
}

/// One conversation with whatever speaks QEMU's part at the other end: greeting, each question in its turn until one
/// fails, then the names of the events that were kept or still come. Only for the fuzz targets, which reach the
/// client no other way without a process.
#[doc(hidden)]
pub async fn converse<S: AsyncRead + AsyncWrite + Unpin + Send>(
    stream: S,
    questions: &[&str],
    deadline: Duration,
) -> (Vec<Result<Value, String>>, Vec<String>) {
    let mut answers = Vec::new();
    let mut events = Vec::new();
    match Qmp::greet(stream, deadline).await {
        Ok(mut qmp) => {
            for question in questions {
                let answer = qmp.execute(question, Value::Null, deadline).await;
                let is_over = !matches!(answer, Ok(_) | Err(QmpError::Refused { .. }));
                answers.push(answer.map_err(|error| error.to_string()));
                if is_over {
                    break;
                }
            }
            while let Ok(event) = qmp.next_event(deadline).await {
                events.push(event.name);
            }
        }
        Err(error) => answers.push(Err(error.to_string())),
    }
    (answers, events)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{DuplexStream, duplex};

    const SOON: Duration = Duration::from_millis(200);
    const GREETING: &str = r#"{"QMP":{"version":{"qemu":{"major":7}},"capabilities":["oob"],"new":1}}"#;

    /// QEMU's part, spoken before it is asked: the pipe keeps it.
    async fn connected(script: &str) -> (Result<Qmp<DuplexStream>, QmpError>, DuplexStream) {
        let (ours, mut theirs) = duplex(4 * 1024 * 1024);
        theirs.write_all(script.as_bytes()).await.unwrap();
        (Qmp::greet(ours, SOON).await, theirs)
    }

    #[tokio::test]
    async fn an_answer_is_found_among_events_stale_answers_and_unknown_fields() {
        let script = format!(
            "{GREETING}\r\n{}\r\n\r\n{}\r\n{}\r\n{}\r\n",
            r#"{"return":{},"id":1}"#,
            r#"{"event":"STOP","timestamp":{"seconds":1},"data":{"a":1}}"#,
            r#"{"return":{"status":"stale"},"id":77}"#,
            r#"{"return":{"status":"running","more":[]},"id":2,"surprise":true}"#,
        );
        let (qmp, _theirs) = connected(&script).await;
        let mut qmp = qmp.unwrap();
        let answer = qmp.execute("query-status", Value::Null, SOON).await.unwrap();
        assert_eq!(answer["status"], "running");
        assert_eq!(qmp.next_event(SOON).await.unwrap().name, "STOP");
    }

    #[tokio::test]
    async fn a_refusal_carries_qemus_own_words_and_leaves_the_connection_usable() {
        let script = format!(
            "{GREETING}\n{}\n{}\n{}\n",
            r#"{"return":{},"id":1}"#,
            r#"{"error":{"class":"GenericError","desc":"no \u001b[31mred"},"id":2}"#,
            r#"{"return":5,"id":3}"#
        );
        let (qmp, _theirs) = connected(&script).await;
        let mut qmp = qmp.unwrap();
        let refusal = qmp
            .execute("cont", Value::Null, SOON)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            refusal.contains("`cont`") && refusal.contains("no ") && !refusal.contains('\u{1b}'),
            "{refusal}"
        );
        assert_eq!(qmp.execute("query-status", Value::Null, SOON).await.unwrap(), 5);
    }

    #[tokio::test]
    async fn silence_garbage_floods_and_hang_ups_are_errors_and_never_hangs() {
        let (silent, _theirs) = connected("").await;
        assert!(matches!(silent, Err(QmpError::TimedOut { .. })));

        let (qmp, theirs) = connected(&format!("{GREETING}\n{{\"return\":{{}},\"id\":1}}\n")).await;
        let mut qmp = qmp.unwrap();
        assert!(matches!(
            qmp.execute("stop", Value::Null, SOON).await,
            Err(QmpError::TimedOut { .. })
        ));
        drop(theirs);
        assert!(matches!(
            qmp.execute("stop", Value::Null, SOON).await,
            Err(QmpError::Closed | QmpError::Io(_))
        ));

        for garbage in [
            "nonsense\n",
            "[]\n",
            "{}\n",
            "\"QMP\"\n",
            "{\"return\":1}\n",
            "\u{0}\n",
            "{\"QMP\n",
        ] {
            let (answer, _theirs) = connected(garbage).await;
            assert!(
                matches!(answer, Err(QmpError::Garbage(_))),
                "{garbage:?} gave {answer:?}"
            );
        }
        let (endless, _theirs) = connected(&"x".repeat(MAX_LINE + 2)).await;
        assert!(matches!(endless, Err(QmpError::Garbage(_))));
        let deep = format!("{}\n", "[".repeat(10_000));
        let (nested, _theirs) = connected(&deep).await;
        assert!(matches!(nested, Err(QmpError::Garbage(_))));
    }

    #[tokio::test]
    async fn a_flood_of_events_keeps_memory_bounded() {
        let large = format!(
            "{{\"event\":\"LARGE\",\"data\":[{}0]}}\n",
            "0,".repeat(MAX_EVENT_LINE)
        );
        let flood = "{\"event\":\"RTC_CHANGE\",\"data\":{}}\n".repeat(10_000) + &large.repeat(MAX_EVENTS);
        let (qmp, _theirs) = connected(&format!(
            "{GREETING}\n{{\"return\":{{}},\"id\":1}}\n{flood}{{\"return\":{{}},\"id\":2}}\n"
        ))
        .await;
        let mut qmp = qmp.unwrap();
        qmp.execute("query-status", Value::Null, Duration::from_secs(5))
            .await
            .unwrap();
        assert_eq!(qmp.events.len(), MAX_EVENTS);
        assert!(qmp.events.iter().all(|event| event.name == "RTC_CHANGE"));
    }

    /// A linear congruential generator: the same bytes at every run.
    #[test]
    fn no_line_of_bytes_makes_the_parser_panic() {
        let seeds: [&[u8]; 3] = [
            GREETING.as_bytes(),
            br#"{"error":{"desc":[]},"id":-1}"#,
            br#"{"event":3,"return":{},"id":1e99}"#,
        ];
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        };
        for round in 0..20_000_usize {
            let mut line = seeds[round % seeds.len()].to_vec();
            for _ in 0..=(random() % 6) {
                let at = usize::from(random()) % line.len();
                match random() % 3 {
                    0 => line[at] = random(),
                    1 => line.insert(at, random()),
                    _ => line.truncate(at.max(1)),
                }
            }
            drop(parse(&line));
        }
    }
}
