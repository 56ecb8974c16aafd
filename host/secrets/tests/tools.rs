//! The genuine `age`, in both directions, and files of sops made by an implementation that is not ours
//! (`make_sops.py`: Python's `cryptography` and the genuine `age`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::tests_outside_test_module,
    clippy::disallowed_methods,
    reason = "this whole program is tests, which wait for the tools they are about"
)]

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use agentlab_protocol::secret::SecretText;
use agentlab_secrets::{Edit, Form, SecretsError, Vault};

const CANARY: &str = "c4n4ry-0f-4-s3cr3t";

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for name in ["secrets", "keys"] {
            fs::create_dir(place.path(name)).unwrap();
            fs::set_permissions(place.path(name), Permissions::from_mode(0o700)).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn vault(&self) -> Vault {
        Vault::new(&self.path("secrets"), &self.path("keys/age.key"))
    }

    fn private(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
        fs::set_permissions(self.path(name), Permissions::from_mode(0o600)).unwrap();
    }

    /// A bundle of sops and the key for it.
    fn sops(name: &str, change: impl FnOnce(String) -> String) -> Self {
        let place = Self::new();
        let fixture = |name: &str| {
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("tests/fixtures")
                .join(name)
        };
        let text = fs::read_to_string(fixture(name)).unwrap();
        place.private(&format!("secrets/{name}"), change(text).as_bytes());
        place.private("keys/age.key", &fs::read(fixture("age.key")).unwrap());
        place
    }
}

fn run(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; `packaging/setup test` installs it"));
    let mut stdin = child.stdin.take().unwrap();
    // What it prints must be taken while it reads.
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

#[test]
fn what_the_genuine_age_encrypts_is_read() {
    let place = Place::new();
    let key = place.path("keys/age.key").display().to_string();
    run("age-keygen", &["-o", &key], b"");
    let recipient = String::from_utf8(run("age-keygen", &["-y", &key], b"")).unwrap();
    let other = String::from_utf8(run("age-keygen", &[], b"")).unwrap();
    let other = other
        .lines()
        .find_map(|line| line.strip_prefix("# public key: "))
        .unwrap();
    let text = format!(
        "version: 1\nenv:\n  TOKEN: {CANARY}\n  LONG: {}\n",
        "x".repeat(200_000)
    );
    for arguments in [
        vec!["-r", recipient.trim()],
        vec!["-a", "-r", recipient.trim()],
        vec!["-r", other, "-r", recipient.trim()],
    ] {
        place.private("secrets/default.age", &run("age", &arguments, text.as_bytes()));
        let opened = place.vault().open("default").unwrap();
        assert_eq!(opened.bundle.env["TOKEN"].expose(), CANARY, "{arguments:?}");
        assert_eq!(
            opened.recipients,
            arguments.iter().filter(|word| **word == "-r").count()
        );
    }
    place.private(
        "secrets/default.age",
        &run("age", &["-r", other], text.as_bytes()),
    );
    let error = place.vault().open("default").unwrap_err();
    assert!(matches!(error, SecretsError::NoMatchingKey { .. }), "{error}");
}

#[test]
fn what_is_written_here_the_genuine_age_decrypts_before_and_after_a_rotation() {
    let place = Place::new();
    let vault = place.vault();
    let edit = Edit {
        name: "default",
        action: "set-env",
        recipients: &[],
        drop_recipients: false,
    };
    let value = SecretText::new(CANARY.to_owned());
    vault
        .edit(&edit, |bundle| Ok(vec![bundle.set_env("TOKEN", &value)?]))
        .unwrap();
    let (key, file) = (place.path("keys/age.key"), place.path("secrets/default.age"));
    let decrypted = || {
        let arguments = [
            "-d",
            "-i",
            &key.display().to_string(),
            &file.display().to_string(),
        ]
        .map(str::to_owned);
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        String::from_utf8(run("age", &words, b"")).unwrap()
    };
    let before = decrypted();
    assert_eq!(before, format!("version: 1\nenv:\n  TOKEN: \"{CANARY}\"\n"));
    let bytes = fs::read(&file).unwrap();
    vault.rotate(&[], false).unwrap();
    assert_eq!(decrypted(), before);
    assert_ne!(fs::read(&file).unwrap(), bytes);
    let said = String::from_utf8(run("age-keygen", &["-y", &key.display().to_string()], b"")).unwrap();
    assert_eq!(
        said.trim(),
        vault.identities().unwrap().recipient().unwrap().to_string()
    );
}

#[test]
fn files_of_sops_are_read_with_the_types_of_their_values() {
    for name in ["default.sops.yaml", "default.sops.json"] {
        let place = Place::sops(name, |text| text);
        let opened = place.vault().open("default").unwrap();
        let bundle = &opened.bundle;
        assert_eq!(opened.form, Form::Sops);
        assert_eq!(bundle.git.token.as_ref().unwrap().expose(), "t0ken-of-git");
        assert_eq!(
            bundle.git.known_hosts.as_ref().unwrap().expose(),
            "example.org ssh-ed25519 AAAA\n"
        );
        let env: Vec<_> = bundle
            .env
            .iter()
            .map(|(name, value)| (name.as_str(), value.expose()))
            .collect();
        assert_eq!(
            env,
            [
                ("API_KEY", "v4lue: of # a key"),
                ("DEBUG", "true"),
                ("EMPTY", ""),
                ("PORT", "8080")
            ]
        );
        let claude = bundle.claude.as_ref().unwrap().expose();
        assert_eq!(claude, r#"{"allow":["Bash","Edit"],"limit":1.5,"model":"opus"}"#);
        assert_eq!(bundle.tailscale.tags, ["tag:a", "tag:b"]);
        let edit = Edit {
            name: "default",
            action: "remove",
            recipients: &[],
            drop_recipients: false,
        };
        let error = place
            .vault()
            .edit(&edit, |bundle| bundle.remove("env"))
            .unwrap_err();
        assert!(matches!(error, SecretsError::ReadOnly { .. }), "{error}");
        // The key it needs stays, and so does the file.
        let rotated = place.vault().rotate(&[], false).unwrap();
        assert_eq!(rotated.left.unwrap().files, [name]);
        place.vault().open("default").unwrap();
    }
}

/// Replaces a word that must be there.
fn put(text: &str, old: &str, new: &str) -> String {
    assert!(text.contains(old), "{old}");
    text.replacen(old, new, 1)
}

fn swapped(text: &str, one: &str, two: &str) -> String {
    let line_of = |key: &str| {
        text.lines()
            .find(|line| line.trim_start().starts_with(key))
            .unwrap()
    };
    let (one_line, two_line) = (line_of(one), line_of(two));
    let value = |line: &str| line.split_once(": ").unwrap().1.to_owned();
    let text = put(text, &value(one_line), "PLACE");
    let text = put(&text, &value(two_line), &value(one_line));
    put(&text, "PLACE", &value(two_line))
}

#[test]
fn a_file_of_sops_that_was_tampered_with_is_refused() {
    type Change = fn(String) -> String;
    let changes: &[(&str, Change, &str)] = &[
        (
            "a value moved to another key",
            |text| swapped(&text, "username", "token"),
            "a value was moved",
        ),
        (
            "an empty value filled in",
            |text| put(&text, "EMPTY: \"\"", "EMPTY: \"evil\""),
            "its MAC does not match",
        ),
        (
            "a value added",
            |text| put(&text, "env:\n", "env:\n    LD_PRELOAD: evil.so\n"),
            "its MAC does not match",
        ),
        (
            "values left out",
            |text| {
                let line = text
                    .lines()
                    .find(|line| line.contains("PORT:"))
                    .unwrap()
                    .to_owned();
                put(&text, &format!("{line}\n"), "")
            },
            "its MAC does not match",
        ),
        (
            "another time",
            |text| put(&text, "2026-01-30T12:00:00Z", "2026-01-30T12:00:01Z"),
            "`sops.mac`",
        ),
        (
            "no MAC",
            |text| put(&text, "    mac: ENC", "    macc: ENC"),
            "has no MAC",
        ),
        (
            "a value that is none",
            |text| put(&text, "type:int]", "type:int"),
            "sops did not write",
        ),
        (
            "a groups' key",
            |text| put(&text, "sops:\n", "sops:\n    shamir_threshold: 2\n"),
            "splits its key",
        ),
        (
            "a weak MAC",
            |text| put(&text, "sops:\n", "sops:\n    mac_only_encrypted: true\n"),
            "protects too little",
        ),
        (
            "no key of age",
            |text| put(&text, "    age:\n", "    kms2:\n"),
            "no key of age",
        ),
        (
            "not encrypted",
            |_| format!("env:\n  A: {CANARY}\n"),
            "is not encrypted",
        ),
    ];
    for (what, change, words) in changes {
        let place = Place::sops("default.sops.yaml", change);
        let error = place.vault().open("default").unwrap_err();
        let said = format!("{error} {error:?}");
        assert!(error.to_string().contains(words), "{what}: {said}");
        for value in [CANARY, "t0ken-of-git", "v4lue", "evil"] {
            assert!(!said.contains(value), "{what}: {said}");
        }
    }
    let place = Place::sops("default.sops.yaml", |text| text);
    let other = String::from_utf8(run("age-keygen", &[], b"")).unwrap();
    place.private("keys/age.key", other.as_bytes());
    let error = place.vault().open("default").unwrap_err();
    assert!(matches!(error, SecretsError::NoMatchingKey { .. }), "{error}");
}
