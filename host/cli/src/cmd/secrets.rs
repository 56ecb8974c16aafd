//! `agentlab secrets`: works on the files of this host, without a daemon, which reads them when it needs them.
//!
//! Values come from files, from standard input or from a prompt, and never from the command line, which every user of
//! the host can read. What is printed is names and fingerprints.

use std::path::{Path, PathBuf};

use agentlab_config::{Config, load_config};
use agentlab_protocol::secret::SecretText;
use agentlab_secrets::{Bundle, Edit, Form, Git, Opened, Recipient, SecretsError, Tailscale, Vault};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::error::CommandError;
use crate::output::{Table, cell};
use crate::printer::Printer;
use crate::secret_input::{self, Source};
use crate::terminal::escape;
use crate::{CommandResult, ExitStatus};

const CONFIG: &str = "/etc/agentlab/config.yaml";

/// `secrets`.
#[derive(Debug, Args)]
pub(crate) struct Secrets {
    /// Read where bundles and key are from here
    #[arg(long, global = true, value_name = "FILE", help_heading = "Place")]
    config: Option<PathBuf>,
    /// Bundle to work on
    #[arg(long, global = true, value_name = "NAME", help_heading = "Place")]
    bundle: Option<String>,
    /// Directory of the bundles
    #[arg(long, global = true, value_name = "DIR", help_heading = "Place")]
    dir: Option<PathBuf>,
    /// age identity that opens them
    #[arg(long, global = true, value_name = "FILE", help_heading = "Place")]
    age_key: Option<PathBuf>,
    /// Encrypt to this key (age1…) as well; may be repeated
    #[arg(long, global = true, value_name = "KEY", help_heading = "Place")]
    recipient: Vec<String>,
    /// Let keys that are not named lose access
    #[arg(long, global = true, help_heading = "Place")]
    drop_recipients: bool,
    #[command(subcommand)]
    verb: Verb,
}

/// Verbs.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Names and fingerprints of what a bundle holds
    Show,
    /// Open every bundle, and check that each profile's secrets are there
    Validate,
    /// Set a variable of agents' environment; its value comes from a file, standard input or a prompt
    SetEnv(SetEnv),
    /// Remove secrets, by their names in `secrets show`
    Remove {
        /// As in `env.NAME`, `git.token`, `git`, `tailscale`
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Set what git in sandboxes logs in with
    SetGit(SetGit),
    /// Set the settings of Claude Code
    SetClaude {
        /// JSON; `-` is standard input
        #[arg(long, value_name = "FILE")]
        settings_file: PathBuf,
    },
    /// Add a public key that may log in to sandboxes
    AddSshKey(AddSshKey),
    /// Remove a public key
    RemoveSshKey {
        /// Its name
        #[arg(long)]
        name: String,
    },
    /// Set what joins a tailnet; given to sandboxes whose profile names `tailscale`
    SetTailscale(SetTailscale),
    /// Remove all of Tailscale's
    ClearTailscale,
    /// Make a new age key and encrypt every bundle to it
    Rotate,
}

#[derive(Debug, Args)]
struct SetEnv {
    /// Name of the variable
    #[arg(long, required_unless_present = "from_file", conflicts_with = "from_file")]
    name: Option<String>,
    /// File with its value, one line end at its end not counted; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "from_file")]
    value_file: Option<PathBuf>,
    /// File of NAME=VALUE lines, as they stand; `-` is standard input
    #[arg(long, value_name = "FILE")]
    from_file: Option<PathBuf>,
    #[arg(long, hide = true)]
    value: Option<String>,
}

#[derive(Debug, Args)]
struct SetGit {
    /// User name that goes with the token
    #[arg(long, value_name = "NAME")]
    username: Option<String>,
    /// File with the token; `-` is standard input
    #[arg(long, value_name = "FILE", alias = "git-token-file")]
    token_file: Option<PathBuf>,
    /// File with an OpenSSH private key without passphrase
    #[arg(long, value_name = "FILE")]
    ssh_key_file: Option<PathBuf>,
    /// Hosts that key may be shown to, as `ssh-keyscan` prints them
    #[arg(long, value_name = "FILE")]
    known_hosts_file: Option<PathBuf>,
    #[arg(long, hide = true)]
    git_token: Option<String>,
}

#[derive(Debug, Args)]
struct AddSshKey {
    /// Name to know it by
    #[arg(long)]
    name: String,
    /// Its .pub file; `-` is standard input
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
}

#[derive(Debug, Args)]
struct SetTailscale {
    /// File with an auth key; `-` is standard input
    #[arg(long, value_name = "FILE")]
    authkey_file: Option<PathBuf>,
    /// File with a key of the admin API; `-` is standard input
    #[arg(long, value_name = "FILE")]
    admin_api_key_file: Option<PathBuf>,
    /// Which tailnet
    #[arg(long)]
    tailnet: Option<String>,
    /// Name of a node
    #[arg(long, value_name = "TEMPLATE")]
    hostname_template: Option<String>,
    /// Tag of a node; may be repeated
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// More for `tailscale up`; may be repeated
    #[arg(long = "extra-arg", value_name = "ARG", allow_hyphen_values = true)]
    extra_args: Vec<String>,
    #[arg(long, hide = true)]
    authkey: Option<String>,
    #[arg(long, hide = true)]
    admin_api_key: Option<String>,
}

/// Where everything is, and what is known of it.
struct Place {
    vault: Vault,
    key_path: PathBuf,
    bundle: String,
    config: Option<Config>,
    recipients: Vec<Recipient>,
    drop_recipients: bool,
}

impl Secrets {
    pub(crate) fn run(&self, printer: &Printer) -> CommandResult {
        let place = self.place(printer)?;
        match &self.verb {
            Verb::Show => return show(&place, printer),
            Verb::Validate => return validate(&place, self.bundle.as_deref(), printer),
            Verb::Rotate => return rotate(&place, printer),
            Verb::SetEnv(set) => {
                let pairs = set.pairs()?;
                place.edit("set-env", printer, |bundle| {
                    let set = |(name, value): &(String, SecretText)| bundle.set_env(name, value);
                    pairs.iter().map(set).collect()
                })?;
            }
            Verb::Remove { names } => place.edit("remove", printer, |bundle| remove(bundle, names))?,
            Verb::SetGit(set) => {
                let git = set.read()?;
                place.edit("set-git", printer, |bundle| bundle.set_git(&git))?;
            }
            Verb::SetClaude { settings_file } => {
                let settings = secret_input::read(&Source::of(Some(settings_file)), "the settings")?;
                place.edit("set-claude", printer, |bundle| {
                    Ok(vec![bundle.set_claude(&settings)?])
                })?;
            }
            Verb::AddSshKey(add) => {
                let key = secret_input::read(&Source::of(Some(&add.key_file)), "the public key")?;
                place.edit("add-ssh-key", printer, |bundle| {
                    Ok(vec![bundle.add_ssh_key(&add.name, key.expose())?])
                })?;
            }
            Verb::RemoveSshKey { name } => {
                let name = format!("ssh.keys.{name}");
                place.edit("remove-ssh-key", printer, |bundle| bundle.remove(&name))?;
            }
            Verb::SetTailscale(set) => {
                let tailscale = set.read()?;
                place.edit("set-tailscale", printer, |bundle| {
                    bundle.set_tailscale(&tailscale)
                })?;
            }
            Verb::ClearTailscale => {
                place.edit("clear-tailscale", printer, |bundle| bundle.remove("tailscale"))?;
            }
        }
        Ok(ExitStatus::Success)
    }

    fn place(&self, printer: &Printer) -> Result<Place, CommandError> {
        let path = self.config.as_deref().unwrap_or_else(|| Path::new(CONFIG));
        // Named, it must be there; by default, everything is where it is by default.
        let config = if self.config.is_some() || path.exists() {
            let loaded = load_config(path)?;
            for warning in &loaded.warnings {
                printer.warning(&escape(warning));
            }
            Some(loaded.value)
        } else {
            None
        };
        let or = |given: &Option<PathBuf>, own: Option<&PathBuf>, default: &str| {
            given
                .clone()
                .or_else(|| own.cloned())
                .unwrap_or_else(|| default.into())
        };
        let own = config.as_ref();
        let dir = or(
            &self.dir,
            own.map(|config| &config.secrets_dir),
            "/etc/agentlab/secrets",
        );
        let key_path = or(
            &self.age_key,
            own.map(|config| &config.secrets_age_key_path),
            "/etc/agentlab/keys/age.key",
        );
        let bundle = self
            .bundle
            .clone()
            .or_else(|| own.map(|config| config.secrets_bundle.clone()));
        let recipients: Result<Vec<Recipient>, SecretsError> =
            self.recipient.iter().map(|key| key.parse()).collect();
        Ok(Place {
            vault: Vault::new(&dir, &key_path),
            key_path,
            bundle: bundle.unwrap_or_else(|| "default".to_owned()),
            config,
            recipients: recipients?,
            drop_recipients: self.drop_recipients,
        })
    }
}

impl Place {
    fn edit(
        &self,
        action: &str,
        printer: &Printer,
        change: impl FnOnce(&mut Bundle) -> Result<Vec<String>, SecretsError>,
    ) -> Result<(), CommandError> {
        let new_key = !self.key_path.exists();
        let edit = Edit {
            name: &self.bundle,
            action,
            recipients: &self.recipients,
            drop_recipients: self.drop_recipients,
        };
        let mut changed = Vec::new();
        let opened = self.vault.edit(&edit, |bundle| {
            changed = change(bundle)?;
            Ok(changed.clone())
        })?;
        if new_key && self.key_path.exists() {
            let path = self.key_path.display();
            printer.warning(&format!(
                "made {path}: without a copy of it, a lost disk takes all secrets along"
            ));
        }
        if changed.is_empty() {
            printer.warning("nothing was given, and nothing has changed");
        }
        if printer.json() {
            return printer.document(&json!({
                "file": opened.path, "fingerprint": opened.fingerprint, "changed": changed,
            }));
        }
        printer.line(&escape(&format!(
            "{}: {}",
            opened.path.display(),
            changed.join(", ")
        )))
    }
}

impl SetEnv {
    fn pairs(&self) -> Result<Vec<(String, SecretText)>, CommandError> {
        not_in_arguments(&[("--value", "--value-file", self.value.as_ref())])?;
        if let Some(path) = &self.from_file {
            let text = secret_input::read(&Source::of(Some(path)), "the file of variables")?;
            return secret_input::pairs(&text);
        }
        let name = self.name.clone().unwrap_or_default();
        let source = Source::of(self.value_file.as_deref());
        let value = secret_input::read(&source, &format!("value of {}", escape(&name)))?;
        Ok(vec![(name, value)])
    }
}

impl SetGit {
    fn read(&self) -> Result<Git, CommandError> {
        not_in_arguments(&[("--git-token", "--token-file", self.git_token.as_ref())])?;
        let nothing =
            self.username.is_none() && self.ssh_key_file.is_none() && self.known_hosts_file.is_none();
        let token = if self.token_file.is_some() || nothing {
            Some(secret_input::read(
                &Source::of(self.token_file.as_deref()),
                "git token",
            )?)
        } else {
            None
        };
        Ok(Git {
            username: self.username.clone().map(SecretText::new),
            token,
            ssh_private_key: file(self.ssh_key_file.as_deref(), "the private key")?,
            known_hosts: file(self.known_hosts_file.as_deref(), "the known hosts")?,
            ..Git::default()
        })
    }
}

impl SetTailscale {
    fn read(&self) -> Result<Tailscale, CommandError> {
        not_in_arguments(&[
            ("--authkey", "--authkey-file", self.authkey.as_ref()),
            (
                "--admin-api-key",
                "--admin-api-key-file",
                self.admin_api_key.as_ref(),
            ),
        ])?;
        Ok(Tailscale {
            authkey: file(self.authkey_file.as_deref(), "the auth key")?,
            admin_api_key: file(self.admin_api_key_file.as_deref(), "the key of the admin API")?,
            tailnet: self.tailnet.clone().map(SecretText::new),
            hostname_template: self.hostname_template.clone().map(SecretText::new),
            tags: self.tags.clone(),
            extra_args: self.extra_args.clone(),
        })
    }
}

fn file(path: Option<&Path>, what: &str) -> Result<Option<SecretText>, CommandError> {
    path.map(|path| secret_input::read(&Source::of(Some(path)), what))
        .transpose()
}

/// People have such lines from elsewhere; the value has been seen by then, which is what they are told.
fn not_in_arguments(given: &[(&str, &str, Option<&String>)]) -> Result<(), CommandError> {
    match given.iter().find(|(_, _, value)| value.is_some()) {
        None => Ok(()),
        Some((flag, instead, _)) => Err(CommandError::usage(format!(
            "{flag} takes no value: what is on a command line, every user of this host can read"
        ))
        .with_hint(format!(
            "use {instead} FILE, {instead} - for standard input, or a prompt; and replace the value, your shell keeps it"
        ))),
    }
}

fn remove(bundle: &mut Bundle, names: &[String]) -> Result<Vec<String>, SecretsError> {
    let mut gone = Vec::new();
    for name in names {
        gone.extend(bundle.remove(name)?);
    }
    Ok(gone)
}

fn form(opened: &Opened) -> &'static str {
    match opened.form {
        Form::Age => "age",
        Form::Sops => "sops",
    }
}

fn show(place: &Place, printer: &Printer) -> CommandResult {
    let opened = place.vault.open(&place.bundle)?;
    let listing = opened.bundle.listing(&place.vault.identities()?);
    if printer.json() {
        let secrets: Vec<_> = listing
            .iter()
            .map(|one| json!({"name": one.name, "fingerprint": one.fingerprint, "given": one.given}))
            .collect();
        printer.document(&json!({
            "file": opened.path, "form": form(&opened), "fingerprint": opened.fingerprint, "secrets": secrets,
        }))?;
        return Ok(ExitStatus::Success);
    }
    let mut table = Table::new(&["NAME", "FINGERPRINT", "FOR"]);
    for one in &listing {
        let whom = if one.given {
            "profiles that name it"
        } else {
            "nobody"
        };
        table.row([cell(&one.name), cell(&one.fingerprint), cell(whom)]);
    }
    printer.write(&table.render())?;
    Ok(ExitStatus::Success)
}

fn validate(place: &Place, only: Option<&str>, printer: &Printer) -> CommandResult {
    let names = match only {
        Some(name) => vec![name.to_owned()],
        None => place.vault.files()?,
    };
    let mut found: Vec<(String, Result<String, SecretsError>)> = Vec::new();
    for name in names {
        let opened = place.vault.open(&name);
        let said = opened.map(|opened| {
            let secrets = opened.bundle.count();
            format!("{secrets} secrets, {}", form(&opened))
        });
        found.push((name, said));
    }
    if let (Some(config), None) = (&place.config, only) {
        for profile in config.load_profiles()? {
            if profile.secrets.is_empty() {
                continue;
            }
            let name = profile.secrets_bundle.as_ref().unwrap_or(&config.secrets_bundle);
            let given = place.vault.open(name).and_then(|opened| {
                let scoped = opened
                    .bundle
                    .scoped(&profile.secrets, &opened.path.display().to_string())?;
                Ok(format!("is given {}", scoped.names.join(", ")))
            });
            found.push((format!("profile {}", profile.name), given));
        }
    }
    let wrong = found.iter().any(|(_, said)| said.is_err());
    if printer.json() {
        let all: Vec<_> = found
            .iter()
            .map(|(subject, said)| match said {
                Ok(said) => json!({"subject": subject, "ok": true, "detail": said}),
                Err(error) => json!({"subject": subject, "ok": false, "detail": error.to_string(), "hint": error.hint()}),
            })
            .collect();
        printer.document(&json!({"ok": !wrong, "checks": all}))?;
    } else {
        for (subject, said) in &found {
            let text = match said {
                Ok(said) => said.clone(),
                Err(error) => error.to_string(),
            };
            printer.line(&escape(&format!("{subject}: {text}")))?;
            if let Some(hint) = said.as_ref().err().and_then(SecretsError::hint) {
                printer.hint(&escape(&hint));
            }
        }
        if found.is_empty() {
            printer.warning("there is no bundle");
        }
    }
    Ok(if wrong {
        ExitStatus::Failure
    } else {
        ExitStatus::Success
    })
}

fn rotate(place: &Place, printer: &Printer) -> CommandResult {
    let rotated = place.vault.rotate(&place.recipients, place.drop_recipients)?;
    let recipient = rotated.recipient.map(|key| key.to_string());
    let left = rotated.left.map(|left| left.files).unwrap_or_default();
    if printer.json() {
        printer
            .document(&json!({"recipient": recipient, "files": rotated.files, "old_key_needed_by": left}))?;
        return Ok(ExitStatus::Success);
    }
    for file in &rotated.files {
        printer.line(&escape(&format!("{file}: encrypted to the new key")))?;
    }
    let recipient = recipient.unwrap_or_default();
    printer.line(&format!("public key: {recipient}"))?;
    if !left.is_empty() {
        let files = left.join(", ");
        printer.warning(&escape(&format!(
            "{files} of sops still need the old key, which stays in the key file"
        )));
        printer.hint(&format!(
            "`sops rotate -i --add-age {recipient}` on each, then rotate again"
        ));
    }
    Ok(ExitStatus::Success)
}
