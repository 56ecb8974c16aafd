//! How much a node has to do for us at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::Semaphore;

use super::request::Request;
use crate::pve::PveOptions;

/// The bounds of one node.
#[derive(Debug)]
pub(super) struct Lanes {
    pub(super) calls: Semaphore,
    pub(super) changes: Semaphore,
}

/// The bounds of all of them. Calls to another node than ours go through ours, and yet wait for the other one: they take
/// no lane of ours, so that a node that is away holds up nobody here.
#[derive(Debug)]
pub(super) struct Traffic {
    calls: usize,
    changes: usize,
    /// Of the node that machines are made on, and of the cluster, for which it answers.
    home: Arc<Lanes>,
    home_node: OnceLock<String>,
    away: Mutex<HashMap<String, Arc<Lanes>>>,
}

impl Traffic {
    pub(super) fn new(options: &PveOptions) -> Self {
        let (calls, changes) = (options.calls_per_node, options.changes_per_node());
        Self {
            calls,
            changes,
            home: Arc::new(Lanes::new(calls, changes)),
            home_node: OnceLock::new(),
            away: Mutex::default(),
        }
    }

    /// From now on this node's own calls and the cluster's are counted together.
    pub(super) fn at_home(&self, node: &str) {
        self.home_node.get_or_init(|| node.to_owned());
    }

    pub(super) fn lanes(&self, request: &Request) -> Arc<Lanes> {
        let node = request.node();
        if node.is_empty() || self.home_node.get().is_some_and(|home| home == node) {
            return self.home.clone();
        }
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Lanes::new(self.calls, self.changes));
        away.entry(node.to_owned()).or_insert_with(new).clone()
    }
}

impl Lanes {
    fn new(calls: usize, changes: usize) -> Self {
        Self {
            calls: Semaphore::new(calls),
            changes: Semaphore::new(changes),
        }
    }
}
