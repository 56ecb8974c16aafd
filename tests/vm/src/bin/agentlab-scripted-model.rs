//! A model that always knows the answer: the first time it is asked it calls a shell command, the second time it says that
//! it is done. Speaks as much as coding agents need, streamed, of the messages API (Claude Code), the responses API (Codex)
//! and chat completions (OpenCode). `ADDRESS COMMAND`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

const SAID: &str = "It is fixed and committed.";

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

/// How a question is answered.
type Answer = fn(&Value, &str) -> String;

fn converse(stream: &TcpStream, command: &str) -> Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut line, mut length) = (String::new(), 0);
        ensure!(reader.read_line(&mut line)? > 0, "the client is gone");
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
        let (kind, text) = match answer_of(&line) {
            Some(answer) => {
                let question: Value = serde_json::from_slice(&body)?;
                ("text/event-stream", answer(&question, command))
            }
            None => (
                "application/json",
                json!({"input_tokens": 10, "data": []}).to_string(),
            ),
        };
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
            text.len()
        );
        (&*stream).write_all(format!("{head}{text}").as_bytes())?;
    }
}

fn answer_of(line: &str) -> Option<Answer> {
    if line.starts_with("POST /v1/messages") && !line.contains("count_tokens") {
        Some(messages)
    } else if line.starts_with("POST /v1/responses ") {
        Some(responses)
    } else if line.starts_with("POST /v1/chat/completions ") {
        Some(completions)
    } else {
        None
    }
}

fn list<'a>(of: &'a Value, name: &str) -> &'a [Value] {
    of[name].as_array().map_or(&[], Vec::as_slice)
}

/// As events, each with its kind.
fn events(events: &[Value]) -> String {
    let one = |event: &Value| {
        let kind = event["type"].as_str().unwrap_or_default();
        format!("event: {kind}\ndata: {event}\n\n")
    };
    events.iter().map(one).collect()
}

/// A conversation in which a tool has answered is over.
fn messages(question: &Value, command: &str) -> String {
    let is_result = |part: &Value| part["type"] == "tool_result";
    let done = list(question, "messages")
        .iter()
        .any(|message| list(message, "content").iter().any(is_result));
    let may_call = list(question, "tools").iter().any(|tool| tool["name"] == "Bash");
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
            json!({"type": "text_delta", "text": SAID}),
            "end_turn",
        )
    };
    let message = json!({
        "id": "msg_01", "type": "message", "role": "assistant", "model": question["model"], "content": [],
        "stop_reason": null, "stop_sequence": null, "usage": {"input_tokens": 10, "output_tokens": 10},
    });
    events(&[
        json!({"type": "message_start", "message": message}),
        json!({"type": "content_block_start", "index": 0, "content_block": start}),
        json!({"type": "content_block_delta", "index": 0, "delta": delta}),
        json!({"type": "content_block_stop", "index": 0}),
        json!({
            "type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": null},
            "usage": {"output_tokens": 10},
        }),
        json!({"type": "message_stop"}),
    ])
}

fn responses(question: &Value, command: &str) -> String {
    let done = list(question, "input")
        .iter()
        .any(|item| item["type"] == "function_call_output");
    let may_call = list(question, "tools")
        .iter()
        .any(|tool| tool["name"] == "exec_command");
    let item = if may_call && !done {
        let arguments = json!({"cmd": command}).to_string();
        json!({"type": "function_call", "id": "fc_01", "call_id": "call_01", "name": "exec_command", "arguments": arguments})
    } else {
        json!({"type": "message", "id": "msg_01", "role": "assistant", "content": [{"type": "output_text", "text": SAID}]})
    };
    let usage = json!({
        "input_tokens": 10, "input_tokens_details": null, "output_tokens": 10, "output_tokens_details": null, "total_tokens": 20,
    });
    events(&[
        json!({"type": "response.created", "response": {"id": "resp_01"}}),
        json!({"type": "response.output_item.done", "output_index": 0, "item": item}),
        json!({"type": "response.completed", "response": {"id": "resp_01", "usage": usage}}),
    ])
}

fn completions(question: &Value, command: &str) -> String {
    let done = list(question, "messages")
        .iter()
        .any(|message| message["role"] == "tool");
    let may_call = list(question, "tools")
        .iter()
        .any(|tool| tool["function"]["name"] == "bash");
    let (delta, reason) = if may_call && !done {
        let arguments = json!({"command": command, "description": "Fix and commit"}).to_string();
        let call = json!({"index": 0, "id": "call_01", "type": "function", "function": {"name": "bash", "arguments": arguments}});
        (json!({"role": "assistant", "tool_calls": [call]}), "tool_calls")
    } else {
        (json!({"role": "assistant", "content": SAID}), "stop")
    };
    let chunk = |delta: Value, reason: Value| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": reason});
        let chunk = json!({"id": "chat_01", "object": "chat.completion.chunk", "created": 1, "model": question["model"], "choices": [choice]});
        format!("data: {chunk}\n\n")
    };
    format!(
        "{}{}data: [DONE]\n\n",
        chunk(delta, Value::Null),
        chunk(json!({}), json!(reason))
    )
}
