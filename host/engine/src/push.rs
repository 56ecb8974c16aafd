//! Which branch a guest may be told to push to. Pure. What the guest holds of the operator's credentials bounds what
//! the origin lets it do; this bounds what *we* ask of it, and is said before anything is made.

use agentlab_api::{Problem, Profile, PushTarget, RepositorySource, SecretName};
use agentlab_protocol::message::PushOrder;
use agentlab_store::JobRecord;

use crate::request::{invalid, is_reference, repository_url};

/// Checks a push against the repository and the profile of its job.
pub(crate) fn check(
    target: &PushTarget,
    repository: &RepositorySource,
    profile: &Profile,
) -> Result<(), Problem> {
    branch(&target.branch)?;
    match (repository, &target.url) {
        (RepositorySource::Url { .. }, None) => {}
        (RepositorySource::Bundle { .. }, Some(url)) => repository_url(url, "/push/url")?,
        (RepositorySource::Url { .. }, Some(_)) => {
            let text = "the repository has an origin already: the URL it is cloned from";
            return Err(invalid("/push/url", text).with_hint("leave it out"));
        }
        (RepositorySource::Bundle { .. }, None) => {
            return Err(
                invalid("/push/url", "a bundle has no origin to push to").with_hint("name the origin's URL")
            );
        }
    }
    let allowed = &profile.behavior.push;
    if !allowed.iter().any(|pattern| matches(pattern, &target.branch)) {
        let text = format!(
            "Profile `{}` does not let jobs push to `{}`",
            profile.name, target.branch
        );
        let hint = if allowed.is_empty() {
            "name the branches in the profile, such as `behavior: {push: [\"agentlab/*\"]}`".to_owned()
        } else {
            format!("its `behavior.push` names {}", allowed.join(", "))
        };
        return Err(invalid("/push/branch", text).with_hint(hint));
    }
    let credential = |name: &SecretName| match name {
        SecretName::Git | SecretName::GitToken | SecretName::GitSshKey => true,
        SecretName::Environment(_) | SecretName::Claude | SecretName::SshKeys(_) | SecretName::Tailscale => {
            false
        }
    };
    if !profile.secrets.iter().any(credential) {
        let text = format!("Profile `{}` gives its guests no git credentials", profile.name);
        return Err(invalid("/push", text)
            .with_hint("name `git.token` or `git.ssh_private_key` in the profile's `secrets`"));
    }
    Ok(())
}

fn branch(name: &str) -> Result<(), Problem> {
    let part = |part: &str| part.is_empty() || part.starts_with('.') || part.ends_with(".lock");
    if !is_reference(name) || name == "@" || name.split('/').any(part) {
        return Err(invalid("/push/branch", "not the name of a branch"));
    }
    // `refs/heads/x` would become `refs/heads/refs/heads/x`, and `HEAD` is what nobody means.
    if name.starts_with("refs/") || name.eq_ignore_ascii_case("HEAD") {
        return Err(invalid("/push/branch", "a branch is named without `refs/heads/`"));
    }
    Ok(())
}

/// Whether a name, or a prefix that ends in `*`, stands for this branch.
fn matches(pattern: &str, branch: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => branch.len() > prefix.len() && branch.starts_with(prefix),
        None => pattern == branch,
    }
}

/// What the guest is told of it.
pub(crate) fn order(job: &JobRecord) -> Option<PushOrder> {
    let target = job.push.as_ref()?;
    let url = match &job.repository {
        RepositorySource::Url { url } => url.clone(),
        RepositorySource::Bundle { .. } => target.url.clone()?,
    };
    Some(PushOrder {
        url,
        branch: target.branch.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(push: &[&str], secrets: &[&str]) -> Profile {
        let value = serde_json::json!({"name": "demo", "template_vmid": 9000, "behavior": {"push": push},
            "secrets": secrets});
        serde_json::from_value(value).unwrap()
    }

    fn cloned() -> RepositorySource {
        RepositorySource::Url {
            url: "https://example.org/a.git".to_owned(),
        }
    }

    fn to(branch: &str) -> PushTarget {
        PushTarget {
            branch: branch.to_owned(),
            url: None,
        }
    }

    #[test]
    fn a_push_needs_a_branch_that_the_profile_names_and_credentials() {
        let profile = |push: &[&str]| profile(push, &["git.token"]);
        for (allowed, branch) in [("agentlab/*", "agentlab/x/y"), ("fix", "fix"), ("*", "anything")] {
            assert!(
                check(&to(branch), &cloned(), &profile(&[allowed])).is_ok(),
                "{branch}"
            );
        }
        for (allowed, branch) in [
            ("agentlab/*", "main"),
            ("agentlab/*", "agentlab"),
            ("fix", "fix2"),
        ] {
            let problem = check(&to(branch), &cloned(), &profile(&[allowed])).unwrap_err();
            assert!(problem.hint.unwrap().contains(allowed), "{branch}");
        }
        let refused = check(&to("x"), &cloned(), &profile(&[])).unwrap_err();
        assert!(refused.hint.unwrap().contains("behavior: {push:"));
        let poor = super::tests::profile(&["*"], &["env"]);
        assert!(
            check(&to("x"), &cloned(), &poor)
                .unwrap_err()
                .detail
                .contains("no git credentials")
        );
    }

    #[test]
    fn a_push_goes_to_a_branch_and_to_nothing_else() {
        for branch in [
            "",
            "-f",
            "a:b",
            "a b",
            "refs/heads/x",
            "HEAD",
            "head",
            "@",
            "a//b",
            "a/.b",
            "a.lock",
            "a..b",
        ] {
            let refused = check(&to(branch), &cloned(), &profile(&["*"], &["git"]));
            assert!(refused.is_err(), "{branch}");
        }
    }

    #[test]
    fn a_bundle_names_its_origin_and_a_cloned_repository_has_one() {
        let bundle = RepositorySource::Bundle {
            sha256: "0".repeat(64),
            label: "here".to_owned(),
        };
        let named = |url: &str| PushTarget {
            url: Some(url.to_owned()),
            ..to("x")
        };
        let profile = profile(&["*"], &["git.ssh_private_key"]);
        assert!(check(&named("git@example.org:a"), &bundle, &profile).is_ok());
        assert!(check(&to("x"), &bundle, &profile).is_err());
        assert!(check(&named("https://example.org/a"), &cloned(), &profile).is_err());
        for url in [
            "http://example.org/a",
            "/srv/a",
            "ext::id",
            "https://token@example.org/a",
        ] {
            assert!(check(&named(url), &bundle, &profile).is_err(), "{url}");
        }
    }
}
