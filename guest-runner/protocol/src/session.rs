//! Derives a session from what the host keeps and what the guest sent, so that the same redemption gives the same
//! session even across a restart of the daemon, and nobody but the host can compute one.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hkdf::Hkdf;
use sha2::{Digest, Sha256};

use crate::secret::{Secret32, SecretText};

/// First bytes of HKDF's info: ties the output to this use and this version.
const INFO: &[u8] = b"agentlab session v1";

/// The session of a redemption: HKDF-SHA256 without salt over the host's key, info = label, sandbox, runner key's
/// hash. Host only; the guest receives it in [`crate::message::RedeemAnswer`].
#[must_use]
pub fn derive(host_key: &Secret32, sandbox: &[u8; 16], runner_key_sha256: &[u8; 32]) -> Secret32 {
    let mut session = [0u8; 32];
    #[expect(
        clippy::expect_used,
        reason = "HKDF refuses only outputs above 255 hashes; this one is one hash long"
    )]
    Hkdf::<Sha256>::new(None, host_key.expose())
        .expand_multi_info(&[INFO, sandbox, runner_key_sha256], &mut session)
        .expect("32 bytes are one hash");
    let secret = Secret32::new(session);
    zeroize::Zeroize::zeroize(&mut session);
    secret
}

/// SHA-256.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Base64url without padding: 43 characters.
#[must_use]
pub fn encode_secret(secret: &Secret32) -> SecretText {
    SecretText::new(URL_SAFE_NO_PAD.encode(secret.expose()))
}

/// Reverse of [`encode_secret`]; `None` unless it is exactly 32 bytes.
#[must_use]
pub fn decode_secret(text: &str) -> Option<Secret32> {
    // 43 characters are 32 bytes; anything longer is not worth decoding.
    if text.len() != 43 {
        return None;
    }
    let mut bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let secret = <[u8; 32]>::try_from(bytes.as_slice()).ok().map(Secret32::new);
    zeroize::Zeroize::zeroize(&mut bytes);
    secret
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_shows_the_session_this_crate_derives() {
        let session = derive(&Secret32::new([0x33; 32]), &[0x44; 16], &sha256(&[0x55; 32]));
        let text = encode_secret(&session);
        let document: String = include_str!("../../../docs/protocol.md")
            .split_whitespace()
            .collect();
        assert!(document.contains(text.expose()), "{}", text.expose());
    }

    #[test]
    fn every_input_changes_the_session() {
        let base = derive(&Secret32::new([1; 32]), &[2; 16], &[3; 32]);
        assert_eq!(base, derive(&Secret32::new([1; 32]), &[2; 16], &[3; 32]));
        assert_ne!(base, derive(&Secret32::new([9; 32]), &[2; 16], &[3; 32]));
        assert_ne!(base, derive(&Secret32::new([1; 32]), &[9; 16], &[3; 32]));
        assert_ne!(base, derive(&Secret32::new([1; 32]), &[2; 16], &[9; 32]));
        assert_ne!(base.expose(), &[0; 32]);
    }

    #[test]
    fn only_exactly_32_bytes_are_a_secret() {
        let secret = Secret32::new([0xfb; 32]);
        let text = encode_secret(&secret);
        assert_eq!(decode_secret(text.expose()), Some(secret));
        let padded = format!("{}=", text.expose());
        let standard = text.expose().replace('_', "/").replace('-', "+");
        for wrong in [
            "",
            "AAAA",
            padded.as_str(),
            standard.as_str(),
            &text.expose()[..42],
        ] {
            assert_eq!(decode_secret(wrong), None, "{wrong}");
        }
    }
}
