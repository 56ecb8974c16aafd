//! A daemon in the test's own process, for what is asked of the command alone.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use serde_json::{Value, json};

/// Listens on `socket` as a daemon that has no sandboxes, and a Proxmox VE of this version as its back end. It ends with
/// the test's process.
///
/// # Errors
/// The socket cannot be bound.
pub fn idle_daemon(socket: &Path, pve_version: &str) -> io::Result<()> {
    let listener = UnixListener::bind(socket)?;
    let status = json!({
        "version": "0.1.0", "started_at": "2026-01-01T00:00:00Z",
        "backend": { "kind": "proxmox", "version": pve_version, "templates": [] },
        "sandboxes": {}, "jobs": {}, "artifact_free_bytes": 1_u64 << 40, "alarms": [],
    });
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Whoever asks sees that no answer came, and the test fails there.
            drop(answer(stream, &status));
        }
    });
    Ok(())
}

fn answer(mut stream: UnixStream, status: &Value) -> io::Result<()> {
    let mut head = [0; 4096];
    let length = stream.read(&mut head)?;
    let body = if head[..length].starts_with(b"GET /v1/status ") {
        status.to_string()
    } else {
        json!({ "sandboxes": [] }).to_string()
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes())
}
