//! Bundles and keys as files: who may read and write them, and what a cut-off change leaves.

use super::*;

#[test]
fn the_first_value_makes_key_and_bundle_and_only_their_owner_reads_them() {
    let place = Place::with(&["default"]);
    let opened = place.vault().open("default").unwrap();
    assert_eq!((opened.form, opened.recipients), (Form::Age, 1));
    assert_eq!(opened.bundle.env["TOKEN"].expose(), CANARY);
    for (path, expected) in [
        (place.file("default.age"), 0o600),
        (place.file("audit.log"), 0o600),
        (place.dir.path().join("keys/age.key"), 0o600),
        (place.dir.path().join("keys"), 0o700),
        (place.dir.path().join("secrets"), 0o700),
    ] {
        assert_eq!(mode(&path), expected, "{}", path.display());
    }
    let audit = std::fs::read_to_string(place.file("audit.log")).unwrap();
    assert!(
        audit.contains(r#""action":"set-env","bundle":"default","names":["env.TOKEN"],"before":null"#),
        "{audit}"
    );
    for entry in std::fs::read_dir(place.dir.path().join("secrets")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(CANARY.len()).any(|part| part == CANARY.as_bytes()));
    }
}

#[test]
fn a_change_is_seen_by_the_next_reader_and_a_refused_one_changes_nothing() {
    let place = Place::with(&["default"]);
    let before = std::fs::read(place.file("default.age")).unwrap();
    let first = place.vault().open("default").unwrap().fingerprint;
    for (name, value) in [("A B", "x"), ("A", ""), ("A", "nul\0")] {
        let error = set(&place.vault(), "default", name, value).unwrap_err();
        assert!(matches!(error, SecretsError::Value { .. }), "{error}");
    }
    assert_eq!(std::fs::read(place.file("default.age")).unwrap(), before);
    set(&place.vault(), "default", "TOKEN", "another value\n").unwrap();
    let opened = place.vault().open("default").unwrap();
    assert_eq!(opened.bundle.env["TOKEN"].expose(), "another value");
    assert_ne!(opened.fingerprint, first);
}

#[test]
fn a_refused_first_value_makes_neither_key_nor_bundle() {
    let place = Place::new();
    assert!(set(&place.vault(), "default", "A B", "x").is_err());
    assert!(!place.dir.path().join("keys").exists());
    assert_eq!(place.vault().files().unwrap(), Vec::<String>::new());
}

#[test]
fn a_private_key_comes_with_its_hosts_and_without_a_passphrase() {
    let mut bundle = Bundle::default();
    let git = |key: &str, hosts: Option<&str>| Git {
        ssh_private_key: Some(secret(key)),
        known_hosts: hosts.map(secret),
        ..Git::default()
    };
    let error = bundle.clone().set_git(&git(PRIVATE, None)).unwrap_err();
    assert!(
        error.to_string().contains("git.known_hosts is missing"),
        "{error}"
    );
    let locked = PRIVATE.replace("OPENSSH PRIVATE", "ENCRYPTED PRIVATE");
    let error = bundle.clone().set_git(&git(&locked, Some("h k"))).unwrap_err();
    assert!(error.to_string().contains("passphrase"), "{error}");
    bundle.set_git(&git(PRIVATE, Some("h k"))).unwrap();
    bundle.add_ssh_key("me", PUBLIC).unwrap();
    let error = bundle.add_ssh_key("you", PRIVATE).unwrap_err();
    assert!(error.to_string().contains("is a private key"), "{error}");
    assert_eq!(
        bundle.remove("git").unwrap(),
        ["git.ssh_private_key", "git.known_hosts"]
    );
    assert!(bundle.remove("env.NONE").is_err());
}

#[test]
fn files_that_others_can_use_are_refused() {
    let place = Place::with(&["default"]);
    let key = place.dir.path().join("keys/age.key");
    let dir = place.dir.path().join("secrets");
    for (path, open, closed) in [
        (&place.file("default.age"), 0o604, 0o640),
        (&place.file("default.age"), 0o620, 0o600),
        (&key, 0o640, 0o600),
        (&key, 0o644, 0o600),
        (&dir, 0o770, 0o750),
    ] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(open)).unwrap();
        let error = place.vault().open("default").unwrap_err();
        assert!(
            matches!(error, SecretsError::Permissions { mode, .. } if mode == open),
            "{error}"
        );
        assert!(error.hint().unwrap().starts_with("chmod go-rwx "));
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(closed)).unwrap();
        place.vault().open("default").unwrap();
    }
}

#[test]
fn a_bundle_that_is_cut_off_changed_or_anothers_is_refused_in_its_own_words() {
    let place = Place::with(&["default"]);
    let path = place.file("default.age");
    let whole = std::fs::read(&path).unwrap();
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = place.vault().open("default").unwrap_err();
        assert!(matches!(error, SecretsError::Damaged { .. }), "{length}: {error}");
    }
    let last = whole.len() - 1;
    let mut changed = whole.clone();
    changed[last] ^= 1;
    std::fs::write(&path, &changed).unwrap();
    let error = place.vault().open("default").unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("was changed or cut off after it was encrypted"),
        "{error}"
    );
    std::fs::write(&path, format!("env: {{A: {CANARY}}}")).unwrap();
    let error = place.vault().open("default").unwrap_err();
    assert!(error.to_string().contains("is not encrypted with age"), "{error}");

    let other = Place::with(&["default"]);
    std::fs::copy(other.file("default.age"), &path).unwrap();
    let error = place.vault().open("default").unwrap_err();
    assert!(matches!(error, SecretsError::NoMatchingKey { .. }), "{error}");
    assert!(said(&error).contains("age-keygen -y"), "{error}");
    // Neither is a lost key replaced by a new one, which would open nothing.
    std::fs::remove_file(place.dir.path().join("keys/age.key")).unwrap();
    let error = set(&place.vault(), "default", "A", "x").unwrap_err();
    assert!(matches!(error, SecretsError::KeyAbsent(_)), "{error}");
}

#[test]
fn a_key_file_is_refused_with_its_line_and_never_shown() {
    let place = Place::with(&["default"]);
    let path = place.dir.path().join("keys/age.key");
    for (text, line) in [
        ("", 1),
        ("# nothing\n", 1),
        ("# x\nAGE-SECRET-KEY-1CANARY\n", 2),
        ("AGE-PLUGIN-YUBIKEY-1CANARY\n", 1),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = place.vault().open("default").unwrap_err();
        assert!(
            matches!(error, SecretsError::KeyFile { line: at, .. } if at == line),
            "{error}"
        );
        assert!(!said(&error).contains("CANARY"), "{error}");
    }
}

#[test]
fn a_name_is_one_file_of_the_directory() {
    let place = Place::with(&["default", "ci"]);
    let vault = place.vault();
    assert_eq!(vault.files().unwrap(), ["ci.age", "default.age"]);
    vault.open("ci.age").unwrap();
    for name in [
        "",
        ".",
        "..",
        "../keys/age",
        "a/b",
        "/etc/passwd",
        ".hidden",
        "a b",
    ] {
        assert!(matches!(vault.open(name), Err(SecretsError::Name(_))), "{name}");
    }
    let error = vault.open("absent").unwrap_err();
    assert!(matches!(error, SecretsError::Absent { .. }), "{error}");
    std::fs::write(place.file("ci.sops.yaml"), "").unwrap();
    let error = vault.open("ci").unwrap_err();
    assert!(error.to_string().contains("ci.age, ci.sops.yaml"), "{error}");
}

#[test]
fn keys_of_others_are_not_let_go_of_unnoticed() {
    let place = Place::with(&["default"]);
    let vault = place.vault();
    let laptop = crate::Identities::generate(&place.dir.path().join("laptop"));
    let recipients = [laptop.recipient().unwrap()];
    let both = Edit {
        recipients: &recipients,
        ..edit("default")
    };
    let change = |bundle: &mut Bundle| Ok(vec![bundle.set_env("A", &secret("x"))?]);
    assert_eq!(vault.edit(&both, change).unwrap().recipients, 2);
    let error = vault.edit(&edit("default"), change).unwrap_err();
    assert!(
        matches!(
            error,
            SecretsError::OtherRecipients {
                recipients: 2,
                known: 1,
                ..
            }
        ),
        "{error}"
    );
    assert!(matches!(
        vault.rotate(&[], false),
        Err(SecretsError::OtherRecipients { .. })
    ));
    laptop.store().unwrap();
    let from_laptop = Vault::new(
        &place.dir.path().join("secrets"),
        &place.dir.path().join("laptop"),
    );
    assert_eq!(from_laptop.open("default").unwrap().bundle.env["A"].expose(), "x");
    let dropping = Edit {
        drop_recipients: true,
        ..edit("default")
    };
    assert_eq!(vault.edit(&dropping, change).unwrap().recipients, 1);
    assert!(from_laptop.open("default").is_err());
}

#[test]
fn a_rotation_cut_off_anywhere_leaves_every_bundle_open_and_can_be_begun_anew() {
    let steps = {
        let place = Place::with(&["a", "b", "c"]);
        let mut steps = 0;
        let rotated = place.vault().rotate_watched(&[], false, &mut |_| {
            steps += 1;
            Ok(())
        });
        assert_eq!(rotated.unwrap().files, ["a.age", "b.age", "c.age"]);
        steps
    };
    assert_eq!(steps, 5);
    for cut_at in 1..=steps {
        let place = Place::with(&["a", "b", "c"]);
        let old = std::fs::read(place.dir.path().join("keys/age.key")).unwrap();
        let mut step = 0;
        let cut = place.vault().rotate_watched(&[], false, &mut |_| {
            for name in ["a", "b", "c"] {
                let opened = place.vault().open(name)?;
                assert_eq!(opened.bundle.env["TOKEN"].expose(), CANARY);
            }
            step += 1;
            if step == cut_at {
                return Err(SecretsError::Name("cut".to_owned()));
            }
            Ok(())
        });
        assert!(cut.is_err());
        // As it would lie there after a power failure in the middle of the next write.
        std::fs::write(place.file("a.age.new"), "half").unwrap();
        place.vault().rotate(&[], false).unwrap();
        let new = std::fs::read_to_string(place.dir.path().join("keys/age.key")).unwrap();
        assert_eq!(new.matches("AGE-SECRET-KEY-").count(), 1);
        for name in ["a", "b", "c"] {
            assert_eq!(
                place.vault().open(name).unwrap().bundle.env["TOKEN"].expose(),
                CANARY
            );
        }
        std::fs::write(place.dir.path().join("keys/age.key"), &old).unwrap();
        assert!(
            matches!(place.vault().open("a"), Err(SecretsError::NoMatchingKey { .. })),
            "the old key is worthless"
        );
    }
}

#[test]
fn a_second_writer_is_told_to_wait() {
    let place = Place::with(&["default"]);
    let vault = place.vault();
    let held = vault.lock().unwrap();
    assert!(matches!(
        set(&vault, "default", "A", "x"),
        Err(SecretsError::Busy(_))
    ));
    drop(held);
    set(&vault, "default", "A", "x").unwrap();
}

#[test]
fn a_profile_sees_what_it_names_and_nothing_else() {
    let bundle = Bundle::parse(WHOLE.as_bytes(), "b").unwrap();
    let scoped = |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| name.parse().unwrap()).collect();
        bundle.scoped(&names, "b")
    };
    let none = scoped(&[]).unwrap();
    assert!(none.git.is_none() && none.environment.is_empty() && none.claude_settings.is_none());
    assert!(none.authorized_keys.is_empty() && none.names.is_empty());
    let one = scoped(&["env.PORT", "env.PORT"]).unwrap();
    assert_eq!(one.environment.keys().collect::<Vec<_>>(), ["PORT"]);
    assert_eq!(one.names, ["env.PORT"]);
    assert!(one.git.is_none() && one.claude_settings.is_none() && one.authorized_keys.is_empty());
    let key = scoped(&["git.ssh_private_key"]).unwrap().git.unwrap();
    assert!(key.token.is_none() && key.known_hosts.is_some());
    assert_eq!(key.username, "x-access-token");
    let token = scoped(&["git.token"]).unwrap().git.unwrap();
    assert!(token.ssh_private_key.is_none() && token.known_hosts.is_none());
    assert_eq!(
        (token.username.as_str(), token.token.unwrap().expose()),
        ("bot", "t0ken-of-git")
    );
    let all = scoped(&["env", "git", "claude", "ssh.keys"]).unwrap();
    assert_eq!(all.names.len(), 7, "{:?}", all.names);
    let error = scoped(&["env.PORT", "env.ABSENT", "ssh.keys.you"]).unwrap_err();
    assert_eq!(error.to_string(), "b has no env.ABSENT, ssh.keys.you");
}

proptest::proptest! {
    #[test]
    fn no_text_is_too_strange_to_be_refused(text in ".{0,300}") {
        let _ = Bundle::parse(text.as_bytes(), "b");
    }

    #[test]
    fn any_value_comes_back_as_it_was_set(value in "\\PC{1,60}|[\\x01-\\x7f\u{80}-\u{ff}\u{2028}\u{feff}]{1,20}") {
        let mut bundle = Bundle::default();
        bundle.env.insert("A".to_owned(), secret(&value));
        let again = Bundle::parse(bundle.emit().as_bytes(), "b").unwrap();
        proptest::prop_assert_eq!(again.env["A"].expose(), value.as_str());
    }
}
