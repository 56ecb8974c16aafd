//! Secrets in the work: what a guest says of them, and what an operator is to know of it at once.

use agentlab_api::{ExposedSecret, JobOutcome};
use agentlab_protocol::message::{Report, SecretSearch};

use crate::report::{MESSAGE, clean_line};

/// More places with a secret than a guest may name.
pub(crate) const MOST: usize = 100;
/// Why, where the guest says nothing.
pub(crate) const UNSEARCHED: &str =
    "its runner does not say that it searched, as those of older templates do not";
/// Longest name of a secret, and longest path, that is kept.
const NAME: usize = 300;

/// What the guest says of secrets in its work, bounded.
pub(crate) fn secrets(report: &Report) -> Vec<ExposedSecret> {
    let said = report.exposed_secrets.iter().take(MOST);
    said.map(|one| ExposedSecret {
        secret: clean_line(&one.secret, NAME),
        path: one.path.as_deref().map(|path| clean_line(path, NAME)),
        uncommitted: one.uncommitted,
    })
    .collect()
}

/// Why there may be more of them.
pub(crate) fn unsearched(report: &Report) -> Option<String> {
    match &report.secret_search {
        Some(SecretSearch::Complete) => None,
        Some(SecretSearch::Incomplete { reason }) => Some(clean_line(reason, MESSAGE)),
        None => (report.commits > 0 || report.uncommitted).then(|| UNSEARCHED.to_owned()),
    }
}

/// What an operator is to know at once of the work.
pub(crate) fn alarm(outcome: &JobOutcome) -> Option<String> {
    let Some((first, more)) = outcome.exposed_secrets.split_first() else {
        let reason = outcome.secrets_unsearched.as_ref()?;
        return Some(format!(
            "The work was not searched to its end for secrets that the agent was given: {reason}. Look for them before you \
             publish it"
        ));
    };
    let more = match more.len() {
        0 => String::new(),
        count => format!(", and {count} more"),
    };
    Some(format!(
        "The agent wrote a secret it was given into its work: {first}{more}. Do not publish the work, and replace the secret \
         if somebody else has seen it"
    ))
}
