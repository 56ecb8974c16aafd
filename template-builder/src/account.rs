//! Adds the agent's account to the account files, as text. No `useradd`: nothing runs inside the tree.

use crate::error::{Result, TemplateError};

/// Name of the account that the agent works as.
pub const AGENT: &str = "agent";
/// Its uid and gid.
pub const AGENT_ID: u32 = 1000;
/// Its home directory.
pub const AGENT_HOME: &str = "/home/agent";

/// The four account files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accounts {
    /// `/etc/passwd`.
    pub passwd: String,
    /// `/etc/group`.
    pub group: String,
    /// `/etc/shadow`.
    pub shadow: String,
    /// `/etc/gshadow`.
    pub gshadow: String,
}

impl Accounts {
    /// Adds the agent. The password field is `*`: no password opens it, and sshd still takes its keys, which it
    /// would refuse for an account locked with `!`.
    ///
    /// # Errors
    /// When the name, or its uid or gid, belongs to somebody already.
    pub fn with_agent(mut self) -> Result<Self> {
        free(&self.passwd, "/etc/passwd")?;
        free(&self.group, "/etc/group")?;
        add(
            &mut self.passwd,
            &format!("{AGENT}:x:{AGENT_ID}:{AGENT_ID}:AgentLab agent:{AGENT_HOME}:/bin/bash"),
        );
        add(&mut self.group, &format!("{AGENT}:x:{AGENT_ID}:"));
        add(&mut self.shadow, &format!("{AGENT}:*:20000:0:99999:7:::"));
        add(&mut self.gshadow, &format!("{AGENT}:*::"));
        Ok(self)
    }
}

/// In both passwd and group the third field is the number.
fn free(text: &str, file: &str) -> Result<()> {
    for line in text.lines() {
        let mut fields = line.split(':');
        let name = fields.next().unwrap_or_default();
        let number = fields.nth(1).unwrap_or_default();
        if name == AGENT || number.parse() == Ok(AGENT_ID) {
            let problem =
                format!("has `{name}` with number {number} in {file}, and `{AGENT}` needs {AGENT_ID}");
            return Err(TemplateError::Tree { problem });
        }
    }
    Ok(())
}

fn add(text: &mut String, line: &str) {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(line);
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(passwd: &str, group: &str) -> Accounts {
        Accounts {
            passwd: passwd.to_owned(),
            group: group.to_owned(),
            shadow: "root:*:1::::::".to_owned(),
            gshadow: String::new(),
        }
    }

    #[test]
    fn the_agent_is_added_after_a_last_line_without_newline() {
        let accounts = base("root:x:0:0::/root:/bin/bash\n", "root:x:0:\n")
            .with_agent()
            .unwrap();
        assert_eq!(accounts.shadow, "root:*:1::::::\nagent:*:20000:0:99999:7:::\n");
        assert!(
            accounts
                .passwd
                .ends_with("\nagent:x:1000:1000:AgentLab agent:/home/agent:/bin/bash\n")
        );
        assert_eq!(accounts.gshadow, "agent:*::\n");
    }

    #[test]
    fn a_tree_whose_uid_or_name_is_taken_is_refused() {
        for (passwd, group) in [
            ("bob:x:1000:1001::/:/bin/sh\n", ""),
            ("agent:x:5:5::/:/bin/sh\n", ""),
            ("", "staff:x:1000:\n"),
            ("", "agent:x:7:\n"),
        ] {
            let error = base(passwd, group).with_agent().unwrap_err().to_string();
            assert!(error.contains("`agent` needs 1000"), "{error}");
        }
        assert!(base("bob:x:1001:1000::/:/bin/sh\n", "").with_agent().is_ok());
    }
}
