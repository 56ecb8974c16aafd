//! One connection, one request.

use std::time::Duration;

use agentlab_api::{ErrorCode, Problem, chain};
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::{Body, Incoming};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::error::Result;
use crate::{Client, ClientError};

/// A request's body.
pub(crate) type RequestBody = BoxBody<Bytes, std::io::Error>;

/// How long the daemon may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long an answer may take to begin. The daemon answers at once and works afterwards.
const ANSWER: Duration = Duration::from_secs(60);
/// Largest JSON answer read.
const LARGEST_ANSWER: usize = 64 << 20;

/// An answer whose body has not been read. Dropping it ends the connection.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Incoming,
    _connection: JoinSet<()>,
}

/// A call, before it is sent.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: RequestBody,
    /// How long the answer may take to begin; the sending of a long body counts.
    pub(crate) patience: Option<Duration>,
}

impl Call {
    pub(crate) fn get(target: impl Into<String>) -> Self {
        Self::new(Method::GET, target.into(), empty())
    }

    pub(crate) fn post(target: impl Into<String>, body: &impl Serialize) -> Result<Self> {
        let json = serde_json::to_vec(body)
            .map_err(|error| ClientError::Protocol(format!("Request cannot be written as JSON: {error}")))?;
        let body = Full::new(Bytes::from(json))
            .map_err(|never| match never {})
            .boxed();
        let json = HeaderValue::from_static("application/json");
        Ok(Self::new(Method::POST, target.into(), body).header(CONTENT_TYPE, json))
    }

    pub(crate) fn new(method: Method, target: String, body: RequestBody) -> Self {
        Self {
            method,
            target,
            headers: HeaderMap::new(),
            body,
            patience: Some(ANSWER),
        }
    }

    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }
}

fn empty() -> RequestBody {
    Full::new(Bytes::new()).map_err(|never| match never {}).boxed()
}

impl Client {
    /// Sends a call and reads its JSON answer.
    pub(crate) async fn call<T: DeserializeOwned>(&self, call: Call) -> Result<T> {
        let action = format!("{} {}", call.method, call.target);
        let answer = self.send(call).await?;
        let bytes = read_all(answer.body, &action).await?;
        serde_json::from_slice(&bytes).map_err(|error| {
            ClientError::Protocol(format!(
                "The answer to {action} is not understood: {error}; are daemon and CLI of one version?"
            ))
        })
    }

    /// Sends a call; an error status becomes the daemon's problem.
    pub(crate) async fn send(&self, call: Call) -> Result<Answer> {
        let action = format!("{} {}", call.method, call.target);
        let patience = call.patience;
        let exchange = self.exchange(call, &action);
        let response = match patience {
            Some(patience) => timeout(patience, exchange)
                .await
                .map_err(|_| ClientError::TimedOut {
                    action: action.clone(),
                    seconds: patience.as_secs(),
                })??,
            None => exchange.await?,
        };
        let (status, answer) = response;
        if status.is_success() {
            Ok(answer)
        } else {
            Err(problem(status, answer, &action).await)
        }
    }

    async fn exchange(&self, call: Call, action: &str) -> Result<(StatusCode, Answer)> {
        let unreachable = |source| ClientError::Unreachable {
            socket: self.socket.clone(),
            source,
        };
        let stream = timeout(CONNECT, UnixStream::connect(&self.socket))
            .await
            .map_err(|_| unreachable(std::io::ErrorKind::TimedOut.into()))?
            .map_err(unreachable)?;
        let broken =
            |error: hyper::Error| ClientError::Protocol(format!("{action} broke off: {}", chain(&error)));
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let mut tasks = JoinSet::new();
        // Its outcome shows in the answer or its body, so nothing of it is lost here.
        tasks.spawn(async move { drop(connection.await) });
        let mut request = Request::new(call.body);
        *request.method_mut() = call.method;
        *request.uri_mut() = call
            .target
            .parse()
            .map_err(|error| ClientError::Protocol(format!("{action} is not a request target: {error}")))?;
        *request.headers_mut() = call.headers;
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::from_static("agentlab"));
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("agentlab/", env!("CARGO_PKG_VERSION"))),
        );
        if !headers.contains_key(ACCEPT) {
            headers.insert(
                ACCEPT,
                HeaderValue::from_static("application/json, application/problem+json"),
            );
        }
        let response = sender.send_request(request).await.map_err(broken)?;
        let (parts, body) = response.into_parts();
        Ok((
            parts.status,
            Answer {
                headers: parts.headers,
                body,
                _connection: tasks,
            },
        ))
    }
}

async fn problem(status: StatusCode, answer: Answer, action: &str) -> ClientError {
    let is_problem = answer
        .headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/problem+json"));
    let Ok(bytes) = read_all(answer.body, action).await else {
        return ClientError::Protocol(format!("{action} was answered {status}, and its body broke off"));
    };
    match serde_json::from_slice::<Problem>(&bytes) {
        Ok(problem) => ClientError::Problem(Box::new(problem)),
        // A proxy's or another server's error page.
        Err(_) if status == StatusCode::NOT_FOUND && !is_problem => {
            let detail = format!("{action} is not known there; are daemon and CLI of one version?");
            ClientError::Problem(Box::new(Problem::new(ErrorCode::NoSuchRoute, detail)))
        }
        Err(_) => ClientError::Protocol(format!("{action} was answered {status} without a reason")),
    }
}

async fn read_all(mut body: Incoming, action: &str) -> Result<Vec<u8>> {
    let expected = usize::try_from(body.size_hint().lower()).unwrap_or(0);
    let mut bytes = Vec::with_capacity(expected.min(LARGEST_ANSWER));
    let read = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                ClientError::Protocol(format!("The answer to {action} broke off: {}", chain(&error)))
            })?;
            if let Some(data) = frame.data_ref() {
                if bytes.len() + data.len() > LARGEST_ANSWER {
                    return Err(ClientError::Protocol(format!(
                        "The answer to {action} is larger than {LARGEST_ANSWER} bytes"
                    )));
                }
                bytes.extend_from_slice(data);
            }
        }
        Ok(())
    };
    timeout(ANSWER, read).await.map_err(|_| ClientError::TimedOut {
        action: action.to_owned(),
        seconds: ANSWER.as_secs(),
    })??;
    Ok(bytes)
}
