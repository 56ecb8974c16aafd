//! The guest edge: a runner does its work over each channel; everybody else hears nothing useful.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentlab_api::{JobState, JobView};
use agentlab_config::BridgeAddress;
use agentlab_protocol::message::{
    ACKNOWLEDGE_PATH, HEARTBEAT_PATH, LOGS_PATH, REDEEM_PATH, REPORT_PATH, REPOSITORY_PATH,
};
use agentlab_protocol::secret::Secret32;
use agentlab_protocol::seed::Seed;
use agentlab_protocol::session::encode_secret;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::lab::Lab;
use crate::wire::{Answer, Runner};

/// Accepts any certificate and remembers its pin.
#[derive(Debug, Default)]
struct Noting(Mutex<Option<[u8; 32]>>);

impl ServerCertVerifier for Noting {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let (_, certificate) = x509_parser::parse_x509_certificate(end_entity).unwrap();
        *self.0.lock().unwrap() = Some(Sha256::digest(certificate.public_key().raw).into());
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let schemes = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &schemes)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let schemes = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &schemes)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

async fn tls(
    address: SocketAddr,
    version: &'static rustls::SupportedProtocolVersion,
) -> std::io::Result<(TlsStream<TcpStream>, [u8; 32])> {
    let noting = Arc::new(Noting::default());
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(noting.clone())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_sni = false;
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::IpAddress(address.ip().into());
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let pin = noting.0.lock().unwrap().unwrap();
    Ok((stream, pin))
}

async fn runner(address: SocketAddr) -> Runner {
    Runner::over(tls(address, &rustls::version::TLS13).await.unwrap().0)
        .await
        .unwrap()
}

async fn post(runner: &mut Runner, path: &str, session: &str, body: Value) -> Answer {
    let bearer = format!("Bearer {session}");
    runner
        .send("POST", path, &[("authorization", &bearer)], body.to_string())
        .await
}

/// Plays the guest of a job over its serial port, up to and with redemption.
async fn redeemed(lab: &Lab, job: &JobView) -> (Runner, Value) {
    let job = lab.until(job, |job| job.vmid.is_some()).await;
    let vmid = job.vmid.unwrap();
    let line = tokio::time::timeout(Duration::from_secs(60), lab.fake.next_guest_channel(vmid))
        .await
        .unwrap();
    let seed = Seed::decode(&lab.fake.seed(vmid).unwrap()).unwrap();
    assert_eq!(seed.spki_sha256, lab.daemon().spki_sha256());
    assert_eq!(seed.bootstrap.port(), lab.daemon().bootstrap_address().port());
    let stream = agentlab_channel::connect(line).await.unwrap();
    let mut runner = Runner::over(stream).await.unwrap();
    let redeem = json!({
        "vmid": u32::from(vmid),
        "token": encode_secret(&seed.token).expose(),
        "runner_key": encode_secret(&Secret32::new([5; 32])).expose(),
        "runner_version": env!("CARGO_PKG_VERSION"),
    });
    let answer = runner.send("POST", REDEEM_PATH, &[], redeem.to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer: Value = answer.json();
    (runner, answer)
}

#[tokio::test]
async fn a_runner_does_its_job_over_the_serial_port_and_the_work_comes_back() {
    let lab = Lab::start().await;
    let job = lab.job().await;
    let (mut runner, answer) = redeemed(&lab, &job).await;
    let session = answer["session"].as_str().unwrap();
    assert_eq!(answer["order"]["job"], job.id.as_str());
    assert_eq!(
        post(&mut runner, ACKNOWLEDGE_PATH, session, Value::Null)
            .await
            .status,
        204
    );
    let beat = json!({"phase": "agent", "message": "working"});
    assert_eq!(
        post(&mut runner, HEARTBEAT_PATH, session, beat)
            .await
            .json::<Value>()["cancel"],
        false
    );
    let batch = json!({"first": 0, "pieces": [{"stream": "stdout", "text": "hello\n"}]});
    assert_eq!(post(&mut runner, LOGS_PATH, session, batch).await.status, 204);

    let bytes = b"a file";
    let sha256 = hex::encode(Sha256::digest(bytes));
    let bearer = format!("Bearer {session}");
    let headers = [
        ("authorization", bearer.as_str()),
        ("x-agentlab-role", "file"),
        ("x-agentlab-sha256", sha256.as_str()),
    ];
    let upload = async |runner: &mut Runner, name: &str, bytes: &'static [u8]| {
        runner
            .send("PUT", &format!("/guest/v1/artifacts/{name}"), &headers, bytes)
            .await
            .status
    };
    assert_eq!(upload(&mut runner, "files/out%20put.txt", bytes).await, 201);
    assert_eq!(upload(&mut runner, "files/out%20put.txt", bytes).await, 201);
    assert_eq!(upload(&mut runner, "files/other", b"another file").await, 422);
    for escape in ["..%2f..%2fagentlab.db", "%2e%2e/x", "a%00b", "a//b"] {
        assert_eq!(upload(&mut runner, escape, bytes).await, 422, "{escape}");
    }
    let report = json!({
        "version": 1, "job": job.id.as_str(), "status": "completed", "exit_code": 0, "agent_milliseconds": 7,
        "artifacts": [{"name": "files/out put.txt", "role": "file", "size_bytes": bytes.len(), "sha256": sha256}],
        "inner_sandbox": "none",
    });
    assert_eq!(post(&mut runner, REPORT_PATH, session, report).await.status, 202);

    let done = lab.until(&job, |job| job.state.is_final()).await;
    assert_eq!(done.state, JobState::Completed, "{done:?}");
    let log: Value = lab.get(&format!("/v1/jobs/{}/logs", job.id)).await.json();
    assert_eq!(log["records"][0]["text"], "hello\n");
    let artifact = lab
        .get(&format!("/v1/jobs/{}/artifacts/files/out%20put.txt", job.id))
        .await;
    assert_eq!(
        (artifact.status, artifact.body.as_slice()),
        (200, bytes.as_slice())
    );
    assert_eq!(artifact.header("x-agentlab-sha256"), sha256);
    assert_eq!(artifact.header("content-type"), "application/octet-stream");
    assert!(artifact.header("content-disposition").contains("out_put.txt"));
    let list: Value = lab.get(&format!("/v1/jobs/{}/artifacts", job.id)).await.json();
    assert_eq!(list["artifacts"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_session_is_worthless_anywhere_but_where_it_was_redeemed() {
    let lab = Lab::start().await;
    let job = lab.job().await;
    let (mut serial, answer) = redeemed(&lab, &job).await;
    let session = answer["session"].as_str().unwrap();
    // From loopback, which is no sandbox's address, although it counts as the agent subnet here.
    let mut elsewhere = runner(lab.daemon().bootstrap_address()).await;
    let beat = json!({"phase": "idle"});
    assert_eq!(
        post(&mut elsewhere, HEARTBEAT_PATH, session, beat.clone())
            .await
            .status,
        401
    );
    assert_eq!(post(&mut serial, HEARTBEAT_PATH, session, beat).await.status, 200);
}

#[tokio::test]
async fn without_a_session_every_route_says_the_same_nothing() {
    let lab = Lab::start().await;
    let sessions = [
        "",
        "Bearer",
        "Bearer nonsense",
        "Basic eDp5",
        &format!("Bearer {}", "A".repeat(43)),
    ];
    let (mut bootstrap, mut artifacts) = (
        runner(lab.daemon().bootstrap_address()).await,
        runner(lab.daemon().artifact_address()).await,
    );
    for session in sessions {
        let headers = [("authorization", session)];
        for path in [ACKNOWLEDGE_PATH, HEARTBEAT_PATH, LOGS_PATH, REPORT_PATH] {
            let answer = bootstrap.send("POST", path, &headers, "{}").await;
            assert_eq!(
                (answer.status, answer.text().as_str()),
                (401, ""),
                "{path} {session}"
            );
        }
        for (method, path) in [("GET", REPOSITORY_PATH), ("PUT", "/guest/v1/artifacts/a")] {
            let answer = artifacts.send(method, path, &headers, "").await;
            assert_eq!(
                (answer.status, answer.text().as_str()),
                (401, ""),
                "{path} {session}"
            );
        }
    }
    let secret = encode_secret(&Secret32::new([1; 32]));
    let redeem =
        json!({"vmid": 1000, "token": secret.expose(), "runner_key": secret.expose(), "runner_version": "1"});
    let answer = bootstrap.send("POST", REDEEM_PATH, &[], redeem.to_string()).await;
    assert_eq!((answer.status, answer.text().as_str()), (401, ""));
}

#[tokio::test]
async fn each_port_serves_its_own_routes_only() {
    let lab = Lab::start().await;
    let mut bootstrap = runner(lab.daemon().bootstrap_address()).await;
    let mut artifacts = runner(lab.daemon().artifact_address()).await;
    assert_eq!(bootstrap.send("GET", REPOSITORY_PATH, &[], "").await.status, 404);
    assert_eq!(artifacts.send("POST", REDEEM_PATH, &[], "{}").await.status, 404);
    assert_eq!(bootstrap.send("GET", "/v1/status", &[], "").await.status, 404);
    assert_eq!(
        bootstrap
            .send("POST", REDEEM_PATH, &[], "{\"vmid\": 1000, \"secret\": 1}")
            .await
            .status,
        422
    );
    let answer = bootstrap
        .send("POST", REDEEM_PATH, &[], vec![b' '; (1 << 20) + 1])
        .await;
    assert_eq!(answer.status, 413);
}

#[tokio::test]
async fn both_listeners_show_the_pinned_key_in_both_tls_versions() {
    let lab = Lab::start().await;
    for address in [lab.daemon().bootstrap_address(), lab.daemon().artifact_address()] {
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let (_, pin) = tls(address, version).await.unwrap();
            assert_eq!(pin, lab.daemon().spki_sha256());
        }
    }
}

#[tokio::test]
async fn a_peer_outside_the_agent_subnet_is_cut_off_before_tls() {
    let mut lab = Lab::prepare();
    lab.config.bridge_address = BridgeAddress {
        address: Ipv4Addr::new(10, 77, 0, 1),
        prefix: 16,
    };
    lab.restart().await;
    assert!(
        tls(lab.daemon().bootstrap_address(), &rustls::version::TLS13)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_guest_that_opens_connections_without_end_is_stopped() {
    let lab = Lab::start().await;
    let mut open = Vec::new();
    while let Ok((stream, _)) = tls(lab.daemon().bootstrap_address(), &rustls::version::TLS13).await {
        open.push(stream);
        assert!(open.len() < 50, "no limit");
    }
    assert!(open.len() >= 4, "{}", open.len());
    drop(open);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(
        tls(lab.daemon().bootstrap_address(), &rustls::version::TLS13)
            .await
            .is_ok()
    );
}
