//! Output on its way out: redacted, written to `agent.log`, and streamed to the host.
//!
//! ```text
//!   stdout ─► Redactor ─► text ─┐            ┌─► agent.log   (bounded, with a marker)
//!   stderr ─► Redactor ─► text ─┼─► pieces ──┤
//!   runner ───────────────text ─┘            └─► queue ─► LogBatch ─► host
//! ```
//!
//! The queue is bounded. While it is full the agent waits in its own `write`; when the host took nothing for
//! [`STALL`], the live stream lets go of what does not fit and says so, and the agent goes on: `agent.log` has all.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentlab_protocol::message::{LogBatch, LogPiece, Stream};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use super::host::HostLink;
use crate::redact::{Needles, Redactor};

/// Largest piece.
const PIECE_BYTES: usize = 8 * 1024;
/// An unfinished line is sent after this time.
const UNFINISHED: Duration = Duration::from_millis(200);
/// Batches are this far apart: somebody watches.
const PACE: Duration = Duration::from_millis(25);
/// Text of one batch: written as JSON it grows up to sixfold, and the host takes bodies of 1 MiB.
const BATCH_BYTES: usize = 128 * 1024;
/// What a piece weighs beside its text.
const PIECE_WEIGHT: usize = 64;
/// Text waiting for the host.
const QUEUE_BYTES: usize = 1024 * 1024;
/// How long the agent waits for a host that takes nothing.
const STALL: Duration = Duration::from_secs(10);
/// Of the log's bound, what the runner's own lines may use after the agent used up the rest.
const RUNNER_RESERVE: u64 = 8 * 1024;

/// The log of one job. Clones write to the same one.
#[derive(Debug, Clone)]
pub(crate) struct JobLog {
    needles: Arc<Needles>,
    path: PathBuf,
    state: Arc<Mutex<State>>,
    /// Something was queued.
    filled: Arc<Notify>,
    /// Something was taken.
    taken: Arc<Notify>,
    /// Nothing more is to come: what is queued goes at once.
    hurry: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    file: Option<File>,
    /// First failure to write the file.
    failure: Option<io::Error>,
    /// Bytes the log may still grow by.
    left: u64,
    cut: bool,
    live: VecDeque<LogPiece>,
    /// Bytes queued or on their way.
    live_bytes: usize,
    /// The host refused: nothing is queued any more.
    dead: bool,
    /// The host stalled: nobody waits for it until it has caught up.
    behind: bool,
    dropped: u64,
    next: u64,
    /// Bytes logged so far.
    written: u64,
    /// Beginning of the agent's error output: where bubblewrap says why it did not start.
    first_words: String,
}

impl JobLog {
    /// Creates the file. `limit` bounds its size and the live stream alike; `first` is the number of its first piece.
    pub(crate) fn create(path: &Path, needles: Arc<Needles>, limit: u64, first: u64) -> io::Result<Self> {
        Ok(Self::of(File::create(path)?, path, needles, (limit, first)))
    }

    /// Goes on with a file that is there; what is in it counts.
    pub(crate) fn go_on(path: &Path, needles: Arc<Needles>, limit: u64, first: u64) -> io::Result<Self> {
        let file = File::options().append(true).create(true).open(path)?;
        let left = limit.saturating_sub(file.metadata()?.len());
        Ok(Self::of(file, path, needles, (left, first)))
    }

    fn of(file: File, path: &Path, needles: Arc<Needles>, (limit, first): (u64, u64)) -> Self {
        Self {
            needles,
            path: path.to_owned(),
            state: Arc::new(Mutex::new(State {
                file: Some(file),
                failure: None,
                left: limit,
                cut: false,
                live: VecDeque::new(),
                live_bytes: 0,
                dead: false,
                behind: false,
                dropped: 0,
                next: first,
                written: 0,
                first_words: String::new(),
            })),
            filled: Arc::new(Notify::new()),
            taken: Arc::new(Notify::new()),
            hurry: Arc::new(Notify::new()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much was logged so far, whatever became of it.
    pub(crate) fn written(&self) -> u64 {
        self.state().written
    }

    /// What is taken out of everything.
    pub(crate) fn needles(&self) -> Arc<Needles> {
        Arc::clone(&self.needles)
    }

    /// Without the secrets.
    pub(crate) fn redact(&self, text: &str) -> String {
        self.needles.redact(text)
    }

    /// One line of the runner's own.
    pub(crate) fn runner(&self, line: &str) {
        let text = format!("{}\n", self.redact(line.trim_end()));
        self.state().append(Stream::Runner, text);
        self.filled.notify_one();
    }

    /// First line of the agent's error output.
    pub(crate) fn first_words(&self) -> String {
        self.state()
            .first_words
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned()
    }

    /// Ends the file: what is logged later is only streamed. An error is the first that writing it met.
    pub(crate) fn close(&self) -> Result<PathBuf, io::Error> {
        let mut state = self.state();
        state.file = None;
        match state.failure.take() {
            Some(failure) => Err(failure),
            None => Ok(self.path.clone()),
        }
    }

    /// Reads both streams to their ends.
    pub(crate) async fn pump(&self, mut stdout: impl AsyncRead + Unpin, mut stderr: impl AsyncRead + Unpin) {
        let mut out = Tap::new(Stream::Stdout, &self.needles);
        let mut err = Tap::new(Stream::Stderr, &self.needles);
        while out.open || err.open {
            let due = [out.due, err.due].into_iter().flatten().min();
            tokio::select! {
                read = stdout.read(&mut out.buffer), if out.open => out.take(read, self),
                read = stderr.read(&mut err.buffer), if err.open => err.take(read, self),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    out.flush_if_due(self);
                    err.flush_if_due(self);
                }
            }
            self.filled.notify_one();
            self.wait_for_room().await;
        }
    }

    /// Returns once the queue has room, or the host has taken nothing for [`STALL`].
    async fn wait_for_room(&self) {
        loop {
            let taken = self.taken.notified();
            {
                let state = self.state();
                if state.dead || state.behind || state.live_bytes < QUEUE_BYTES {
                    return;
                }
            }
            if timeout(STALL, taken).await.is_err() {
                self.state().behind = true;
                return;
            }
        }
    }

    /// Sends what is queued, in order, for ever.
    pub(crate) async fn ship<H: HostLink>(&self, host: &H) -> Infallible {
        loop {
            let filled = self.filled.notified();
            let Some((batch, bytes)) = self.state().batch() else {
                filled.await;
                continue;
            };
            let sent = Instant::now();
            let result = host.logs(&batch).await;
            {
                let mut state = self.state();
                state.live_bytes = state.live_bytes.saturating_sub(bytes);
                if result.is_err() {
                    state.dead = true;
                    state.live.clear();
                    state.live_bytes = 0;
                }
                if state.live_bytes < QUEUE_BYTES / 2 {
                    state.catch_up();
                }
            }
            self.taken.notify_waiters();
            // A full batch is followed at once; otherwise lines are gathered for a moment.
            if bytes < BATCH_BYTES / 2 {
                tokio::select! {
                    () = sleep_until(sent + PACE) => {}
                    () = self.hurry.notified() => {}
                }
            }
        }
    }

    /// Waits until the host has everything, at most `patience`. Somebody else must be shipping.
    pub(crate) async fn shipped(&self, patience: Duration) {
        self.hurry.notify_one();
        let drained = async {
            loop {
                let taken = self.taken.notified();
                if self.state().live_bytes == 0 {
                    return;
                }
                taken.await;
            }
        };
        // What is not gone by then is in agent.log.
        let _ = timeout(patience, drained).await;
    }
}

impl State {
    /// Takes one piece into the file and the queue, within the bound.
    fn append(&mut self, stream: Stream, mut text: String) {
        self.written = self
            .written
            .saturating_add(u64::try_from(text.len()).unwrap_or(0));
        if stream == Stream::Stderr && self.first_words.is_empty() {
            self.first_words = text.chars().take(400).collect();
        }
        let reserve = if stream == Stream::Runner {
            0
        } else {
            RUNNER_RESERVE
        };
        let room = usize::try_from(self.left.saturating_sub(reserve)).unwrap_or(usize::MAX);
        if text.len() > room {
            if self.cut {
                return;
            }
            self.cut = true;
            text.truncate(text.floor_char_boundary(room));
            text.push_str("\n[agentlab] The log is full; what follows was left out.\n");
        }
        self.left = self
            .left
            .saturating_sub(u64::try_from(text.len()).unwrap_or(u64::MAX));
        // A page-cache write of a few KiB: handing it to another thread would cost more than it takes.
        let prefix = if stream == Stream::Runner {
            "[agentlab] "
        } else {
            ""
        };
        self.left = self.left.saturating_sub(u64::try_from(prefix.len()).unwrap_or(0));
        if let Some(file) = &mut self.file
            && let Err(failure) = file
                .write_all(prefix.as_bytes())
                .and_then(|()| file.write_all(text.as_bytes()))
        {
            self.failure.get_or_insert(failure);
            self.file = None;
        }
        self.queue(LogPiece { stream, text });
    }

    fn queue(&mut self, piece: LogPiece) {
        if self.dead {
            return;
        }
        if self.live_bytes >= QUEUE_BYTES && self.behind {
            self.dropped += u64::try_from(piece.text.len()).unwrap_or(u64::MAX);
            return;
        }
        if let Some(last) = self.live.back_mut()
            && last.stream == piece.stream
            && last.text.len() + piece.text.len() <= PIECE_BYTES
        {
            self.live_bytes += piece.text.len();
            last.text.push_str(&piece.text);
            return;
        }
        self.live_bytes += piece.text.len() + PIECE_WEIGHT;
        self.live.push_back(piece);
    }

    /// The host takes again: says what it missed.
    fn catch_up(&mut self) {
        self.behind = false;
        if self.dropped > 0 {
            let text = format!(
                "[agentlab] {} bytes are missing here: the host did not take them in time; agent.log has them.\n",
                self.dropped
            );
            self.dropped = 0;
            self.queue(LogPiece {
                stream: Stream::Runner,
                text,
            });
        }
    }

    fn batch(&mut self) -> Option<(LogBatch, usize)> {
        let mut pieces = Vec::new();
        let mut bytes = 0;
        while let Some(piece) = self.live.front() {
            let weight = piece.text.len() + PIECE_WEIGHT;
            if !pieces.is_empty() && bytes + weight > BATCH_BYTES {
                break;
            }
            bytes += weight;
            pieces.extend(self.live.pop_front());
        }
        if pieces.is_empty() {
            return None;
        }
        let first = self.next;
        self.next += u64::try_from(pieces.len()).unwrap_or(0);
        Some((LogBatch { first, pieces }, bytes))
    }
}

/// One stream of the agent.
struct Tap {
    stream: Stream,
    open: bool,
    buffer: Vec<u8>,
    redactor: Redactor,
    redacted: Vec<u8>,
    text: String,
    /// When the unfinished line goes out.
    due: Option<Instant>,
}

impl Tap {
    fn new(stream: Stream, needles: &Arc<Needles>) -> Self {
        Self {
            stream,
            open: true,
            buffer: vec![0; 32 * 1024],
            redactor: Redactor::new(Arc::clone(needles)),
            redacted: Vec::new(),
            text: String::new(),
            due: None,
        }
    }

    fn take(&mut self, read: io::Result<usize>, log: &JobLog) {
        match read {
            Ok(count) if count > 0 => self.redactor.push(&self.buffer[..count], &mut self.redacted),
            // A pipe that cannot be read any more is at its end for us.
            Ok(_) | Err(_) => {
                self.open = false;
                self.redactor.finish(&mut self.redacted);
            }
        }
        decode(&mut self.redacted, &mut self.text, !self.open);
        let lines = if self.open {
            self.text.rfind('\n').map_or(0, |at| at + 1)
        } else {
            self.text.len()
        };
        self.emit(lines, log);
        if self.text.len() >= PIECE_BYTES {
            self.emit(self.text.len(), log);
        }
        if self.text.is_empty() {
            self.due = None;
        } else {
            self.due.get_or_insert_with(|| Instant::now() + UNFINISHED);
        }
    }

    fn flush_if_due(&mut self, log: &JobLog) {
        if self.due.is_some_and(|due| due <= Instant::now()) {
            self.due = None;
            self.emit(self.text.len(), log);
        }
    }

    /// Sends the first `length` bytes as pieces that end on a line where they can.
    fn emit(&mut self, length: usize, log: &JobLog) {
        let mut state = log.state();
        let mut ready = &self.text[..length];
        while !ready.is_empty() {
            let fits = ready.floor_char_boundary(PIECE_BYTES);
            let cut = if ready.len() > fits {
                ready[..fits].rfind('\n').map_or(fits, |at| at + 1)
            } else {
                fits
            };
            state.append(self.stream, ready[..cut].to_owned());
            ready = &ready[cut..];
        }
        drop(state);
        self.text.drain(..length);
    }
}

/// Moves what is text from `bytes` to `text`; bytes that are none become U+FFFD. A character of which only the
/// beginning came stays in `bytes`, unless this was the end.
fn decode(bytes: &mut Vec<u8>, text: &mut String, end: bool) {
    let mut used = 0;
    while let Some(rest) = bytes.get(used..).filter(|rest| !rest.is_empty()) {
        match std::str::from_utf8(rest) {
            Ok(all) => {
                text.push_str(all);
                used = bytes.len();
            }
            Err(error) => {
                let valid = error.valid_up_to();
                text.push_str(&String::from_utf8_lossy(&rest[..valid]));
                used += valid;
                match error.error_len() {
                    Some(bad) => used += bad,
                    None if end => used = bytes.len(),
                    None => break,
                }
                text.push('\u{fffd}');
            }
        }
    }
    bytes.drain(..used);
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
