//! Files out of a guest, and its repository into it.

use std::time::Duration;

use agentlab_engine::Upload;
use agentlab_protocol::message::{ArtifactName, ArtifactRole, ROLE_HEADER, SHA256_HEADER};
use agentlab_store::Received;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use http_body_util::BodyExt as _;
use tokio::io::AsyncReadExt as _;
use tokio_util::io::ReaderStream;

use super::GuestEdge;
use super::answer::{Guest, Refused, in_time};

const PIECE: usize = 128 << 10;
/// An upload may take long; it may not stand still.
const SILENCE: Duration = Duration::from_secs(60);

pub(super) async fn repository(
    State(edge): State<GuestEdge>,
    Guest(session): Guest,
) -> Result<Response, Refused> {
    let (file, size) = edge.engine.repository(&session).await?;
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        ),
        (header::CONTENT_LENGTH, HeaderValue::from(size)),
    ];
    Ok((
        headers,
        Body::from_stream(ReaderStream::with_capacity(file.take(size), PIECE)),
    )
        .into_response())
}

/// The bytes are taken, hashed and compared before anything is recorded.
pub(super) async fn receive(
    State(edge): State<GuestEdge>,
    Guest(session): Guest,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Refused> {
    let unfit = |text: String| Refused::new(StatusCode::UNPROCESSABLE_ENTITY, text);
    let Path(name) = path.map_err(|_| unfit("the name is not UTF-8".into()))?;
    let name: ArtifactName = name.parse().map_err(|error| unfit(format!("{error}")))?;
    let role: ArtifactRole = text(&headers, ROLE_HEADER)?
        .parse()
        .map_err(|error| unfit(format!("{error}")))?;
    let announced = text(&headers, SHA256_HEADER)?;
    let incoming = edge.engine.receive_artifact(&session, name.clone(), role).await?;
    let received = take(incoming, body, announced).await?;
    edge.engine
        .artifact_received(&session, name, role, received)
        .await?;
    Ok(StatusCode::CREATED)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, Refused> {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .ok_or_else(|| {
            Refused::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                format!("header {name} is missing"),
            )
        })
}

async fn take(mut incoming: Upload, mut body: Body, announced: &str) -> Result<Received, Refused> {
    while let Some(frame) = in_time(SILENCE, body.frame()).await? {
        let frame = frame.map_err(|_| Refused::new(StatusCode::BAD_REQUEST, "the file broke off"))?;
        if let Some(bytes) = frame.data_ref() {
            incoming.write(bytes).await?;
        }
    }
    Ok(incoming.finish(Some(announced)).await?)
}
