//! Files to the host, in as many pieces as the connections last for.
//!
//! ```text
//!   HEAD ──► the host has n bytes ──► PUT from n ──► 201
//!     ▲                                   └─► cut: again, for as long as it gets further
//!     └───────────────────────────────────────┘
//! ```

use std::path::Path;
use std::time::Duration;

use agentlab_protocol::message::{
    ARTIFACTS_PREFIX, ArtifactName, ArtifactRole, OFFSET_HEADER, RESUMABLE_BYTES, ROLE_HEADER, SHA256_HEADER,
};
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::{Method, Response};
use tokio::time::Instant;

use super::backoff::Backoff;
use super::call::{Accepted, Call, Content, Setback, Take};
use super::ways::Listener;
use super::{Link, LinkError, STALL_PATIENCE, TRANSFER_PATIENCE};

/// Slower than this is not waited for.
const SLOWEST_BYTES_PER_SECOND: u64 = 128 * 1024;

/// One file, as the host is told of it.
struct Announced<'a> {
    action: String,
    path: String,
    headers: Vec<(&'static str, HeaderValue)>,
    file: &'a Path,
    size: u64,
}

impl Link {
    /// Streams one file up. `size` and `sha256` (lower-case hexadecimal) must be those of the file: a file that
    /// changes meanwhile is refused by the host. What the host has of it already, from a connection that was lost or
    /// from a runner that was killed, is not sent again.
    ///
    /// # Errors
    /// A refusal, a file error, or minutes in which nothing more arrived.
    pub async fn put_artifact(
        &self,
        name: &ArtifactName,
        role: ArtifactRole,
        file: &Path,
        size: u64,
        sha256: &str,
    ) -> Result<(), LinkError> {
        let action = format!("artifact {name}");
        let sum = HeaderValue::from_str(sha256).map_err(|_| LinkError::Refused {
            action: action.clone(),
            status: 400,
            reason: "SHA-256 is not hexadecimal".to_owned(),
        })?;
        let announced = Announced {
            action,
            path: format!("{ARTIFACTS_PREFIX}{}", percent_encoded(name.as_str())),
            headers: vec![
                (SHA256_HEADER, sum),
                (ROLE_HEADER, HeaderValue::from_static(role.as_str())),
            ],
            file,
            size,
        };
        self.put(&announced).await
    }

    async fn put(&self, announced: &Announced<'_>) -> Result<(), LinkError> {
        let (mut backoff, mut patient_since, mut furthest) = (Backoff::new(), Instant::now(), 0);
        loop {
            let offset = self.kept(announced).await?;
            if offset > furthest {
                (backoff, patient_since, furthest) = (Backoff::new(), Instant::now(), offset);
            }
            let reason = match self
                .rest(announced, offset)
                .attempt(&self.ways, &mut Accepted)
                .await
            {
                Ok(()) => return Ok(()),
                Err(Setback::Final(error)) => return Err(error),
                Err(Setback::Again(reason)) => reason,
            };
            let delay = backoff.delay();
            if patient_since.elapsed() + delay > TRANSFER_PATIENCE {
                return Err(LinkError::Unreachable {
                    action: announced.action.clone(),
                    reason,
                });
            }
            tokio::time::sleep(delay).await;
        }
    }

    /// How much of it the host has.
    async fn kept(&self, announced: &Announced<'_>) -> Result<u64, LinkError> {
        if announced.size < RESUMABLE_BYTES {
            return Ok(0);
        }
        let asked = Call {
            method: Method::HEAD,
            listener: Listener::Artifacts,
            headers: announced.headers.clone(),
            ..self.call(
                &announced.action,
                &announced.path,
                Content::Nothing,
                Some(TRANSFER_PATIENCE),
            )
        };
        match asked.run(&self.ways, Kept).await {
            // More than there is cannot be meant: from the beginning then.
            Ok(kept) => Ok(if kept > announced.size { 0 } else { kept }),
            // A host of an earlier version keeps nothing.
            Err(LinkError::Refused { status: 404, .. }) => Ok(0),
            Err(error) => Err(error),
        }
    }

    fn rest<'a>(&self, announced: &Announced<'a>, offset: u64) -> Call<'a> {
        let Announced { size, file: path, .. } = *announced;
        let mut headers = announced.headers.clone();
        if offset > 0 {
            headers.push((OFFSET_HEADER, offset.into()));
        }
        let rest = size.saturating_sub(offset);
        Call {
            method: Method::PUT,
            listener: Listener::Artifacts,
            headers,
            // The answer comes after the last byte is stored, and what was there before may be read once more.
            try_patience: STALL_PATIENCE
                + Duration::from_secs(rest / SLOWEST_BYTES_PER_SECOND)
                + Duration::from_secs(offset / (8 * SLOWEST_BYTES_PER_SECOND)),
            ..self.call(
                &announced.action,
                &announced.path,
                Content::File { path, offset, size },
                None,
            )
        }
    }
}

/// The number in an answer to `HEAD`.
struct Kept;

impl Take for Kept {
    type Output = u64;

    fn take(&mut self, response: Response<Incoming>) -> impl Future<Output = Result<u64, Setback>> + Send {
        let number = response.headers().get(OFFSET_HEADER);
        let number = number.and_then(|value| value.to_str().ok()?.parse().ok());
        std::future::ready(Ok(number.unwrap_or(0)))
    }
}

/// An artifact's name as a path: every byte but the unreserved ones of RFC 3986 and `/`.
fn percent_encoded(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    name.bytes()
        .map(|byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_path_whatever_it_holds() {
        assert_eq!(
            percent_encoded("files/a b%?#\u{e9}.txt"),
            "files/a%20b%25%3F%23%C3%A9.txt"
        );
    }
}
