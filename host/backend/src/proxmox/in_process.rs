//! A server in the same process, for tests whose clock stands still while something is under way: no socket could.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::timeout;

use super::http::{Answer, Http, Lost};
use super::request::Request;
use super::settings::ProxmoxSettings;
use super::{KIND, Rest};
use crate::pve::Pve;
use crate::{Backend, BackendError};

/// What it is asked.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The HTTP method.
    pub method: &'a str,
    /// Path and query, encoded.
    pub target: &'a str,
    /// The `Authorization` header.
    pub authorization: &'a str,
    /// JSON, where there is a body.
    pub body: Option<&'a str>,
}

/// What it says.
#[derive(Debug, Clone)]
pub struct Said {
    /// HTTP status.
    pub status: u16,
    /// Reason phrase.
    pub reason: String,
    /// The body.
    pub body: Vec<u8>,
}

/// A server.
#[async_trait]
pub trait InProcess: Send + Sync + fmt::Debug {
    /// Answers, or breaks the connection with `None`.
    async fn exchange(&self, asked: Asked<'_>) -> Option<Said>;
}

/// As [`super::connect`], to a server in this process.
///
/// # Errors
/// As there.
pub fn connect_in_process(
    settings: ProxmoxSettings,
    server: Arc<dyn InProcess>,
) -> crate::Result<Arc<dyn Backend>> {
    let mut http = Http::new(&settings).map_err(|reason| BackendError::Unreachable {
        backend: KIND,
        action: "starting",
        reason,
    })?;
    http.in_process = Some(server);
    Ok(Arc::new(Pve::new(Rest { http }, settings.pve)))
}

/// One call, as over a connection.
pub(super) async fn ask(http: &Http, server: &dyn InProcess, request: &Request) -> Result<Answer, Lost> {
    let asked = Asked {
        method: request.method.as_str(),
        target: &request.target,
        authorization: http.authorization.to_str().unwrap_or_default(),
        body: request.body.as_deref(),
    };
    match timeout(http.patience, server.exchange(asked)).await {
        Ok(Some(said)) => Ok(Answer {
            status: said.status,
            reason: said.reason,
            date: None,
            body: said.body,
        }),
        Ok(None) => Err(Lost::Unanswered("the connection broke off".to_owned())),
        Err(_) => Err(Lost::Unanswered(format!(
            "no answer within {} s",
            http.patience.as_secs_f32()
        ))),
    }
}
