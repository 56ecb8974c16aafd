//! Who works in a sandbox when its lease ends loses the session with it. He is told before, on the terminal he works at,
//! with the command for another one.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use agentlab_api::SandboxView;
use jiff::Timestamp;
use tokio::time::sleep;

use crate::output::{between, duration};
use crate::terminal::escape;
use crate::{CommandResult, Context};

/// Most commands have ended before.
const FIRST_LOOK: Duration = Duration::from_secs(2);
/// A lease may be renewed, or cut short, by anybody at any time.
const NEXT_LOOK: Duration = Duration::from_secs(20);
/// How long before the end it is said, and said once more.
const BEFORE: [Duration; 2] = [Duration::from_secs(300), Duration::from_secs(60)];

/// What was said of a lease.
#[derive(Debug, Default)]
struct Told {
    end: Option<Timestamp>,
    times: usize,
}

impl Told {
    /// How long the lease has left, where that is to be said now. A renewed lease is another one.
    fn left(&mut self, now: Timestamp, end: Option<Timestamp>) -> Option<Duration> {
        if self.end != end {
            *self = Self { end, times: 0 };
        }
        let left = between(now, end.filter(|end| *end > now)?);
        let due = BEFORE.iter().filter(|before| left <= **before).count();
        (due > self.times).then(|| {
            self.times = due;
            left
        })
    }
}

/// Does something in a sandbox, and says meanwhile when its lease is about to end. `is_raw`: the terminal takes line ends as
/// they are.
pub(super) async fn beside(
    context: &Context,
    sandbox: &str,
    is_raw: bool,
    work: impl Future<Output = CommandResult>,
) -> CommandResult {
    tokio::select! {
        ended = work => ended,
        never = watch(context, sandbox, is_raw) => match never {},
    }
}

async fn watch(context: &Context, sandbox: &str, is_raw: bool) -> Infallible {
    let mut told = Told::default();
    sleep(FIRST_LOOK).await;
    loop {
        // A daemon that does not answer now is asked again.
        if let Ok(view) = context.client.sandbox(sandbox).await
            && let Some(left) = told.left(Timestamp::now(), view.lease_expires_at)
        {
            say(context, &warning(&view, left), is_raw);
        }
        sleep(NEXT_LOOK).await;
    }
}

fn warning(view: &SandboxView, left: Duration) -> String {
    format!(
        "the lease of {} ({}) ends in {}, and this with it; in another terminal, `agentlab sandbox lease renew {} --ttl 2h` \
         goes on",
        escape(&view.name),
        view.vmid,
        duration(left),
        view.vmid
    )
}

fn say(context: &Context, text: &str, is_raw: bool) {
    if is_raw {
        // There is nobody to tell when it cannot be said.
        let _ = context
            .printer
            .error_bytes(format!("\r\nwarning: {text}\r\n").as_bytes());
    } else {
        context.printer.warning(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_end_of_a_lease_is_said_twice_and_anew_when_it_was_renewed() {
        let mut told = Told::default();
        let seconds = |left: Option<Duration>| left.map(|left| left.as_secs());
        let end = Some(at(1000));
        for (now, said) in [
            (600, None),
            (700, Some(300)),
            (720, None),
            (941, Some(59)),
            (980, None),
            (1000, None),
        ] {
            assert_eq!(seconds(told.left(at(now), end)), said, "{now}");
        }
        let renewed = Some(at(2000));
        assert_eq!(seconds(told.left(at(1010), renewed)), None);
        assert_eq!(seconds(told.left(at(1980), renewed)), Some(20));
        assert_eq!(
            seconds(told.left(at(1990), renewed)),
            None,
            "once where it is short"
        );
        assert_eq!(seconds(told.left(at(1995), None)), None);
    }
}
