//! A call that is allowed so far, and a worker: what the methods see of the stand-in.

use std::future::Future;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::Version;
use crate::access::Identity;
use crate::core::Core;
use crate::schema::{self, Method};
use crate::wire::{Answer, Given, Parameters, Refusal};
use crate::world::World;

/// One call that is allowed so far.
pub(crate) struct Call {
    pub(crate) core: Arc<Core>,
    pub(crate) version: Version,
    pub(crate) who: Identity,
    pub(crate) method: &'static Method,
    pub(crate) given: Parameters,
    /// The file of an upload.
    pub(crate) upload: Option<Bytes>,
}

impl Call {
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.core.world()
    }

    pub(crate) fn text(&self, name: &str) -> Option<String> {
        self.given.get(name).map(Given::text)
    }

    /// A parameter that was verified to be there.
    pub(crate) fn need(&self, name: &str) -> String {
        self.text(name).unwrap_or_default()
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.text(name)
            .and_then(|text| schema::flag(&text))
            .unwrap_or(false)
    }

    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    pub(crate) fn vmid(&self) -> u32 {
        self.need("vmid").parse().unwrap_or_default()
    }

    pub(crate) fn node(&self) -> String {
        self.need("node")
    }

    /// Refuses unless the caller has one of the privileges on the path.
    pub(crate) fn require(&self, path: &str, any_of: &[&str]) -> Result<(), Refusal> {
        let world = self.world();
        if any_of
            .iter()
            .any(|privilege| world.may(&self.who, path, privilege))
        {
            return Ok(());
        }
        Err(Refusal::Forbidden(format!(
            "Permission check failed ({path}, {})",
            any_of.join("|")
        )))
    }

    /// `skiplock` is root's alone.
    pub(crate) fn refuse_skiplock(&self) -> Result<(), Refusal> {
        if self.flag("skiplock") && !self.who.is_root() {
            return Err(Refusal::parameter("skiplock", "Only root may use this option."));
        }
        Ok(())
    }

    /// Starts a worker on behalf of the caller; the answer is its identifier.
    pub(crate) fn fork<W, F>(&self, kind: &str, id: &str, work: W) -> Answer
    where
        W: FnOnce(Worker) -> F,
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        Ok(json!(self.core.fork(&self.node(), kind, id, &self.who, work)))
    }
}

/// A worker's own view.
pub(crate) struct Worker {
    pub(crate) core: Arc<Core>,
    pub(crate) upid: String,
    pub(crate) who: Identity,
    pub(crate) node: String,
}

impl Worker {
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.core.world()
    }

    pub(crate) fn log(&self, line: impl Into<String>) {
        let mut world = self.world();
        if let Some(task) = world.tasks.iter_mut().rev().find(|task| task.upid == self.upid) {
            task.log.push(line.into());
        }
    }

    pub(crate) async fn pass(&self, milliseconds: u64) {
        self.core.pass(Duration::from_millis(milliseconds)).await;
    }
}

impl From<String> for Refusal {
    fn from(text: String) -> Self {
        Self::Died(text)
    }
}

/// `null`, which most changes answer.
pub(crate) const NOTHING: Value = Value::Null;
