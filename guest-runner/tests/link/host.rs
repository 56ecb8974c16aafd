//! A host small enough to be wrong on purpose.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use agent_runner::link::Ways;
use agentlab_channel::Acceptor;
use agentlab_protocol::message::{Limits, Order, RedeemAnswer, RedeemRequest};
use agentlab_protocol::secret::{Secret32, SecretText};
use agentlab_protocol::seed::{Seed, SeedChannel};
use agentlab_protocol::session::{derive, encode_secret, sha256};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, KeyPair, PublicKeyData as _, date_time_ymd};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::sign::any_ecdsa_type;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};

pub(crate) const BUNDLE: &[u8] = &[0xb5; 3 << 20];

/// What to do with the next redemption instead of answering it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mishap {
    /// Take it, then cut the connection.
    LoseAnswer,
    /// This status.
    Status(u16),
}

#[derive(Debug)]
pub(crate) struct Asked {
    #[allow(dead_code, reason = "only the benchmark looks at it")]
    pub(crate) at: std::time::Instant,
    pub(crate) listener: &'static str,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) authorization: String,
    pub(crate) sha256: String,
    pub(crate) role: String,
    pub(crate) body: Vec<u8>,
}

#[derive(Debug, Default)]
struct State {
    asked: Vec<Asked>,
    mishaps: VecDeque<Mishap>,
    refuse_artifacts: bool,
    /// Artifacts are hashed and stored here, and not kept in memory.
    store: Option<PathBuf>,
    failed_handshakes: usize,
}

/// Dropping it cuts every connection.
pub(crate) struct Host {
    state: Arc<Mutex<State>>,
    serving: JoinSet<()>,
    pub(crate) seed: Seed,
}

impl Host {
    /// Listens on two TLS ports with a certificate that expired long ago.
    pub(crate) async fn start() -> Self {
        Self::start_as(true).await
    }

    /// Shows the same certificate without having its key.
    pub(crate) async fn start_impostor() -> Self {
        Self::start_as(false).await
    }

    async fn start_as(genuine: bool) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(vec!["not-the-host.example".to_owned()]).unwrap();
        parameters.not_before = date_time_ymd(1990, 1, 1);
        parameters.not_after = date_time_ymd(1991, 1, 1);
        let certificate = parameters.self_signed(&key).unwrap();
        let spki_sha256 = sha256(&key.subject_public_key_info());
        let signing = if genuine {
            key
        } else {
            KeyPair::generate().unwrap()
        };
        let signing = any_ecdsa_type(&PrivateKeyDer::try_from(signing.serialize_der()).unwrap()).unwrap();
        let shown = CertifiedKey::new(vec![certificate.der().clone()], signing);
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
        let tls = TlsAcceptor::from(Arc::new(config));
        let state = Arc::new(Mutex::new(State::default()));
        let mut serving = JoinSet::new();
        let mut ports = Vec::new();
        for name in ["bootstrap", "artifacts"] {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let SocketAddr::V4(address) = listener.local_addr().unwrap() else {
                unreachable!()
            };
            ports.push(address);
            serving.spawn(serve_tls(listener, tls.clone(), name, Arc::clone(&state)));
        }
        let seed = Seed {
            vmid: 1000,
            sandbox: [7; 16],
            hostname: "agentlab-1000".to_owned(),
            address: Ipv4Addr::LOCALHOST,
            prefix: 8,
            gateway: Ipv4Addr::LOCALHOST,
            bootstrap: ports[0],
            artifacts: ports[1],
            token: Secret32::new([0x77; 32]),
            spki_sha256,
            channels: vec![SeedChannel::Tls],
            clock: 0,
        };
        Self { state, serving, seed }
    }

    /// Serves a line too, at this Unix socket; every connection to it is a new daemon on the same line.
    pub(crate) fn listen_on_line(&mut self, path: &Path) {
        let listener = UnixListener::bind(path).unwrap();
        let state = Arc::clone(&self.state);
        self.serving.spawn(async move {
            loop {
                let (line, _) = listener.accept().await.unwrap();
                let mut acceptor = Acceptor::new(line);
                while let Ok(Some(stream)) = acceptor.next().await {
                    serve(stream, "line", Arc::clone(&state)).await;
                }
            }
        });
    }

    /// Ends all that runs, and every connection with it; what was asked stays known.
    pub(crate) async fn stop(&mut self) {
        self.serving.shutdown().await;
    }

    pub(crate) fn next_redemptions(&self, mishaps: &[Mishap]) {
        self.lock().mishaps.extend(mishaps);
    }

    pub(crate) fn refuse_artifacts(&self) {
        self.lock().refuse_artifacts = true;
    }

    #[allow(dead_code, reason = "for the benchmark of uploads")]
    pub(crate) fn store_artifacts(&self, path: &Path) {
        self.lock().store = Some(path.to_owned());
    }

    /// Everything asked since the last call.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.lock().asked)
    }

    pub(crate) fn failed_handshakes(&self) -> usize {
        self.lock().failed_handshakes
    }

    pub(crate) fn ways(&self) -> Ways {
        Ways::new(&self.seed, None).unwrap()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

async fn serve_tls(listener: TcpListener, tls: TlsAcceptor, name: &'static str, state: Arc<Mutex<State>>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (tls, state) = (tls.clone(), Arc::clone(&state));
        connections.spawn(async move {
            match tls.accept(stream).await {
                Ok(stream) => serve(stream, name, state).await,
                Err(_) => state.lock().unwrap().failed_handshakes += 1,
            }
        });
    }
}

async fn serve<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: T,
    listener: &'static str,
    state: Arc<Mutex<State>>,
) {
    let cut = Arc::new(Notify::new());
    let service = service_fn({
        let cut = Arc::clone(&cut);
        move |request| answer(request, listener, Arc::clone(&state), Arc::clone(&cut))
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        _ = connection => {}
        () = cut.notified() => {}
    }
}

async fn answer(
    request: Request<Incoming>,
    listener: &'static str,
    state: Arc<Mutex<State>>,
    cut: Arc<Notify>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let header = |name: &str| {
        request
            .headers()
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
            .to_owned()
    };
    let (path, method) = (request.uri().path().to_owned(), request.method().to_string());
    let (authorization, sum, role) = (
        header("authorization"),
        header("x-agentlab-sha256"),
        header("x-agentlab-role"),
    );
    let is_upload = method == "PUT" && path.starts_with("/guest/v1/artifacts/");
    if is_upload && state.lock().unwrap().refuse_artifacts {
        // Before the body: a guest must not be made to send what nobody wants.
        return Ok(reply(413, "quota of this job is used up"));
    }
    let store = state.lock().unwrap().store.clone();
    if let Some(store) = store.filter(|_| is_upload) {
        let stored = hashed_and_stored(request.into_body(), &store).await;
        return Ok(if stored == sum {
            reply(201, "")
        } else {
            reply(422, "other bytes")
        });
    }
    let body = match request.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return Ok(reply(400, "")),
    };
    let mishap = {
        let mut state = state.lock().unwrap();
        let asked = Asked {
            at: std::time::Instant::now(),
            listener,
            method,
            path: path.clone(),
            authorization,
            sha256: sum,
            role,
            body: body.to_vec(),
        };
        state.asked.push(asked);
        if path == "/guest/v1/redeem" {
            state.mishaps.pop_front()
        } else {
            None
        }
    };
    match (mishap, path.as_str()) {
        (Some(Mishap::LoseAnswer), _) => {
            cut.notify_one();
            std::future::pending().await
        }
        (Some(Mishap::Status(status)), _) => Ok(reply(status, "")),
        (None, "/guest/v1/redeem") => Ok(reply(200, redeemed(&body))),
        (None, "/guest/v1/heartbeat") => Ok(reply(200, "{\"cancel\":true}")),
        (None, "/guest/v1/repository") => Ok(reply(200, BUNDLE)),
        (None, "/guest/v1/report") => Ok(reply(202, "")),
        (None, path) if path.starts_with("/guest/v1/artifacts/") => Ok(reply(201, "")),
        (None, _) => Ok(reply(204, "")),
    }
}

async fn hashed_and_stored(mut body: Incoming, path: &Path) -> String {
    use sha2::Digest as _;
    let mut file = std::fs::File::create(path).unwrap();
    let mut hash = sha2::Sha256::new();
    while let Some(frame) = body.frame().await {
        let data = frame.unwrap().into_data().unwrap_or_default();
        hash.update(&data);
        std::io::Write::write_all(&mut file, &data).unwrap();
    }
    hex::encode(hash.finalize())
}

fn reply(status: u16, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

/// As the real host does it: the session follows from the runner's key.
fn redeemed(body: &[u8]) -> String {
    let request: RedeemRequest = serde_json::from_slice(body).unwrap();
    serde_json::to_string(&RedeemAnswer {
        session: session(&request.runner_key),
        order: Order::Hold,
        git: None,
        environment: [("KEY".to_owned(), SecretText::new("value".to_owned()))].into(),
        claude_settings: None,
        authorized_keys: Vec::new(),
        tailnet: None,
        limits: Limits {
            max_file_bytes: 1,
            max_total_bytes: 2,
            max_files: 3,
            max_log_bytes: 4,
        },
        heartbeat_seconds: 5,
        workspace: None,
    })
    .unwrap()
}

pub(crate) fn session(runner_key: &SecretText) -> SecretText {
    let key = agentlab_protocol::session::decode_secret(runner_key.expose()).unwrap();
    encode_secret(&derive(&Secret32::new([9; 32]), &[7; 16], &sha256(key.expose())))
}
