//! Commands of operators on their way into guests. Guests are clients, so each keeps a request open on which the host
//! tells it what to run; for each command it opens another one, whose bodies are then an operator's bodies.
//!
//! ```text
//!   operator: create ─► order ─► guest's open request          (1)
//!   guest:    opens the command's own request                  (2)  ─► create is answered
//!   operator: stream ─► its request body is the guest's answer (3)
//!             ◄─ its answer is the guest's request body
//! ```
//!
//! Nothing here reads a frame: the runner and the operator's program bound each other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentlab_api::{CommandRequest, CommandUser, ErrorCode, Problem, SandboxId};
use agentlab_protocol::command::{CommandOrder, CommandUser as ProtocolUser, Terminal};
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::GuestEdge;
use super::answer::{Guest, Refused};

/// How long a guest may take to open a command's request.
const GUEST: Duration = Duration::from_secs(15);
/// How long an operator may take to follow.
const OPERATOR: Duration = Duration::from_secs(30);
/// Orders that wait for one guest.
const ORDERS: usize = 16;

/// Where operators and guests find each other.
#[derive(Debug)]
pub(crate) struct Commands {
    state: Mutex<Places>,
    /// A guest has opened its request.
    news: Notify,
    stopping: CancellationToken,
}

#[derive(Debug, Default)]
struct Places {
    next: u64,
    /// The open request of each guest, and its number.
    listening: HashMap<SandboxId, (u64, mpsc::Sender<CommandOrder>)>,
    /// Ordered, and not yet opened.
    ordered: HashMap<String, (SandboxId, oneshot::Sender<Opened>)>,
    /// Opened, and not yet followed.
    opened: HashMap<String, Opened>,
}

/// A command whose guest stands by.
#[derive(Debug)]
struct Opened {
    /// Whose guest.
    sandbox: SandboxId,
    /// What the guest sends.
    output: Body,
    /// Takes what it is to be sent.
    input: oneshot::Sender<Body>,
}

impl Commands {
    pub(crate) fn new(stopping: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            news: Notify::new(),
            stopping,
        })
    }

    fn state(&self) -> MutexGuard<'_, Places> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a guest stand by for a command; returns its name.
    pub(crate) async fn create(
        &self,
        sandbox: SandboxId,
        request: CommandRequest,
    ) -> Result<String, Problem> {
        let silent = |text: &str| Problem::new(ErrorCode::GuestSilent, text.to_owned());
        let id = random_id().map_err(|error| {
            let text = format!("The kernel gave no random bytes: {error}");
            Problem::new(ErrorCode::Internal, text)
        })?;
        let orders = tokio::time::timeout(GUEST, self.listener(sandbox)).await;
        let orders = orders.map_err(|_| {
            silent("The guest does not take commands").with_hint(
                "its runner may be older than this daemon: `agentlab-template build` bakes a new one",
            )
        })?;
        let (arrived, arrival) = oneshot::channel();
        self.state().ordered.insert(id.clone(), (sandbox, arrived));
        let _ordered = Forget(|| drop(self.state().ordered.remove(&id)));
        let order = order(id.clone(), request);
        let opened = async {
            orders.send(order).await.ok()?;
            arrival.await.ok()
        };
        let opened = tokio::time::timeout(GUEST, opened).await;
        let Ok(Some(opened)) = opened else {
            return Err(silent("The guest did not answer to the command in time"));
        };
        let mut state = self.state();
        // A guest that has gone already forgets its command after this, or has done so before.
        if !opened.input.is_closed() {
            state.opened.insert(id.clone(), opened);
        }
        drop(state);
        Ok(id.clone())
    }

    /// Waits for a guest's open request: after a start, and after a restart of the daemon, it comes in a moment.
    async fn listener(&self, sandbox: SandboxId) -> mpsc::Sender<CommandOrder> {
        loop {
            let news = self.news.notified();
            if let Some((_, orders)) = self.state().listening.get(&sandbox) {
                return orders.clone();
            }
            news.await;
        }
    }

    /// Who waits for a guest to stand by for this command. A guest gets what was ordered of itself.
    fn take(&self, id: &str, sandbox: SandboxId) -> Option<oneshot::Sender<Opened>> {
        let mut state = self.state();
        if state.ordered.get(id).is_none_or(|(owner, _)| *owner != sandbox) {
            return None;
        }
        state.ordered.remove(id).map(|(_, arrived)| arrived)
    }

    /// Takes orders for a guest, in place of whoever did before.
    fn register(&self, sandbox: SandboxId) -> (u64, mpsc::Receiver<CommandOrder>) {
        let (orders, incoming) = mpsc::channel(ORDERS);
        let mut state = self.state();
        state.next += 1;
        let number = state.next;
        state.listening.insert(sandbox, (number, orders));
        drop(state);
        self.news.notify_waiters();
        (number, incoming)
    }

    /// Joins an operator's request to a guest's, and says in which sandbox that is. `None`: no such command, or it was
    /// followed already.
    pub(crate) fn follow(&self, id: &str, input: Body) -> Option<(SandboxId, Body)> {
        let opened = self.state().opened.remove(id)?;
        opened.input.send(self.bounded(input)).ok()?;
        Some((opened.sandbox, self.bounded(opened.output)))
    }

    /// Has a guest write what it holds in memory to its disks.
    pub(crate) async fn write_back(&self, sandbox: SandboxId) -> Result<(), Problem> {
        let sync = CommandRequest {
            words: vec!["sync".to_owned()],
            user: CommandUser::Root,
            directory: None,
            terminal: None,
        };
        let id = self.create(sandbox, sync).await?;
        // An operator who goes takes his command along.
        let stays = Body::from_stream(futures_util::stream::pending::<
            Result<Bytes, std::convert::Infallible>,
        >());
        if let Some((_, output)) = self.follow(&id, stays) {
            let mut output = output.into_data_stream();
            while output.next().await.is_some() {}
        }
        Ok(())
    }

    /// A body that ends when the daemon does.
    fn bounded(&self, body: Body) -> Body {
        let stop = self.stopping.clone().cancelled_owned();
        Body::from_stream(body.into_data_stream().take_until(Box::pin(stop)))
    }
}

fn order(id: String, request: CommandRequest) -> CommandOrder {
    CommandOrder {
        id,
        words: request.words,
        user: match request.user {
            CommandUser::Agent => ProtocolUser::Agent,
            CommandUser::Root => ProtocolUser::Root,
        },
        directory: request.directory,
        terminal: request.terminal.map(|terminal| Terminal {
            rows: terminal.rows,
            columns: terminal.columns,
            kind: terminal.kind,
        }),
    }
}

fn random_id() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(hex::encode(bytes))
}

/// Forgets when it goes, however it goes: who asked may break off at any moment.
struct Forget<F: Fn()>(F);

impl<F: Fn()> Drop for Forget<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Takes a guest's open request away again, unless a newer one is in its place.
struct Listening {
    commands: Arc<Commands>,
    sandbox: SandboxId,
    number: u64,
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut state = self.commands.state();
        if state
            .listening
            .get(&self.sandbox)
            .is_some_and(|(number, _)| *number == self.number)
        {
            state.listening.remove(&self.sandbox);
        }
    }
}

/// The guest's open request: one line for each command.
pub(super) async fn listen(State(edge): State<GuestEdge>, Guest(session): Guest) -> Response {
    let commands = Arc::clone(&edge.commands);
    let (number, incoming) = commands.register(session.sandbox);
    let guard = Listening {
        commands: Arc::clone(&commands),
        sandbox: session.sandbox,
        number,
    };
    // An empty line at once, so that the guest sees the request accepted.
    let begin = futures_util::stream::iter([Ok::<_, std::convert::Infallible>(Bytes::from_static(b"\n"))]);
    let lines = futures_util::stream::unfold((incoming, guard), async |(mut incoming, guard)| {
        let order: CommandOrder = incoming.recv().await?;
        let mut line = serde_json::to_vec(&order).unwrap_or_default();
        line.push(b'\n');
        Some((Ok(Bytes::from(line)), (incoming, guard)))
    });
    let stop = commands.stopping.clone().cancelled_owned();
    let lines = Box::pin(begin.chain(lines)).take_until(Box::pin(stop));
    Body::from_stream(lines).into_response()
}

/// The guest stands by for a command. Answered once its operator follows.
pub(super) async fn open(
    State(edge): State<GuestEdge>,
    Guest(session): Guest,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Refused> {
    let gone = || Refused::new(StatusCode::NOT_FOUND, "nobody waits for this command");
    let commands = &edge.commands;
    let arrived = commands.take(&id, session.sandbox).ok_or_else(gone)?;
    let (input, followed) = oneshot::channel();
    let opened = Opened {
        sandbox: session.sandbox,
        output: request.into_body(),
        input,
    };
    // Not followed in time, or the guest went: what stood by goes.
    let _opened = Forget(|| drop(commands.state().opened.remove(&id)));
    arrived.send(opened).map_err(|_| gone())?;
    let followed = tokio::time::timeout(OPERATOR, followed).await;
    match followed {
        Ok(Ok(input)) => Ok(input.into_response()),
        Ok(Err(_)) | Err(_) => Err(gone()),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    fn request() -> CommandRequest {
        CommandRequest {
            words: vec!["true".to_owned()],
            user: CommandUser::Agent,
            directory: None,
            terminal: None,
        }
    }

    async fn text(body: Body) -> String {
        String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_command_joins_its_own_guest_and_its_operator_once() {
        let commands = Commands::new(CancellationToken::new());
        let (mine, other) = (SandboxId::from_bytes([1; 16]), SandboxId::from_bytes([2; 16]));
        let guest = async {
            // The guest comes after its operator.
            tokio::task::yield_now().await;
            let (_, mut orders) = commands.register(mine);
            let order = orders.recv().await.unwrap();
            assert_eq!(order.words, ["true"]);
            assert!(
                commands.take(&order.id, other).is_none(),
                "another guest's command"
            );
            let arrived = commands.take(&order.id, mine).unwrap();
            assert!(commands.take(&order.id, mine).is_none(), "taken twice");
            let (input, followed) = oneshot::channel();
            let output = Body::from("from the guest");
            let opened = Opened {
                sandbox: mine,
                output,
                input,
            };
            arrived.send(opened).unwrap();
            text(followed.await.unwrap()).await
        };
        let operator = async {
            let id = commands.create(mine, request()).await.unwrap();
            let (whose, output) = commands.follow(&id, Body::from("to the guest")).unwrap();
            assert_eq!(whose, mine);
            assert!(commands.follow(&id, Body::empty()).is_none(), "followed twice");
            text(output).await
        };
        let (heard, seen) = tokio::join!(guest, operator);
        assert_eq!(
            (heard.as_str(), seen.as_str()),
            ("to the guest", "from the guest")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_does_not_answer_costs_its_operator_a_moment_and_leaves_nothing() {
        let commands = Commands::new(CancellationToken::new());
        let sandbox = SandboxId::from_bytes([1; 16]);
        let absent = commands.create(sandbox, request()).await.unwrap_err();
        assert_eq!(absent.code, ErrorCode::GuestSilent);
        let (_, orders) = commands.register(sandbox);
        let silent = commands.create(sandbox, request()).await.unwrap_err();
        assert_eq!(silent.code, ErrorCode::GuestSilent);
        drop(orders);
        let state = commands.state();
        assert!(state.ordered.is_empty() && state.opened.is_empty());
    }
}
