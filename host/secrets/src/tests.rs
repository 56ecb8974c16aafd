//! Bundles at rest: what is read, what is refused, and what is never said.

mod vault;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use agentlab_protocol::secret::SecretText;

use crate::{Bundle, Edit, Form, Git, SecretsError, Vault, tree};

const CANARY: &str = "c4n4ry-0f-4-s3cr3t";
const PRIVATE: &str =
    "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n-----END OPENSSH PRIVATE KEY-----\n";
const PUBLIC: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGvHkKJbDUZGgMyqqUwyO0gSYpyZxcM2vVzhzQ8rY3bk me@home";

fn secret(text: &str) -> SecretText {
    SecretText::new(text.to_owned())
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn vault(&self) -> Vault {
        Vault::new(
            &self.dir.path().join("secrets"),
            &self.dir.path().join("keys/age.key"),
        )
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join("secrets").join(name)
    }

    fn with(names: &[&str]) -> Self {
        let place = Self::new();
        for name in names {
            set(&place.vault(), name, "TOKEN", CANARY).unwrap();
        }
        place
    }
}

fn edit(name: &str) -> Edit<'_> {
    Edit {
        name,
        action: "set-env",
        recipients: &[],
        drop_recipients: false,
    }
}

fn set(vault: &Vault, bundle: &str, name: &str, value: &str) -> Result<(), SecretsError> {
    vault
        .edit(&edit(bundle), |bundle| {
            Ok(vec![bundle.set_env(name, &secret(value))?])
        })
        .map(drop)
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// What is said of an error, in every form somebody may print it.
fn said(error: &SecretsError) -> String {
    format!("{error} {error:?} {:?}", error.hint())
}

const WHOLE: &str = "version: 1
metadata: {owner: me, since: 2026}
git:
  username: bot
  token: t0ken-of-git
  ssh_private_key: |
    -----BEGIN OPENSSH PRIVATE KEY-----
    b3BlbnNzaC1rZXktdjEAAAAA
    -----END OPENSSH PRIVATE KEY-----
  known_hosts: |
    example.org ssh-ed25519 AAAA
env:
  API_KEY: \"with \\\"quotes\\\", \\\\, a tab\\t, \\u00e9 and \\u0001\"
  PORT: 8080
  YES: true
claude:
  settings: {model: opus, env: {ANTHROPIC_AUTH_TOKEN: abc}, max: 3, on: true}
artifact: {endpoint: https://example.org, token: t0ken-of-artifact}
ssh:
  keys:
    me: {type: ssh-ed25519, key: AAAAC3NzaC1lZDI1NTE5AAAAIGvHkKJbDUZGgMyqqUwyO0gSYpyZxcM2vVzhzQ8rY3bk, comment: me@home}
tailscale: {authkey: tskey-1, tags: [\"tag:a\"], extra_args: [--ssh, --auth-key=file:/k], tailnet: example}
";

#[test]
fn a_whole_bundle_is_read_and_what_is_written_of_it_reads_the_same() {
    let bundle = Bundle::parse(WHOLE.as_bytes(), "b").unwrap();
    assert_eq!(
        bundle.env["API_KEY"].expose(),
        "with \"quotes\", \\, a tab\t, \u{e9} and \u{1}"
    );
    assert_eq!(
        (bundle.env["PORT"].expose(), bundle.env["YES"].expose()),
        ("8080", "true")
    );
    assert_eq!(
        bundle.claude.as_ref().unwrap().expose(),
        r#"{"env":{"ANTHROPIC_AUTH_TOKEN":"abc"},"max":3,"model":"opus","on":true}"#
    );
    assert_eq!(bundle.ssh_keys["me"].line, PUBLIC);
    let text = bundle.emit();
    let again = Bundle::parse(text.as_bytes(), "b").unwrap();
    assert_eq!(*again.emit(), *text);
    assert_eq!(again.git.ssh_private_key.unwrap().expose(), PRIVATE);
    assert_eq!(again.env["API_KEY"].expose(), bundle.env["API_KEY"].expose());
}

#[test]
fn a_tailnet_is_joined_by_those_that_name_it_and_its_admin_key_stays() {
    let bundle = Bundle::parse(WHOLE.as_bytes(), "b").unwrap();
    let scoped = |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| name.parse().unwrap()).collect();
        bundle.scoped(&names, "b").unwrap()
    };
    assert!(scoped(&["env", "git", "claude", "ssh.keys"]).tailnet.is_none());
    let given = scoped(&["tailscale"]);
    let login = given.tailnet.unwrap();
    assert_eq!(
        (login.authkey.expose(), login.hostname.as_str()),
        ("tskey-1", "{name}")
    );
    assert_eq!(
        (login.tags, login.extra_args),
        (
            vec!["tag:a".to_owned()],
            vec!["--ssh".to_owned(), "--auth-key=file:/k".to_owned()]
        )
    );
    assert_eq!(given.names, ["tailscale.authkey"]);
    assert!(
        "tailscale.admin_api_key"
            .parse::<agentlab_api::SecretName>()
            .is_err()
    );
}

#[test]
fn json_is_read_like_yaml_with_characters_that_yaml_cannot_escape() {
    let json = "{\n\t\"version\": 0,\n\t\"env\": {\"A\": \"\\ud83d\\ude00 x\", \"B\": 1}\n}";
    let bundle = Bundle::parse(json.as_bytes(), "b").unwrap();
    assert_eq!(bundle.env["A"].expose(), "\u{1f600} x");
    let twice = Bundle::parse(br#"{"env": {"A": "x", "A": "c4n4ry-0f-4-s3cr3t"}}"#, "b").unwrap_err();
    assert!(
        twice
            .to_string()
            .contains("`env` holds a key of 1 characters twice"),
        "{twice}"
    );
}

#[test]
fn a_key_that_could_not_be_written_again_is_refused_and_the_longest_one_can() {
    let bundle = |length| format!("metadata: {{x: [{{\"{}\": 1}}]}}\n", "\\x01".repeat(length));
    let written = Bundle::parse(bundle(tree::LONGEST_KEY).as_bytes(), "b")
        .unwrap()
        .emit();
    assert_eq!(*Bundle::parse(written.as_bytes(), "b").unwrap().emit(), *written);
    let refused = said(&Bundle::parse(bundle(tree::LONGEST_KEY + 1).as_bytes(), "b").unwrap_err());
    assert!(
        refused.contains("holds a key of more than 160 bytes, at line 1"),
        "{refused}"
    );
}

#[test]
fn what_is_wrong_is_named_with_key_and_place_and_without_any_value() {
    for (text, words) in [
        (
            "git:\n  tokn: CANARY\n",
            "`git` holds unknown key `tokn`; did you mean `token`? (line 2, column 3)",
        ),
        (
            "CANARY: 1\n",
            "holds unknown a key of 18 characters; known here: version",
        ),
        (
            "version: 2\nenv: {}\n",
            "`version` must be 1, the only version there is (line 1, column 10)",
        ),
        ("version: CANARY\n", "must be 1"),
        ("env: CANARY\n", "`env` must hold keys and values"),
        (
            "env:\n  A-B: CANARY\n",
            "no shell can export: letters, digits and underscores only (line 2, column 3)",
        ),
        ("env:\n  A: [CANARY]\n", "`env.A` must be text"),
        ("env:\n  A: 1.10\n", "`env.A` is not text; put it into quotes"),
        ("env:\n  A: x\n  A: CANARY\n", "no YAML or JSON, at line 3"),
        ("env:\n  A: 'CANARY\n", "no YAML or JSON"),
        ("env: {A: CANARY\n", "no YAML or JSON"),
        ("{\"env\": {\"A\": \"CANARY\", }", "no YAML or JSON"),
        (
            "git:\n  token: \"CANARY\\nmore\"\n",
            "`git.token` holds a line end",
        ),
        (
            "git:\n  ssh_private_key: CANARY\n",
            "`git.ssh_private_key` is no private key",
        ),
        (
            "claude: {settings_json: '[CANARY'}\n",
            "`claude.settings_json` is no JSON object",
        ),
        (
            "claude: {settings: CANARY}\n",
            "`claude.settings` must hold keys and values",
        ),
        (
            "ssh: {keys: {me: {key: CANARY}}}\n",
            "`ssh.keys.me` is no public key",
        ),
        (
            "tailscale: {extra_args: ['--ssh', '--auth-key=CANARY']}\n",
            "`tailscale.extra_args` holds a key",
        ),
        (
            "tailscale: {extra_args: ['-authkey', CANARY]}\n",
            "`tailscale.extra_args` holds a key",
        ),
        (
            "tailscale: {extra_args: ['--auth-key=file:/a', '--auth-key', CANARY]}\n",
            "`tailscale.extra_args` holds a key",
        ),
        ("- CANARY\n", "must hold keys and values"),
        ("CANARY\n", "must hold keys and values"),
        ("env: {}\n---\nenv: {A: CANARY}\n", "holds several documents"),
        ("env: &a [CANARY]\ngit: *a\n", "must hold keys and values"),
    ] {
        let error = Bundle::parse(text.replace("CANARY", CANARY).as_bytes(), "b.age").unwrap_err();
        let said = said(&error);
        assert!(said.contains(words), "{text:?}: {said}");
        assert!(!said.contains(CANARY), "{text:?}: {said}");
    }
    let bundle = Bundle::parse(
        format!("env: {{A: {CANARY}}}\nmetadata: {{x: {CANARY}}}").as_bytes(),
        "b",
    )
    .unwrap();
    assert!(!format!("{bundle:?}").contains(CANARY));
}
