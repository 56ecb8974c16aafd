use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::requirement::skipped_without_root;

struct Mounted(tempfile::TempDir);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path().join("run"), rustix::mount::UnmountFlags::DETACH);
    }
}

fn shell(script: &str, arguments: &[&str]) -> String {
    #[expect(
        clippy::disallowed_methods,
        reason = "a test may wait for a shell that ends at once"
    )]
    let output = std::process::Command::new("sh")
        .args(["-c", script, "sh"])
        .args(arguments)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn mounted() -> (Mounted, SecretDir) {
    let base = Mounted(tempfile::tempdir().unwrap());
    let directory = SecretDir::mount(&base.0.path().join("run"), 60_901, 60_902).unwrap();
    (base, directory)
}

#[test]
fn a_secret_file_is_on_a_tmpfs_of_its_own_and_only_the_agent_reads_it() {
    if skipped_without_root() {
        return;
    }
    let (base, directory) = mounted();
    directory.write("token", b"first").unwrap();
    let path = directory.write("token", b"second").unwrap();
    let seen = std::fs::metadata(&path).unwrap();
    assert_eq!(
        (seen.uid(), seen.gid(), seen.mode() & 0o7777),
        (60_901, 60_902, 0o400)
    );
    assert_eq!(std::fs::read(&path).unwrap(), b"second");
    assert_eq!(
        std::fs::metadata(directory.path()).unwrap().mode() & 0o7777,
        0o711
    );
    assert!(!std::fs::metadata(base.0.path()).unwrap().dev().eq(&seen.dev()));
    let again = SecretDir::mount(directory.path(), 60_901, 60_902).unwrap();
    assert!(
        again.path().join("token").exists(),
        "a second mount would hide the first"
    );
}

#[test]
fn a_directory_that_is_no_tmpfs_is_refused() {
    let base = tempfile::tempdir().unwrap();
    let refused = SecretDir::verified(base.path(), 1, 1);
    assert!(matches!(refused, Err(SecretsError::NotTmpfs(_))), "{refused:?}");
}

#[test]
fn active_swap_is_refused_before_anything_is_mounted() {
    let base = tempfile::tempdir().unwrap();
    let swaps = base.path().join("swaps");
    std::fs::write(
        &swaps,
        "Filename Type Size Used Priority\n/dev/vdb partition 1 0 -2\n",
    )
    .unwrap();
    let run = base.path().join("run");
    let refused = SecretDir::mount_beside(&run, 1, 1, &swaps);
    assert!(
        matches!(&refused, Err(SecretsError::Swap(areas)) if areas == "/dev/vdb"),
        "{refused:?}"
    );
    assert!(!run.exists());
}

#[test]
fn an_environment_comes_through_a_shell_unchanged_and_bad_names_are_refused() {
    if skipped_without_root() {
        return;
    }
    let (_base, directory) = mounted();
    let value = "it's \"$HOME\" `id` \\ \n two lines";
    let environment = BTreeMap::from([("A_KEY".to_owned(), SecretText::new(value.to_owned()))]);
    let path = directory.write_environment(&environment).unwrap().unwrap();
    let path = path.display().to_string();
    assert_eq!(shell(". \"$1\"; printf %s \"$A_KEY\"", &[&path]), value);
    for name in ["", "1A", "A-B", "A=B", "A;id"] {
        let bad = BTreeMap::from([(name.to_owned(), SecretText::new("x".to_owned()))]);
        assert!(
            matches!(directory.write_environment(&bad), Err(SecretsError::Name(_))),
            "{name}"
        );
    }
}

#[test]
fn a_token_is_scoped_to_the_host_of_the_repository() {
    if skipped_without_root() {
        return;
    }
    assert_eq!(
        credential_scope("https://me:pw@git.example:8443/a/b").as_deref(),
        Some("https://git.example:8443")
    );
    assert_eq!(
        credential_scope("https://git.example?x").as_deref(),
        Some("https://git.example")
    );
    for url in [
        "http://git.example/a",
        "git@host:repo",
        "ssh://host/x",
        "file:///x",
        "https://",
        "https://a b/",
    ] {
        assert_eq!(credential_scope(url), None, "{url}");
    }
    let (_base, directory) = mounted();
    let credentials = GitCredentials {
        username: "bot".to_owned(),
        token: Some(SecretText::new("t0ken-value".to_owned())),
        ssh_private_key: None,
        known_hosts: None,
    };
    let access = directory
        .write_git(&credentials, Some("https://git.example/a"))
        .unwrap();
    assert_eq!(access.config[0].0, "credential.https://git.example.helper");
    assert!(!access.config[0].1.contains("t0ken-value"));
    let setting = format!("{}={}", access.config[0].0, access.config[0].1);
    let ask = "printf 'url=%s\n\n' \"$2\" | GIT_TERMINAL_PROMPT=0 GIT_CONFIG_GLOBAL=/dev/null GIT_ASKPASS=/bin/false \
                   git -c \"$1\" credential fill";
    let told = shell(ask, &[&setting, "https://git.example/a/b"]);
    assert!(told.contains("username=bot\npassword=t0ken-value\n"), "{told}");
    assert!(
        !shell(ask, &[&setting, "https://evil.example/a"]).contains("t0ken"),
        "another host asks in vain"
    );
    assert!(directory.write_git(&credentials, None).unwrap().config.is_empty());
}
