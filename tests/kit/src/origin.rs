//! The origin of repositories: git's own server program behind TLS and a password, as hosting services have it.

use std::net::TcpListener as Listener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Who an origin proves to be.
#[derive(Debug, Clone)]
pub struct Identity {
    /// What has to be trusted, as PEM.
    pub certificate: String,
    key: String,
}

impl Identity {
    /// A new one for a name or an address.
    ///
    /// # Errors
    /// No certificate can be made for it.
    pub fn new(host: &str) -> Result<Self> {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed([host.to_owned()])?;
        Ok(Self {
            certificate: cert.pem(),
            key: signing_key.serialize_pem(),
        })
    }

    /// The one that an earlier test run left in a directory, or a new one that later runs find there: images that trust
    /// it need not be built again.
    ///
    /// # Errors
    /// The directory cannot be read or written.
    pub fn kept(dir: &Path, host: &str) -> Result<Self> {
        let (certificate, key) = (dir.join("certificate.pem"), dir.join("key.pem"));
        if !certificate.exists() {
            let made = Self::new(host)?;
            std::fs::create_dir_all(dir)?;
            std::fs::write(&key, &made.key)?;
            std::fs::write(&certificate, &made.certificate)?;
        }
        let read = |path: &Path| std::fs::read_to_string(path).with_context(|| path.display().to_string());
        Ok(Self {
            certificate: read(&certificate)?,
            key: read(&key)?,
        })
    }

    fn acceptor(&self) -> Result<TlsAcceptor> {
        let certificate = CertificateDer::from_pem_slice(self.certificate.as_bytes())?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes())?;
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// Serves every repository below a directory to `bot` with a token, until it is dropped.
#[derive(Debug)]
pub struct Origin {
    _serving: JoinSet<()>,
}

impl Origin {
    /// Begins. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The listener or the identity cannot be used.
    pub fn serve(root: &Path, identity: &Identity, token: &str, listener: Listener) -> Result<Self> {
        let tls = identity.acceptor()?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let root = root.to_owned();
        let secret = format!("Basic {}", STANDARD.encode(format!("bot:{token}")));
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let (tls, root, secret) = (tls.clone(), root.clone(), secret.clone());
                connections.spawn(async move {
                    if let Ok(stream) = tls.accept(socket).await {
                        // Whoever breaks off, or says what is no request, is answered by the end of the connection.
                        let _ = answer(stream, &root, &secret).await;
                    }
                });
            }
        });
        Ok(Self { _serving: serving })
    }
}

/// The head of a request.
struct Head(String);

impl Head {
    async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Self> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            ensure!(head.len() < 64 * 1024, "no request has so long a head");
            head.push(stream.read_u8().await?);
        }
        Ok(Self(String::from_utf8(head)?))
    }

    fn field(&self, name: &str) -> &str {
        let mut lines = self.0.lines();
        let found = lines.find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        });
        found.unwrap_or_default()
    }
}

/// One request of a connection, by the CGI program that git brings.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, root: &Path, secret: &str) -> Result<()> {
    let head = Head::read(&mut stream).await?;
    let mut body = vec![0; head.field("content-length").parse().unwrap_or(0)];
    stream.read_exact(&mut body).await?;
    let reply = if head.field("authorization") == secret {
        reply_of_git(&head, body, root).await?
    } else {
        b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"origin\"\r\nContent-Length: 0\r\n\
          Connection: close\r\n\r\n"
            .to_vec()
    };
    stream.write_all(&reply).await?;
    stream.shutdown().await?;
    Ok(())
}

async fn reply_of_git(head: &Head, body: Vec<u8>, root: &Path) -> Result<Vec<u8>> {
    let mut line = head.0.lines().next().unwrap_or_default().split(' ');
    let (method, target) = (line.next().context("a method")?, line.next().context("a path")?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut child = Command::new(program().await?)
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("REMOTE_USER", "bot")
        .env("REMOTE_ADDR", "127.0.0.1")
        .env("REQUEST_METHOD", method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("CONTENT_TYPE", head.field("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", head.field("content-encoding"))
        .env("GIT_PROTOCOL", head.field("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut input = child.stdin.take().context("no input")?;
    let (written, output) = tokio::join!(
        async move { input.write_all(&body).await },
        child.wait_with_output()
    );
    // A program that refuses does not read to the end.
    let _ = written;
    let output = output?.stdout;
    let end = output.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.context("git-http-backend gave no answer")?;
    let (head, body) = (String::from_utf8_lossy(&output[..end]), &output[end + 4..]);
    let status = head
        .lines()
        .find_map(|line| line.strip_prefix("Status: "))
        .unwrap_or("200 OK");
    let length = body.len();
    let reply =
        format!("HTTP/1.1 {status}\r\n{head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    Ok([reply.as_bytes(), body].concat())
}

async fn program() -> Result<PathBuf> {
    let output = Command::new("git")
        .arg("--exec-path")
        .output()
        .await
        .context("git")?;
    let directory = String::from_utf8(output.stdout)?;
    Ok(Path::new(directory.trim()).join("git-http-backend"))
}
