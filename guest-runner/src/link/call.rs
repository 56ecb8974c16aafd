//! One request, repeated until the host has answered it or patience ends.

use std::io;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::time::{Instant, timeout};

use super::LinkError;
use super::backoff::Backoff;
use super::body::{Failure, FileBody, RequestBody};
use super::ways::{Listener, Ways};

/// Largest JSON answer.
const ANSWER_BYTES: usize = 1 << 20;
/// For an answer that comes at once.
pub(crate) const TRY_PATIENCE: Duration = Duration::from_secs(20);
/// How much of a refusal's text is kept.
const REASON_CHARS: usize = 200;

/// What a request carries.
#[derive(Debug, Clone)]
pub(crate) enum Content<'a> {
    Nothing,
    Json(Bytes),
    /// From its byte `offset` to `size`.
    File {
        path: &'a Path,
        offset: u64,
        size: u64,
    },
}

/// One request in all its tries.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    /// For messages: "heartbeat".
    pub(crate) action: String,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) listener: Listener,
    pub(crate) session: Option<HeaderValue>,
    pub(crate) headers: Vec<(&'static str, HeaderValue)>,
    pub(crate) content: Content<'a>,
    /// For one try, until the answer's head is there.
    pub(crate) try_patience: Duration,
    /// For all tries together; `None` is forever.
    pub(crate) patience: Option<Duration>,
}

/// Why one try gave no final answer.
pub(crate) enum Setback {
    /// Worth another try.
    Again(String),
    Final(LinkError),
}

/// Makes something of a successful answer. Runs within the try: when the connection breaks while it reads the body,
/// everything begins again.
pub(crate) trait Take: Send {
    type Output: Send;

    fn take(
        &mut self,
        response: Response<Incoming>,
    ) -> impl Future<Output = Result<Self::Output, Setback>> + Send;
}

/// The status says all.
pub(crate) struct Accepted;

impl Take for Accepted {
    type Output = ();

    fn take(&mut self, _: Response<Incoming>) -> impl Future<Output = Result<(), Setback>> + Send {
        std::future::ready(Ok(()))
    }
}

/// A JSON answer as a whole.
pub(crate) struct Answer;

impl Take for Answer {
    type Output = Bytes;

    async fn take(&mut self, response: Response<Incoming>) -> Result<Bytes, Setback> {
        let whole = timeout(
            TRY_PATIENCE,
            Limited::new(response.into_body(), ANSWER_BYTES).collect(),
        );
        match whole.await {
            Ok(Ok(collected)) => Ok(collected.to_bytes()),
            Ok(Err(error)) => Err(Setback::Again(error.to_string())),
            Err(_) => Err(Setback::Again("answer stopped in the middle".to_owned())),
        }
    }
}

impl Call<'_> {
    /// Tries until `take` has made something of a successful answer.
    pub(crate) async fn run<T: Take>(&self, ways: &Ways, mut take: T) -> Result<T::Output, LinkError> {
        let started = Instant::now();
        let mut backoff = Backoff::new();
        loop {
            let reason = match self.attempt(ways, &mut take).await {
                Ok(taken) => return Ok(taken),
                Err(Setback::Final(error)) => return Err(error),
                Err(Setback::Again(reason)) => reason,
            };
            let delay = backoff.delay();
            if self
                .patience
                .is_some_and(|patience| started.elapsed() + delay > patience)
            {
                return Err(LinkError::Unreachable {
                    action: self.action.clone(),
                    reason,
                });
            }
            tokio::time::sleep(delay).await;
        }
    }

    /// One try.
    pub(crate) async fn attempt<T: Take>(&self, ways: &Ways, take: &mut T) -> Result<T::Output, Setback> {
        let failure = Failure::default();
        let request = self.request(&failure).await.map_err(Setback::Final)?;
        let (mut sender, wire) = ways.sender(self.listener).await.map_err(Setback::Again)?;
        let answered = timeout(self.try_patience, async {
            sender.ready().await?;
            sender.send_request(request).await
        });
        let response = match answered.await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                if let Some(source) = failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
                    return Err(Setback::Final(self.file_error(source)));
                }
                let reason = chain(&error);
                ways.broken(wire, &reason).await;
                return Err(Setback::Again(reason));
            }
            Err(_) => {
                let reason = format!("no answer within {} s", self.try_patience.as_secs());
                ways.broken(wire, &reason).await;
                return Err(Setback::Again(reason));
            }
        };
        ways.proven(wire).await;
        self.judge(response, take).await
    }

    async fn judge<T: Take>(&self, response: Response<Incoming>, take: &mut T) -> Result<T::Output, Setback> {
        let status = response.status();
        if status.is_success() {
            return take.take(response).await;
        }
        if status == StatusCode::UNAUTHORIZED {
            return Err(Setback::Final(LinkError::Unauthorized {
                action: self.action.clone(),
            }));
        }
        let reason = refusal_text(response).await;
        // 416: an upload goes on elsewhere, which is asked for before the next try.
        let later = [StatusCode::TOO_MANY_REQUESTS, StatusCode::RANGE_NOT_SATISFIABLE];
        if later.contains(&status) || status.is_server_error() {
            return Err(Setback::Again(format!("status {}: {reason}", status.as_u16())));
        }
        Err(Setback::Final(LinkError::Refused {
            action: self.action.clone(),
            status: status.as_u16(),
            reason,
        }))
    }

    async fn request(&self, failure: &Failure) -> Result<Request<RequestBody>, LinkError> {
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(format!("https://agentlab{}", self.path));
        if let Some(session) = &self.session {
            request = request.header(AUTHORIZATION, session);
        }
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let body = match &self.content {
            Content::Nothing => RequestBody::Bytes(None),
            Content::Json(bytes) => {
                request = request.header(CONTENT_TYPE, "application/json");
                RequestBody::Bytes(Some(bytes.clone()))
            }
            Content::File { path, offset, size } => {
                request = request.header(CONTENT_LENGTH, size.saturating_sub(*offset));
                let opened = FileBody::open(path, (*offset, *size), Failure::clone(failure)).await;
                RequestBody::File(opened.map_err(|source| self.file_error(source))?)
            }
        };
        request.body(body).map_err(|error| LinkError::Refused {
            action: self.action.clone(),
            status: 400,
            reason: format!("request could not be written: {error}"),
        })
    }

    fn file_error(&self, source: io::Error) -> LinkError {
        LinkError::File {
            action: self.action.clone(),
            source,
        }
    }
}

async fn refusal_text(response: Response<Incoming>) -> String {
    let body = Limited::new(response.into_body(), 4096).collect();
    let bytes = match timeout(Duration::from_secs(5), body).await {
        Ok(Ok(whole)) => whole.to_bytes(),
        Ok(Err(_)) | Err(_) => Bytes::new(),
    };
    String::from_utf8_lossy(&bytes)
        .chars()
        .take(REASON_CHARS)
        .collect()
}

/// hyper's own words and its causes'.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
