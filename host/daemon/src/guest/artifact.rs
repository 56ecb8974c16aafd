//! Files out of a guest, and its repository into it.

use std::time::Duration;

use agentlab_engine::{Announced, Upload};
use agentlab_protocol::message::{ArtifactName, ArtifactRole, OFFSET_HEADER, ROLE_HEADER, SHA256_HEADER};
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
/// For another connection's last piece to be written.
const LET_GO: Duration = Duration::from_secs(30);

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
    let name = name(path)?;
    let role = text(&headers, ROLE_HEADER)?.parse::<ArtifactRole>();
    let announced = Announced {
        name,
        role: role.map_err(|error| unfit(error.to_string()))?,
        sha256: sha256(&headers)?,
        offset: number(&headers, OFFSET_HEADER)?.unwrap_or(0),
        rest: number(&headers, header::CONTENT_LENGTH.as_str())?,
    };
    let mut upload = edge.engine.receive_artifact(&session, &announced).await?;
    if let Err(refused) = pour(body, &mut upload).await {
        upload.keep().await;
        return Err(refused);
    }
    let arrived = upload.finish().await?;
    edge.engine
        .artifact_received(&session, announced, arrived)
        .await?;
    Ok(StatusCode::CREATED)
}

/// How much of a file is here: where a guest whose upload broke off goes on.
pub(super) async fn kept(
    State(edge): State<GuestEdge>,
    Guest(session): Guest,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let (name, sha256) = (name(path)?, sha256(&headers)?);
    let kept = edge.engine.kept_of_artifact(&session, &name, &sha256);
    let kept = in_time(LET_GO, kept).await??;
    Ok([(OFFSET_HEADER, HeaderValue::from(kept))].into_response())
}

fn unfit(text: impl Into<String>) -> Refused {
    Refused::new(StatusCode::UNPROCESSABLE_ENTITY, text)
}

fn name(path: Result<Path<String>, PathRejection>) -> Result<ArtifactName, Refused> {
    let Path(name) = path.map_err(|_| unfit("the name is not UTF-8"))?;
    name.parse::<ArtifactName>()
        .map_err(|error| unfit(error.to_string()))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, Refused> {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .ok_or_else(|| unfit(format!("header {name} is missing")))
}

fn sha256(headers: &HeaderMap) -> Result<String, Refused> {
    let text = text(headers, SHA256_HEADER)?;
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(unfit(format!(
            "header {SHA256_HEADER} is not 64 hexadecimal digits"
        )))
    }
}

fn number(headers: &HeaderMap, name: &str) -> Result<Option<u64>, Refused> {
    let Some(value) = headers.get(name) else {
        return Ok(None);
    };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    number
        .map(Some)
        .ok_or_else(|| unfit(format!("header {name} is not a number of bytes")))
}

async fn pour(mut body: Body, upload: &mut Upload) -> Result<(), Refused> {
    loop {
        let frame = tokio::select! {
            frame = in_time(SILENCE, body.frame()) => frame?,
            () = upload.superseded() => {
                let text = "the same file is sent over another connection";
                return Err(Refused::new(StatusCode::CONFLICT, text));
            }
        };
        let Some(frame) = frame else { return Ok(()) };
        let frame = frame.map_err(|_| Refused::new(StatusCode::BAD_REQUEST, "the file broke off"))?;
        if let Some(bytes) = frame.data_ref() {
            upload.write(bytes).await?;
        }
    }
}
