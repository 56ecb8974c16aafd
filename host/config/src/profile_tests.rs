use super::*;

fn faults(text: &str) -> String {
    parse_profiles(text, "p.yaml").unwrap_err().to_string()
}

#[test]
fn a_profile_of_name_and_template_is_enough() {
    let loaded = parse_profiles("name: minimal\ntemplate_vmid: 9000\n", "p.yaml").unwrap();
    let profile = &loaded[0].profile;
    assert_eq!(
        (profile.name.as_str(), profile.agent.as_str()),
        ("minimal", "shell")
    );
    assert_eq!(profile.network.mode, NetworkMode::Nat);
    assert!(profile.resources.memory_mb >= 256 && profile.behavior.ttl_minutes_default > 0);
}

#[test]
fn three_documents_load_three_profiles_and_comments_none() {
    let text = "# head\n---\nname: a\ntemplate_vmid: 9000\n---\n# only a comment\n---\nname: b\ntemplate_vmid: 9001\n\
                ---\nname: c\ntemplate_vmid: 9002\n---\n# tail\n";
    let loaded = parse_profiles(text, "p.yaml").unwrap();
    let names: Vec<_> = loaded
        .iter()
        .map(|one| (one.profile.name.as_str(), one.line))
        .collect();
    assert_eq!(names, [("a", 3), ("b", 8), ("c", 11)]);
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_the_nearest_one() {
    let text = "name: a\ntemplate_vmid: 9000\nresources:\n  cores: 2\n  memory: 4096\n";
    assert_eq!(
        faults(text),
        "p.yaml:5:3: unknown key `memory`; did you mean `memory_mb`?"
    );
    let text = "name: a\n---\nname: b\ntemplate_vmid: 1\n";
    assert!(faults(text).starts_with("p.yaml:"), "{}", faults(text));
    let text = "name: a\ntemplate_vmid: 9000\ntemplat_vmid: 9\n";
    assert_eq!(
        faults(text),
        "p.yaml:3:1: unknown key `templat_vmid`; did you mean `template_vmid`?"
    );
    let text = "name: a\ntemplate_vmid: 9000\nnetwork:\n  zzz: 1\n";
    assert_eq!(
        faults(text),
        "p.yaml:4:3: unknown key `zzz`; known here: `mode`, `allow`, `bridge`, `model`, `firewall`, `firewall_group`, `channels`"
    );
}

#[test]
fn what_is_missing_twice_or_of_the_wrong_kind_is_named_with_its_place() {
    for (text, place, words) in [
        ("template_vmid: 9000\n", "p.yaml:1:1: ", "key `name` is missing"),
        ("name: a\n", "p.yaml:1:1: ", "key `template_vmid` is missing"),
        (
            "name: a\nname: b\ntemplate_vmid: 9000\n",
            "p.yaml:2:1: ",
            "key `name` stands here twice",
        ),
        (
            "name: a\ntemplate_vmid: 99\n",
            "p.yaml:2:16: ",
            "`99` is not a VMID",
        ),
        ("name: a\ntemplate_vmid: nine\n", "p.yaml:2:16: ", ""),
        (
            "name: a\ntemplate_vmid: 9000\nnetwork: {mode: natt}\n",
            "p.yaml:3:17: ",
            "did you mean `nat`?",
        ),
        (
            "name: a\ntemplate_vmid: 9000\nresources: 4\n",
            "p.yaml:3:12: ",
            "",
        ),
        ("name: [a\n", "p.yaml:1:7: ", "unclosed"),
        ("- name: a\n", "p.yaml:1:", ""),
        ("just text\n", "p.yaml:1:1: ", ""),
        ("# nothing\n", "p.yaml: ", "holds no profile"),
    ] {
        let said = faults(text);
        assert!(
            said.starts_with(place) && said.contains(words),
            "{text:?} gave {said:?}"
        );
    }
}

#[test]
fn values_out_of_range_are_all_named_at_their_keys() {
    let text = "name: Über\ntemplate_vmid: 9000\nagent: clod\nresources:\n  cores: 0\n  memory_mb: 128\n\
                network:\n  mode: allowlist\n  model: e1000\n  channels: [tls, vsock, tls]\n\
                behavior:\n  ttl_minutes_default: 0\n  inner_sandbox: none\n  inner_sandbox_args: [\"--x\"]\n";
    let said = faults(text);
    for place in ["1:1", "3:1", "5:3", "6:3", "8:3", "9:3", "10:3", "12:3", "14:3"] {
        assert!(
            said.contains(&format!("p.yaml:{place}: ")),
            "{place} is missing in\n{said}"
        );
    }
}

#[test]
fn an_allowlist_is_read_entry_by_entry_and_what_is_wrong_is_named_where_it_stands() {
    let head = "name: a\ntemplate_vmid: 9000\nnetwork:\n";
    let text = format!(
        "{head}  mode: allowlist\n  allow:\n    - Example.com\n    - '*.example.org'\n    - 8.8.0.0/16 tcp/443\n    - udp/123\n"
    );
    let profile = &parse_profiles(&text, "p.yaml").unwrap()[0].profile;
    let shown: Vec<String> = profile.network.allow.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        ["example.com", "*.example.org", "8.8.0.0/16 tcp/443", "udp/123"]
    );
    for (rest, said) in [
        ("  allow: [com]\n  mode: allowlist\n", "p.yaml:4:11: "),
        (
            "  mode: allowlist\n  allow:\n    - example.com\n    - 8.8.8.8/8\n",
            "p.yaml:7:7: ",
        ),
        (
            "  mode: allowlist\n",
            "p.yaml:4:3: `network.mode` is `allowlist` without an entry",
        ),
        (
            "  mode: allowlist\n  allow: [\"a.example:1-5\", \"a.example udp/1-4\"]\n",
            "p.yaml:5:3: `network.allow` names 9 ports of `a.example`",
        ),
        (
            "  mode: nat\n  allow: [example.com]\n",
            "p.yaml:5:3: `network.allow` would be ignored",
        ),
        (
            "  allow: [example.com]\n",
            "p.yaml:4:3: `network.allow` would be ignored",
        ),
    ] {
        let fault = faults(&format!("{head}{rest}"));
        assert!(fault.starts_with(said), "{rest:?} gave {fault:?}");
    }
    let many: String = (0..10_000)
        .map(|number| format!("    - n{number}.example.com\n"))
        .collect();
    let fault = faults(&format!("{head}  mode: allowlist\n  allow:\n{many}"));
    assert!(
        fault.starts_with("p.yaml:5:3: `network.allow` has 10000 entries, and at most 1000"),
        "{fault}"
    );
}

#[test]
fn a_security_group_asks_for_the_firewall_that_it_is_for() {
    let head = "name: a\ntemplate_vmid: 9000\nnetwork:\n";
    let network = |text: &str| {
        let profiles = parse_profiles(&format!("{head}{text}"), "p.yaml").unwrap();
        profiles[0].profile.network.clone()
    };
    assert!(network("  firewall_group: web\n").wants_firewall());
    assert!(network("  firewall: true\n").wants_firewall());
    assert!(!network("  firewall: false\n").wants_firewall() && !network("  mode: nat\n").wants_firewall());
    for (text, said) in [
        (
            "  firewall: false\n  firewall_group: web\n",
            "p.yaml:4:3: `network.firewall` is false",
        ),
        (
            "  firewall_group: \"a group\"\n",
            "p.yaml:4:3: `network.firewall_group` must be",
        ),
        (
            "  firewall_group: x\n",
            "p.yaml:4:3: `network.firewall_group` must be",
        ),
    ] {
        let fault = faults(&format!("{head}{text}"));
        assert!(fault.starts_with(said), "{fault}");
    }
}

#[test]
fn documented_keys_that_nothing_enforces_are_refused_by_name() {
    for (block, key) in [
        (
            "resources:\n  cpu_over_commit: 2.0\n",
            "resources.cpu_over_commit",
        ),
        (
            "network:\n  allow_domains: [example.org]\n",
            "network.allow_domains",
        ),
        ("artifacts:\n  retention_hours: 3\n", "artifacts.retention_hours"),
        ("type: lxc\n", "type"),
    ] {
        let said = faults(&format!("name: a\ntemplate_vmid: 9000\n{block}"));
        assert!(
            said.contains(&format!("key `{key}` is not enforced by this build")),
            "{said}"
        );
        assert!(
            said.starts_with("p.yaml:3:") || said.starts_with("p.yaml:4:"),
            "{said}"
        );
    }
}

#[test]
fn every_refused_key_is_one_the_schema_does_not_know() {
    // Were it known, the refusal would contradict the schema.
    let known = serde_json::to_value(
        parse_profiles("name: a\ntemplate_vmid: 9000", "p").unwrap()[0]
            .profile
            .clone(),
    )
    .unwrap();
    for key in refused::profile_keys() {
        assert!(
            known.pointer(&format!("/{}", key.replace('.', "/"))).is_none(),
            "{key}"
        );
    }
}

#[test]
fn host_mounts_are_refused_at_any_depth_with_their_path() {
    for (block, path) in [
        ("mounts:\n  - host_path: /etc\n", "mounts[0].host_path"),
        ("storage:\n  virtiofs: x\n", "storage.virtiofs"),
        ("binds: [/:/host]\n", "binds"),
        (
            "behavior:\n  deep:\n    - - HostMountPath: /\n",
            "behavior.deep[0][0].HostMountPath",
        ),
        ("bind-mounts: {}\n", "bind-mounts"),
    ] {
        let said = faults(&format!("name: a\ntemplate_vmid: 9000\n{block}"));
        assert!(
            said.contains(&format!("`{path}`: host bind mounts are not allowed")),
            "{said}"
        );
    }
}

#[test]
fn the_same_name_twice_names_both_places() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), "name: one\ntemplate_vmid: 9000\n").unwrap();
    fs::write(dir.path().join("b.yml"), "# b\ntemplate_vmid: 9000\nname: one\n").unwrap();
    fs::write(dir.path().join("c.txt"), "not: a profile").unwrap();
    let said = load_profiles(dir.path()).unwrap_err().to_string();
    let (first, second) = (dir.path().join("a.yaml"), dir.path().join("b.yml"));
    assert_eq!(
        said,
        format!(
            "{}:3:1: profile `one` stands already at {}:1",
            second.display(),
            first.display()
        )
    );
}

#[test]
fn faults_of_all_files_are_said_at_once() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), "nam: one\n").unwrap();
    fs::write(
        dir.path().join("b.yaml"),
        "name: one\ntemplate_vmid: 9000\nresources: {cores: 0}\n",
    )
    .unwrap();
    assert_eq!(
        load_profiles(dir.path()).unwrap_err().to_string().lines().count(),
        2
    );
    let absent = load_profiles(&dir.path().join("absent")).unwrap_err();
    assert!(matches!(absent, ConfigError::Missing { .. }) && absent.hint().is_some());
}

#[test]
fn shipped_profiles_load() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/profiles");
    let names: Vec<_> = load_profiles(&dir)
        .unwrap()
        .into_iter()
        .map(|one| one.profile.name)
        .collect();
    for name in ["demo", "interactive-dev", "yolo-ephemeral", "yolo-workspace"] {
        assert!(
            names.iter().any(|one| one == name),
            "{name} is missing in {names:?}"
        );
    }
}

#[test]
fn secrets_are_named_as_a_bundle_names_them_and_nothing_else() {
    let text = "name: a\ntemplate_vmid: 9000\nsecrets_bundle: ci\nsecrets: [env.TOKEN, git, ssh.keys.me]\n";
    let profile = &parse_profiles(text, "p.yaml").unwrap()[0].profile;
    let names: Vec<String> = profile.secrets.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["env.TOKEN", "git", "ssh.keys.me"]);
    for (line, words) in [
        ("secrets: [env.A-B]\n", "`env.A-B` names no secret"),
        ("secrets: [all]\n", "`all` names no secret"),
        ("secrets: [tailscale.admin_api_key]\n", "not given to sandboxes"),
        ("secrets: git\n", "p.yaml:3:"),
        (
            "secrets_bundle: ci\n",
            "p.yaml:3:1: `secrets_bundle` would be ignored",
        ),
        (
            "secrets_bundle: ../x\nsecrets: [git]\n",
            "`secrets_bundle` is no name of a bundle",
        ),
    ] {
        let said = faults(&format!("name: a\ntemplate_vmid: 9000\n{line}"));
        assert!(said.contains(words), "{line:?} gave {said:?}");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "[ -~\\n\u{e9}]{0,200}") {
        let _ = parse_profiles(&text, "p.yaml");
    }
}

#[test]
fn an_agent_is_one_that_a_runner_has_and_a_command_is_not_empty() {
    let profile = |behavior: &str| format!("name: a\ntemplate_vmid: 9000\nbehavior:\n{behavior}");
    for (behavior, agent) in [
        ("  agent: claude\n", "claude"),
        ("  agent: repository\n  mode: safe\n", "repository"),
        ("  agent: command\n  agent_command: [aider, --yes]\n", "command"),
        ("  agent: codex\n  agent_args: [-m, gpt-5]\n", "codex"),
        ("  mode: dangerous\n", "shell"),
    ] {
        let loaded = parse_profiles(&profile(behavior), "p.yaml").unwrap();
        assert_eq!(loaded[0].profile.agent(), agent);
    }
    for (behavior, words) in [
        (
            "  agent: clod\n",
            "p.yaml:4:3: `behavior.agent` is `clod`; known here: claude",
        ),
        ("  agent: command\n", "`behavior.agent_command` is empty"),
        (
            "  agent: shell\n  agent_args: [-m, x]\n",
            "`behavior.agent_args` would be ignored: the agent is `shell`",
        ),
        (
            "  agent: command\n  agent_command: [\"\"]\n",
            "begins with an empty word",
        ),
        ("  mode: yolo\n", "yolo"),
        (
            "  inner_sandbox: hardened\n  inner_sandbox_args: [--bind, /, /]\n",
            "would undo what `inner_sandbox: hardened` promises",
        ),
        ("  inner_sandbox: gvisor\n", "gvisor"),
    ] {
        let said = faults(&profile(behavior));
        assert!(said.contains(words), "{behavior:?} gave {said:?}");
    }
}

#[test]
fn an_inner_sandbox_is_named_in_the_words_that_documents_use() {
    for (word, meant) in [
        ("bubblewrap", InnerSandbox::Bubblewrap),
        ("bwrap", InnerSandbox::Bubblewrap),
        ("true", InnerSandbox::Bubblewrap),
        ("\"yes\"", InnerSandbox::Bubblewrap),
        ("1", InnerSandbox::Bubblewrap),
        ("hardened", InnerSandbox::Hardened),
        ("none", InnerSandbox::None),
        ("\"off\"", InnerSandbox::None),
        ("false", InnerSandbox::None),
        ("disabled", InnerSandbox::None),
        ("0", InnerSandbox::None),
        ("\"\"", InnerSandbox::None),
    ] {
        let text = format!("name: a\ntemplate_vmid: 9000\nbehavior: {{inner_sandbox: {word}}}\n");
        let loaded = parse_profiles(&text, "p.yaml").unwrap_or_else(|error| panic!("{word}: {error}"));
        assert_eq!(loaded[0].profile.behavior.inner_sandbox, meant, "{word}");
    }
}
