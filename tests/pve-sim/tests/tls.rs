//! The front end's manners on a real connection.

use std::sync::Arc;

use pve_sim::{PveSim, Scale, Version};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

async fn connect(node: &PveSim) -> TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    let certificate = CertificateDer::from_pem_slice(node.certificate().as_bytes()).unwrap();
    roots.add(certificate).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let address = node.url().strip_prefix("https://").unwrap().to_owned();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .unwrap()
}

/// Asks, and reads one answer: its first line and its body.
async fn ask(line: &mut TlsStream<TcpStream>, path: &str, token: &str) -> (String, String) {
    let request =
        format!("GET /api2/json{path} HTTP/1.1\r\nHost: node\r\nAuthorization: PVEAPIToken={token}\r\n\r\n");
    line.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(line.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let length = head
        .lines()
        .find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("content-length: ")?
                .parse()
                .ok()
        })
        .unwrap_or(0);
    let mut body = vec![0; length];
    line.read_exact(&mut body).await.unwrap();
    let first = head.lines().next().unwrap().to_owned();
    (first, String::from_utf8(body).unwrap())
}

#[tokio::test]
async fn a_connection_is_kept_after_a_yes_and_closed_after_a_no() {
    let node = PveSim::start(Version::V9, Scale(0.0)).await.unwrap();
    let mut line = connect(&node).await;
    for _ in 0..2 {
        let (first, body) = ask(&mut line, "/version", &node.token()).await;
        assert_eq!(first, "HTTP/1.1 200 OK");
        assert!(body.contains("\"9.2.11\""), "{body}");
    }
    let (first, body) = ask(&mut line, "/nodes/pve9/qemu/9999/config", &node.root_token()).await;
    let words = "Configuration file 'nodes/pve9/qemu-server/9999.conf' does not exist";
    assert_eq!(first, format!("HTTP/1.1 500 {words}"));
    assert!(body.contains("\"data\":null"), "{body}");
    let mut rest = Vec::new();
    // Closed with or without TLS's goodbye.
    drop(line.read_to_end(&mut rest).await);
    assert!(rest.is_empty());
}

#[tokio::test]
async fn a_wrong_token_gets_a_reason_and_an_empty_body() {
    let node = PveSim::start(Version::V8, Scale(0.0)).await.unwrap();
    let (first, body) = ask(&mut connect(&node).await, "/version", "a@pve!b=c").await;
    assert_eq!(
        (first.as_str(), body.as_str()),
        ("HTTP/1.1 401 Authentication failed!", "")
    );
}
