//! The requests of an operator's commands: one that stays open, and one for each command.

use std::time::Duration;

use agentlab_protocol::command::{COMMANDS_PATH, COMMANDS_PREFIX, CommandOrder};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::AUTHORIZATION;
use hyper::{Method, Request, Response};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::body::RequestBody;
use super::call::{Call, Content, Setback, Take};
use super::ways::Listener;
use super::{Link, LinkError};

/// Longest order: the host's own bound on a command line, and room for its JSON.
const LONGEST_ORDER: usize = 1 << 20;
/// The host answers once its operator is there.
const PATIENCE: Duration = Duration::from_secs(40);

/// Orders as they come, over one open request.
pub(crate) struct Orders {
    body: Incoming,
    line: Vec<u8>,
}

/// The answer itself, unread.
struct Opened;

impl Take for Opened {
    type Output = Incoming;

    fn take(
        &mut self,
        response: Response<Incoming>,
    ) -> impl Future<Output = Result<Incoming, Setback>> + Send {
        std::future::ready(Ok(response.into_body()))
    }
}

impl Link {
    /// Opens the request that brings orders; repeats it for as long as the host is away.
    ///
    /// # Errors
    /// The host refuses: it is older than this runner, or the session is over.
    pub(crate) async fn orders(&self) -> Result<Orders, LinkError> {
        let call = Call {
            method: Method::GET,
            ..self.call("commands", COMMANDS_PATH, Content::Nothing, None)
        };
        Ok(Orders {
            body: call.run(&self.ways, Opened).await?,
            line: Vec::new(),
        })
    }

    /// Opens the request of one command: `output` flows up in it, and what it returns brings the input. It is not
    /// repeated: an operator waits, and asks again.
    ///
    /// # Errors
    /// Nobody waits for the command any more, or the host is away.
    pub(crate) async fn command(&self, id: &str, output: mpsc::Receiver<Bytes>) -> Result<Incoming, String> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("https://agentlab{COMMANDS_PREFIX}{id}"))
            .header(AUTHORIZATION, &self.session)
            .body(RequestBody::Stream(output))
            .map_err(|error| error.to_string())?;
        let (mut sender, _) = self.ways.sender(Listener::Bootstrap).await?;
        let answered = async {
            sender.ready().await?;
            sender.send_request(request).await
        };
        let response = timeout(PATIENCE, answered)
            .await
            .map_err(|_| "no answer in time".to_owned())?
            .map_err(|error| super::call::chain(&error))?;
        if response.status().is_success() {
            Ok(response.into_body())
        } else {
            Err(format!("status {}", response.status().as_u16()))
        }
    }
}

impl Orders {
    /// The next order; `None` when the request has ended, and is to be opened anew.
    pub(crate) async fn next(&mut self) -> Option<CommandOrder> {
        loop {
            while let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.line.drain(..=end).collect();
                // An order this runner does not understand is left undone; its operator is told so by the silence.
                if let Ok(order) = serde_json::from_slice(&line) {
                    return Some(order);
                }
            }
            let frame = self.body.frame().await?.ok()?;
            if let Ok(bytes) = frame.into_data() {
                self.line.extend_from_slice(&bytes);
            }
            if self.line.len() > LONGEST_ORDER {
                return None;
            }
        }
    }
}
