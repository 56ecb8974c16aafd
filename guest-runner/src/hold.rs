//! A sandbox without a job: a person works in it. The same secrets and settings as for a job, no agent, and heartbeats.

use std::convert::Infallible;
use std::time::Duration;

use agentlab_protocol::message::{Heartbeat, Phase, RedeemAnswer};
use agentlab_protocol::workspace::WorkspaceNews;

use crate::console::say;
use crate::job::{Layout, prepare_for_operator};
use crate::link::{Link, LinkError};
use crate::{vitals, workspace};

/// Makes the machine ready for a person, then stays as it is.
///
/// # Errors
/// The host refused a heartbeat: the session is over.
pub async fn hold(link: &Link, answer: &RedeemAnswer, layout: &Layout) -> Result<Infallible, LinkError> {
    if let Some(order) = &answer.workspace {
        let news = match workspace::mount(order, layout, false).await {
            Ok(()) => WorkspaceNews::Mounted,
            Err(error) => {
                say(format_args!("the workspace cannot be used: {error}"));
                WorkspaceNews::Failed {
                    reason: error.to_string(),
                }
            }
        };
        let is_there = news == WorkspaceNews::Mounted;
        workspace::tell(link, Phase::Idle, news).await;
        if !is_there {
            // Nobody is to work on a disk that goes with the machine.
            return stay(link, answer, layout).await;
        }
    }
    if let Err(words) = prepare_for_operator(answer, layout).await {
        // The person can still come in and look.
        say(format_args!("not everything is in place: {words}"));
    }
    stay(link, answer, layout).await
}

/// Sends heartbeats for as long as the session is good, and lets go of the workspace when it is asked to.
///
/// # Errors
/// The host refused one: the session is over.
pub async fn stay(link: &Link, answer: &RedeemAnswer, layout: &Layout) -> Result<Infallible, LinkError> {
    let every = Duration::from_secs(answer.heartbeat_seconds.max(1).into());
    loop {
        let beat = Heartbeat {
            phase: Phase::Idle,
            message: String::new(),
            vitals: Some(vitals::read(&layout.work)),
            workspace: None,
        };
        match link.heartbeat(beat).await {
            Ok(told) if told.release_workspace => {
                if let Some(news) = workspace::release(layout).await {
                    workspace::tell(link, Phase::Idle, news).await;
                }
            }
            // Nothing runs here that could be cancelled.
            Ok(_) => {}
            // The link has said so on the console and goes on trying with the next beat.
            Err(LinkError::Unreachable { .. }) => {}
            Err(refused) => return Err(refused),
        }
        tokio::time::sleep(every).await;
    }
}
