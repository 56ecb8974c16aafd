//! A bundle as YAML: one key a line, every value in the quotes of JSON, which YAML reads alike.

use agentlab_protocol::secret::SecretText;
use zeroize::Zeroizing;

use crate::Bundle;
use crate::tree::{Kind, Node, Value};

/// Text that is wiped, and has room enough not to leave pieces of itself behind.
struct Page(Zeroizing<String>);

impl Page {
    fn line(&mut self, depth: usize, key: &str, value: &str) {
        for _ in 0..depth {
            self.0.push_str("  ");
        }
        self.0.push_str(key);
        self.0.push(':');
        if !value.is_empty() {
            self.0.push(' ');
            self.0.push_str(value);
        }
        self.0.push('\n');
    }

    fn secret(&mut self, depth: usize, key: &str, value: Option<&SecretText>) {
        if let Some(value) = value {
            self.line(depth, key, &quoted(value.expose()));
        }
    }

    fn list(&mut self, depth: usize, key: &str, items: &[String]) {
        if !items.is_empty() {
            let items: Vec<_> = items.iter().map(|item| quoted(item)).collect();
            let items: Vec<&str> = items.iter().map(|item| item.as_str()).collect();
            self.line(depth, key, &format!("[{}]", items.join(", ")));
        }
    }
}

/// In double quotes, with everything escaped that one of the two languages does not take as it is.
fn quoted(text: &str) -> Zeroizing<String> {
    let mut out = Zeroizing::new(String::with_capacity(text.len() * 2 + 2));
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\u{0}'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{2028}'
            | '\u{2029}'
            | '\u{feff}'
            | '\u{fffe}'
            | '\u{ffff}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            _ => out.push(character),
        }
    }
    out.push('"');
    out
}

impl Bundle {
    /// The bundle as text that reads as the same bundle: all of its secrets, as they are.
    #[must_use]
    pub fn emit(&self) -> Zeroizing<String> {
        let room: usize = self
            .values()
            .iter()
            .map(|(name, value, _)| name.len() + 8 * value.expose().len() + 64)
            .sum();
        let mut page = Page(Zeroizing::new(String::with_capacity(room + 4096)));
        page.line(0, "version", "1");
        if let Some(metadata) = &self.metadata {
            page.line(0, "metadata", &flow(metadata));
        }
        self.emit_git(&mut page);
        if !self.env.is_empty() {
            page.line(0, "env", "");
            for (name, value) in &self.env {
                page.secret(1, name, Some(value));
            }
        }
        if let Some(settings) = &self.claude {
            page.line(0, "claude", "");
            page.secret(1, "settings_json", Some(settings));
        }
        if self.artifact.0.is_some() || self.artifact.1.is_some() {
            page.line(0, "artifact", "");
            page.secret(1, "endpoint", self.artifact.0.as_ref());
            page.secret(1, "token", self.artifact.1.as_ref());
        }
        if !self.ssh_keys.is_empty() {
            page.line(0, "ssh", "");
            page.line(1, "keys", "");
            for (name, key) in &self.ssh_keys {
                page.line(2, &quoted(name), "");
                page.line(3, "key", &quoted(&key.line));
            }
        }
        self.emit_tailscale(&mut page);
        page.0
    }

    fn emit_git(&self, page: &mut Page) {
        let git = &self.git;
        let fields = [
            ("username", &git.username),
            ("token", &git.token),
            ("ssh_private_key", &git.ssh_private_key),
            ("ssh_public_key", &git.ssh_public_key),
            ("known_hosts", &git.known_hosts),
        ];
        if fields.iter().any(|(_, value)| value.is_some()) {
            page.line(0, "git", "");
            for (key, value) in fields {
                page.secret(1, key, value.as_ref());
            }
        }
    }

    fn emit_tailscale(&self, page: &mut Page) {
        let scale = &self.tailscale;
        let fields = [
            ("authkey", &scale.authkey),
            ("hostname_template", &scale.hostname_template),
            ("admin_api_key", &scale.admin_api_key),
            ("tailnet", &scale.tailnet),
        ];
        let lists = !scale.tags.is_empty() || !scale.extra_args.is_empty();
        if lists || fields.iter().any(|(_, value)| value.is_some()) {
            page.line(0, "tailscale", "");
            for (key, value) in fields {
                page.secret(1, key, value.as_ref());
            }
            page.list(1, "tags", &scale.tags);
            page.list(1, "extra_args", &scale.extra_args);
        }
    }
}

/// A tree on one line.
fn flow(node: &Node) -> String {
    match &node.value {
        Value::Null => "null".to_owned(),
        Value::Scalar(Kind::Text, text) => quoted(text.expose()).to_string(),
        Value::Scalar(Kind::Integer | Kind::Float | Kind::Bool, text) => text.expose().to_owned(),
        Value::List(items) => {
            let items: Vec<String> = items.iter().map(flow).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Map(entries) => {
            let entries = entries
                .iter()
                .map(|entry| format!("{}: {}", *quoted(&entry.key), flow(&entry.node)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
    }
}
