//! The stand-in behind TLS, with the connection manners of the genuine front end.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::{SignedDuration, Timestamp};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::core::Core;
use crate::wire::{Request, Response};

/// An idle connection is closed after this long.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const PREFIX: &str = "/api2/json";

/// A listening stand-in; dropping it closes the socket and every connection.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) fingerprint: String,
    pub(crate) certificate: String,
    _stop: DropGuard,
}

impl Server {
    pub(crate) async fn start(core: Arc<Core>, address: &str) -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])
            .context("No certificate could be made")?;
        let certificate = made.cert.der().clone();
        let mut fingerprint = String::new();
        for byte in Sha256::digest(&certificate) {
            let colon = if fingerprint.is_empty() { "" } else { ":" };
            write!(fingerprint, "{colon}{byte:02X}").context("No fingerprint could be written")?;
        }
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let config =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()?
                .with_no_client_auth()
                .with_single_cert(vec![certificate], key)?;
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("{address} cannot be listened on"))?;
        let url = format!("https://{}", listener.local_addr()?);
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tasks.spawn(serve(
            listener,
            acceptor,
            Arc::clone(&core),
            tasks.clone(),
            stop.clone(),
        ));
        tasks.spawn(keep_time(core, stop.clone()));
        Ok(Self {
            url,
            fingerprint,
            certificate: made.cert.pem(),
            _stop: stop.drop_guard(),
        })
    }
}

/// Workers make progress while nobody asks.
async fn keep_time(core: Arc<Core>, stop: CancellationToken) {
    const LONGEST: Duration = Duration::from_millis(500);
    loop {
        let next = core.timeline.advance().map_or(LONGEST, |next| next.min(LONGEST));
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(next.max(Duration::from_millis(1))) => {}
        }
    }
}

async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    core: Arc<Core>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        if let Ok((stream, _)) = accepted {
            let (acceptor, core, stop) = (acceptor.clone(), Arc::clone(&core), stop.clone());
            tasks.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = converse(stream, acceptor, core) => {}
                }
            });
        }
    }
}

/// One connection. Its errors are the client's business.
async fn converse(stream: TcpStream, acceptor: TlsAcceptor, core: Arc<Core>) {
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let service = service_fn(move |request| {
        let core = Arc::clone(&core);
        async move { respond(core, request).await }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(KEEP_ALIVE);
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

/// The connection breaks instead of an answer.
#[derive(Debug)]
struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("The stand-in broke the connection")
    }
}

impl std::error::Error for Broken {}

impl From<Infallible> for Broken {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

async fn respond(
    core: Arc<Core>,
    request: hyper::Request<Incoming>,
) -> Result<hyper::Response<Full<Bytes>>, Broken> {
    let (head, body) = request.into_parts();
    let text = |name| {
        head.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned)
    };
    if head.headers.contains_key(header::TRANSFER_ENCODING) {
        return shape(&Response {
            status: 501,
            reason: "chunked transfer encoding not supported".into(),
            body: None,
            dropped: false,
        });
    }
    let body = body.collect().await.map_err(|_| Broken)?.to_bytes();
    let Some(path) = head.uri.path().strip_prefix(PREFIX) else {
        return shape(&Response {
            status: 404,
            reason: "no such file".into(),
            body: None,
            dropped: false,
        });
    };
    let request = Request {
        method: head.method.as_str().to_owned(),
        path: if path.is_empty() {
            "/".to_owned()
        } else {
            path.to_owned()
        },
        query: head.uri.query().unwrap_or_default().to_owned(),
        authorization: text(header::AUTHORIZATION),
        content_type: text(header::CONTENT_TYPE),
        body,
    };
    let response = core.answer(request).await;
    let mut shaped = shape(&response)?;
    let offset = core.world().clock_offset;
    let now = Timestamp::now().checked_add(SignedDuration::from_secs(offset));
    let date = now.map(|now| now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string());
    if let Some(date) = date.ok().and_then(|date| HeaderValue::try_from(date).ok()) {
        shaped.headers_mut().insert(header::DATE, date);
    }
    Ok(shaped)
}

fn shape(response: &Response) -> Result<hyper::Response<Full<Bytes>>, Broken> {
    if response.dropped {
        return Err(Broken);
    }
    let mut builder = hyper::Response::builder().status(response.status);
    if response.status >= 400 {
        builder = builder.header(header::CONNECTION, "close");
    }
    let body = match &response.body {
        Some(body) => {
            builder = builder.header(header::CONTENT_TYPE, "application/json;charset=UTF-8");
            Bytes::from(body.to_string())
        }
        None => Bytes::new(),
    };
    let mut shaped = builder.body(Full::new(body)).map_err(|_| Broken)?;
    if let Ok(reason) = hyper::ext::ReasonPhrase::try_from(response.reason.as_bytes().to_vec()) {
        shaped.extensions_mut().insert(reason);
    }
    Ok(shaped)
}
