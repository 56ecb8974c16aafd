//! TLS that trusts one key. Names, issuers and dates mean nothing here: a guest's clock is wrong at boot, and the
//! seed says exactly which key is the host's.

use std::io;
use std::net::SocketAddrV4;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Someone else answers where the host should.
#[derive(Debug, thiserror::Error)]
#[error("the host's key is not the one pinned in the seed")]
struct WrongKey;

#[derive(Debug)]
struct PinnedKey {
    spki_sha256: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedKey {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        if agentlab_protocol::session::sha256(&parsed.subject_public_key_info()) == self.spki_sha256 {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::Other(OtherError(Arc::new(WrongKey))).into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A client for the host with this key.
pub(crate) fn connector(spki_sha256: [u8; 32]) -> Result<TlsConnector, Error> {
    let provider = Arc::new(ring::default_provider());
    let verifier = PinnedKey {
        spki_sha256,
        provider: Arc::clone(&provider),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

pub(crate) async fn connect(
    connector: &TlsConnector,
    address: SocketAddrV4,
) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    // Heartbeats and log lines are small and somebody watches them.
    stream.set_nodelay(true)?;
    let name = ServerName::from(std::net::IpAddr::V4(*address.ip()));
    connector.connect(name, stream).await.map_err(explained)
}

/// rustls shows an error of ours in its debug form; this one must be clear on a console.
fn explained(error: io::Error) -> io::Error {
    let wrong_key = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>())
        .is_some_and(|inner| matches!(inner, Error::InvalidCertificate(CertificateError::Other(_))));
    if wrong_key {
        io::Error::new(io::ErrorKind::PermissionDenied, WrongKey)
    } else {
        error
    }
}
