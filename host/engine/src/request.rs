//! What an operator may ask for. Pure: every refusal names the field, the reason and what to do instead.

use std::str::FromStr;

use agentlab_api::{
    AGENTS, CommandRequest, ErrorCode, JobRequest, Problem, Profile, RepositorySource, SandboxRequest,
};
use agentlab_backend::Template;
use agentlab_store::CursorError;

use crate::push;

/// Longest task in bytes.
const TASK_BYTES: usize = 256 << 10;
/// Longest deadline: a week.
const DEADLINE_SECONDS: u32 = 7 * 24 * 3600;
/// Longest lease: thirty days.
const TTL_MINUTES: u32 = 30 * 24 * 60;
/// What a lease must have beyond the deadline when nobody asked for a shorter one, in minutes.
const LEASE_SLACK_MINUTES: u32 = 30;
const URL_BYTES: usize = 2048;
const REFERENCE_BYTES: usize = 255;

/// A request with the profile's defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settled {
    pub(crate) agent: String,
    pub(crate) deadline_seconds: u32,
    pub(crate) ttl_minutes: u32,
    pub(crate) keepalive: bool,
}

pub(crate) fn invalid(pointer: &str, detail: impl Into<String>) -> Problem {
    let detail = detail.into();
    Problem::new(ErrorCode::InvalidValue, detail.clone()).with_field(pointer, detail)
}

/// The profile of a name, or the nearest name.
pub(crate) fn profile<'a>(profiles: &'a [Profile], name: &str) -> Result<&'a Profile, Problem> {
    if let Some(found) = profiles.iter().find(|profile| profile.name == name) {
        return Ok(found);
    }
    let shown: String = name.escape_debug().take(80).collect();
    let nearest = profiles
        .iter()
        .map(|profile| (strsim::jaro_winkler(&profile.name, name), profile.name.as_str()))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|(left, _), (right, _)| left.total_cmp(right));
    let hint = match nearest {
        Some((_, near)) => format!("did you mean `{near}`?"),
        None if profiles.is_empty() => "there is no profile at all; add one and reload".to_owned(),
        None => {
            let names: Vec<&str> = profiles.iter().map(|profile| profile.name.as_str()).collect();
            format!("there are: {}", names.join(", "))
        }
    };
    let sentence = format!("There is no profile `{shown}`");
    Err(Problem::new(ErrorCode::UnknownProfile, sentence.clone())
        .with_field("/profile", sentence)
        .with_hint(hint))
}

/// Checks everything that can be checked without asking anybody.
pub(crate) fn settle(request: &JobRequest, profile: &Profile) -> Result<Settled, Problem> {
    repository(&request.repository)?;
    if let Some(text) = &request.reference {
        reference(text)?;
    }
    task(&request.task)?;
    if let Some(target) = &request.push {
        push::check(target, &request.repository, profile)?;
    }
    let behavior = &profile.behavior;
    let agent = request.agent.as_deref().unwrap_or_else(|| profile.agent());
    let agent = known_agent(agent, profile)?;
    let deadline_seconds = request
        .deadline_seconds
        .unwrap_or(behavior.deadline_seconds_default);
    if deadline_seconds == 0 || deadline_seconds > DEADLINE_SECONDS {
        return Err(invalid(
            "/deadline_seconds",
            format!("expected 1 to {DEADLINE_SECONDS} seconds"),
        ));
    }
    let least = deadline_seconds.div_ceil(60);
    let ttl_minutes = match request.ttl_minutes {
        Some(minutes) if lease(minutes).is_ok() && minutes < least => {
            let text = format!("a lease of {minutes} min ends before the deadline of {deadline_seconds} s");
            return Err(invalid("/ttl_minutes", text).with_hint(format!("ask for {least} minutes or more")));
        }
        Some(minutes) => lease(minutes).map(|()| minutes)?,
        // The profile's own lease was not made for this deadline.
        None => behavior
            .ttl_minutes_default
            .max(least.saturating_add(LEASE_SLACK_MINUTES)),
    };
    let keepalive = request.keepalive.unwrap_or(behavior.keepalive_default);
    Ok(Settled {
        agent,
        deadline_seconds,
        ttl_minutes,
        keepalive,
    })
}

/// Checks a sandbox that is asked for without a job; its lease in minutes.
pub(crate) fn sandbox(request: &SandboxRequest, profile: &Profile) -> Result<u32, Problem> {
    if let Some(name) = &request.name {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let fits = name.len() <= 63
            && name.bytes().all(|byte| plain(byte) || byte == b'-')
            && name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase())
            && name.bytes().next_back().is_some_and(plain);
        // `POST /v1/sandboxes/prune` is no sandbox.
        if !fits || name == "prune" {
            let text = "a name is 1 to 63 lower-case letters, digits and hyphens, beginning with a letter, and not `prune`";
            return Err(invalid("/name", text));
        }
    }
    match request.ttl_minutes {
        Some(minutes) => lease(minutes).map(|()| minutes),
        None => Ok(profile.behavior.ttl_minutes_default),
    }
}

/// Checks how long a lease is asked to be.
pub(crate) fn lease(minutes: u32) -> Result<(), Problem> {
    if minutes == 0 || minutes > TTL_MINUTES {
        return Err(invalid(
            "/ttl_minutes",
            format!("expected 1 to {TTL_MINUTES} minutes"),
        ));
    }
    Ok(())
}

/// Checks a command: what no system call takes is no command.
pub(crate) fn command(request: &CommandRequest, longest: usize) -> Result<(), Problem> {
    let length: usize = request.words.iter().map(|word| word.len() + 1).sum();
    if length > longest {
        return Err(invalid(
            "/words",
            format!("the command line has {length} bytes, at most {longest} are taken"),
        ));
    }
    let terminal = request.terminal.as_ref().map(|terminal| terminal.kind.as_str());
    let texts = request.words.iter().map(String::as_str);
    if texts
        .chain(request.directory.as_deref())
        .chain(terminal)
        .any(|text| text.contains('\0'))
    {
        return Err(invalid("/words", "the command holds a NUL byte"));
    }
    if request.words.first().is_some_and(String::is_empty) {
        return Err(invalid("/words", "the command's name is empty"));
    }
    Ok(())
}

/// An agent that runners have, and that this profile says enough about.
fn known_agent(name: &str, profile: &Profile) -> Result<String, Problem> {
    if !AGENTS.contains(&name) {
        let shown: String = name.escape_debug().take(80).collect();
        let nearest = AGENTS
            .iter()
            .map(|known| (strsim::jaro_winkler(known, name), known))
            .filter(|(likeness, _)| *likeness > 0.7)
            .max_by(|(left, _), (right, _)| left.total_cmp(right));
        let hint = match nearest {
            Some((_, near)) => format!("did you mean `{near}`?"),
            None => format!("there are: {}", AGENTS.join(", ")),
        };
        return Err(invalid("/agent", format!("There is no agent `{shown}`")).with_hint(hint));
    }
    if name == "command" && profile.behavior.agent_command.is_empty() {
        let text = format!(
            "Profile `{}` says no command for the agent `command`",
            profile.name
        );
        return Err(invalid("/agent", text).with_hint("its key is `behavior.agent_command`"));
    }
    Ok(name.to_owned())
}

fn task(text: &str) -> Result<(), Problem> {
    if text.trim().is_empty() {
        return Err(invalid("/task", "the task is empty"));
    }
    if text.len() > TASK_BYTES {
        return Err(invalid(
            "/task",
            format!(
                "the task has {} bytes, at most {TASK_BYTES} are taken",
                text.len()
            ),
        )
        .with_hint("put long instructions into a file of the repository"));
    }
    if text.contains('\0') {
        return Err(invalid("/task", "the task holds a NUL byte"));
    }
    Ok(())
}

fn reference(text: &str) -> Result<(), Problem> {
    if is_reference(text) {
        Ok(())
    } else {
        Err(invalid(
            "/reference",
            "not the name of a branch, a tag or a commit",
        ))
    }
}

/// Whether git could take it for a name, and cannot take it for an option.
pub(crate) fn is_reference(text: &str) -> bool {
    // git-check-ref-format says so.
    let bad = |c: char| c.is_whitespace() || c.is_control() || "~^:?*[\\".contains(c);
    !(text.is_empty()
        || text.len() > REFERENCE_BYTES
        || text.starts_with(['-', '/'])
        || text.ends_with(['/', '.'])
        || text.contains("..")
        || text.contains("@{")
        || text.chars().any(bad))
}

fn repository(source: &RepositorySource) -> Result<(), Problem> {
    match source {
        RepositorySource::Url { url } => repository_url(url, "/repository/url"),
        RepositorySource::Bundle { sha256, .. } => {
            let fits = sha256.len() == 64
                && sha256
                    .bytes()
                    .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
            if fits {
                Ok(())
            } else {
                Err(invalid(
                    "/repository/sha256",
                    "expected 64 lower-case hexadecimal digits",
                ))
            }
        }
    }
}

/// Checks a URL that a guest's git is given; `pointer` is where it stands in the request.
pub(crate) fn repository_url(url: &str, pointer: &str) -> Result<(), Problem> {
    let refuse = |text: &str| invalid(pointer, text);
    if url.is_empty() || url.len() > URL_BYTES || url.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(refuse("not a repository URL"));
    }
    let lower = url.to_ascii_lowercase();
    if let Some(rest) = lower
        .strip_prefix("https://")
        .or_else(|| lower.strip_prefix("ssh://"))
    {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        if host.is_empty() || host.starts_with(['-', ':']) || user.starts_with('-') {
            return Err(refuse("the URL names no host"));
        }
        // It would stand in records, events and logs. A user name alone may be a token just as well.
        if user.contains(':') || (lower.starts_with("https://") && !user.is_empty()) {
            return Err(refuse("the URL carries credentials")
                .with_hint("take them out of the URL; git credentials belong into the profile's secrets"));
        }
        return Ok(());
    }
    if lower.starts_with("http://") || lower.starts_with("git://") {
        return Err(refuse("unencrypted repository URLs are refused").with_hint("use https:// or ssh://"));
    }
    if lower.starts_with("file:") || url.starts_with(['/', '.', '~']) {
        return Err(refuse("the daemon opens no path that a client names")
            .with_hint("`agentlab job run --repo <path>` bundles a local repository and uploads it"));
    }
    // scp-like: user@host:path
    if let Some((user, rest)) = url.split_once('@')
        && let Some((host, path)) = rest.split_once(':')
    {
        let plain = |text: &str, extra: &str| {
            !text.is_empty()
                && !text.starts_with('-')
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
        };
        if plain(user, "._-") && plain(host, ".-") && !path.is_empty() && !path.starts_with('-') {
            return Ok(());
        }
    }
    Err(refuse("not a repository URL that can be cloned over the network")
        .with_hint("https://…, ssh://… or git@host:path"))
}

/// The place in a list that a client names to go on from.
pub(crate) fn cursor<T: FromStr<Err = CursorError>>(text: Option<String>) -> Result<Option<T>, Problem> {
    let place: Result<_, CursorError> = text.map(|text| text.parse()).transpose();
    place.map_err(|error| invalid("/cursor", error.to_string()))
}

/// The template a profile names, if it is there and not known to carry another runner. One of a hypervisor that records
/// no version is not known until its guest says so: [`runner_fits`].
pub(crate) fn template(
    templates: &[Template],
    profile: &Profile,
    runner_version: &str,
) -> Result<(), Problem> {
    let unavailable = |text: String| {
        Problem::new(ErrorCode::TemplateUnavailable, text)
            .with_hint("`agentlab-template build` makes one that fits")
    };
    let vmid = profile.template_vmid;
    let Some(found) = templates.iter().find(|template| template.vmid == vmid) else {
        return Err(unavailable(format!(
            "Profile `{}` names template {vmid}, which does not exist",
            profile.name
        )));
    };
    match found.runner_version.as_deref() {
        Some(version) if !runner_fits(version, runner_version) => Err(unavailable(format!(
            "Template {vmid} ({}) carries runner {}, this daemon needs {runner_version}",
            found.name,
            version.escape_debug().take(40).collect::<String>()
        ))),
        Some(_) | None => Ok(()),
    }
}

/// Whether a runner speaks as this daemon does: versions differ in their last number at most.
pub(crate) fn runner_fits(version: &str, needed: &str) -> bool {
    let needed = major_minor(needed);
    needed.is_some() && major_minor(version) == needed
}

fn major_minor(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.trim_start_matches('v').split('.');
    Some((
        parts.next()?.parse().ok()?,
        parts.next()?.split(['-', '+']).next()?.parse().ok()?,
    ))
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
