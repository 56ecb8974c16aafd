//! Hears of links, rules and refused packets at once, on a thread of its own, and has the policy's thread act on them.
//! Nobody else is waited for: whether records can be written or not, a policy that somebody was at is looked at.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::mpsc::{SendError, Sender};
use std::time::{Duration, Instant};

use agentlab_netpolicy::{LinkNews, LinkWatch, RefusalWatch};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use super::ears::{Ears, Heard};
use super::{Task, Watched};

/// Between a sign that somebody is at rules or links and a look: a script that makes several changes is let finish.
const SETTLE: Duration = Duration::from_millis(200);

/// Dropping it ends the thread.
#[derive(Debug)]
pub(super) struct Watch {
    _end: OwnedFd,
}

impl Watch {
    /// `refusals` and `ears` are absent where they cannot be had.
    pub(super) fn start(
        queue: Sender<Task>,
        links: LinkWatch,
        refusals: Option<RefusalWatch>,
        ears: Option<Ears>,
    ) -> io::Result<Self> {
        let (ends, end) = pipe_with(PipeFlags::CLOEXEC)?;
        let watcher = Watcher {
            queue,
            links,
            refusals,
            ears,
            look_at: None,
        };
        std::thread::Builder::new()
            .name("policy-watch".into())
            .spawn(move || {
                if let Err(error) = watcher.run(&ends) {
                    // Verification goes on: what this thread sees at once is then seen later.
                    tracing::error!(%error, "Links, rules and refusals are not watched any more");
                }
            })?;
        Ok(Self { _end: end })
    }
}

struct Watcher {
    queue: Sender<Task>,
    links: LinkWatch,
    refusals: Option<RefusalWatch>,
    ears: Option<Ears>,
    /// When to look next, if there is a reason.
    look_at: Option<Instant>,
}

/// What there is news of.
struct Ready {
    end: bool,
    links: bool,
    refusals: bool,
    ears: bool,
}

impl Watcher {
    fn run(mut self, ends: &OwnedFd) -> io::Result<()> {
        loop {
            let ready = self.wait(ends)?;
            if ready.end {
                return Ok(());
            }
            for task in self.tasks(&ready)? {
                if let Err(SendError(_)) = self.queue.send(task) {
                    return Ok(());
                }
            }
        }
    }

    /// Waits for news, or until it is time to look.
    fn wait(&self, ends: &OwnedFd) -> io::Result<Ready> {
        let sources = [
            Some(ends.as_fd()),
            Some(self.links.as_fd()),
            self.refusals.as_ref().map(|refusals| refusals.as_fd()),
            self.ears.as_ref().map(|ears| ears.as_fd()),
        ];
        let polled = |source| PollFd::from_borrowed_fd(source, PollFlags::IN);
        let mut waits: Vec<PollFd<'_>> = sources.iter().copied().flatten().map(polled).collect();
        let left = self
            .look_at
            .map(|at| at.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut waits, left.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut seen = waits.iter().map(|wait| !wait.revents().is_empty());
        let [end, links, refusals, ears] =
            sources.map(|source| source.is_some() && seen.next() == Some(true));
        Ok(Ready {
            end,
            links,
            refusals,
            ears,
        })
    }

    fn tasks(&mut self, ready: &Ready) -> io::Result<Vec<Task>> {
        let mut tasks: Vec<Task> = Vec::new();
        if ready.ears
            && let Some(ears) = &self.ears
        {
            let heard = ears.heard()?;
            if heard == Heard::Removal {
                tasks.push(Box::new(Watched::look));
            }
            self.look_soon();
        }
        if ready.links {
            match self.links.news()? {
                LinkNews::Hints(hints) => {
                    tasks.push(Box::new(move |watched: &mut Watched| {
                        watched.links_changed(&hints);
                    }));
                }
                LinkNews::Lost => tasks.push(Box::new(Watched::look)),
            }
            self.look_soon();
        }
        if ready.refusals
            && let Some(refusals) = &mut self.refusals
        {
            let packets = refusals.refused()?;
            tasks.push(Box::new(move |watched: &mut Watched| watched.refused(&packets)));
        }
        if self.look_at.is_some_and(|at| at <= Instant::now()) {
            self.look_at = None;
            tasks.push(Box::new(Watched::look));
        }
        Ok(tasks)
    }

    /// However much happens meanwhile, the look is not put off.
    fn look_soon(&mut self) {
        self.look_at.get_or_insert_with(|| Instant::now() + SETTLE);
    }
}
