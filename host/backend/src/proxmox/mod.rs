//! Proxmox VE over its REST API, with a token.
//!
//! ```text
//!   Pve over Rest ─┬─ request   a change or a question as method, target and JSON
//!                 ├─ lanes     how many calls a node has to answer at once
//!                 ├─ http      connections, what was lost and what that means
//!                 │    └─ trust    the certificate that is believed
//!                 ├─ upload    a file, over a connection of its own
//!                 ├─ examine   the same calls for whoever examines a server, answers as they came
//!                 └─ task      the UPID of an answer, followed to its end
//! ```

mod examine;
mod http;
#[cfg(feature = "in-process")]
mod in_process;
mod lanes;
mod request;
mod settings;
mod task;
mod trust;
mod upload;

use std::sync::Arc;
use std::time::Duration;

use agentlab_api::Vmid;
use async_trait::async_trait;
use serde_json::Value;
use tokio::time::{Instant, sleep};

pub use examine::{Answered, Examiner};
#[cfg(feature = "in-process")]
pub use in_process::{Asked, InProcess, Said, connect_in_process};
pub use settings::{ApiToken, ApiUrl, Fingerprint, ProxmoxSettings, Trust};

use crate::pve::{
    Begun, Change, Ended, Kind, Publisher, Pve, Read, Refusal, Upload, Wire, number, truth, with_jitter,
};
use crate::{Backend, BackendError, TaskId};
use http::{Answer, Http, Lost};
use request::Request;
use task::{LogTail, Standing, Upid};

const KIND: &str = "proxmox";

/// The REST back end. It checks what it is told, and contacts nobody: a node that does not answer yet is no reason not
/// to start. Dropping it leaves everything as it is; PVE's tasks go on.
///
/// # Errors
/// The certificates to believe, the host's name or the token cannot be used.
pub fn connect(settings: ProxmoxSettings) -> crate::Result<Arc<dyn Backend>> {
    Ok(Arc::new(pve(settings)?))
}

/// Publishes templates over the REST API. It contacts nobody yet.
///
/// # Errors
/// As [`connect`].
pub fn publisher(settings: ProxmoxSettings) -> crate::Result<Arc<dyn Publisher>> {
    Ok(Arc::new(pve(settings)?))
}

fn pve(settings: ProxmoxSettings) -> crate::Result<Pve<Rest>> {
    let http = Http::new(&settings).map_err(|reason| BackendError::Unreachable {
        backend: KIND,
        action: "starting",
        reason,
    })?;
    Ok(Pve::new(Rest { http }, settings.pve))
}

/// The REST API of a server.
#[derive(Debug)]
struct Rest {
    http: Http,
}

/// A refusal, and whether all of our patience went into it.
struct Lossy {
    refusal: Refusal,
    late: bool,
}

impl From<Refusal> for Lossy {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, late: false }
    }
}

/// How often a question is asked whose answer was lost on the way. A server that let us wait is not asked again.
const ASKED: u32 = 3;
const BEFORE_ASKING_AGAIN: Duration = Duration::from_millis(150);

/// The `data` of an answer.
fn said(answered: Result<Answer, Lost>) -> Result<Value, Lossy> {
    let answer = match answered {
        Ok(answer) => answer,
        Err(Lost::Unsent(words)) => return Err(Refusal::unreached(words).into()),
        Err(Lost::Unanswered(words)) => return Err(Refusal::unknown(words).into()),
        Err(Lost::Late(words)) => {
            return Err(Lossy {
                refusal: Refusal::unknown(words),
                late: true,
            });
        }
    };
    if answer.status != 200 {
        return Err(Refusal::answered(answer.status, &answer.reason, &answer.body).into());
    }
    match serde_json::from_slice::<Value>(&answer.body) {
        Ok(Value::Object(mut whole)) if whole.contains_key("data") => {
            Ok(whole.remove("data").unwrap_or(Value::Null))
        }
        Ok(_) => Err(Refusal::unknown("the answer holds no `data`; is this a Proxmox VE?").into()),
        Err(error) => Err(Refusal::unknown(format!("the answer is no JSON: {error}")).into()),
    }
}

/// The task that an answer names, where it names one.
fn task_in(data: &Value) -> Option<TaskId> {
    let text = data.as_str().filter(|text| text.parse::<Upid>().is_ok())?;
    text.parse().ok()
}

impl Rest {
    /// One call. What certainly had no effect, and what has none by its nature, is repeated; nothing else is.
    async fn call(&self, request: &Request) -> Result<Value, Refusal> {
        let mut tries = 1;
        loop {
            let refusal = match self.once(request).await {
                Ok(data) => return Ok(data),
                Err(refusal) => refusal,
            };
            let again = match &refusal {
                Lossy { late: true, .. } => false,
                // A token that is right is refused now and then.
                Lossy { refusal, .. } if refusal.kind == Kind::Unauthenticated => tries < 2,
                Lossy { refusal, .. } => {
                    request.is_question() && refusal.kind == Kind::Unknown && tries < ASKED
                }
            };
            if !again {
                return Err(refusal.refusal);
            }
            tries += 1;
            sleep(with_jitter(BEFORE_ASKING_AGAIN)).await;
        }
    }

    async fn once(&self, request: &Request) -> Result<Value, Lossy> {
        said(self.http.call(request).await).inspect_err(|Lossy { refusal, .. }| {
            tracing::debug!(target = request.target, %refusal, "refused");
        })
    }

    /// Follows a task to its end. A look that fails says nothing about the task.
    async fn follow_to_its_end(&self, upid: &Upid, patience: Duration) -> Result<Ended, Refusal> {
        let began = Instant::now();
        let until = began + patience;
        loop {
            sleep(with_jitter(task::pause(began.elapsed()))).await;
            let looked = match self.call(&Request::read(&upid.status())).await {
                Ok(answer) => Standing::of(answer),
                Err(refusal) => Err(refusal),
            };
            match looked {
                Ok(Standing::Running) => {}
                Ok(Standing::Done) => return Ok(Ok(())),
                Ok(Standing::DoneWithWarnings) => {
                    let log = self.log(upid).await;
                    tracing::warn!(upid = upid.as_str(), ?log, "task ended with warnings");
                    return Ok(Ok(()));
                }
                Ok(Standing::Failed(end)) => return Ok(Err(Refusal::task(&end, &self.log(upid).await))),
                Err(refusal) if matches!(refusal.kind, Kind::Unknown | Kind::Unreached) => {
                    tracing::debug!(upid = upid.as_str(), %refusal, "task could not be looked at");
                }
                Err(refusal) if refusal.kind == Kind::NoTask => return Err(refusal),
                // Nothing is known of what it did.
                Err(refusal) => {
                    return Err(Refusal::unknown(format!(
                        "its task cannot be followed: {refusal}"
                    )));
                }
            }
            if Instant::now() >= until {
                let seconds = patience.as_secs();
                let words = format!("task {} did not end within {seconds} s", upid.as_str());
                return Err(Refusal::new(Kind::Unfinished(seconds), words));
            }
        }
    }

    /// The end of its log; nothing when that cannot be had.
    async fn log(&self, upid: &Upid) -> Vec<String> {
        let mut tail = LogTail::default();
        for page in upid.log_pages() {
            let Ok(lines) = self.call(&Request::read(&page)).await else {
                break;
            };
            if !tail.take(lines) {
                break;
            }
        }
        tail.into_lines()
    }
}

#[async_trait]
impl Wire for Rest {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn at_home(&self, node: &str) {
        self.http.at_home(node);
    }

    async fn read(&self, read: &Read) -> Result<Value, Refusal> {
        self.call(&Request::read(read)).await
    }

    async fn begin(&self, node: &str, change: &Change, _patience: Duration) -> Result<Begun, Refusal> {
        let data = self.call(&Request::change(node, change)).await?;
        let Some(upid) = data.as_str().filter(|text| text.starts_with("UPID:")) else {
            return Ok(Begun::Done(data));
        };
        // A worker is at it all the same.
        let unreadable = || Refusal::unknown(format!("its task cannot be followed: `{upid}`"));
        upid.parse::<Upid>().map_err(|()| unreadable())?;
        let task: TaskId = upid.parse().map_err(|_| unreadable())?;
        tracing::debug!(upid = %task, "task begun");
        Ok(Begun::Task(task))
    }

    async fn follow(&self, task: &TaskId, patience: Duration) -> Result<Ended, Refusal> {
        match task.as_str().parse() {
            Ok(upid) => self.follow_to_its_end(&upid, patience).await,
            Err(()) => Err(Refusal::new(
                Kind::NoTask,
                format!("`{task}` is no task of Proxmox VE"),
            )),
        }
    }

    fn uploads(&self) -> bool {
        true
    }

    /// Never repeated: whoever asked takes back what may have come of it.
    async fn upload(&self, node: &str, upload: &Upload) -> Result<Option<TaskId>, Refusal> {
        let data = said(self.http.upload(node, upload).await).map_err(|lossy| lossy.refusal)?;
        Ok(task_in(&data))
    }

    async fn ping(&self, node: &str, vmid: Vmid) -> Result<(), Refusal> {
        self.call(&Request::ping(node, vmid)).await.map(drop)
    }

    async fn execute(
        &self,
        node: &str,
        vmid: Vmid,
        program: &[String],
        patience: Duration,
    ) -> Result<Value, Refusal> {
        let until = Instant::now() + patience;
        let begun = self.call(&Request::execute(node, vmid, program)).await;
        let begun = begun.map_err(|refusal| {
            if refusal.kind != Kind::Unknown {
                return refusal;
            }
            // PVE cannot write down what the agent says of a program that is not there.
            let name = program.first().map_or("", String::as_str);
            let words = format!("{refusal}; most likely the guest has no program `{name}`");
            Refusal::new(Kind::Other, words)
        })?;
        let pid = begun.get("pid").cloned().unwrap_or_default();
        let pid = number(&pid).ok_or_else(|| Refusal::unknown("the agent names no process"))?;
        let began = Instant::now();
        loop {
            sleep(with_jitter(task::pause(began.elapsed()))).await;
            // Whoever reads the end takes it away: an answer that is lost cannot be had again.
            let answer = self.once(&Request::executed(node, vmid, pid)).await;
            let answer = answer.map_err(|lossy| lossy.refusal)?;
            if answer.get("exited").and_then(truth).unwrap_or(false) {
                return Ok(answer);
            }
            if Instant::now() >= until {
                let seconds = patience.as_secs();
                return Err(Refusal::unknown(format!(
                    "process {pid} did not end within {seconds} s"
                )));
            }
        }
    }
}
