//! A runner's side of docs/protocol.md with nothing of the runner in it, so that it can also say what no runner would.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use agentlab_protocol::message::{
    ACKNOWLEDGE_PATH, ARTIFACTS_PREFIX, ArtifactRole, OFFSET_HEADER, REDEEM_PATH, REPOSITORY_PATH,
    ROLE_HEADER, RedeemAnswer, SHA256_HEADER,
};
use agentlab_protocol::secret::Secret32;
use agentlab_protocol::seed::Seed;
use agentlab_protocol::session::encode_secret;
use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::{Body, Frame};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

/// A guest's end of a serial line.
pub trait Line: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Line for T {}

/// What the host answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Where an upload goes on.
    pub offset: Option<u64>,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// It is none.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("{} {}", self.status, self.text()))
    }
}

/// What a guest says, so that it can be said again.
#[derive(Debug, Clone)]
pub struct Message {
    /// HTTP method.
    pub method: &'static str,
    /// Path, escaped.
    pub path: String,
    /// Headers besides the session.
    pub headers: Vec<(&'static str, String)>,
    /// Body.
    pub body: Bytes,
}

impl Message {
    /// A JSON message, or with `null` an empty one.
    #[must_use]
    pub fn post(path: &str, body: &Value) -> Self {
        let body = if body.is_null() {
            Bytes::new()
        } else {
            body.to_string().into()
        };
        Self {
            method: "POST",
            path: path.to_owned(),
            headers: Vec::new(),
            body,
        }
    }

    /// The bundle of the job's repository.
    #[must_use]
    pub fn repository() -> Self {
        Self {
            method: "GET",
            path: REPOSITORY_PATH.to_owned(),
            headers: Vec::new(),
            body: Bytes::new(),
        }
    }

    /// One file, announced as what it is. `name` goes into the path as it is.
    #[must_use]
    pub fn upload(name: &str, role: ArtifactRole, bytes: impl Into<Bytes>) -> Self {
        let body = bytes.into();
        let sha256 = hex::encode(Sha256::digest(&body));
        Self {
            method: "PUT",
            path: format!("{ARTIFACTS_PREFIX}{name}"),
            headers: vec![(ROLE_HEADER, role.as_str().to_owned()), (SHA256_HEADER, sha256)],
            body,
        }
    }
}

type Sent = BoxBody<Bytes, Infallible>;

/// A body of which nothing comes after its first piece.
struct Endless(Option<Bytes>);

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.0.take() {
            Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
            None => Poll::Pending,
        }
    }
}

/// One HTTP/2 connection over a serial line. Dropping it ends the connection.
#[derive(Debug)]
pub struct Guest {
    sender: http2::SendRequest<Sent>,
    /// Sent with every request once set.
    pub session: Option<String>,
    _connection: JoinSet<()>,
}

impl Guest {
    /// Knocks at the line until the host opens.
    ///
    /// # Errors
    /// The line ended.
    pub async fn connect(line: impl Line) -> Result<Self> {
        let stream = agentlab_channel::connect(line).await.context("serial line")?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // How it ended is seen by whoever sends next.
            let _ = connection.await;
        });
        Ok(Self {
            sender,
            session: None,
            _connection: tasks,
        })
    }

    /// One request and its whole answer.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn send(&mut self, message: &Message) -> Result<Answer> {
        let request = self.request(message, Full::new(message.body.clone()).boxed())?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status().as_u16();
        let offset = response.headers().get(OFFSET_HEADER);
        let offset = offset
            .map(|value| anyhow::Ok(value.to_str()?.parse()?))
            .transpose()?;
        let body = response.into_body().collect().await?.to_bytes();
        Ok(Answer { status, offset, body })
    }

    fn request(&self, message: &Message, body: Sent) -> Result<Request<Sent>> {
        let mut request = Request::builder()
            .method(message.method)
            .uri(format!("https://agentlab{}", message.path));
        if let Some(session) = &self.session {
            request = request.header("authorization", format!("Bearer {session}"));
        }
        for (name, value) in &message.headers {
            request = request.header(*name, value);
        }
        Ok(request.body(body)?)
    }

    /// Sends a message that never ends, until there was `enough` of it, and breaks it off.
    ///
    /// # Errors
    /// The connection is gone, or it was answered before.
    pub async fn break_off(&mut self, message: &Message, enough: impl Future<Output = ()>) -> Result<()> {
        let body = Endless(Some(message.body.clone())).boxed();
        let request = self.request(message, body)?;
        self.sender.ready().await?;
        tokio::select! {
            answer = self.sender.send_request(request) => bail!("answered with {}", answer?.status()),
            () = enough => Ok(()),
        }
    }

    /// A JSON message.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn post(&mut self, path: &str, body: &Value) -> Result<Answer> {
        self.send(&Message::post(path, body)).await
    }

    /// Asks what the seed's token is worth, with a runner key of 32 equal bytes. Remembers nothing.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn try_redeem(&mut self, seed: &Seed, key: u8) -> Result<Answer> {
        let body = json!({
            "vmid": seed.vmid,
            "token": encode_secret(&seed.token).expose(),
            "runner_key": encode_secret(&Secret32::new([key; 32])).expose(),
            "runner_version": env!("CARGO_PKG_VERSION"),
        });
        self.post(REDEEM_PATH, &body).await
    }

    /// Redeems, and uses the session from here on.
    ///
    /// # Errors
    /// The host refused.
    pub async fn redeem(&mut self, seed: &Seed, key: u8) -> Result<RedeemAnswer> {
        let answer = self.try_redeem(seed, key).await?;
        self.accept(&answer)
    }

    /// Takes a redemption's answer, and uses its session from here on.
    ///
    /// # Errors
    /// The host refused.
    pub fn accept(&mut self, answer: &Answer) -> Result<RedeemAnswer> {
        ensure!(
            answer.status == 200,
            "redeem: {} {}",
            answer.status,
            answer.text()
        );
        let answer: RedeemAnswer = serde_json::from_slice(&answer.body)?;
        self.session = Some(answer.session.expose().to_owned());
        Ok(answer)
    }

    /// The token may die.
    ///
    /// # Errors
    /// The host refused.
    pub async fn acknowledge(&mut self) -> Result<()> {
        let answer = self.post(ACKNOWLEDGE_PATH, &Value::Null).await?;
        ensure!(answer.status == 204, "acknowledge: {}", answer.status);
        Ok(())
    }

    /// Uploads one file. `name` goes into the path as it is: escape what needs it.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn upload(
        &mut self,
        name: &str,
        role: ArtifactRole,
        bytes: impl Into<Bytes>,
    ) -> Result<Answer> {
        self.send(&Message::upload(name, role, bytes)).await
    }
}
