//! The policy as text, and what would change of the one that stands.

use std::io::Write as _;

use anyhow::Result;
use serde_json::json;

use super::Outcome;
use super::host::HostArguments;
use crate::{Intent, Observer};

/// Prints the plan. What stands is read where that is allowed, and compared.
pub(super) fn plan(
    given: &HostArguments,
    only_difference: bool,
    as_json: bool,
    output: &mut Vec<u8>,
) -> Result<Outcome> {
    let observed = Observer::open().and_then(|mut observer| {
        let standing = observer.host()?;
        Ok((observer, standing))
    });
    let (mut observer, standing) = match observed {
        Ok((observer, standing)) => (Some(observer), standing),
        // Without CAP_NET_ADMIN nothing can be read, and the plan is the same for everybody.
        Err(error) if !only_difference => {
            tracing::debug!(%error, "what stands cannot be read");
            (None, None)
        }
        Err(error) => return Err(error.into()),
    };
    let host = given.policy(standing.as_ref())?;
    let intent = Intent {
        host: host.clone(),
        ports: Vec::new(),
    };
    let ruleset = match &mut observer {
        Some(observer) => observer.ruleset_of(&intent)?,
        None => plan_only(&intent)?,
    };
    let (difference, drifts) = match &mut observer {
        Some(observer) => (Some(observer.difference(&host)?), observer.drift(&host)?),
        None => (None, Vec::new()),
    };
    if as_json {
        let mut document = json!({ "ruleset": ruleset.to_string(), "policy": host });
        if let Some(difference) = &difference {
            document["diff"] = json!(difference);
            document["drift"] = json!(drifts);
        }
        writeln!(output, "{document}")?;
        return Ok(Outcome::Fine);
    }
    if !only_difference {
        write!(output, "{ruleset}")?;
    }
    for drift in &drifts {
        writeln!(output, "# would change: {drift}")?;
    }
    for line in difference.unwrap_or_default() {
        writeln!(output, "{}{line}", if only_difference { "" } else { "# " })?;
    }
    Ok(Outcome::Fine)
}

fn plan_only(intent: &Intent) -> Result<crate::Ruleset> {
    Ok(crate::plan(intent)?)
}
