//! Makes text for people of what an agent prints for programs, as it comes: without this, Claude Code says nothing at all
//! until it is done.
//!
//! Each line is one JSON object. A line that is none passes as it is, and so does everything of other agents.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use serde_json::Value;
use tokio::io::{AsyncRead, ReadBuf};

use crate::redact::Needles;

/// Longest line that is looked into; a longer one is passed over with a word about it.
const LONGEST_LINE: usize = 4 << 20;
/// Lines that are shown of what a tool answered; the transcript has all.
const RESULT_LINES: usize = 8;
/// Characters that are shown of one line of those.
const RESULT_COLUMNS: usize = 200;
const CHUNK: usize = 16 * 1024;

/// An agent's output, rendered.
#[derive(Debug)]
pub(crate) struct Rendered<R> {
    inner: R,
    /// Taken out before anything is cut: nobody finds half a secret.
    needles: Arc<Needles>,
    /// Begun and not yet ended.
    line: Vec<u8>,
    /// The line is too long to be looked into.
    skipping: bool,
    /// Ready to be read, from `at` on.
    text: Vec<u8>,
    at: usize,
    ended: bool,
}

impl<R> Rendered<R> {
    pub(crate) fn new(inner: R, needles: Arc<Needles>) -> Self {
        Self {
            inner,
            needles,
            line: Vec::new(),
            skipping: false,
            text: Vec::new(),
            at: 0,
            ended: false,
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if !self.skipping {
                self.line.extend_from_slice(piece);
            }
            if self.line.len() > LONGEST_LINE {
                self.skipping = true;
                self.line.clear();
            }
            if piece.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        if std::mem::take(&mut self.skipping) {
            self.text
                .extend_from_slice(b"[agentlab] A very long line of the agent's is not shown here.\n");
            return;
        }
        let line = std::mem::take(&mut self.line);
        match serde_json::from_slice::<Value>(&line) {
            Ok(Value::Object(event)) => {
                let text = render(&event.into(), &self.needles);
                self.text.extend_from_slice(text.as_bytes());
            }
            Ok(_) | Err(_) => self.text.extend_from_slice(&line),
        }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Rendered<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            let ready = this.text.get(this.at..).unwrap_or_default();
            if !ready.is_empty() {
                let count = ready.len().min(into.remaining());
                into.put_slice(ready.get(..count).unwrap_or_default());
                this.at += count;
                return Poll::Ready(Ok(()));
            }
            this.at = 0;
            this.text.clear();
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            let mut chunk = [0; CHUNK];
            let mut buffer = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                this.ended = true;
                if !this.line.is_empty() || this.skipping {
                    this.end_line();
                }
            } else {
                this.take(buffer.filled());
            }
        }
    }
}

/// One event as text; nothing for those that tell people nothing.
fn render(event: &Value, needles: &Arc<Needles>) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match event["type"].as_str() {
        Some("system") if event["subtype"] == "init" => format!("● model {}\n", text(&event["model"])),
        Some("assistant") => parts(event).map(said).collect(),
        Some("user") => parts(event).map(|part| answered(part, needles)).collect(),
        Some("result") => {
            let failed = event["is_error"] == true || event["subtype"] != "success";
            let turns = event["num_turns"].as_u64().unwrap_or(0);
            let cost = event["total_cost_usd"].as_f64().unwrap_or(0.0);
            // What it said last stands above already, unless it could not say it.
            let words = if failed {
                text(&event["result"]) + "\n"
            } else {
                String::new()
            };
            let end = if failed { "failed" } else { "done" };
            format!("{words}● {end} after {turns} turns, {cost:.4} USD\n")
        }
        _ => String::new(),
    }
}

fn parts(event: &Value) -> impl Iterator<Item = &Value> {
    event["message"]["content"].as_array().into_iter().flatten()
}

/// A part of what the model said.
fn said(part: &Value) -> String {
    match part["type"].as_str() {
        Some("text") => format!("{}\n", part["text"].as_str().unwrap_or_default()),
        Some("tool_use") => {
            let name = part["name"].as_str().unwrap_or("tool");
            let input = &part["input"];
            let known = [
                "command",
                "file_path",
                "path",
                "pattern",
                "url",
                "query",
                "description",
            ];
            let what = known
                .iter()
                .find_map(|key| input[key].as_str())
                .unwrap_or_default();
            format!("● {name}: {}\n", what.replace('\n', "\n    "))
        }
        _ => String::new(),
    }
}

/// A part of what a tool answered.
fn answered(part: &Value, needles: &Arc<Needles>) -> String {
    if part["type"] != "tool_result" {
        return String::new();
    }
    let content = &part["content"];
    let joined;
    let text = match content.as_str() {
        Some(text) => text,
        None => {
            let pieces = content.as_array().into_iter().flatten();
            joined = pieces
                .filter_map(|piece| piece["text"].as_str())
                .collect::<Vec<_>>()
                .join("\n");
            &joined
        }
    };
    let text = needles.redact(text);
    let mut shown = String::new();
    for line in text.lines().take(RESULT_LINES) {
        let cut: String = line.chars().take(RESULT_COLUMNS).collect();
        shown.push_str(&format!("  ⎿ {cut}\n"));
    }
    let rest = text.lines().count().saturating_sub(RESULT_LINES);
    if rest > 0 {
        shown.push_str(&format!("  ⎿ … {rest} more lines\n"));
    }
    shown
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    async fn rendered(input: &[u8], size: usize) -> String {
        // In pieces of any size, as a pipe gives them.
        let (mut write, read) = tokio::io::duplex(size);
        let mut text = String::new();
        let needles = Arc::new(Needles::new(["s3cr3t-api-key"]));
        let mut rendered = Rendered::new(read, needles);
        let feeding = async {
            tokio::io::AsyncWriteExt::write_all(&mut write, input)
                .await
                .unwrap();
            drop(write);
        };
        let reading = rendered.read_to_string(&mut text);
        let ((), read) = tokio::join!(feeding, reading);
        read.unwrap();
        text
    }

    #[tokio::test]
    async fn a_stream_of_events_becomes_lines_and_everything_else_passes() {
        let many = (1..=10).map(|n| n.to_string()).collect::<Vec<_>>().join("\\n");
        let stream = format!(
            "starting\n\
             {{\"type\":\"system\",\"subtype\":\"init\",\"model\":\"m-1\"}}\n\
             {{\"type\":\"assistant\",\"message\":{{\"content\":[{{\"type\":\"text\",\"text\":\"I look.\"}},\
             {{\"type\":\"tool_use\",\"name\":\"Bash\",\"input\":{{\"command\":\"make\\ntest\"}}}}]}}}}\n\
             {{\"type\":\"user\",\"message\":{{\"content\":[{{\"type\":\"tool_result\",\"content\":\"{many}\"}}]}}}}\n\
             {{\"type\":\"rate_limit_event\"}}\n\
             {{\"type\":\"result\",\"subtype\":\"success\",\"is_error\":false,\"num_turns\":2,\"total_cost_usd\":0.5,\"result\":\"x\"}}\n\
             no line end"
        );
        let expected = "starting\n● model m-1\nI look.\n● Bash: make\n    test\n  ⎿ 1\n  ⎿ 2\n  ⎿ 3\n  ⎿ 4\n  ⎿ 5\n  ⎿ 6\n  ⎿ 7\n  \
                        ⎿ 8\n  ⎿ … 2 more lines\n● done after 2 turns, 0.5000 USD\nno line end";
        for size in [1, 7, 65_536] {
            assert_eq!(
                rendered(stream.as_bytes(), size).await,
                expected,
                "in pieces of {size}"
            );
        }
    }

    #[tokio::test]
    async fn a_secret_is_not_cut_in_two_where_a_line_is_cut() {
        for before in RESULT_COLUMNS - 14..RESULT_COLUMNS {
            let line = "x".repeat(before) + "s3cr3t-api-key";
            let event = format!(
                "{{\"type\":\"user\",\"message\":{{\"content\":[{{\"type\":\"tool_result\",\"content\":\"{line}\"}}]}}}}\n"
            );
            let text = rendered(event.as_bytes(), 65_536).await;
            assert!(text.contains("x[") && !text.contains("xs"), "{text}");
        }
    }

    #[tokio::test]
    async fn a_line_without_end_is_not_kept_and_what_follows_is_shown() {
        let mut input = vec![b'x'; LONGEST_LINE + CHUNK];
        input.extend_from_slice(b"\nafter\n");
        let text = rendered(&input, 65_536).await;
        assert!(text.starts_with("[agentlab] A very long line"), "{}", text.len());
        assert!(text.ends_with("\nafter\n"));
    }
}
