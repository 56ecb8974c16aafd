//! `/v1/jobs/{job}/artifacts`.

use agentlab_api::{ArtifactView, ErrorCode, JobId};
use agentlab_protocol::message::SHA256_HEADER;
use axum::Json as JsonAnswer;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::io::AsyncReadExt as _;
use tokio_util::io::ReaderStream;

use super::Edge;
use super::problem::Refusal;
use super::request::Named;

const PIECE: usize = 128 << 10;

/// All artifacts of a job.
#[derive(Debug, Serialize)]
pub(super) struct ArtifactList {
    artifacts: Vec<ArtifactView>,
}

pub(super) async fn list(
    State(edge): State<Edge>,
    Named(id): Named<JobId>,
) -> Result<JsonAnswer<ArtifactList>, Refusal> {
    Ok(JsonAnswer(ArtifactList {
        artifacts: edge.engine.job_artifacts(&id).await?,
    }))
}

/// The bytes. Never anything a browser would run: a guest chose them.
pub(super) async fn download(
    State(edge): State<Edge>,
    Path((id, name)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    let id: JobId = id
        .parse()
        .map_err(|error| Refusal::new(ErrorCode::InvalidValue, format!("{error}")))?;
    let (artifact, file) = edge.engine.open_artifact(&id, &name).await?;
    let disposition = format!("attachment; filename=\"{}\"", file_name(&artifact.name));
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        ),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
        (header::CONTENT_LENGTH, HeaderValue::from(artifact.size_bytes)),
        (header::CONTENT_DISPOSITION, text(&disposition)?),
        (HeaderName::from_static(SHA256_HEADER), text(&artifact.sha256)?),
    ];
    let bytes = ReaderStream::with_capacity(file.take(artifact.size_bytes), PIECE);
    Ok((headers, Body::from_stream(bytes)).into_response())
}

fn text(value: &str) -> Result<HeaderValue, Refusal> {
    HeaderValue::from_str(value)
        .map_err(|_| Refusal::new(ErrorCode::Internal, "A stored value does not fit into a header"))
}

/// The last component, with only characters that no shell, header or file system reads otherwise.
fn file_name(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || "._-".contains(c) {
            c
        } else {
            '_'
        }
    };
    last.chars()
        .map(plain)
        .collect::<String>()
        .trim_start_matches('.')
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::file_name;

    #[test]
    fn a_file_name_from_a_guest_cannot_break_the_header() {
        assert_eq!(file_name("files/a\"b; c.txt"), "a_b__c.txt");
        assert_eq!(file_name("files/.bashrc"), "bashrc");
        assert_eq!(file_name("work.patch"), "work.patch");
    }
}
