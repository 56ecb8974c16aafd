//! A model that always knows the answer: the first time it is asked it calls a shell command, the second time it says that
//! it is done. Speaks as much of the messages API as Claude Code needs, streamed. `ADDRESS COMMAND`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().context("an address is missing")?;
    let command = arguments.next().context("a command is missing")?;
    let listener = TcpListener::bind(&address).with_context(|| format!("listening at {address}"))?;
    std::thread::scope(|threads| {
        for stream in listener.incoming().flatten() {
            let command = &command;
            // A client that breaks off is none of the others' business.
            threads.spawn(move || drop(converse(&stream, command)));
        }
    });
    Ok(())
}

fn converse(stream: &TcpStream, command: &str) -> Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut line, mut length) = (String::new(), 0);
        ensure!(reader.read_line(&mut line)? > 0, "the client is gone");
        let is_question = line.starts_with("POST /v1/messages") && !line.contains("count_tokens");
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            if header.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = header.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let (kind, text) = if is_question {
            let question: Value = serde_json::from_slice(&body)?;
            ("text/event-stream", streamed(&question, command))
        } else {
            ("application/json", json!({"input_tokens": 10}).to_string())
        };
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
            text.len()
        );
        (&*stream).write_all(format!("{head}{text}").as_bytes())?;
    }
}

/// The answer as events. A conversation in which a tool has answered is over.
fn streamed(question: &Value, command: &str) -> String {
    let is_result = |part: &Value| part["type"] == "tool_result";
    let messages = question["messages"].as_array().map_or(&[][..], Vec::as_slice);
    let done = messages
        .iter()
        .filter_map(|message| message["content"].as_array())
        .any(|parts| parts.iter().any(is_result));
    let tools = question["tools"].as_array().map_or(&[][..], Vec::as_slice);
    let may_call = tools.iter().any(|tool| tool["name"] == "Bash");
    let (start, delta, stop) = if may_call && !done {
        let input = json!({"command": command, "description": "Fix and commit"}).to_string();
        (
            json!({"type": "tool_use", "id": "toolu_01", "name": "Bash", "input": {}}),
            json!({"type": "input_json_delta", "partial_json": input}),
            "tool_use",
        )
    } else {
        (
            json!({"type": "text", "text": ""}),
            json!({"type": "text_delta", "text": "It is fixed and committed."}),
            "end_turn",
        )
    };
    let message = json!({
        "id": "msg_01", "type": "message", "role": "assistant", "model": question["model"], "content": [],
        "stop_reason": null, "stop_sequence": null, "usage": {"input_tokens": 10, "output_tokens": 10},
    });
    [
        json!({"type": "message_start", "message": message}),
        json!({"type": "content_block_start", "index": 0, "content_block": start}),
        json!({"type": "content_block_delta", "index": 0, "delta": delta}),
        json!({"type": "content_block_stop", "index": 0}),
        json!({
            "type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": null},
            "usage": {"output_tokens": 10},
        }),
        json!({"type": "message_stop"}),
    ]
    .iter()
    .map(|event| {
        let kind = event["type"].as_str().unwrap_or_default();
        format!("event: {kind}\ndata: {event}\n\n")
    })
    .collect()
}
