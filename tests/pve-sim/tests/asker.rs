//! Whoever asks the stand-in something, in a test's words.

use std::time::Duration;

use pve_sim::{PveSim, Request, Response, Scale, Setup, Version};
use serde_json::{Value, json};
use tokio::time::sleep;

/// A stand-in, and who asks it.
pub(crate) struct Asker {
    pub(crate) sim: PveSim,
    pub(crate) token: String,
}

impl Asker {
    pub(crate) fn of(setup: Setup) -> Self {
        let sim = setup.in_process();
        Self {
            token: sim.token(),
            sim,
        }
    }

    pub(crate) fn lab(version: Version) -> Self {
        Self::of(Setup::lab(version, Scale(1.0)))
    }

    pub(crate) fn as_root(&self) -> Self {
        Self {
            token: self.sim.root_token(),
            sim: self.sim.clone(),
        }
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, parameters: Value) -> Response {
        let node = self.sim.node();
        let mut request = Request {
            method: method.into(),
            path: path.replace("{node}", &format!("/nodes/{node}")),
            authorization: Some(format!("PVEAPIToken={}", self.token)),
            ..Request::default()
        };
        if matches!(method, "POST" | "PUT") {
            request.content_type = Some("application/json".into());
            request.body = parameters.to_string().into();
        } else {
            let pairs = parameters.as_object().into_iter().flatten();
            let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let pairs: Vec<String> = pairs
                .map(|(key, value)| format!("{key}={}", plain(value)))
                .collect();
            request.query = pairs.join("&");
        }
        self.sim.answer(request).await
    }

    /// Data of an answer that must be one.
    pub(crate) async fn data(&self, method: &str, path: &str, parameters: Value) -> Value {
        let response = self.ask(method, path, parameters).await;
        assert_eq!(response.status, 200, "{method} {path}: {response:?}");
        response.body.unwrap()["data"].clone()
    }

    /// How a task ends.
    pub(crate) async fn end(&self, upid: &Value) -> String {
        let path = format!("{{node}}/tasks/{}/status", upid.as_str().unwrap());
        loop {
            let status = self.data("GET", &path, Value::Null).await;
            if let Some(end) = status["exitstatus"].as_str() {
                return end.to_owned();
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    pub(crate) async fn task(&self, method: &str, path: &str, parameters: Value) -> String {
        let upid = self.data(method, path, parameters).await;
        self.end(&upid).await
    }

    pub(crate) async fn clone(&self, newid: u32) -> String {
        let spec = json!({ "newid": newid, "pool": "agentlab" });
        self.task("POST", "{node}/qemu/9000/clone", spec).await
    }
}

/// Status and reason of an answer.
pub(crate) fn reason(response: &Response) -> (u16, &str) {
    (response.status, response.reason.as_str())
}
