//! `POST /v1/bundles`: a repository on its way in, streamed to disk.

use std::time::Duration;

use agentlab_api::{ErrorCode, UploadedBundle, chain};
use agentlab_protocol::message::SHA256_HEADER;
use agentlab_store::{Incoming, Received};
use axum::Json as JsonAnswer;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;

use super::Edge;
use super::problem::Refusal;

/// A client that sends nothing for so long has gone.
const SILENCE: Duration = Duration::from_secs(60);
/// A refused body is read on for so long, or for so many bytes: a client that is still sending would otherwise see a
/// broken connection instead of the answer.
const DRAIN: Duration = Duration::from_secs(5);
const DRAIN_BYTES: usize = 256 << 20;

pub(super) async fn upload(
    State(edge): State<Edge>,
    headers: HeaderMap,
    mut body: Body,
) -> Result<(StatusCode, JsonAnswer<UploadedBundle>), Refusal> {
    let announced = headers
        .get(SHA256_HEADER)
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let stored = match edge.engine.receive_bundle().await {
        Ok(incoming) => store(incoming, &mut body, announced.as_deref()).await,
        Err(problem) => Err(problem.into()),
    };
    match stored {
        Ok(Received { sha256, size_bytes }) => Ok((
            StatusCode::CREATED,
            JsonAnswer(UploadedBundle { sha256, size_bytes }),
        )),
        Err(refusal) => {
            let _ = tokio::time::timeout(DRAIN, drain(&mut body)).await;
            Err(refusal)
        }
    }
}

async fn store(
    mut incoming: Incoming,
    body: &mut Body,
    announced: Option<&str>,
) -> Result<Received, Refusal> {
    loop {
        let frame = tokio::time::timeout(SILENCE, body.frame())
            .await
            .map_err(|_| Refusal::new(ErrorCode::MalformedRequest, "The bundle stopped arriving"))?;
        match frame {
            Some(Ok(frame)) => {
                if let Some(bytes) = frame.data_ref() {
                    incoming.write(bytes).await?;
                }
            }
            Some(Err(error)) => {
                let detail = format!("The bundle broke off: {}", chain(&error));
                return Err(Refusal::new(ErrorCode::MalformedRequest, detail));
            }
            None => break,
        }
    }
    if incoming.size_bytes() == 0 {
        return Err(Refusal::new(ErrorCode::InvalidValue, "The bundle is empty"));
    }
    Ok(incoming.finish(announced).await?)
}

async fn drain(body: &mut Body) {
    let mut left = DRAIN_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        left = left.saturating_sub(frame.data_ref().map_or(0, bytes::Bytes::len));
        if left == 0 {
            return;
        }
    }
}
