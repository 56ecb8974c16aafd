//! A server over TLS that answers as it is told, byte by byte where a test wants that.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentlab_backend::proxmox::Fingerprint;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// Path and query, below `/api2/json`.
    pub(crate) target: String,
    pub(crate) headers: String,
    pub(crate) body: String,
    /// Which connection it came on, from 0.
    pub(crate) connection: usize,
}

impl Seen {
    pub(crate) fn is(&self, method: &str, target: &str) -> bool {
        self.method == method && self.target == target
    }
}

/// What becomes of it.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// Status, reason, body; the connection stays.
    Answer(u16, String, String),
    /// The same, and the connection is closed without a word about it.
    AnswerAndClose(String),
    /// These bytes, and then nothing more.
    Cut(Vec<u8>),
    /// Nothing, for so long.
    Hang(Duration),
}

impl Reply {
    pub(crate) fn data(data: Value) -> Self {
        Self::Answer(200, "OK".into(), serde_json::json!({ "data": data }).to_string())
    }

    pub(crate) fn refusal(status: u16, message: &str) -> Self {
        let body = serde_json::json!({ "data": null, "message": format!("{message}\n") });
        Self::Answer(status, message.to_owned(), body.to_string())
    }

    pub(crate) fn free() -> Self {
        Self::data("0".into())
    }

    pub(crate) fn taken() -> Self {
        let body = r#"{"message":"Parameter verification failed.\n","errors":{"vmid":"VM 1000 already exists"},"data":null}"#;
        Self::Answer(400, "Parameter verification failed.".into(), body.into())
    }
}

pub(crate) type Script = dyn Fn(&Seen) -> Reply + Send + Sync;

/// Listens until it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) pem: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    pub(crate) async fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let made =
            rcgen::generate_simple_self_signed(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let script: Arc<Script> = Arc::new(script);
        let mut tasks = JoinSet::new();
        let (log, acceptor) = (seen.clone(), TlsAcceptor::from(Arc::new(config)));
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            let mut number = 0;
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, script, log) = (acceptor.clone(), script.clone(), log.clone());
                connections.spawn(serve(acceptor, stream, number, script, log));
                number += 1;
            }
        });
        Self {
            url,
            fingerprint: Fingerprint(Sha256::digest(&certificate).into()),
            pem: made.cert.pem(),
            seen,
            _tasks: tasks,
        }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn changes(&self) -> Vec<String> {
        let seen = self.seen();
        let changes = seen.iter().filter(|seen| seen.method != "GET");
        changes
            .map(|seen| format!("{} {}", seen.method, seen.target))
            .collect()
    }
}

async fn serve(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    connection: usize,
    script: Arc<Script>,
    log: Arc<Mutex<Vec<Seen>>>,
) {
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let mut stream = BufReader::new(stream);
    while let Some(seen) = read(&mut stream, connection).await {
        log.lock().unwrap().push(seen.clone());
        match script(&seen) {
            Reply::Answer(status, reason, body) => {
                let text = format!(
                    "HTTP/1.1 {status} {reason}\r\nContent-Type: application/json;charset=UTF-8\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                if stream.write_all(text.as_bytes()).await.is_err() {
                    return;
                }
            }
            Reply::AnswerAndClose(body) => {
                let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                let _ = stream.write_all(text.as_bytes()).await;
                let _ = stream.shutdown().await;
                return;
            }
            Reply::Cut(bytes) => {
                let _ = stream.write_all(&bytes).await;
                let _ = stream.flush().await;
                return;
            }
            Reply::Hang(time) => {
                tokio::time::sleep(time).await;
                return;
            }
        }
        let _ = stream.flush().await;
    }
}

async fn read<S: tokio::io::AsyncRead + Unpin>(stream: &mut BufReader<S>, connection: usize) -> Option<Seen> {
    let mut first = String::new();
    if stream.read_line(&mut first).await.ok()? == 0 {
        return None;
    }
    let mut words = first.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = String::new();
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        if line.trim().is_empty() {
            break;
        }
        if let Some((key, value)) = line.split_once(':')
            && key.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok()?;
        }
        headers.push_str(&line);
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Seen {
        method,
        target: target.strip_prefix("/api2/json").unwrap_or(&target).to_owned(),
        headers,
        body: String::from_utf8(body).ok()?,
        connection,
    })
}
