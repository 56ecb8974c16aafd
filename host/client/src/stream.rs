//! A stream of events that survives a lost connection, a daemon restart included.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

use agentlab_api::{ErrorCode, Problem, chain};
use http::header::ACCEPT;
use http::{HeaderName, HeaderValue};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use tokio::time::{sleep, timeout};

use crate::connection::{Answer, Call};
use crate::error::Result;
use crate::sse::{Frame, Parser};
use crate::{Client, ClientError};

/// The daemon sends a comment every 15 s; three of them missing means that nobody is there.
const SILENCE: Duration = Duration::from_secs(50);
/// How long a lost daemon is looked for: a restart on a loaded machine takes seconds, an upgrade a little longer.
const LOOK_FOR: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// Items as they happen. Ends when the daemon says that nothing more will come.
#[derive(Debug)]
pub struct Stream<T> {
    client: Client,
    target: String,
    last_id: Option<String>,
    connection: Option<(Answer, Parser)>,
    ready: VecDeque<Frame>,
    ended: bool,
    kind: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Stream<T> {
    /// Opens the stream, so that an unknown job is an error here and not later.
    pub(crate) async fn open(client: &Client, target: String, after: Option<u64>) -> Result<Self> {
        let mut stream = Self {
            client: client.clone(),
            target,
            last_id: after.map(|id| id.to_string()),
            connection: None,
            ready: VecDeque::new(),
            ended: false,
            kind: PhantomData,
        };
        stream.connect().await?;
        Ok(stream)
    }

    /// The next item, or `None` after the last. Safe to cancel: nothing is lost, what was not returned comes next.
    ///
    /// # Errors
    /// The daemon stayed away for a minute, refused, or sent what is not understood.
    pub async fn next(&mut self) -> Result<Option<T>> {
        loop {
            while let Some(frame) = self.ready.pop_front() {
                if frame.event == "end" {
                    self.ended = true;
                    self.connection = None;
                    self.ready.clear();
                }
                if self.ended {
                    break;
                }
                if frame.event == "error" {
                    self.fail(&frame.data)?;
                    break;
                }
                if frame.id.is_some() {
                    self.last_id = frame.id;
                }
                if !frame.data.is_empty() {
                    return serde_json::from_str(&frame.data).map(Some).map_err(|error| {
                        ClientError::Protocol(format!(
                            "An event of {} is not understood: {error}",
                            self.target
                        ))
                    });
                }
            }
            if self.ended {
                return Ok(None);
            }
            if self.connection.is_none() {
                self.reconnect().await?;
            }
            self.receive().await?;
        }
    }

    /// The daemon gives up the stream, with a reason. One that is stopping is looked for again like a lost one.
    fn fail(&mut self, data: &str) -> Result<()> {
        self.connection = None;
        self.ready.clear();
        let problem: Problem = serde_json::from_str(data).map_err(|error| {
            ClientError::Protocol(format!(
                "{} ended for a reason not understood: {error}",
                self.target
            ))
        })?;
        if problem.code == ErrorCode::ShuttingDown {
            Ok(())
        } else {
            Err(ClientError::Problem(Box::new(problem)))
        }
    }

    /// Takes what arrives next; a connection that ends without the daemon's word for it is dropped, to be made anew.
    async fn receive(&mut self) -> Result<()> {
        let Some((answer, parser)) = &mut self.connection else {
            return Ok(());
        };
        match timeout(SILENCE, answer.body.frame()).await {
            Ok(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    let frames = parser
                        .push(data)
                        .map_err(|error| ClientError::Protocol(error.to_string()))?;
                    self.ready.extend(frames);
                }
            }
            Ok(Some(Err(_)) | None) | Err(_) => self.connection = None,
        }
        Ok(())
    }

    async fn connect(&mut self) -> Result<()> {
        let mut call =
            Call::get(self.target.clone()).header(ACCEPT, HeaderValue::from_static("text/event-stream"));
        if let Some(id) = &self.last_id {
            let value = HeaderValue::from_str(id).map_err(|error| {
                ClientError::Protocol(format!("An event id cannot be sent back: {}", chain(&error)))
            })?;
            call = call.header(HeaderName::from_static("last-event-id"), value);
        }
        let answer = self.client.send(call).await?;
        self.connection = Some((answer, Parser::default()));
        Ok(())
    }

    async fn reconnect(&mut self) -> Result<()> {
        let begun = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            // Even a daemon that accepts and hangs up at once must not be asked in a busy loop.
            sleep(pause).await;
            match self.connect().await {
                Ok(()) => return Ok(()),
                Err(error @ ClientError::Problem(_)) => return Err(error),
                Err(error) if begun.elapsed() > LOOK_FOR => return Err(error),
                Err(_) => pause = (pause * 2).min(LONGEST_PAUSE),
            }
        }
    }
}
