//! The journal, with a node that does what a test says: a run that dies, one that fails, one that cannot be taken back.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use agentlab_backend::BackendError;
use async_trait::async_trait;

use super::*;
use crate::assembly::Outcome;
use crate::assembly::tests::{Lab, RECIPE};
use crate::shape::Shape;

/// What becomes of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Well,
    Fails,
    /// As a process ends: nothing that it would do afterwards is done.
    Dies,
}

/// Notes what it is asked for. The mark of a run is its number.
#[derive(Debug)]
struct Node {
    fate: Mutex<Fate>,
    takes_back: Mutex<bool>,
    asked: Mutex<Vec<String>>,
    runs: AtomicUsize,
}

impl Node {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            fate: Mutex::new(Fate::Well),
            takes_back: Mutex::new(true),
            asked: Mutex::new(Vec::new()),
            runs: AtomicUsize::new(0),
        })
    }

    fn note(&self, what: String) {
        self.asked.lock().unwrap().push(what);
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

fn refused() -> BackendError {
    BackendError::Refused {
        action: "making",
        vmid: vmid(),
        reason: "no".to_owned(),
        hint: None,
    }
}

fn vmid() -> Vmid {
    9000.try_into().unwrap()
}

#[async_trait]
impl Publisher for Node {
    fn uploads(&self) -> bool {
        false
    }

    async fn prepare(&self, _template: &NewTemplate) -> agentlab_backend::Result<Publication> {
        self.note("prepare".to_owned());
        let run = self.runs.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(Publication {
            vmid: vmid(),
            mark: run.to_string(),
            upload: None,
        })
    }

    async fn publish(
        &self,
        _template: &NewTemplate,
        publication: &Publication,
    ) -> agentlab_backend::Result<()> {
        self.note(format!("publish {}", publication.mark));
        let fate = *self.fate.lock().unwrap();
        match fate {
            Fate::Well => Ok(()),
            Fate::Fails => Err(refused()),
            Fate::Dies => panic!("the process dies here"),
        }
    }

    async fn tidy(&self, publication: &Publication) -> agentlab_backend::Result<()> {
        self.note(format!("tidy {}", publication.mark));
        Ok(())
    }

    async fn take_back(&self, publication: &Publication) -> agentlab_backend::Result<()> {
        self.note(format!("take back {}", publication.mark));
        let takes_back = *self.takes_back.lock().unwrap();
        if takes_back { Ok(()) } else { Err(refused()) }
    }
}

struct Stage {
    lab: Lab,
    template: Template,
    node: Arc<Node>,
}

impl Stage {
    fn set() -> Self {
        let lab = Lab::new();
        let Outcome::Built(template) = lab.build_for(Shape::Proxmox, RECIPE, false).unwrap() else {
            panic!("nothing was built")
        };
        Self {
            lab,
            template,
            node: Node::new(),
        }
    }

    fn publish(&self, fate: Fate) -> Result<()> {
        *self.node.fate.lock().unwrap() = fate;
        let order = Order {
            template: &self.template,
            vmid: vmid(),
            storage: "local",
            bridge: "vmbr1",
            replace: false,
            tools: &self.lab.tools,
        };
        let node: Arc<dyn Publisher> = self.node.clone();
        publish(&self.lab.store(), &node, &order, &mut Progress::new(false))
    }

    fn journals(&self) -> usize {
        journals(&self.lab.store()).unwrap().len()
    }
}

#[test]
fn a_run_that_died_is_taken_back_by_the_next_one_before_anything_else_and_by_its_own_mark() {
    let stage = Stage::set();
    assert!(catch_unwind(AssertUnwindSafe(|| stage.publish(Fate::Dies))).is_err());
    assert_eq!(stage.node.asked(), ["prepare", "publish 1"]);
    assert_eq!(stage.journals(), 1);
    stage.publish(Fate::Well).unwrap();
    assert_eq!(
        stage.node.asked(),
        ["take back 1", "prepare", "publish 2", "tidy 2"]
    );
    assert_eq!(stage.journals(), 0);
}

#[test]
fn what_failed_is_taken_back_at_once_and_what_cannot_be_is_named_and_tried_again_by_the_next_run() {
    let stage = Stage::set();
    let error = stage.publish(Fate::Fails).unwrap_err();
    assert_eq!(stage.node.asked(), ["prepare", "publish 1", "take back 1"]);
    assert!(!matches!(error, TemplateError::LeftBehind { .. }), "{error}");
    assert_eq!(stage.journals(), 0);

    *stage.node.takes_back.lock().unwrap() = false;
    let error = stage.publish(Fate::Fails).unwrap_err();
    assert!(matches!(error, TemplateError::LeftBehind { .. }), "{error}");
    assert!(
        error.hint().unwrap().contains("agentlab-build: 2"),
        "{:?}",
        error.hint()
    );
    assert_eq!(stage.journals(), 1);
    // What is left is nobody's but that run's: nothing new is begun beside it.
    assert!(stage.publish(Fate::Well).is_err());
    assert_eq!(
        stage.node.asked(),
        ["prepare", "publish 2", "take back 2", "take back 2"]
    );
    *stage.node.takes_back.lock().unwrap() = true;
    stage.publish(Fate::Well).unwrap();
    assert_eq!(stage.journals(), 0);
}
