//! Requests and answers, without a socket.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Value, json};

/// Longest body that is not an upload.
const BODY_LIMIT: usize = 512 * 1024;
const UNKNOWN_PROPERTY: &str =
    "property is not defined in schema and the schema does not allow additional properties";

/// One HTTP request as the stand-in sees it.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// `GET`, `POST`, `PUT` or `DELETE`.
    pub method: String,
    /// Path after `/api2/json`, still percent-encoded.
    pub path: String,
    /// Query string, still encoded.
    pub query: String,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// The `Content-Type` header.
    pub content_type: Option<String>,
    /// The body; empty when there is none.
    pub body: Bytes,
}

/// What the stand-in answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// HTTP status, 595 to 599 included.
    pub status: u16,
    /// HTTP reason phrase, which carries meaning.
    pub reason: String,
    /// `None` for an empty body without a content type.
    pub body: Option<Value>,
    /// The connection breaks instead of answering.
    pub dropped: bool,
}

/// Why a call was not answered with data.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Refusal {
    /// 400, all wrong parameters at once.
    Parameters(BTreeMap<String, String>),
    /// 403.
    Forbidden(String),
    /// 500: everything that dies, in its own words and without the newline.
    Died(String),
    /// 501.
    NotImplemented(String),
    /// 401: a reason phrase and nothing else.
    Unauthorized(&'static str),
    /// 595 to 599: nothing is known.
    Gateway(u16, &'static str),
}

impl Refusal {
    pub(crate) fn died(text: impl Into<String>) -> Self {
        Self::Died(text.into())
    }

    pub(crate) fn parameter(name: &str, text: impl Into<String>) -> Self {
        Self::Parameters(BTreeMap::from([(name.to_owned(), text.into())]))
    }

    pub(crate) fn unknown_text() -> String {
        UNKNOWN_PROPERTY.to_owned()
    }

    /// The text a worker that dies of it leaves in its status.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Parameters(errors) => errors
                .iter()
                .map(|(name, text)| format!("{name}: {text}"))
                .collect::<Vec<_>>()
                .join(", "),
            Self::Forbidden(text) | Self::Died(text) | Self::NotImplemented(text) => text.clone(),
            Self::Unauthorized(text) | Self::Gateway(_, text) => (*text).to_owned(),
        }
    }
}

pub(crate) type Answer = Result<Value, Refusal>;

impl From<Answer> for Response {
    fn from(answer: Answer) -> Self {
        let (status, reason, body) = match answer {
            Ok(data) => (200, "OK".to_owned(), Some(json!({ "data": data }))),
            Err(Refusal::Parameters(errors)) => {
                let reason = "Parameter verification failed.".to_owned();
                let body = json!({ "data": null, "message": format!("{reason}\n"), "errors": errors });
                (400, reason, Some(body))
            }
            Err(Refusal::Forbidden(text)) => (403, first_line(&text), Some(failed(&text))),
            Err(Refusal::Died(text)) => (500, first_line(&text), Some(failed(&text))),
            Err(Refusal::NotImplemented(text)) => {
                let body = json!({ "data": null, "message": text });
                (501, text, Some(body))
            }
            Err(Refusal::Unauthorized(reason)) => (401, reason.to_owned(), None),
            Err(Refusal::Gateway(status, reason)) => (status, reason.to_owned(), None),
        };
        Self {
            status,
            reason,
            body,
            dropped: false,
        }
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn failed(text: &str) -> Value {
    json!({ "data": null, "message": format!("{text}\n") })
}

/// A parameter as it came: everything is text, or several texts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Given {
    One(String),
    Many(Vec<String>),
}

impl Given {
    pub(crate) fn text(&self) -> String {
        match self {
            Self::One(text) => text.clone(),
            Self::Many(texts) => texts.join("\0"),
        }
    }
}

pub(crate) type Parameters = BTreeMap<String, Given>;

/// Query and body of a request as parameters.
pub(crate) fn parameters(request: &Request) -> Result<Parameters, Refusal> {
    let mut given = form(&request.query);
    if request.body.is_empty() {
        return Ok(given);
    }
    if !matches!(request.method.as_str(), "POST" | "PUT") {
        return Err(Refusal::NotImplemented(format!(
            "Unexpected content for method '{}'",
            request.method
        )));
    }
    if request.body.len() > BODY_LIMIT {
        return Err(Refusal::NotImplemented("for data too large".into()));
    }
    let kind = request.content_type.as_deref().unwrap_or_default();
    match kind.split(';').next().unwrap_or_default().trim() {
        "application/json" => given.extend(from_json(&request.body)?),
        "application/x-www-form-urlencoded" | "" => {
            given.extend(form(&String::from_utf8_lossy(&request.body)))
        }
        _ => return Err(Refusal::Gateway(506, "upload needs 'multipart/form-data'")),
    }
    Ok(given)
}

fn from_json(body: &[u8]) -> Result<Parameters, Refusal> {
    let parsed: Value =
        serde_json::from_slice(body).map_err(|_| Refusal::Gateway(500, "malformed JSON string"))?;
    let Value::Object(fields) = parsed else {
        return Err(Refusal::Gateway(500, "malformed JSON string"));
    };
    Ok(fields
        .into_iter()
        .filter_map(|(name, value)| Some((name, from_value(&value)?)))
        .collect())
}

fn from_value(value: &Value) -> Option<Given> {
    match value {
        Value::Null => None,
        Value::Bool(flag) => Some(Given::One(u8::from(*flag).to_string())),
        Value::Number(number) => Some(Given::One(number.to_string())),
        Value::String(text) => Some(Given::One(text.clone())),
        Value::Array(items) => Some(Given::Many(
            items
                .iter()
                .filter_map(from_value)
                .map(|item| item.text())
                .collect(),
        )),
        Value::Object(_) => Some(Given::One(value.to_string())),
    }
}

/// Form decoding with its traps: `;` separates as `&` does, and only what stands between the first and the second `=`
/// is the value.
pub(crate) fn form(text: &str) -> Parameters {
    let mut given = Parameters::new();
    for pair in text.split(['&', ';']).filter(|pair| !pair.is_empty()) {
        let mut parts = pair.split('=');
        let name = decode(parts.next().unwrap_or_default());
        let value = decode(parts.next().unwrap_or_default());
        let all = match given.remove(&name) {
            None => Given::One(value),
            Some(Given::One(first)) => Given::Many(vec![first, value]),
            Some(Given::Many(mut several)) => {
                several.push(value);
                Given::Many(several)
            }
        };
        given.insert(name, all);
    }
    given
}

/// Percent and plus decoding; what is not a valid escape stays.
pub(crate) fn decode(text: &str) -> String {
    unescape(&text.replace('+', " "))
}

/// Percent decoding alone, as in a path.
pub(crate) fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = (byte == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        plain.push(escaped.unwrap_or(byte));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raw_equals_sign_or_semicolon_in_a_form_cuts_the_value() {
        let given = form("net0=virtio,bridge=vmbr0;tags=a&description=a%3Db+c");
        assert_eq!(given["net0"], Given::One("virtio,bridge".into()));
        assert_eq!(given["tags"], Given::One("a".into()));
        assert_eq!(given["description"], Given::One("a=b c".into()));
    }

    #[test]
    fn a_delete_with_a_body_is_not_implemented() {
        let request = Request {
            method: "DELETE".into(),
            body: Bytes::from_static(b"purge=1"),
            ..Request::default()
        };
        let response = Response::from(parameters(&request).map(|_| Value::Null));
        assert_eq!(response.status, 501);
        assert_eq!(response.reason, "Unexpected content for method 'DELETE'");
    }
}
