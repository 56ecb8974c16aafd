//! A server examined rather than used: each answer as it came, refusals too.

use http::Method;
use serde_json::Value;

use super::http::{Http, Lost};
use super::request::Request;
use super::settings::ProxmoxSettings;

/// A parameter that no method of PVE has. Permissions are looked at before parameters, so a call that has it is refused
/// for want of permission, or else for the parameter, and never takes effect.
const UNKNOWN: &str = r#"{"agentlab-probe":1}"#;

/// Asks, and changes nothing.
#[derive(Debug)]
pub struct Examiner {
    http: Http,
    token: String,
}

/// What a server said.
#[derive(Debug, Clone, PartialEq)]
pub struct Answered {
    /// The HTTP status.
    pub status: u16,
    /// The phrase beside it, in which PVE says why.
    pub reason: String,
    /// The `Date` header.
    pub date: Option<String>,
    /// `data` of the body; null where there was none.
    pub data: Value,
}

impl Examiner {
    /// Contacts nobody yet.
    ///
    /// # Errors
    /// In words: the certificates to believe, the host's name or the token cannot be used.
    pub fn new(settings: &ProxmoxSettings) -> Result<Self, String> {
        Ok(Self {
            http: Http::new(settings)?,
            token: settings.token.name().to_owned(),
        })
    }

    /// Full name of the token, without its secret.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// GET of a path below `/api2/json`, such as `/access/permissions`.
    ///
    /// # Errors
    /// In words: the path is none, or no answer came.
    pub async fn get(&self, path: &str) -> Result<Answered, String> {
        self.call(Method::GET, path, None).await
    }

    /// POST to a path with a parameter that no method knows: tells what is permitted, and has no effect.
    ///
    /// # Errors
    /// As [`Examiner::get`].
    pub async fn probe(&self, path: &str) -> Result<Answered, String> {
        self.call(Method::POST, path, Some(UNKNOWN.to_owned())).await
    }

    async fn call(&self, method: Method, path: &str, body: Option<String>) -> Result<Answered, String> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:@!/?=&".contains(&byte);
        if !path.starts_with('/') || !path.bytes().all(is_plain) || path.contains("/..") {
            return Err(format!("`{}` is no path of the API", path.escape_debug()));
        }
        let request = Request {
            method,
            target: format!("/api2/json{path}"),
            body,
        };
        let answer = match self.http.call(&request).await {
            Ok(answer) => answer,
            Err(Lost::Unsent(words) | Lost::Unanswered(words) | Lost::Late(words)) => return Err(words),
        };
        let body: Option<Value> = serde_json::from_slice(&answer.body).ok();
        Ok(Answered {
            status: answer.status,
            reason: answer.reason,
            date: answer.date,
            data: body.map_or(Value::Null, |mut body| body["data"].take()),
        })
    }
}
