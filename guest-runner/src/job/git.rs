//! How `git` is run: as the agent user, asking nobody, reading no system configuration.

use std::path::Path;
use std::time::Duration;

use super::process::{AgentUser, Run, agent_command};

/// One way to run git.
#[derive(Debug, Clone)]
pub(crate) struct Git<'a> {
    pub(crate) user: &'a AgentUser,
    pub(crate) environment: Vec<(String, String)>,
    /// `-c` settings before every command.
    pub(crate) settings: Vec<String>,
}

impl<'a> Git<'a> {
    /// With the agent's own configuration (`~/.gitconfig`): what a clone needs.
    pub(crate) fn of_agent(user: &'a AgentUser, access: &[(String, String)]) -> Self {
        let mut git = Self::bare(user);
        git.environment.extend(access.iter().cloned());
        git
    }

    /// With no configuration but what is written here: what is safe against a repository the agent prepared.
    pub(crate) fn without_configuration(user: &'a AgentUser, home: &Path) -> Self {
        let mut git = Self::bare(user);
        for (name, value) in [
            ("GIT_CONFIG_GLOBAL", "/dev/null".to_owned()),
            ("GIT_ATTR_NOSYSTEM", "1".to_owned()),
            ("GIT_NO_LAZY_FETCH", "1".to_owned()),
            ("GIT_ALLOW_PROTOCOL", "none".to_owned()),
            ("GIT_OPTIONAL_LOCKS", "0".to_owned()),
            ("HOME", home.display().to_string()),
        ] {
            git.environment.push((name.to_owned(), value));
        }
        for setting in [
            "core.hooksPath=/dev/null",
            "core.fsmonitor=false",
            "core.attributesFile=/dev/null",
            "core.untrackedCache=false",
            "log.showSignature=false",
            "gpg.program=/bin/false",
            "core.pager=cat",
        ] {
            git.settings.push(setting.to_owned());
        }
        git
    }

    fn bare(user: &'a AgentUser) -> Self {
        let environment = [
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_ASKPASS", "/bin/false"),
            ("SSH_ASKPASS", "/bin/false"),
            ("LC_ALL", "C.UTF-8"),
        ];
        Self {
            user,
            environment: environment
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec(),
            // Nothing may go on in the background when a command returned.
            settings: vec!["gc.auto=0".to_owned(), "maintenance.auto=false".to_owned()],
        }
    }

    /// With one more environment variable.
    pub(crate) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// `git <arguments>` in `directory`, to be run.
    pub(crate) fn run<S: AsRef<str>>(&self, directory: &Path, arguments: &[S], deadline: Duration) -> Run {
        let mut command = agent_command("git", self.user, directory);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        command.args(arguments.iter().map(AsRef::as_ref));
        let words: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
        let word = subcommand(&words);
        Run {
            what: format!("git {word}"),
            command,
            deadline,
        }
    }
}

/// The command's own name, after the settings.
fn subcommand<'a>(words: &[&'a str]) -> &'a str {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if *word == "-c" {
            words.next();
        } else if !word.starts_with('-') {
            return word;
        }
    }
    ""
}
