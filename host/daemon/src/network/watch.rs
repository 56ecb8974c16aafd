//! Hears of links and refused packets at once, on a thread of its own, and has the policy's thread act on them.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::Sender;

use agentlab_netpolicy::{LinkNews, LinkWatch, RefusalWatch};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use super::{Task, Watched};

/// Dropping it ends the thread.
#[derive(Debug)]
pub(super) struct Watch {
    _end: OwnedFd,
}

impl Watch {
    /// `refusals` is absent where they cannot be told.
    pub(super) fn start(
        queue: Sender<Task>,
        links: LinkWatch,
        refusals: Option<RefusalWatch>,
    ) -> io::Result<Self> {
        let (ends, end) = pipe_with(PipeFlags::CLOEXEC)?;
        std::thread::Builder::new()
            .name("policy-watch".into())
            .spawn(move || {
                if let Err(error) = watch(&queue, links, refusals, &ends) {
                    // Verification goes on: what this thread sees at once is then seen later.
                    tracing::error!(%error, "Links and refusals are not watched any more");
                }
            })?;
        Ok(Self { _end: end })
    }
}

fn watch(
    queue: &Sender<Task>,
    mut links: LinkWatch,
    mut refusals: Option<RefusalWatch>,
    ends: &OwnedFd,
) -> io::Result<()> {
    loop {
        let mut waits = vec![
            PollFd::new(ends, PollFlags::IN),
            PollFd::new(&links, PollFlags::IN),
        ];
        waits.extend(
            refusals
                .iter()
                .map(|refusals| PollFd::new(refusals, PollFlags::IN)),
        );
        match poll(&mut waits, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let happened: Vec<bool> = waits.iter().map(|wait| !wait.revents().is_empty()).collect();
        drop(waits);
        if happened.first() == Some(&true) {
            return Ok(());
        }
        let mut tasks: Vec<Task> = Vec::new();
        if happened.get(1) == Some(&true) {
            match links.news()? {
                LinkNews::Hints(hints) => {
                    tasks.push(Box::new(move |watched: &mut Watched| {
                        watched.links_changed(&hints)
                    }));
                }
                LinkNews::Lost => tasks.push(Box::new(Watched::look)),
            }
        }
        if happened.get(2) == Some(&true)
            && let Some(refusals) = &mut refusals
        {
            let packets = refusals.refused()?;
            tasks.push(Box::new(move |watched: &mut Watched| watched.refused(&packets)));
        }
        for task in tasks {
            if queue.send(task).is_err() {
                return Ok(());
            }
        }
    }
}
