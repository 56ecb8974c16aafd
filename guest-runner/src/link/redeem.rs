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
    /// Redeems the seed's token with a key that nobody else has. Repeats it for as long as the host is away. The answer is
    /// to be acknowledged: until then the same key gets it again.
    ///
    /// # Errors
    /// The host refused, or gave an answer this runner does not understand.
    pub async fn redeem(seed: &Seed, key: &Secret32, ways: Ways) -> Result<(Self, RedeemAnswer), LinkError> {
        let request = RedeemRequest {
            vmid: seed.vmid,
            token: encode_secret(&seed.token),
            runner_key: encode_secret(key),
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
        Ok((Self::of(&answer, ways)?, answer))
    }

    /// The session of an answer.
    ///
    /// # Errors
    /// It has none.
    pub fn of(answer: &RedeemAnswer, ways: Ways) -> Result<Self, LinkError> {
        let session = decode_secret(answer.session.expose())
            .and_then(|_| bearer(answer.session.expose()))
            .ok_or_else(|| refused("session is not 32 bytes of base64url".to_owned()))?;
        Ok(Self::new(ways, session))
    }

    /// Tells the host that its answer arrived: the token is dead from then on. Repeats it for as long as the host is away,
    /// and may be repeated itself.
    ///
    /// # Errors
    /// The host refused.
    pub async fn acknowledge(&self) -> Result<(), LinkError> {
        let session = Some(self.session.clone());
        call("acknowledgement", ACKNOWLEDGE_PATH, session, Content::Nothing)
            .run(&self.ways, Accepted)
            .await
    }
}

fn refused(reason: String) -> LinkError {
    LinkError::Refused {
        action: REDEEM.to_owned(),
        status: 200,
        reason,
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
