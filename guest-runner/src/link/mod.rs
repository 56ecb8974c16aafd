//! The runner's side of every conversation with the host. Everything here repeats by itself while the host is
//! away; what it returns as an error is final.
//!
//! ```text
//!   Link ──► Call (tries, judges the answer) ──► Ways (which channel) ──► Wire (HTTP/2)
//!                                                                          ├ serial: FramedStream
//!                                                                          ├ vsock, the host's CID
//!                                                                          └ TLS, one pinned key
//! ```

mod artifact;
mod backoff;
mod body;
mod call;
mod command;
mod redeem;
pub(crate) mod serial;
mod tls;
mod ways;
mod wire;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use agentlab_protocol::message::{
    HEARTBEAT_PATH, Heartbeat, HeartbeatAnswer, LOGS_PATH, LogBatch, REPORT_PATH, REPOSITORY_PATH, Report,
};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::{Method, Response};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use self::call::{Accepted, Answer, Call, Content, Setback, TRY_PATIENCE, Take};
use self::redeem::json;
use self::ways::Listener;
pub use self::ways::Ways;

/// A heartbeat that is late is replaced by the next.
const HEARTBEAT_PATIENCE: Duration = Duration::from_secs(15);
/// A daemon that restarts, or is upgraded, is back long before.
const TRANSFER_PATIENCE: Duration = Duration::from_secs(600);
/// A transfer that stands still for so long is dead.
const STALL_PATIENCE: Duration = Duration::from_secs(60);

/// Why the host did not take, or give, something.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// 401: token or session is worthless. Never retried; nothing else will work either.
    #[error("Host refused {action}: token or session is not valid (401); it may have been revoked")]
    Unauthorized {
        /// What was asked.
        action: String,
    },
    /// Another final answer.
    #[error("Host refused {action} with status {status}: {reason}")]
    Refused {
        /// What was asked.
        action: String,
        /// HTTP status.
        status: u16,
        /// Beginning of the answer's body.
        reason: String,
    },
    /// Nobody answered in time.
    #[error("Host could not be reached for {action}: {reason}")]
    Unreachable {
        /// What was asked.
        action: String,
        /// Last failure of each way that was tried.
        reason: String,
    },
    /// A local file could not be read or written.
    #[error("File for {action} failed")]
    File {
        /// What was being done with it.
        action: String,
        /// The kernel's words.
        #[source]
        source: std::io::Error,
    },
    /// More bytes came than are allowed.
    #[error("{action} is larger than {limit} bytes")]
    TooLarge {
        /// What was asked.
        action: String,
        /// The bound.
        limit: u64,
    },
}

/// A redeemed session with the host. Clones share its connections.
#[derive(Clone)]
pub struct Link {
    ways: Arc<Ways>,
    session: HeaderValue,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("ways", &self.ways)
            .finish_non_exhaustive()
    }
}

impl Link {
    fn new(ways: Ways, session: HeaderValue) -> Self {
        Self {
            ways: Arc::new(ways),
            session,
        }
    }

    /// One heartbeat. Gives up after some seconds: the next one is due anyway.
    ///
    /// # Errors
    /// No answer in time, or a refusal.
    pub async fn heartbeat(&self, beat: Heartbeat) -> Result<HeartbeatAnswer, LinkError> {
        let patience = Some(HEARTBEAT_PATIENCE);
        let call = Call {
            try_patience: HEARTBEAT_PATIENCE,
            ..self.post("heartbeat", HEARTBEAT_PATH, &beat, patience)?
        };
        let bytes = call.run(&self.ways, Answer).await?;
        serde_json::from_slice(&bytes).map_err(|error| LinkError::Refused {
            action: call.action,
            status: 200,
            reason: format!("answer is not one of protocol version 1: {error}"),
        })
    }

    /// Returns once the host has the batch; repeats it for as long as that takes.
    ///
    /// # Errors
    /// A refusal.
    pub async fn logs(&self, batch: &LogBatch) -> Result<(), LinkError> {
        self.post("log batch", LOGS_PATH, batch, None)?
            .run(&self.ways, Accepted)
            .await
    }

    /// Writes the job's bundle to `into`, from its beginning, and returns the lower-case hexadecimal SHA-256 of what
    /// was written. A broken transfer starts over: the file is truncated first.
    ///
    /// # Errors
    /// A refusal, more than `limit` bytes, a file error, or no host for minutes.
    pub async fn repository(&self, into: &mut tokio::fs::File, limit: u64) -> Result<String, LinkError> {
        let call = Call {
            method: Method::GET,
            listener: Listener::Artifacts,
            ..self.call(
                "repository",
                REPOSITORY_PATH,
                Content::Nothing,
                Some(TRANSFER_PATIENCE),
            )
        };
        call.run(&self.ways, Download { into, limit }).await
    }

    /// Hands the report over; repeats it for minutes.
    ///
    /// # Errors
    /// A refusal, or no host for minutes.
    pub async fn report(&self, report: &Report) -> Result<(), LinkError> {
        self.post("report", REPORT_PATH, report, Some(TRANSFER_PATIENCE))?
            .run(&self.ways, Accepted)
            .await
    }

    fn post<T: Serialize>(
        &self,
        action: &str,
        path: &str,
        body: &T,
        patience: Option<Duration>,
    ) -> Result<Call<'static>, LinkError> {
        Ok(self.call(action, path, Content::Json(json(action, body)?), patience))
    }

    fn call<'a>(
        &self,
        action: &str,
        path: &str,
        content: Content<'a>,
        patience: Option<Duration>,
    ) -> Call<'a> {
        Call {
            action: action.to_owned(),
            method: Method::POST,
            path: path.to_owned(),
            listener: Listener::Bootstrap,
            session: Some(self.session.clone()),
            headers: Vec::new(),
            content,
            try_patience: TRY_PATIENCE,
            patience,
        }
    }
}

struct Download<'a> {
    into: &'a mut tokio::fs::File,
    limit: u64,
}

impl Take for Download<'_> {
    type Output = String;

    async fn take(&mut self, response: Response<Incoming>) -> Result<String, Setback> {
        let action = || "repository".to_owned();
        let failed = |source: io::Error| {
            Setback::Final(LinkError::File {
                action: action(),
                source,
            })
        };
        self.into.rewind().await.map_err(failed)?;
        self.into.set_len(0).await.map_err(failed)?;
        let mut body = response.into_body();
        let (mut hash, mut received) = (Sha256::new(), 0u64);
        loop {
            let stalled =
                |_| Setback::Again(format!("transfer stood still for {} s", STALL_PATIENCE.as_secs()));
            let frame = match timeout(STALL_PATIENCE, body.frame()).await.map_err(stalled)? {
                None => break,
                Some(frame) => frame.map_err(|error| Setback::Again(call::chain(&error)))?,
            };
            let Ok(bytes) = frame.into_data() else { continue };
            received = received.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
            if received > self.limit {
                return Err(Setback::Final(LinkError::TooLarge {
                    action: action(),
                    limit: self.limit,
                }));
            }
            hash.update(&bytes);
            self.into.write_all(&bytes).await.map_err(failed)?;
        }
        self.into.flush().await.map_err(failed)?;
        Ok(hex::encode(hash.finalize()))
    }
}
