//! Calls to one server.
//!
//! ```text
//!   call ─► lane of its node (lanes.rs) ─► idle connection, or a new one ─► answer, bounded
//! ```
//! pveproxy closes a connection that was idle for about 5 s, and each after an error. Ours are given up before. What
//! was lost on the way is told apart: a call that was never sent, one that certainly had no effect, and one of which
//! nobody knows.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agentlab_api::chain;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, DATE, HOST, USER_AGENT};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::lanes::Traffic;
use super::request::Request;
use super::settings::{ApiUrl, ProxmoxSettings, Trust};
use super::trust::Verifier;

/// pveproxy's own patience is 5 s.
const MOST_IDLE: Duration = Duration::from_millis(3500);
/// Idle connections kept.
const MOST_KEPT: usize = 4;
/// How long a connection may take to stand.
const CONNECT: Duration = Duration::from_secs(10);
/// Largest answer read: a guest's files do not come this way.
const LARGEST_ANSWER: usize = 32 << 20;
/// PVE's own bound is 512 KiB.
const LARGEST_BODY: usize = 500 << 10;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Lost {
    /// It was never sent.
    Unsent(String),
    /// It was sent, and whether it took effect is not known.
    Unanswered(String),
    /// The same, after all of our patience.
    Late(String),
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) reason: String,
    /// What the server's clock said.
    pub(crate) date: Option<String>,
    pub(crate) body: Vec<u8>,
}

#[derive(Debug)]
struct Line {
    sender: SendRequest<Full<Bytes>>,
    /// Dropped with it, which closes the connection.
    _driver: JoinSet<()>,
}

/// One server.
#[derive(Debug)]
pub(crate) struct Http {
    url: ApiUrl,
    name: ServerName<'static>,
    pub(super) authorization: HeaderValue,
    pub(super) host: HeaderValue,
    pub(super) patience: Duration,
    verifier: Arc<Verifier>,
    tls: Tls,
    idle: Mutex<Vec<(Instant, Line)>>,
    traffic: Traffic,
    /// Asked instead of the server.
    #[cfg(feature = "in-process")]
    pub(super) in_process: Option<Arc<dyn super::in_process::InProcess>>,
}

/// A connector that can be shown.
struct Tls(TlsConnector);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Http {
    /// Contacts nobody yet.
    ///
    /// # Errors
    /// In words: the certificates to believe, the host's name or the token cannot be used.
    pub(crate) fn new(settings: &ProxmoxSettings) -> Result<Self, String> {
        if settings.trust == Trust::ThisHost && !settings.url.is_loopback() {
            return Err(format!(
                "the certificate of {} must be looked at, because it is another host",
                settings.url
            ));
        }
        let verifier = Verifier::new(&settings.trust)?;
        let config = verifier.client_config()?;
        let name = ServerName::try_from(settings.url.host.clone())
            .map_err(|_| format!("`{}` is no name of a host", settings.url.host))?;
        let header =
            |text: &str| HeaderValue::from_str(text).map_err(|_| "it cannot stand in a header".to_owned());
        let mut authorization = header(&format!("PVEAPIToken={}", settings.token.expose()))?;
        authorization.set_sensitive(true);
        Ok(Self {
            name,
            authorization,
            host: header(&settings.url.authority())?,
            url: settings.url.clone(),
            patience: settings.call_patience,
            verifier,
            tls: Tls(TlsConnector::from(Arc::new(config))),
            idle: Mutex::default(),
            traffic: Traffic::new(&settings.pve),
            #[cfg(feature = "in-process")]
            in_process: None,
        })
    }

    pub(super) fn at_home(&self, node: &str) {
        self.traffic.at_home(node);
    }

    /// Makes a call, once.
    pub(crate) async fn call(&self, request: &Request) -> Result<Answer, Lost> {
        if request
            .body
            .as_ref()
            .is_some_and(|body| body.len() > LARGEST_BODY)
        {
            return Err(Lost::Unsent(format!(
                "its parameters are longer than {LARGEST_BODY} bytes"
            )));
        }
        let lanes = self.traffic.lanes(request);
        // Neither is ever closed.
        let _change = match request.is_question() {
            true => None,
            false => lanes.changes.acquire().await.ok(),
        };
        let _call = lanes.calls.acquire().await;
        self.once(request).await
    }

    async fn once(&self, request: &Request) -> Result<Answer, Lost> {
        #[cfg(feature = "in-process")]
        if let Some(server) = &self.in_process {
            return super::in_process::ask(self, &**server, request).await;
        }
        let mut line = self.take_idle();
        loop {
            let is_new = line.is_none();
            let mut used = match line.take() {
                Some(line) => line,
                None => self.connect().await?,
            };
            let exchange = self.exchange(&mut used, request);
            return match timeout(self.patience, exchange).await {
                Ok(Ok(answer)) => {
                    self.keep(used);
                    Ok(answer)
                }
                // The server had closed it; nothing went out.
                Ok(Err(Lost::Unsent(_))) if !is_new => continue,
                Ok(Err(lost)) => Err(lost),
                Err(_) => Err(Lost::Late(format!(
                    "no answer within {} s",
                    self.patience.as_secs_f32()
                ))),
            };
        }
    }

    fn take_idle(&self) -> Option<Line> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(since, line)| since.elapsed() < MOST_IDLE && !line.sender.is_closed());
        idle.pop().map(|(_, line)| line)
    }

    fn keep(&self, line: Line) {
        if line.sender.is_closed() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MOST_KEPT {
            idle.push((Instant::now(), line));
        }
    }

    /// A connection, its server known.
    pub(super) async fn dial(&self) -> Result<TlsStream<TcpStream>, Lost> {
        let unsent = |words: String| Lost::Unsent(format!("{}: {words}", self.url));
        let connect = async {
            let stream = TcpStream::connect((self.url.host.as_str(), self.url.port))
                .await
                .map_err(|error| unsent(error.to_string()))?;
            // Each call is one small write that waits for its answer.
            let _ = stream.set_nodelay(true);
            let stream = self.tls.0.connect(self.name.clone(), stream).await;
            stream.map_err(|error| match self.verifier.explain() {
                Some(words) => unsent(words),
                None => unsent(format!("no TLS: {error}")),
            })
        };
        match timeout(CONNECT, connect).await {
            Ok(done) => done,
            Err(_) => Err(unsent(format!("no connection within {} s", CONNECT.as_secs()))),
        }
    }

    async fn connect(&self) -> Result<Line, Lost> {
        let stream = TokioIo::new(self.dial().await?);
        let (sender, connection) = hyper::client::conn::http1::handshake(stream)
            .await
            .map_err(|error| Lost::Unsent(format!("{}: {}", self.url, chain(&error))))?;
        let mut driver = JoinSet::new();
        // How it ends shows in the call that it carries.
        driver.spawn(async move { drop(connection.await) });
        Ok(Line {
            sender,
            _driver: driver,
        })
    }

    async fn exchange(&self, line: &mut Line, request: &Request) -> Result<Answer, Lost> {
        let broken =
            |error: &hyper::Error| format!("the connection to {} broke off: {}", self.url, chain(error));
        if let Err(error) = line.sender.ready().await {
            return Err(Lost::Unsent(broken(&error)));
        }
        let response = match line.sender.try_send_request(self.message(request)?).await {
            Ok(response) => response,
            Err(mut error) => {
                let unsent = error.take_message().is_some();
                let words = broken(&error.into_error());
                return Err(if unsent {
                    Lost::Unsent(words)
                } else {
                    Lost::Unanswered(words)
                });
            }
        };
        self.read(response).await
    }

    fn message(&self, request: &Request) -> Result<http::Request<Full<Bytes>>, Lost> {
        let mut message = http::Request::builder()
            .method(request.method.clone())
            .uri(&request.target)
            .header(HOST, self.host.clone())
            .header(AUTHORIZATION, self.authorization.clone())
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, concat!("agentlab/", env!("CARGO_PKG_VERSION")));
        if request.body.is_some() {
            message = message.header(CONTENT_TYPE, "application/json");
        }
        let body = request.body.clone().unwrap_or_default();
        message
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| Lost::Unsent(format!("`{}` is no target: {error}", request.target)))
    }

    pub(super) async fn read(&self, response: Response<Incoming>) -> Result<Answer, Lost> {
        let status = response.status();
        let reason = response.extensions().get::<hyper::ext::ReasonPhrase>();
        let reason = match reason {
            Some(reason) => String::from_utf8_lossy(reason.as_bytes()).into_owned(),
            None => status.canonical_reason().unwrap_or_default().to_owned(),
        };
        let date = response.headers().get(DATE).and_then(|date| date.to_str().ok());
        let date = date.map(str::to_owned);
        let mut body = response.into_body();
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = match frame {
                Ok(frame) => frame,
                // An answer without a length ends with its connection, which pveproxy cuts. A status says enough by
                // itself, and a text is whole when it can be read.
                Err(_) if status != StatusCode::OK || is_whole(&bytes) => break,
                Err(error) => {
                    return Err(Lost::Unanswered(format!(
                        "the answer broke off: {}",
                        chain(&error)
                    )));
                }
            };
            let Some(data) = frame.data_ref() else { continue };
            if bytes.len() + data.len() > LARGEST_ANSWER {
                return Err(Lost::Unanswered(format!(
                    "the answer is longer than {LARGEST_ANSWER} bytes"
                )));
            }
            bytes.extend_from_slice(data);
        }
        Ok(Answer {
            status: status.as_u16(),
            reason,
            date,
            body: bytes,
        })
    }
}

fn is_whole(bytes: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(bytes).is_ok()
}
