//! Why the server's certificate is believed, and what to say when it is not.
//!
//! A node's own certificate is signed by an authority that nobody but its cluster knows, so the usual first answer is
//! no. It names the fingerprint that was seen and the key to pin it with.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};

use super::settings::{Fingerprint, Trust};

/// Where Debian keeps the authorities its users trust.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

#[derive(Debug)]
enum Rule {
    /// Any: who answers on this host's own port is trusted with more than a token.
    Any,
    /// None.
    Nobody,
    /// Exactly this certificate. Its dates do not matter: who holds its key is who was meant.
    Pinned(Fingerprint),
    /// Signed by an authority, or one of these itself.
    Chain {
        verifier: Arc<WebPkiServerVerifier>,
        certificates: Vec<CertificateDer<'static>>,
    },
}

/// Compares a server's certificate with what is believed, and remembers what it saw.
#[derive(Debug)]
pub(crate) struct Verifier {
    rule: Rule,
    provider: Arc<CryptoProvider>,
    refused: Mutex<Option<Fingerprint>>,
}

impl Verifier {
    /// # Errors
    /// In words: what is believed holds no certificate.
    pub(crate) fn new(trust: &Trust) -> Result<Arc<Self>, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let rule = match trust {
            Trust::Fingerprint(fingerprint) => Rule::Pinned(*fingerprint),
            Trust::ThisHost => Rule::Any,
            Trust::CaPem(pem) => chain(pem.as_bytes(), provider.clone())?,
            // A host that trusts nobody still learns what it could pin.
            Trust::SystemRoots => match std::fs::read(SYSTEM_ROOTS) {
                Ok(pem) => chain(&pem, provider.clone())?,
                Err(error) => {
                    tracing::warn!(%error, "{SYSTEM_ROOTS} could not be read: no authority is trusted");
                    Rule::Nobody
                }
            },
        };
        Ok(Arc::new(Self {
            rule,
            provider,
            refused: Mutex::default(),
        }))
    }

    pub(crate) fn client_config(self: &Arc<Self>) -> Result<ClientConfig, String> {
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(self.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    /// What to say of a handshake that failed because of the certificate; `None` when it failed otherwise.
    pub(crate) fn explain(&self) -> Option<String> {
        let seen = *self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = seen?;
        let asked = match &self.rule {
            Rule::Pinned(wanted) => {
                format!("its fingerprint is not the pinned {wanted}; nodes get new certificates now and then")
            }
            Rule::Any => return None,
            Rule::Nobody | Rule::Chain { .. } => {
                "nobody that is trusted here has signed it for this name".to_owned()
            }
        };
        Some(format!(
            "the server's certificate has the SHA-256 fingerprint {seen}, and {asked}. Compare with \
             `pvenode cert info` on the node; when it is the same, pin it with `proxmox_tls_fingerprint: \"{seen}\"`, or \
             name the cluster's authority with `proxmox_tls_ca_path` (a copy of /etc/pve/pve-root-ca.pem)"
        ))
    }

    fn judge(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.rule {
            Rule::Any => Ok(ServerCertVerified::assertion()),
            Rule::Nobody => Err(CertificateError::UnknownIssuer.into()),
            Rule::Pinned(wanted) if fingerprint(certificate) == *wanted => {
                Ok(ServerCertVerified::assertion())
            }
            Rule::Pinned(_) => Err(CertificateError::ApplicationVerificationFailure.into()),
            Rule::Chain { certificates, .. } if certificates.iter().any(|known| known == certificate) => {
                Ok(ServerCertVerified::assertion())
            }
            Rule::Chain { verifier, .. } => {
                verifier.verify_server_cert(certificate, intermediates, name, &[], now)
            }
        }
    }
}

fn chain(pem: &[u8], provider: Arc<CryptoProvider>) -> Result<Rule, String> {
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("it is not PEM: {error}"))?;
    if certificates.is_empty() {
        return Err("it holds no certificate".to_owned());
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates.iter().cloned());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| format!("none of its certificates can be used: {error}"))?;
    Ok(Rule::Chain {
        verifier,
        certificates,
    })
}

pub(crate) fn fingerprint(certificate: &CertificateDer<'_>) -> Fingerprint {
    Fingerprint(Sha256::digest(certificate.as_ref()).into())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let judged = self.judge(certificate, intermediates, name, now);
        let seen = judged.is_err().then(|| fingerprint(certificate));
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = seen;
        judged
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
