//! Commands in a sandbox: created by one call, then followed over a connection of HTTP/2 of their own, whose two bodies
//! carry frames both ways at once.

use agentlab_api::{CommandRequest, CommandView, chain};
use agentlab_protocol::command::{Frame, FrameReader};
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http::header::HOST;
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::connection::Call;
use crate::error::Result;
use crate::path::encode;
use crate::{Client, ClientError};

/// Pieces of input on their way.
const PIECES: usize = 4;

/// A running command. Dropping it ends the command.
#[derive(Debug)]
pub struct Command {
    input: CommandInput,
    output: CommandOutput,
}

/// What goes in.
#[derive(Debug, Clone)]
pub struct CommandInput(mpsc::Sender<Bytes>);

/// What comes out.
#[derive(Debug)]
pub struct CommandOutput {
    body: Incoming,
    frames: FrameReader,
    _connection: JoinSet<()>,
}

impl Client {
    /// Has a guest begin a command.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn command(&self, sandbox: &str, request: &CommandRequest) -> Result<Command> {
        let target = format!("/v1/sandboxes/{}/commands", encode(sandbox, false));
        let created: CommandView = self.call(Call::post(target, request)?).await?;
        let (input, pieces) = mpsc::channel::<Bytes>(PIECES);
        let pieces = futures_util::stream::unfold(pieces, async |mut pieces| {
            let piece = pieces.recv().await?;
            Some((Ok::<_, std::io::Error>(piece), pieces))
        });
        let body = StreamBody::new(pieces.map_ok(hyper::body::Frame::data)).boxed();
        let target = format!("/v1/commands/{}/stream", encode(&created.id, false));
        let broken =
            |error: hyper::Error| ClientError::Protocol(format!("The command broke off: {}", chain(&error)));
        let stream = UnixStream::connect(self.socket())
            .await
            .map_err(|source| ClientError::Unreachable {
                socket: self.socket().to_owned(),
                source,
            })?;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .map_err(broken)?;
        let mut tasks = JoinSet::new();
        // Its outcome shows in the bodies.
        tasks.spawn(async move { drop(connection.await) });
        let mut request = Request::post(format!("http://agentlab{target}"))
            .body(body)
            .map_err(|error| ClientError::Protocol(error.to_string()))?;
        request
            .headers_mut()
            .insert(HOST, HeaderValue::from_static("agentlab"));
        let response = sender.send_request(request).await.map_err(broken)?;
        if response.status() != StatusCode::OK {
            let status = response.status();
            return Err(ClientError::Protocol(format!(
                "The command could not be followed: {status}"
            )));
        }
        Ok(Command {
            input: CommandInput(input),
            output: CommandOutput {
                body: response.into_body(),
                frames: FrameReader::default(),
                _connection: tasks,
            },
        })
    }
}

impl Command {
    /// Both directions, to be used at once.
    #[must_use]
    pub fn split(self) -> (CommandInput, CommandOutput) {
        (self.input, self.output)
    }
}

impl CommandInput {
    /// Sends one frame; false when the command has ended.
    pub async fn send(&self, frame: &Frame) -> bool {
        self.0.send(frame.encode().into()).await.is_ok()
    }
}

impl CommandOutput {
    /// The next frame; `None` when the connection ended, which before [`Frame::Exit`] means that the guest is gone.
    ///
    /// # Errors
    /// What the guest sent is no frame.
    pub async fn next(&mut self) -> Result<Option<Frame>> {
        loop {
            let frame = self
                .frames
                .next_frame()
                .map_err(|error| ClientError::Protocol(format!("The guest broke the protocol: {error}")))?;
            if frame.is_some() {
                return Ok(frame);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(bytes) = frame.data_ref() {
                        self.frames.push(bytes);
                    }
                }
                Some(Err(_)) | None => return Ok(None),
            }
        }
    }
}
