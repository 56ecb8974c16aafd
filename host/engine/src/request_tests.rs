use super::*;

fn demo() -> Profile {
    serde_json::from_value(serde_json::json!({"name": "demo", "template_vmid": 9000})).unwrap()
}

fn request(url: &str) -> JobRequest {
    JobRequest {
        repository: RepositorySource::Url { url: url.into() },
        reference: None,
        task: "true".into(),
        profile: "demo".into(),
        agent: None,
        deadline_seconds: None,
        ttl_minutes: None,
        keepalive: None,
        workspace: None,
        workspace_wait_seconds: None,
        push: None,
    }
}

#[test]
fn only_what_git_clones_over_an_encrypted_network_is_taken() {
    for url in [
        "https://example.org/a.git",
        "ssh://git@example.org:22/a",
        "git@example.org:a/b.git",
    ] {
        assert!(settle(&request(url), &demo()).is_ok(), "{url}");
    }
    for url in [
        "",
        "/srv/repo",
        "./repo",
        "~/repo",
        "file:///srv/repo",
        "FILE:/srv/repo",
        "http://example.org/a",
        "git://example.org/a",
        "ext::sh -c id",
        "ext::sh",
        "--upload-pack=id",
        "ssh://-oProxyCommand=id/a",
        "-oProxyCommand=id@host:a",
        "git@-oProxyCommand=id:a",
        "https://user:secret@example.org/a",
        "https://token@example.org/a",
        "https:///a",
        "https://example.org/a\nb",
    ] {
        let problem = settle(&request(url), &demo()).unwrap_err();
        assert_eq!(problem.code, ErrorCode::InvalidValue, "{url}");
        assert!(!problem.detail.contains("secret"));
    }
    let local = settle(&request("/srv/repo"), &demo()).unwrap_err();
    assert!(local.hint.unwrap().contains("bundles"));
}

#[test]
fn an_unknown_profile_is_answered_with_the_nearest_one() {
    let problem = profile(&[demo()], "dmeo").unwrap_err();
    assert_eq!(problem.code, ErrorCode::UnknownProfile);
    assert_eq!(problem.hint.as_deref(), Some("did you mean `demo`?"));
    assert!(
        profile(&[demo()], "zzz")
            .unwrap_err()
            .hint
            .unwrap()
            .contains("there are: demo")
    );
}

#[test]
fn an_agent_is_one_that_runners_have_and_the_job_chooses_before_the_profile() {
    use agentlab_protocol::agent::AgentKind;
    assert_eq!(AGENTS, AgentKind::ALL.map(AgentKind::as_str));
    let with = |agent: Option<&str>, profile: &Profile| {
        let request = JobRequest {
            agent: agent.map(str::to_owned),
            ..request("https://example.org/a")
        };
        settle(&request, profile)
    };
    let mut profile = demo();
    profile.behavior.agent = Some("claude".into());
    assert_eq!(with(None, &profile).unwrap().agent, "claude");
    assert_eq!(with(Some("codex"), &profile).unwrap().agent, "codex");
    let unknown = with(Some("claud"), &profile).unwrap_err();
    assert_eq!(unknown.hint.as_deref(), Some("did you mean `claude`?"));
    assert!(with(Some(""), &profile).is_err());
    assert!(with(Some("command"), &profile).is_err());
    profile.behavior.agent_command = vec!["aider".into()];
    assert_eq!(with(Some("command"), &profile).unwrap().agent, "command");
}

#[test]
fn a_template_of_another_runner_is_refused() {
    let of = |version: Option<&str>| {
        vec![Template {
            name: "debian".into(),
            vmid: demo().template_vmid,
            id: "x".into(),
            runner_version: version.map(str::to_owned),
        }]
    };
    for version in [Some("0.1.9"), None] {
        assert!(template(&of(version), &demo(), "0.1.0").is_ok(), "{version:?}");
    }
    for version in [Some("0.2.0"), Some("1.1.0"), Some("nonsense")] {
        let problem = template(&of(version), &demo(), "0.1.0").unwrap_err();
        assert_eq!(problem.code, ErrorCode::TemplateUnavailable, "{version:?}");
        assert!(problem.hint.unwrap().contains("agentlab-template build"));
    }
    assert!(template(&[], &demo(), "0.1.0").is_err());
}

#[test]
fn a_lease_never_ends_before_its_deadline() {
    let with = |deadline, ttl| {
        let request = JobRequest {
            deadline_seconds: deadline,
            ttl_minutes: ttl,
            ..request("https://example.org/a")
        };
        settle(&request, &demo())
    };
    assert_eq!(with(Some(6 * 3600), None).unwrap().ttl_minutes, 390);
    assert_eq!(with(Some(60), None).unwrap().ttl_minutes, 180);
    assert_eq!(with(Some(600), Some(10)).unwrap().ttl_minutes, 10);
    for (deadline, ttl) in [
        (Some(601), Some(10)),
        (Some(0), None),
        (Some(u32::MAX), None),
        (None, Some(0)),
    ] {
        assert!(with(deadline, ttl).is_err(), "{deadline:?} {ttl:?}");
    }
}

#[test]
fn a_task_is_neither_empty_nor_endless_and_a_reference_is_no_option() {
    let base = request("https://example.org/a");
    for task in [
        String::new(),
        " \n".into(),
        "x".repeat(TASK_BYTES + 1),
        "a\0b".into(),
    ] {
        assert!(settle(&JobRequest { task, ..base.clone() }, &demo()).is_err());
    }
    for bad in ["", "-b", "a..b", "a b", "a:b", "a\\b", "x@{1}", "a/"] {
        let request = JobRequest {
            reference: Some(bad.into()),
            ..base.clone()
        };
        assert!(settle(&request, &demo()).is_err(), "{bad:?}");
    }
    let request = JobRequest {
        reference: Some("feature/x-1".into()),
        ..base
    };
    assert!(settle(&request, &demo()).is_ok());
}
