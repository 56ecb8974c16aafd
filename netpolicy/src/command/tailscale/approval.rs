//! Approves a route with the admin API of the tailnet: until then its devices do not take it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio_rustls::TlsConnector;

use crate::Cidr;

const USUAL_API: &str = "https://api.tailscale.com";
const USUAL_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
const HTTPS: u16 = 443;
/// For one call, from its connection to the end of its answer.
const PATIENCE: Duration = Duration::from_secs(30);
const LARGEST_ANSWER: usize = 1 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct ApiArguments {
    /// Approve the route as well, with the admin API's key in this file, or on standard input with `-`
    #[arg(long, value_name = "FILE")]
    pub(super) api_key_file: Option<PathBuf>,
    /// Where the admin API is
    #[arg(long, value_name = "URL", default_value = USUAL_API, hide = true)]
    api_url: Uri,
    /// Whom to believe that it is the admin API
    #[arg(long, value_name = "FILE", default_value = USUAL_AUTHORITIES, hide = true)]
    api_authorities: PathBuf,
}

/// Has the tailnet take a route of a device, beside those of the device that it takes already. Returns whether it did
/// not yet.
pub(super) fn approve(arguments: &ApiArguments, key: &str, device: &str, subnet: Cidr) -> Result<bool> {
    // It becomes a part of a path.
    ensure!(
        !device.is_empty() && device.bytes().all(|byte| byte.is_ascii_alphanumeric()),
        "tailscaled names itself `{}`, which is no device",
        device.escape_debug()
    );
    let api = Api {
        url: &arguments.api_url,
        path: format!("/api/v2/device/{device}/routes"),
        tls: tls(&arguments.api_authorities)?,
        key,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let wanted = subnet.to_string();
        let mut routes = enabled(&api.call(Method::GET, None).await?);
        if routes.contains(&wanted) {
            return Ok(false);
        }
        routes.push(wanted.clone());
        let after = enabled(&api.call(Method::POST, Some(json!({ "routes": routes }))).await?);
        ensure!(
            after.contains(&wanted),
            "the admin API took the routes and has others: {}",
            after.join(", ")
        );
        Ok(true)
    })
}

fn enabled(answer: &Value) -> Vec<String> {
    let routes = answer.get("enabledRoutes").and_then(Value::as_array);
    let texts = routes.into_iter().flatten().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}

fn tls(authorities: &Path) -> Result<TlsConnector> {
    let mut roots = rustls::RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(authorities)
        .with_context(|| format!("reading {}: is ca-certificates installed?", authorities.display()))?;
    roots.add_parsable_certificates(certificates.filter_map(Result::ok));
    ensure!(
        !roots.is_empty(),
        "{} holds no certificate",
        authorities.display()
    );
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The routes of one device.
struct Api<'a> {
    url: &'a Uri,
    path: String,
    tls: TlsConnector,
    key: &'a str,
}

impl Api<'_> {
    async fn call(&self, method: Method, body: Option<Value>) -> Result<Value> {
        let call = tokio::time::timeout(PATIENCE, self.send(method.clone(), body));
        let answered = call
            .await
            .unwrap_or_else(|_| Err(anyhow!("no answer within {PATIENCE:?}")));
        answered.with_context(|| {
            format!(
                "asking the admin API, {method} {}{}",
                self.url,
                self.path.trim_start_matches('/')
            )
        })
    }

    async fn send(&self, method: Method, body: Option<Value>) -> Result<Value> {
        let host = self.url.host().context("its URL names no host")?;
        ensure!(
            self.url.scheme_str() == Some("https"),
            "its URL is not https, and the key would be read on the way"
        );
        let stream = tokio::net::TcpStream::connect((host, self.url.port_u16().unwrap_or(HTTPS))).await?;
        let name = ServerName::try_from(host.to_owned())?;
        let stream = TokioIo::new(self.tls.connect(name, stream).await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        let mut key = hyper::header::HeaderValue::try_from(format!("Bearer {}", self.key))
            .map_err(|_| anyhow!("the key holds what no header may"))?;
        key.set_sensitive(true);
        let request = Request::builder()
            .method(method)
            .uri(&self.path)
            .header(HOST, host)
            .header(AUTHORIZATION, key)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(
                body.map_or_else(Bytes::new, |body| body.to_string().into()),
            ))?;
        let answered = async move {
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), LARGEST_ANSWER).collect().await;
            let body = body.map_err(|error| anyhow!("{error}"))?;
            anyhow::Ok((status, body.to_bytes()))
        };
        // The connection moves for as long as there is somebody who waits for an answer.
        let (answered, _) = tokio::join!(answered, connection);
        let (status, body) = answered?;
        judge(status, &body)
    }
}

fn judge(status: StatusCode, body: &[u8]) -> Result<Value> {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => bail!(
            "it refuses the key ({status}): an API access token, or an OAuth token with scope devices:routes, is needed"
        ),
        StatusCode::NOT_FOUND => bail!("it knows no such device: the key is of another tailnet"),
        status if !status.is_success() => {
            let words: String = String::from_utf8_lossy(body).escape_debug().take(200).collect();
            bail!("it answered {status}: {words}")
        }
        _ => serde_json::from_slice(body).context("it answered something else than JSON"),
    }
}
