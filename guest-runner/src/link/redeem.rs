//! Turns the seed's token into a session: the same key until the host has answered, then the acknowledgement.

use agentlab_protocol::message::{ACKNOWLEDGE_PATH, REDEEM_PATH, RedeemAnswer, RedeemRequest};
use agentlab_protocol::secret::Secret32;
use agentlab_protocol::seed::Seed;
use agentlab_protocol::session::{decode_secret, encode_secret};
use bytes::Bytes;
use hyper::Method;
use hyper::header::HeaderValue;

use super::call::{Accepted, Answer, Call, Content, TRY_PATIENCE};
use super::ways::{Listener, Ways};
use super::{Link, LinkError};

const REDEEM: &str = "redemption";

impl Link {
    /// Redeems the seed's token and acknowledges the answer. Repeats both for as long as the host is away.
    ///
    /// # Errors
    /// The host refused, or gave an answer this runner does not understand.
    pub async fn redeem(seed: &Seed, ways: Ways) -> Result<(Self, RedeemAnswer), LinkError> {
        let refused = |reason: String| LinkError::Refused {
            action: REDEEM.to_owned(),
            status: 200,
            reason,
        };
        let mut key = [0u8; 32];
        getrandom::fill(&mut key).map_err(|error| refused(format!("no random bytes: {error}")))?;
        let request = RedeemRequest {
            vmid: seed.vmid,
            token: encode_secret(&seed.token),
            runner_key: encode_secret(&Secret32::new(key)),
            runner_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        // Written once: every repetition is the same, key included.
        let content = Content::Json(json(REDEEM, &request)?);
        let bytes = call(REDEEM, REDEEM_PATH, None, content)
            .run(&ways, Answer)
            .await?;
        // serde's message may quote a value, and every value here may be a secret: say only where.
        let answer: RedeemAnswer = serde_json::from_slice(&bytes).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            refused(format!(
                "answer is not one of protocol version 1 (at line {line} column {column})"
            ))
        })?;
        let session = decode_secret(answer.session.expose())
            .and_then(|_| bearer(answer.session.expose()))
            .ok_or_else(|| refused("session is not 32 bytes of base64url".to_owned()))?;
        call(
            "acknowledgement",
            ACKNOWLEDGE_PATH,
            Some(session.clone()),
            Content::Nothing,
        )
        .run(&ways, Accepted)
        .await?;
        Ok((Self::new(ways, session), answer))
    }
}

fn call<'a>(action: &str, path: &str, session: Option<HeaderValue>, content: Content<'a>) -> Call<'a> {
    Call {
        action: action.to_owned(),
        method: Method::POST,
        path: path.to_owned(),
        listener: Listener::Bootstrap,
        session,
        headers: Vec::new(),
        content,
        try_patience: TRY_PATIENCE,
        patience: None,
    }
}

fn bearer(session: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {session}")).ok()?;
    // Never indexed by HTTP/2 and never printed.
    value.set_sensitive(true);
    Some(value)
}

pub(crate) fn json<T: serde::Serialize>(action: &str, body: &T) -> Result<Bytes, LinkError> {
    serde_json::to_vec(body)
        .map(Bytes::from)
        .map_err(|error| LinkError::Refused {
            action: action.to_owned(),
            status: 400,
            reason: format!("message could not be written: {error}"),
        })
}
