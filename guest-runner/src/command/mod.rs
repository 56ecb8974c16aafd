//! An operator's commands: run beside a job or in a sandbox that is held, outside the agent's inner sandbox.
//!
//! ```text
//!   orders (one open request) ──► one task each ──► program, on pipes or on a terminal
//!                                     ▲ frames: input, size          │ frames: output, exit
//!                                     └── the command's own request ─┘
//! ```
//!
//! A command ends with its program, or with its operator: when the request breaks, what it runs is killed.

mod program;
mod terminal;

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use agentlab_protocol::command::{CommandOrder, CommandUser, Frame, FrameReader};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::program::Program;
use crate::job::{AgentUser, Layout};
use crate::link::{Link, LinkError};

/// Commands at once.
const MOST: usize = 8;
/// Between two requests for orders.
const PAUSE: Duration = Duration::from_millis(200);
/// How long output and last frame may take to an operator who is there and does not read on, as in a pager. Whoever goes
/// ends it at once.
const FAREWELL: Duration = Duration::from_secs(60 * 60);
/// Pieces of output on their way to the host.
const PIECES: usize = 4;

/// Runs what operators order, for as long as the session lasts.
pub async fn serve(link: Link, layout: Layout) -> Infallible {
    let mut running = JoinSet::new();
    loop {
        let mut orders = match link.orders().await {
            Ok(orders) => orders,
            Err(LinkError::Unreachable { .. }) => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            // A host that does not know the route never sends an order; the job does not need it.
            Err(_) => return std::future::pending().await,
        };
        loop {
            tokio::select! {
                order = orders.next() => match order {
                    Some(order) => {
                        while running.try_join_next().is_some() {}
                        let full = running.len() >= MOST;
                        running.spawn(run(link.clone(), layout.clone(), order, full));
                    }
                    None => break,
                },
                Some(_) = running.join_next(), if !running.is_empty() => {}
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// One command, from its order to its exit.
async fn run(link: Link, layout: Layout, order: CommandOrder, full: bool) {
    let (output, pieces) = mpsc::channel(PIECES);
    // Nobody waits for it any more, or the host is away: nothing was begun.
    let Ok(mut input) = link.command(&order.id, pieces).await else {
        return;
    };
    let last = if full {
        Frame::Failed(format!("{MOST} commands run here already"))
    } else {
        match Program::start(&order, &layout, &user(&order, &layout)) {
            Ok(program) => match converse(program, &mut input, &output).await {
                Some(last) => last,
                None => return,
            },
            Err(words) => Frame::Failed(words),
        }
    };
    let _ = output.send(Bytes::from(last.encode())).await;
    drop(output);
    // Letting go of the answer now would cancel the request, and with it what is not sent yet. The operator ends it.
    let ended = async { while let Some(Ok(_)) = input.frame().await {} };
    let _ = tokio::time::timeout(FAREWELL, ended).await;
}

fn user(order: &CommandOrder, layout: &Layout) -> AgentUser {
    match order.user {
        CommandUser::Agent => layout.user.clone(),
        CommandUser::Root => AgentUser {
            name: "root".to_owned(),
            uid: 0,
            gid: 0,
            home: PathBuf::from("/root"),
            path: layout.user.path.clone(),
        },
    }
}

/// Carries frames until the program has ended; `None` when its operator went first, and the program with him.
async fn converse(program: Program, input: &mut Incoming, output: &mpsc::Sender<Bytes>) -> Option<Frame> {
    let (mut program, mut pipes) = program.split();
    let mut gone = std::pin::pin!(feed(input, &mut pipes.input));
    let mut ended = std::pin::pin!(async {
        let code = program.wait_with_output(&mut pipes.output, output).await;
        Frame::Exit(code)
    });
    tokio::select! {
        // Dropping the program kills its processes.
        () = &mut gone => None,
        last = &mut ended => Some(last),
        () = output.closed() => None,
    }
}

/// Hands input on. Returns only when the operator is gone: the end of a command's input does not end the command.
async fn feed(input: &mut Incoming, into: &mut program::Input) {
    let mut frames = FrameReader::default();
    loop {
        let frame = match input.frame().await {
            Some(Ok(frame)) => frame,
            Some(Err(_)) | None => return,
        };
        let Ok(bytes) = frame.into_data() else { continue };
        frames.push(&bytes);
        loop {
            match frames.next_frame() {
                Ok(Some(Frame::Input(bytes))) => into.write(&bytes).await,
                Ok(Some(Frame::InputEnd)) => into.end().await,
                Ok(Some(Frame::Resize { rows, columns })) => into.resize(rows, columns),
                Ok(Some(Frame::Output(_) | Frame::Error(_) | Frame::Exit(_) | Frame::Failed(_))) | Err(_) => {
                    return;
                }
                Ok(None) => break,
            }
        }
    }
}
