//! A job's events and its agent's output as one live view.
//!
//! ```text
//!   + 0.1s  Clone done (0.08 s)          events, with the time since the job was asked for
//!   │ ok: 2 and 3 make 5                 what the agent prints, line by line
//!   ┊ cloning the repository             what the runner says about itself
//! ```

mod lines;
mod view;

use agentlab_api::{Event, EventKind, JobOutcome, JobView, LogRecord};
use agentlab_client::{ClientError, Stream};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, interval};

use crate::Context;
use crate::error::CommandError;
use view::View;

/// How long the end of the sandbox is waited for once its job is over. It goes on without us.
const TEARDOWN: Duration = Duration::from_secs(30);

/// How much of a job is shown while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Show {
    /// Events, output, and a summary.
    All,
    /// What the agent prints, as it prints it.
    Output,
    /// Nothing.
    Nothing,
}

/// What the two streams bring.
enum News {
    Event(Box<Event>),
    Log(Box<LogRecord>),
    Lost(ClientError),
}

/// Shows a job until it is over and gives it as it ended. Ctrl-C ends the process elsewhere; the job goes on.
pub(crate) async fn follow(context: &Context, job: JobView, show: Show) -> Result<JobView, CommandError> {
    let id = job.id.clone();
    let farewell = format!(
        "Detached; the job goes on. `agentlab job logs -f {id}` follows it again, `agentlab job cancel {id}` ends it"
    );
    *context.farewell.borrow_mut() = Some(farewell);
    let mut view = View::new(&context.printer, &job, show);
    view.begin(&job)?;
    let events = context.client.follow_job_events(&id, None).await?;
    let log = context.client.follow_job_log(&id, None).await?;
    let (sender, mut receiver) = mpsc::channel(64);
    // Dropped, and with it aborted, when following ends for any reason.
    let mut tasks = JoinSet::new();
    tasks.spawn(pump(events, sender.clone(), |event| News::Event(Box::new(event))));
    tasks.spawn(pump(log, sender, |record| News::Log(Box::new(record))));
    let mut tick = interval(Duration::from_millis(250));
    let mut patience = None;
    loop {
        tokio::select! {
            news = receiver.recv() => match news {
                Some(News::Event(event)) => {
                    if event.kind == EventKind::JobFinished {
                        patience = Some(Instant::now() + TEARDOWN);
                    }
                    view.event(&event)?;
                }
                Some(News::Log(record)) => view.log(&record)?,
                Some(News::Lost(error)) => return Err(error.into()),
                None => break,
            },
            _ = tick.tick() => view.tick()?,
        }
        if patience.is_some_and(|end| Instant::now() > end) {
            context
                .printer
                .warning("the sandbox is still being taken down; `agentlab sandbox list` says how far it is");
            break;
        }
    }
    view.end_of_output()?;
    let job = finished(context, job).await?;
    if show == Show::All {
        let artifacts = context.client.artifacts(&id).await?;
        view.summary(&job, &artifacts)?;
    }
    Ok(job)
}

/// The job as it ended. The streams end with the job, so this asks once; a stream that ended early costs a poll.
async fn finished(context: &Context, job: JobView) -> Result<JobView, CommandError> {
    let mut pause = Duration::from_millis(50);
    loop {
        let job = context.client.job(&job.id).await?;
        if job.state.is_final() {
            return Ok(job);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

async fn pump<T: DeserializeOwned>(mut stream: Stream<T>, sender: mpsc::Sender<News>, wrap: fn(T) -> News) {
    loop {
        let news = match stream.next().await {
            Ok(Some(item)) => wrap(item),
            Ok(None) => return,
            Err(error) => News::Lost(error),
        };
        let last = matches!(news, News::Lost(_));
        if sender.send(news).await.is_err() || last {
            return;
        }
    }
}

/// Shows what happened so far, in the order it happened.
pub(crate) fn replay(
    context: &Context,
    job: &JobView,
    events: Vec<Event>,
    records: Vec<LogRecord>,
) -> Result<(), CommandError> {
    let mut view = View::new(&context.printer, job, Show::All);
    let mut events = events.into_iter().peekable();
    for record in records {
        while let Some(event) = events.next_if(|event| event.time <= record.time) {
            view.event(&event)?;
        }
        view.log(&record)?;
    }
    view.end_of_output()?;
    for event in events {
        view.event(&event)?;
    }
    Ok(())
}

/// `2 (1a2b3c4..5d6e7f8), and uncommitted changes`.
pub(crate) fn commits(outcome: &JobOutcome) -> String {
    let short = |commit: &Option<String>| {
        commit
            .as_deref()
            .map(|text| text.chars().take(7).collect::<String>())
    };
    let range = match (short(&outcome.base_commit), short(&outcome.head_commit)) {
        (Some(base), Some(head)) if outcome.commits > 0 => format!(" ({base}..{head})"),
        _ => String::new(),
    };
    let uncommitted = if outcome.uncommitted {
        ", and uncommitted changes"
    } else {
        ""
    };
    format!("{}{range}{uncommitted}", outcome.commits)
}

/// `API_KEY in .env`, one a line: what of the work is a secret that the agent was given.
pub(crate) fn secrets_in_it(outcome: &JobOutcome) -> Option<String> {
    let reason = outcome.secrets_unsearched.as_ref();
    let unsearched = reason.map(|reason| format!("perhaps more: it was not searched to its end: {reason}"));
    let named = outcome.exposed_secrets.iter().map(ToString::to_string);
    let lines: Vec<String> = named.chain(unsearched).collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// `agentlab/x: pushed 1a2b3c4`; the branch alone until something came of it.
pub(crate) fn push(job: &JobView) -> Option<String> {
    let branch = &job.push.as_ref()?.branch;
    let outcome = job.outcome.as_ref().and_then(|outcome| outcome.push.as_ref());
    Some(outcome.map_or_else(|| branch.clone(), |outcome| format!("{branch}: {outcome}")))
}
