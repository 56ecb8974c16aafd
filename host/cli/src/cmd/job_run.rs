//! `agentlab job run`.

use std::io::Read;
use std::path::{Path, PathBuf};

use agentlab_api::{JobRequest, PushTarget, RepositorySource};
use agentlab_client::ClientError;
use clap::Args;
use jiff::SignedDuration;

use super::workspace;
use super::workspace_wait::patiently;
use crate::error::CommandError;
use crate::git::bundle;
use crate::{CommandResult, Context, ExitStatus, follow};

/// Largest task text: as much as the daemon takes.
const LARGEST_TASK: u64 = 256 << 10;

/// `job run`.
#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("what").required(true),
    after_help = "Follows the job and exits with the agent's own code: 0 COMPLETED, the agent's code when it failed \
                  with one, 7 TIMEOUT, 1 otherwise. Ctrl-C detaches (130); the job goes on. With --json nothing is \
                  shown meanwhile and the job is printed as one document when it is over."
)]
pub(crate) struct Run {
    /// A directory with a git repository, whose commits are sent along, or a URL that is cloned inside the VM
    #[arg(long, value_name = "PATH|URL")]
    repo: String,
    /// Branch, tag or commit to start from [default: HEAD]
    #[arg(long = "ref", value_name = "REF")]
    reference: Option<String>,
    /// What the agent is told; the `shell` agent runs it as a script
    #[arg(long, value_name = "TEXT", group = "what")]
    task: Option<String>,
    /// Read the task from a file, `-` for standard input
    #[arg(long, value_name = "FILE", group = "what")]
    task_file: Option<PathBuf>,
    /// Profile to make the VM from
    #[arg(long, short, value_name = "NAME")]
    profile: String,
    /// Agent that runs the task [default: the profile's]
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// How long the agent may run, such as 90s, 10m, 1h 30m [default: the profile's]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    deadline: Option<u32>,
    /// How long the VM may live, in whole minutes rounded up [default: the profile's]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    ttl: Option<u32>,
    /// Keep the VM after the job, until its lease ends [default: the profile's]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    keepalive: Option<bool>,
    /// Let the guest push the agent's commits to this branch of the repository's `origin` when the agent ends well; the
    /// profile must allow it, and neither the default branch nor a forced push is ever done
    #[arg(long, value_name = "BRANCH")]
    push: Option<String>,
    /// Workspace to have at /work, which outlives the VM; `new:NAME` makes it first
    #[arg(long, value_name = "NAME")]
    workspace: Option<String>,
    /// Size of a workspace that is made
    #[arg(long, value_name = "SIZE", default_value = "80G", value_parser = workspace::gibibytes)]
    workspace_size: u32,
    /// Wait so long, an hour at most, for a workspace that another sandbox has, instead of refusing
    #[arg(long, value_name = "TIME", value_parser = seconds, requires = "workspace")]
    workspace_wait: Option<u32>,
    /// Print the job's id and exit
    #[arg(long, short)]
    detach: bool,
    /// The same key again gives the same job, not another one
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

impl Run {
    pub(crate) async fn run(self, context: &Context) -> CommandResult {
        let task = self.task()?;
        let key = match &self.idempotency_key {
            Some(key) => key.clone(),
            None => generated_key()?,
        };
        let push = self.push_target().await?;
        let (repository, reference) = self.repository(context).await?;
        let workspace = workspace::named(context, self.workspace, self.workspace_size).await?;
        let request = JobRequest {
            repository,
            reference,
            task,
            profile: self.profile,
            agent: self.agent,
            deadline_seconds: self.deadline,
            ttl_minutes: self.ttl.map(|seconds| seconds.div_ceil(60)),
            keepalive: self.keepalive,
            push,
            workspace,
            workspace_wait_seconds: None,
        };
        let printer = &context.printer;
        let ask = async |workspace_wait_seconds| {
            let request = JobRequest {
                workspace_wait_seconds,
                ..request.clone()
            };
            create(context, &request, &key).await
        };
        let job = patiently(context, self.workspace_wait, ask).await?;
        if self.detach {
            if printer.json() {
                printer.document(&job)?
            } else {
                printer.line(job.id.as_str())?
            }
            return Ok(ExitStatus::Success);
        }
        let show = if printer.json() {
            follow::Show::Nothing
        } else {
            follow::Show::All
        };
        let job = follow::follow(context, job, show).await?;
        if printer.json() {
            printer.document(&job)?;
        }
        Ok(ExitStatus::of_job(&job))
    }

    fn task(&self) -> Result<String, CommandError> {
        let Some(path) = &self.task_file else {
            return Ok(self.task.clone().unwrap_or_default());
        };
        let failed = |source| CommandError::File {
            action: "Reading the task from",
            path: path.display().to_string(),
            source,
        };
        let mut bytes = Vec::new();
        if path == Path::new("-") {
            std::io::stdin()
                .lock()
                .take(LARGEST_TASK + 1)
                .read_to_end(&mut bytes)
                .map_err(failed)?;
        } else {
            std::fs::File::open(path)
                .map_err(failed)?
                .take(LARGEST_TASK + 1)
                .read_to_end(&mut bytes)
                .map_err(failed)?;
        }
        if bytes.len() > usize::try_from(LARGEST_TASK).unwrap_or(usize::MAX) {
            return Err(
                CommandError::usage(format!("The task is longer than {LARGEST_TASK} bytes"))
                    .with_hint("put what is long into the repository and let the task name it"),
            );
        }
        let text = String::from_utf8(bytes).map_err(|_| CommandError::usage("The task is not UTF-8 text"))?;
        if text.trim().is_empty() {
            return Err(CommandError::usage(format!(
                "The task in {} is empty",
                path.display()
            )));
        }
        Ok(text)
    }

    /// A directory's origin is what its own `git push` would take; of a URL it is the URL.
    async fn push_target(&self) -> Result<Option<PushTarget>, CommandError> {
        let Some(branch) = &self.push else { return Ok(None) };
        let url = match local_directory(&self.repo)? {
            Some(directory) => Some(bundle::origin(&directory).await?),
            None => None,
        };
        Ok(Some(PushTarget {
            branch: branch.clone(),
            url,
        }))
    }

    async fn repository(
        &self,
        context: &Context,
    ) -> Result<(RepositorySource, Option<String>), CommandError> {
        let directory = match local_directory(&self.repo)? {
            None => {
                return Ok((
                    RepositorySource::Url {
                        url: self.repo.clone(),
                    },
                    self.reference.clone(),
                ));
            }
            Some(directory) => directory,
        };
        // Asked before the bundle is made: packing a large repository for a profile that does not exist takes minutes.
        self.check_profile(context).await?;
        let bundled = bundle::create(&directory, self.reference.as_deref()).await?;
        for warning in &bundled.warnings {
            context.printer.warning(warning);
        }
        let uploaded = context.client.upload_bundle(bundled.path()).await?;
        Ok((
            RepositorySource::Bundle {
                sha256: uploaded.sha256,
                label: bundled.label.clone(),
            },
            bundled.reference.clone(),
        ))
    }

    async fn check_profile(&self, context: &Context) -> Result<(), CommandError> {
        let known: Vec<String> = context
            .client
            .profiles()
            .await?
            .profiles
            .into_iter()
            .map(|one| one.name)
            .collect();
        if known.contains(&self.profile) {
            return Ok(());
        }
        let message = format!("No profile is named `{}`", self.profile);
        let nearest = known
            .iter()
            .map(|name| (strsim::jaro_winkler(name, &self.profile), name))
            .filter(|(score, _)| *score >= 0.8)
            .max_by(|left, right| left.0.total_cmp(&right.0));
        let hint = match nearest {
            Some((_, name)) => format!("did you mean `{name}`?"),
            None if known.is_empty() => "the daemon has none; see its `profiles_dir`".to_owned(),
            None => format!("the profiles are: {}", known.join(", ")),
        };
        Err(CommandError::NotFound {
            message,
            hint: Some(hint),
        })
    }
}

async fn create(
    context: &Context,
    request: &JobRequest,
    key: &str,
) -> Result<agentlab_api::JobView, CommandError> {
    let error = match context.client.create_job(request, Some(key)).await {
        Ok(job) => return Ok(job),
        Err(error) => error,
    };
    // The request may have arrived and its answer been lost; the key makes asking again safe.
    if matches!(error, ClientError::Protocol(_) | ClientError::TimedOut { .. }) {
        return Ok(context.client.create_job(request, Some(key)).await?);
    }
    Err(error.into())
}

fn generated_key() -> Result<String, CommandError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| CommandError::Runtime(std::io::Error::other(error)))?;
    Ok(hex::encode(bytes))
}

/// The directory that a `--repo` names; `None` for what `git clone` takes over the network.
fn local_directory(repo: &str) -> Result<Option<PathBuf>, CommandError> {
    if let Some(path) = repo.strip_prefix("file://") {
        return local_directory(path);
    }
    let path = Path::new(repo);
    if path.is_dir() {
        return Ok(Some(path.to_owned()));
    }
    if repo.contains("://") {
        return Ok(None);
    }
    // `host:path`, as ssh writes it: a colon before any slash.
    let remote = repo.split('/').next().is_some_and(|first| first.contains(':'));
    if remote && !repo.starts_with(['.', '/', '-']) {
        return Ok(None);
    }
    Err(CommandError::NotFound {
        message: format!("`{repo}` is neither a directory nor a URL"),
        hint: Some("give the path of a git repository, https://…, ssh://… or user@host:path".to_owned()),
    })
}

/// Clap's parser of times: `90s`, `10m`, `1h 30m`, ISO 8601.
pub(super) fn seconds(text: &str) -> Result<u32, String> {
    let Ok(duration) = text.trim().parse::<SignedDuration>() else {
        return Err("write a time such as 90s, 10m or 1h 30m".to_owned());
    };
    if duration < SignedDuration::from_secs(1) {
        return Err("it must be a second or more".to_owned());
    }
    u32::try_from(duration.as_secs()).map_err(|_| "it is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_told_from_a_url() {
        for url in [
            "https://example.org/r.git",
            "ssh://git@example.org/r",
            "git@example.org:team/r.git",
            "host:r",
        ] {
            assert!(local_directory(url).unwrap().is_none(), "{url}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display().to_string();
        assert!(local_directory(&path).unwrap().is_some());
        assert!(local_directory(&format!("file://{path}")).unwrap().is_some());
        for nothing in ["./absent", "/absent/r", "absent", "-upload:x", "file:///absent"] {
            assert!(local_directory(nothing).is_err(), "{nothing}");
        }
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, wanted) in [("90s", 90), ("10m", 600), ("1h 30m", 5400), ("PT2M", 120)] {
            assert_eq!(seconds(text), Ok(wanted), "{text}");
        }
        for (text, said) in [
            ("", "write"),
            ("10", "write"),
            ("soon", "write"),
            ("1mo", "write"),
            ("1 fortnight", "write"),
            ("0s", "a second or more"),
            ("-1m", "a second or more"),
            ("9999999999s", "too long"),
        ] {
            let refusal = seconds(text).unwrap_err();
            assert!(refusal.contains(said), "{text}: {refusal}");
        }
    }

    #[test]
    fn keys_are_not_the_same_twice() {
        assert_ne!(generated_key().unwrap(), generated_key().unwrap());
    }
}
