//! From a request to an answer: who calls, whether that is allowed, what it takes, what happens.
//!
//! The order of the refusals is the hypervisor's own: token, method, permission, node, parameters, and only then the
//! method itself.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;
use std::time::Duration;

use serde_json::json;
use tokio::sync::{Notify, oneshot};

use crate::access::Identity;
use crate::api;
use crate::audit::{Origin, origin_of};
use crate::boot::Boot;
use crate::call::{Call, Worker};
use crate::fault::{CallFault, Faults, WorkerFault};
use crate::locks::{Guard, Locks, Mode};
use crate::operator::Operator;
use crate::schema;
use crate::task::{Ending, Signal, Task, outcome};
use crate::timeline::{Timeline, lock};
use crate::upload;
use crate::wire::{self, Answer, Given, Refusal, Request, Response};
use crate::world::World;

/// After this long the front end stops waiting for the privileged daemon, which goes on.
const PROXY_LIMIT: Duration = Duration::from_secs(30);
/// What a wrong token costs whoever tries it.
const PENALTY: Duration = Duration::from_secs(3);
/// How calls are counted.
const CALL: &str = "call";
/// What any call costs.
const OVERHEAD: Duration = Duration::from_millis(5);
/// How long a lock is waited for, except by a clone.
const LOCK_WAIT: Duration = Duration::from_secs(10);

pub(crate) struct Core {
    world: Mutex<World>,
    pub(crate) timeline: Timeline,
    pub(crate) locks: Locks,
    pub(crate) faults: Mutex<Faults>,
    /// A machine that is destroyed right before the request in which these words stand.
    pub(crate) ambush: Mutex<Option<(u32, String)>>,
    pub(crate) boot: Arc<dyn Boot>,
    scale: f64,
    /// Somebody asked for something whose end only the outside knows.
    pub(crate) changed: Notify,
}

impl Core {
    pub(crate) fn new(world: World, scale: f64, boot: Arc<dyn Boot>) -> Arc<Self> {
        let timeline = Timeline::default();
        Arc::new(Self {
            world: Mutex::new(world),
            locks: Locks::new(timeline.clone()),
            timeline,
            faults: Mutex::new(Faults::none()),
            ambush: Mutex::default(),
            boot,
            scale,
            changed: Notify::new(),
        })
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        let mut world = lock(&self.world);
        world.now = self.timeline.now();
        api::resources::tell(&mut world, self.scale);
        world
    }

    /// A genuine span in the stand-in's time.
    pub(crate) fn span(&self, genuine: Duration) -> Duration {
        genuine.mul_f64(self.scale)
    }

    pub(crate) async fn pass(&self, genuine: Duration) {
        self.timeline.sleep(self.span(genuine)).await;
    }

    pub(crate) async fn answer(self: &Arc<Self>, request: Request) -> Response {
        let called = format!("{}?{}", request.path, request.query);
        let due = lock(&self.ambush).take_if(|(_, words)| called.contains(words.as_str()));
        if let Some((vmid, _)) = due {
            Operator::new(Arc::clone(self)).destroy(vmid);
        }
        let (sender, mut receiver) = oneshot::channel();
        let core = Arc::clone(self);
        // What came before this call has happened before it is looked at.
        self.timeline.advance();
        self.timeline.spawn(async move {
            let response = core.serve(request).await;
            let _ = sender.send(response);
        });
        loop {
            let changed = self.changed.notified();
            let next = self.timeline.advance();
            if let Ok(response) = receiver.try_recv() {
                return response;
            }
            let next = async {
                match next {
                    Some(span) => tokio::time::sleep(span).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                response = &mut receiver => {
                    if let Ok(response) = response {
                        return response;
                    }
                }
                () = changed => {}
                () = next => {}
            }
        }
    }

    async fn serve(self: &Arc<Self>, request: Request) -> Response {
        self.pass(OVERHEAD).await;
        let who = {
            let world = self.world();
            world
                .access
                .authenticate(request.authorization.as_deref(), world.seconds())
        };
        let who = match who {
            Ok(who) => who,
            Err(reason) => {
                if reason != "No ticket" {
                    self.pass(PENALTY).await;
                }
                return Err(Refusal::Unauthorized(reason)).into();
            }
        };
        if let Some(vmid) = changed(&request) {
            self.world().asks_for_change(vmid);
        }
        let is_client = origin_of(&who) == Origin::Client;
        if is_client {
            self.world().audit.begins(CALL);
        }
        let response = self.disturbed(who, &request).await;
        if is_client {
            let refusal = (response.status >= 400).then_some(response.reason.as_str());
            self.world().audit.ends(CALL, refusal);
        }
        response
    }

    /// A call with whatever goes wrong with it.
    async fn disturbed(self: &Arc<Self>, who: Identity, request: &Request) -> Response {
        let fault = lock(&self.faults).for_call(&who);
        if let Some(name) = fault.name() {
            self.world().audit.strikes(name);
        }
        let lost = match fault {
            CallFault::None => None,
            CallFault::Delay(span) => {
                self.pass(span).await;
                None
            }
            CallFault::Before(status) => return gateway(status),
            CallFault::After(status) => Some(gateway(status)),
            CallFault::DropBefore => return dropped(),
            CallFault::DropAfter => Some(dropped()),
            CallFault::Unauthorized => {
                self.pass(PENALTY).await;
                return Err(Refusal::Unauthorized("Authentication failed!")).into();
            }
        };
        let response = self.dispatch(who, request).await;
        lost.unwrap_or(response)
    }

    async fn dispatch(self: &Arc<Self>, who: Identity, request: &Request) -> Response {
        match self.prepare(who, request) {
            Ok(call) => {
                let counted = api::tasks::is_counted(&call).then(|| Arc::clone(&call));
                let mut response = Response::from(self.perform(call).await);
                if let (Some(call), Some(body)) = (counted, response.body.as_mut()) {
                    body["total"] = json!(api::tasks::total(&call));
                }
                response
            }
            Err(refusal) => Err(refusal).into(),
        }
    }

    /// Everything that can be refused before the method itself is asked.
    fn prepare(self: &Arc<Self>, who: Identity, request: &Request) -> Result<Arc<Call>, Refusal> {
        let (mut given, upload) = match upload::read(request) {
            Some(read) => read.map(|(given, file)| (given, Some(file)))?,
            None => (wire::parameters(request)?, None),
        };
        let path = segments(&request.path);
        let Some((method, variables)) = schema::find(&request.method, &path) else {
            let text = format!("Method '{} {}' not implemented", request.method, request.path);
            return Err(Refusal::NotImplemented(text));
        };
        for (name, value) in variables {
            given.insert(name, Given::One(value));
        }
        if origin_of(&who) == Origin::Client {
            let mut world = self.world();
            *world.audit.calls.entry(method.name.clone()).or_default() += 1;
        }
        let call = Arc::new(Call {
            core: Arc::clone(self),
            version: self.world().version,
            who,
            method,
            given,
            upload,
        });
        crate::permission::check(&call)?;
        if let Some(node) = call.text("node") {
            self.reach(&node)?;
        }
        schema::verify(method, call.version, &call.given)?;
        Ok(call)
    }

    async fn perform(self: &Arc<Self>, call: Arc<Call>) -> Answer {
        if !call.method.protected {
            return api::perform(call).await;
        }
        let (sender, mut receiver) = oneshot::channel();
        self.timeline.spawn(async move {
            let answer = api::perform(call).await;
            let _ = sender.send(answer);
        });
        let limit = self.timeline.sleep(self.span(PROXY_LIMIT));
        poll_fn(|_| match receiver.try_recv() {
            Ok(answer) => Poll::Ready(answer),
            Err(_) if limit.is_over() => Poll::Ready(Err(Refusal::Gateway(596, "Connection timed out"))),
            Err(_) => Poll::Pending,
        })
        .await
    }

    /// Calls for another node pass through to it, if it can be found and is up.
    fn reach(&self, node: &str) -> Result<(), Refusal> {
        match self.world().nodes.get(node) {
            Some(found) if found.online => Ok(()),
            Some(_) => Err(Refusal::Gateway(595, "No route to host")),
            None => Err(Refusal::died(format!(
                "hostname lookup '{node}' failed - failed to get address info for: {node}: Temporary failure in \
                 name resolution"
            ))),
        }
    }

    /// The lock on a machine's configuration.
    pub(crate) async fn lock_vm(&self, vmid: u32) -> Result<Guard, String> {
        self.lock_vm_for(vmid, Mode::Exclusive, LOCK_WAIT).await
    }

    pub(crate) async fn lock_vm_for(&self, vmid: u32, mode: Mode, wait: Duration) -> Result<Guard, String> {
        let path = format!("/var/lock/qemu-server/lock-{vmid}.conf");
        let refused = lock(&self.faults).lock_times_out(mode);
        if !refused && let Some(guard) = self.locks.take(&path, mode, self.span(wait)).await {
            return Ok(guard);
        }
        if refused {
            self.world().audit.strikes("lock not had in time");
            self.pass(wait).await;
        }
        Err(format!("can't lock file '{path}' - got timeout"))
    }

    /// The lock on a storage, in force while volumes are made and removed.
    pub(crate) async fn lock_storage(&self, storage: &str) -> Result<Guard, String> {
        let shared = self
            .world()
            .storages
            .get(storage)
            .is_some_and(|storage| storage.shared);
        let path = format!("/var/lock/pve-manager/pve-storage-{storage}");
        let taken = self
            .locks
            .take(&path, Mode::Exclusive, self.span(LOCK_WAIT))
            .await;
        taken.ok_or_else(|| {
            if shared {
                format!("cfs-lock 'storage-{storage}' error: got lock request timeout")
            } else {
                format!("can't lock file '{path}' - got timeout")
            }
        })
    }

    /// Starts a worker and gives its identifier.
    pub(crate) fn fork<W, F>(
        self: &Arc<Self>,
        node: &str,
        kind: &str,
        id: &str,
        who: &Identity,
        work: W,
    ) -> String
    where
        W: FnOnce(Worker) -> F,
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let (upid, signal) = self.register(node, kind, id, who);
        let worker = Worker {
            core: Arc::clone(self),
            upid: upid.clone(),
            who: who.clone(),
            node: node.to_owned(),
        };
        let fault = lock(&self.faults).for_worker(who, kind);
        let core = Arc::clone(self);
        let own = upid.clone();
        let work = work(worker);
        self.timeline.spawn(async move {
            let exit = match fault {
                WorkerFault::Fails(text) => {
                    core.world().audit.strikes("task failed");
                    Err(text)
                }
                WorkerFault::KilledAfter(span) => {
                    core.kill_after(span, signal.clone());
                    let exit = core.supervise(work, &signal).await;
                    if signal.get() == Ending::Kill && exit.as_deref() != Ok("OK") {
                        core.world().audit.strikes("clone died half way");
                    }
                    exit
                }
                WorkerFault::None => core.supervise(work, &signal).await,
                WorkerFault::Warns => {
                    core.world().audit.strikes("task with warnings");
                    let exit = core.supervise(work, &signal).await;
                    exit.map(|_| "WARNINGS: 1".to_owned())
                }
            };
            core.end_task(&own, exit);
        });
        upid
    }

    fn register(&self, node: &str, kind: &str, id: &str, who: &Identity) -> (String, Signal) {
        let mut world = self.world();
        let pid = world.pid();
        let start = world.seconds();
        let pstart = 677_000 + u64::try_from(world.now.as_millis() / 10).unwrap_or_default();
        let upid = format!(
            "UPID:{node}:{pid:08X}:{pstart:08X}:{start:08X}:{kind}:{id}:{}:",
            who.full()
        );
        let signal = Signal::default();
        if origin_of(who) == Origin::Client {
            world.audit.begins(kind);
        }
        world.tasks.push(Task {
            upid: upid.clone(),
            node: node.to_owned(),
            pid,
            pstart,
            kind: kind.to_owned(),
            id: id.to_owned(),
            who: who.clone(),
            start,
            log: Vec::new(),
            end: None,
            signal: signal.clone(),
            target: None,
        });
        (upid, signal)
    }

    fn kill_after(self: &Arc<Self>, span: Duration, signal: Signal) {
        let core = Arc::clone(self);
        self.timeline.spawn(async move {
            core.pass(span).await;
            signal.set(Ending::Kill);
            core.timeline.touch();
        });
    }

    /// Runs a worker to its end, or to a signal's.
    async fn supervise(
        &self,
        work: impl Future<Output = Result<(), String>>,
        signal: &Signal,
    ) -> Result<String, String> {
        let mut work = pin!(work);
        poll_fn(|context| match signal.get() {
            Ending::None => work
                .as_mut()
                .poll(context)
                .map(|done| done.map(|()| "OK".to_owned())),
            Ending::Abort => Poll::Ready(Err("interrupted by signal".to_owned())),
            Ending::Kill => Poll::Ready(Ok("unexpected status".to_owned())),
        })
        .await
    }

    fn end_task(&self, upid: &str, exit: Result<String, String>) {
        let mut world = self.world();
        let now = world.seconds();
        let Some(task) = world.tasks.iter_mut().rev().find(|task| task.upid == upid) else {
            return;
        };
        let aborted = task.kind == "qmclone" && task.signal.get() == Ending::Abort;
        let exit = match exit {
            Ok(exit) => exit,
            Err(text) if aborted => format!("clone failed: {text}"),
            Err(text) => text,
        };
        match exit.as_str() {
            "OK" => task.log.push("TASK OK".into()),
            "unexpected status" => {}
            _ if exit.starts_with("WARNINGS: ") => task.log.push(format!("TASK {exit}")),
            _ => task.log.push(format!("TASK ERROR: {exit}")),
        }
        let failed = (outcome(&exit) == "error").then(|| exit.clone());
        let (kind, who, target) = (task.kind.clone(), task.who.clone(), task.target);
        task.end = Some((now, exit));
        if origin_of(&who) == Origin::Client {
            world.audit.ends(&kind, failed.as_deref());
        }
        if let Some(target) = target.filter(|_| aborted) {
            api::clone::undo(&mut world, target);
        }
    }
}

/// The machine that a call would change.
fn changed(request: &Request) -> Option<u32> {
    let (_, rest) = request.path.split_once("/qemu/")?;
    let vmid = rest.split('/').next()?.parse().ok()?;
    (request.method != "GET").then_some(vmid)
}

fn gateway(status: u16) -> Response {
    let reason = match status {
        595 => "Connection refused",
        596 => "Connection timed out",
        _ => "Too many redirections",
    };
    Err(Refusal::Gateway(status, reason)).into()
}

fn dropped() -> Response {
    Response {
        dropped: true,
        ..gateway(596)
    }
}

/// A path's parts. A volume's identifier may hold slashes, escaped or not, and takes the rest.
fn segments(path: &str) -> Vec<String> {
    let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let rest;
    if let ["nodes", _, "storage", _, "content", volume @ ..] = parts.as_slice()
        && volume.len() > 1
    {
        rest = volume.join("/");
        parts.truncate(5);
        parts.push(&rest);
    }
    parts.into_iter().map(wire::unescape).collect()
}
