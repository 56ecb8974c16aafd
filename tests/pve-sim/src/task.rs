//! Worker tasks: their identifiers, logs and ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use serde_json::{Value, json};

use crate::access::Identity;

/// How a worker is being ended from outside.
#[derive(Debug, Clone, Default)]
pub(crate) struct Signal(Arc<AtomicU8>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It runs.
    None,
    /// Asked to end; cleans up after itself.
    Abort,
    /// Gone in the middle, as by a power loss.
    Kill,
}

impl Signal {
    pub(crate) fn set(&self, ending: Ending) {
        let number = match ending {
            Ending::None => 0,
            Ending::Abort => 1,
            Ending::Kill => 2,
        };
        self.0.store(number, Ordering::SeqCst);
    }

    pub(crate) fn get(&self) -> Ending {
        match self.0.load(Ordering::SeqCst) {
            0 => Ending::None,
            1 => Ending::Abort,
            _ => Ending::Kill,
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) upid: String,
    pub(crate) node: String,
    pub(crate) pid: u32,
    pub(crate) pstart: u64,
    pub(crate) kind: String,
    pub(crate) id: String,
    pub(crate) who: Identity,
    pub(crate) start: u64,
    pub(crate) log: Vec<String>,
    /// When it ended, and with what.
    pub(crate) end: Option<(u64, String)>,
    pub(crate) signal: Signal,
    /// The machine that a clone is making.
    pub(crate) target: Option<u32>,
}

impl Task {
    /// What is shown of every task, ended or not.
    fn shown(&self) -> Value {
        let mut shown = json!({
            "upid": self.upid,
            "node": self.node,
            "pid": self.pid,
            "pstart": self.pstart,
            "starttime": self.start,
            "type": self.kind,
            "id": self.id,
            "user": self.who.user,
        });
        if let Some(token) = &self.who.token {
            shown["tokenid"] = json!(token);
        }
        shown
    }

    /// What `tasks/UPID/status` shows.
    pub(crate) fn status(&self) -> Value {
        let mut status = self.shown();
        status["status"] = json!(if self.end.is_some() { "stopped" } else { "running" });
        if let Some((_, exit)) = &self.end {
            status["exitstatus"] = json!(exit);
        }
        status
    }

    /// What a list of tasks shows.
    pub(crate) fn listed(&self) -> Value {
        let mut entry = self.shown();
        if let Some((time, exit)) = &self.end {
            entry["endtime"] = json!(time);
            entry["status"] = json!(exit);
        }
        entry
    }

    /// The kind a filter on the end of a task knows.
    pub(crate) fn outcome(&self) -> &'static str {
        self.end.as_ref().map_or("unknown", |(_, exit)| outcome(exit))
    }
}

/// The same of an end that is not written down yet.
pub(crate) fn outcome(exit: &str) -> &'static str {
    match exit {
        "OK" => "ok",
        "unexpected status" => "unknown",
        _ if exit.starts_with("WARNINGS: ") => "warning",
        _ => "error",
    }
}

/// Whether a text can be a task's identifier at all.
pub(crate) fn is_upid(text: &str) -> bool {
    let parts: Vec<&str> = text.split(':').collect();
    let hex = |part: Option<&&str>| {
        part.is_some_and(|part| part.len() >= 8 && part.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    parts.len() >= 9 && parts.first() == Some(&"UPID") && [2, 3, 4].iter().all(|&at| hex(parts.get(at)))
}
