//! What handlers take in: JSON bodies, queries and paths, refused as problems that name the field.

use std::str::FromStr;
use std::time::Duration;

use agentlab_api::{ErrorCode, Problem};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;

use super::problem::Refusal;

/// Largest JSON body.
pub(crate) const MAX_JSON_BYTES: usize = 1 << 20;
/// How long a JSON body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// A JSON body. An empty one is read as `{}`, for routes whose fields are all optional.
#[derive(Debug)]
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Refusal> {
        let bytes = collect(request.into_body(), MAX_JSON_BYTES).await?;
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        parse(text).map(Self)
    }
}

async fn collect(body: axum::body::Body, limit: usize) -> Result<Bytes, Refusal> {
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, limit).collect()).await;
    match collected {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Refusal::new(
            ErrorCode::TooLarge,
            format!("The body exceeds its limit of {limit} bytes"),
        )),
        Ok(Err(error)) => Err(Refusal::new(
            ErrorCode::MalformedRequest,
            format!("The body broke off: {error}"),
        )),
        Err(_) => Err(Refusal::new(
            ErrorCode::MalformedRequest,
            "The body did not arrive in time",
        )),
    }
}

/// Reads JSON, and says where in it what is wrong.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let inner = error.inner();
        if !inner.is_data() {
            return Refusal::new(
                ErrorCode::MalformedRequest,
                format!("The body is not JSON: {inner}"),
            );
        }
        let detail = inner.to_string();
        let pointer = pointer(error.path(), &detail);
        Problem::new(
            ErrorCode::InvalidValue,
            format!("The body cannot stand: {detail}"),
        )
        .with_field(pointer, detail)
        .into()
    })?;
    reader.end().map_err(|error| {
        Refusal::new(
            ErrorCode::MalformedRequest,
            format!("The body goes on after its JSON value: {error}"),
        )
    })?;
    Ok(value)
}

/// JSON Pointer to what is wrong. serde names a missing or unknown field in its message only.
fn pointer(path: &serde_path_to_error::Path, detail: &str) -> String {
    let mut segments: Vec<String> = path
        .iter()
        .filter_map(|segment| match segment {
            Segment::Map { key } => Some(key.clone()),
            Segment::Seq { index } => Some(index.to_string()),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect();
    let named = ["missing field `", "unknown field `", "duplicate field `"]
        .iter()
        .find_map(|start| {
            detail
                .strip_prefix(start)?
                .split_once('`')
                .map(|(field, _)| field)
        });
    if let Some(field) = named
        && segments.last().is_none_or(|last| last != field)
    {
        segments.push(field.to_owned());
    }
    segments
        .iter()
        .map(|segment| format!("/{}", segment.replace('~', "~0").replace('/', "~1")))
        .collect()
}

/// The query string. Unknown parameters are refused by `T`.
#[derive(Debug)]
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let query: Result<Query<T>, QueryRejection> = Query::from_request_parts(parts, state).await;
        query
            .map(|Query(value)| Self(value))
            .map_err(|rejection| Refusal::new(ErrorCode::InvalidValue, rejection.body_text()))
    }
}

/// One parameter of the path, parsed.
#[derive(Debug)]
pub(super) struct Named<T>(pub(super) T);

impl<T, S> FromRequestParts<S> for Named<T>
where
    T: FromStr<Err: std::fmt::Display>,
    S: Send + Sync,
{
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let path: Result<Path<String>, PathRejection> = Path::from_request_parts(parts, state).await;
        let Path(text) =
            path.map_err(|rejection| Refusal::new(ErrorCode::InvalidValue, rejection.body_text()))?;
        text.parse()
            .map(Self)
            .map_err(|error| Refusal::new(ErrorCode::InvalidValue, format!("{error}")))
    }
}

#[cfg(test)]
mod tests {
    use agentlab_api::JobRequest;

    use super::*;

    fn problem(text: &str) -> Problem {
        *parse::<JobRequest>(text.as_bytes()).unwrap_err().0
    }

    #[test]
    fn a_wrong_body_names_the_field_at_fault() {
        let whole = r#"{"repository": {"kind": "url", "url": "u"}, "task": "true", "profile": "demo"}"#;
        assert!(parse::<JobRequest>(whole.as_bytes()).is_ok());
        for (from, to, pointer, words) in [
            (r#""task": "true", "#, "", "/task", "missing"),
            ("profile", "prophile", "/prophile", "unknown"),
            (r#""task": "true""#, r#""task": 1"#, "/task", "string"),
            (
                r#""url": "u""#,
                r#""url": "u", "x": 1"#,
                "/repository/x",
                "unknown",
            ),
            (
                r#""task""#,
                r#""deadline_seconds": -1, "task""#,
                "/deadline_seconds",
                "-1",
            ),
        ] {
            let problem = problem(&whole.replace(from, to));
            assert_eq!(problem.code, ErrorCode::InvalidValue, "{problem:?}");
            assert_eq!(problem.errors[0].pointer, pointer, "{problem:?}");
            assert!(problem.errors[0].detail.contains(words), "{problem:?}");
        }
    }

    #[test]
    fn what_is_not_json_is_malformed() {
        for text in ["{", "nonsense", "{} {}"] {
            assert_eq!(
                parse::<serde_json::Value>(text.as_bytes()).unwrap_err().0.code,
                ErrorCode::MalformedRequest
            );
        }
    }
}
