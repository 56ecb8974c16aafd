//! `agentlab secrets`: works on the files of this host, without a daemon, which reads them when it needs them.
//!
//! Values come from files, from standard input or from a prompt, and never from the command line, which every user of
//! the host can read. What is printed is names and fingerprints.

use std::path::{Path, PathBuf};

use agentlab_config::{Config, load_config};
use agentlab_protocol::secret::{SHORTEST_REDACTED, SecretText};
use agentlab_secrets::{Bundle, Edit, Form, Opened, Recipient, SecretsError, Vault};
use clap::{Args, Subcommand};
use serde_json::json;

use super::secrets_set::{AddSshKey, SetEnv, SetGit, SetTailscale};
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

/// Names the values that an agent's output is not searched for.
fn warn_of_short(pairs: &[(String, SecretText)], printer: &Printer) {
    let short = pairs
        .iter()
        .filter(|(_, value)| value.expose().trim().len() < SHORTEST_REDACTED);
    for (name, _) in short {
        printer.warning(&format!(
            "env.{name} has fewer than {SHORTEST_REDACTED} bytes: it stays readable in what an agent prints"
        ));
    }
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
                warn_of_short(&pairs, printer);
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
                let key = add.key()?;
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
