//! A sandbox without a job: a person works in it. The same secrets and settings as for a job, no agent, and heartbeats.

use std::convert::Infallible;
use std::time::Duration;

use agentlab_protocol::message::{Heartbeat, Phase, RedeemAnswer};

use crate::console::say;
use crate::job::{Layout, prepare_for_operator};
use crate::link::{Link, LinkError};
use crate::vitals;

/// Makes the machine ready for a person, then sends heartbeats for as long as the session is good.
///
/// # Errors
/// The host refused one: the session is over.
pub async fn hold(link: &Link, answer: &RedeemAnswer, layout: &Layout) -> Result<Infallible, LinkError> {
    if let Err(words) = prepare_for_operator(answer, layout).await {
        // The person can still come in and look.
        say(format_args!("not everything is in place: {words}"));
    }
    let every = Duration::from_secs(answer.heartbeat_seconds.max(1).into());
    loop {
        match link
            .heartbeat(Heartbeat {
                phase: Phase::Idle,
                message: String::new(),
                vitals: Some(vitals::read(&layout.work)),
                workspace: None,
            })
            .await
        {
            // Nothing runs here that could be cancelled.
            Ok(_) => {}
            // The link has said so on the console and goes on trying with the next beat.
            Err(LinkError::Unreachable { .. }) => {}
            Err(refused) => return Err(refused),
        }
        tokio::time::sleep(every).await;
    }
}
