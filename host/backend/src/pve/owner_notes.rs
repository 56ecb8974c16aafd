//! What the description of the machine that owns volumes says: first that it is ours, then what is under way and what
//! came of it, each before and after the call.
//!
//! ```text
//!   agentlab-volumes owner=777
//!   copying ws-5e1f to=1999              or: moving ws-5e1f to=fast
//!   made ws-77aa local:777/vm-777-disk-0.qcow2
//! ```

use agentlab_api::Vmid;

/// A description has room for some; who asks for the name of a copy again does so soon.
const MOST_MADE: usize = 60;

/// What takes more than one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum UnderWay {
    /// A volume of this name is being copied, in a machine with this number.
    Copying { name: String, machine: Vmid },
    /// The volume of this name goes to a storage.
    Moving { name: String, storage: String },
}

impl UnderWay {
    fn to_line(&self) -> String {
        match self {
            Self::Copying { name, machine } => format!("copying {name} to={machine}"),
            Self::Moving { name, storage } => format!("moving {name} to={storage}"),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let (verb, name, to) = (words.next()?, words.next()?.to_owned(), words.next()?);
        let to = to.strip_prefix("to=")?;
        match (verb, words.next()) {
            ("copying", None) => Some(Self::Copying {
                name,
                machine: to.parse().ok()?,
            }),
            ("moving", None) => Some(Self::Moving {
                name,
                storage: to.to_owned(),
            }),
            _ => None,
        }
    }
}

/// What the description says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Notes {
    pub(super) under_way: Option<UnderWay>,
    /// Names of volumes with the identifiers that PVE gave them, the newest last.
    made: Vec<(String, String)>,
    /// What somebody else wrote.
    others: Vec<String>,
}

fn first_line(owner: Vmid) -> String {
    format!("agentlab-volumes owner={owner}")
}

impl Notes {
    /// `None` when the description does not say that the machine is ours.
    pub(super) fn find(description: &str, owner: Vmid) -> Option<Self> {
        let lines = || description.lines().map(str::trim).filter(|line| !line.is_empty());
        let mut ours = lines().filter(|line| line.starts_with("agentlab-volumes "));
        let (first, None) = (ours.next()?, ours.next()) else {
            return None;
        };
        if first != first_line(owner) {
            return None;
        }
        let mut notes = Self::default();
        for line in lines().filter(|line| *line != first) {
            let made = line.strip_prefix("made ").and_then(|rest| rest.split_once(' '));
            if let Some((name, volume)) = made {
                notes.made.push((name.to_owned(), volume.to_owned()));
            } else if let Some(found) = UnderWay::parse(line) {
                notes.under_way = Some(found);
            } else {
                notes.others.push(line.to_owned());
            }
        }
        Some(notes)
    }

    pub(super) fn to_text(&self, owner: Vmid) -> String {
        let mut lines = vec![first_line(owner)];
        lines.extend(self.under_way.iter().map(UnderWay::to_line));
        lines.extend(
            self.made
                .iter()
                .map(|(name, volume)| format!("made {name} {volume}")),
        );
        lines.extend(self.others.iter().cloned());
        lines.join("\n")
    }

    /// What was made under a name.
    pub(super) fn made(&self, name: &str) -> Option<&str> {
        let mut made = self.made.iter();
        made.find(|(known, _)| known == name)
            .map(|(_, volume)| volume.as_str())
    }

    /// The name under which a volume was made.
    pub(super) fn name_of(&self, volume: &str) -> Option<&str> {
        let mut made = self.made.iter();
        made.find(|(_, known)| known == volume)
            .map(|(name, _)| name.as_str())
    }

    pub(super) fn note(&mut self, name: &str, volume: String) {
        self.made.retain(|(known, _)| known != name);
        self.made.push((name.to_owned(), volume));
        let surplus = self.made.len().saturating_sub(MOST_MADE);
        self.made.drain(..surplus);
    }

    pub(super) fn forget(&mut self, volume: &str) {
        self.made.retain(|(_, known)| known != volume);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vmid(raw: u32) -> Vmid {
        raw.try_into().unwrap()
    }

    #[test]
    fn what_the_description_says_is_read_as_it_was_written_and_others_words_stay() {
        let mut notes = Notes {
            under_way: Some(UnderWay::Copying {
                name: "ws-1".into(),
                machine: vmid(1999),
            }),
            made: Vec::new(),
            others: vec!["Do not touch! Ann".into()],
        };
        notes.note("ws-0", "local:777/vm-777-disk-0.qcow2".into());
        for under_way in [
            notes.under_way.clone(),
            None,
            Some(UnderWay::Moving {
                name: "ws-1".into(),
                storage: "fast".into(),
            }),
        ] {
            notes.under_way = under_way;
            assert_eq!(
                Notes::find(&notes.to_text(vmid(777)), vmid(777)),
                Some(notes.clone())
            );
        }
        assert_eq!(notes.made("ws-0"), Some("local:777/vm-777-disk-0.qcow2"));
        notes.forget("local:777/vm-777-disk-0.qcow2");
        assert_eq!(notes.made("ws-0"), None);
    }

    #[test]
    fn a_machine_that_does_not_say_so_once_and_of_its_own_number_is_not_ours() {
        let text = Notes::default().to_text(vmid(777));
        for (description, owner) in [
            (text.as_str(), vmid(778)),
            ("", vmid(777)),
            ("somebody's database", vmid(777)),
            (&format!("{text}\n{text}"), vmid(777)),
            (&format!("{text}8"), vmid(777)),
        ] {
            assert_eq!(Notes::find(description, owner), None, "{description}");
        }
    }

    #[test]
    fn as_many_are_remembered_as_a_description_has_room_for() {
        let mut notes = Notes::default();
        for number in 0..200 {
            let volume = format!("a-storage-with-a-long-name:777/vm-777-disk-{number}.qcow2");
            notes.note(&format!("ws-0190c0de-0000-7000-8000-{number:012}"), volume);
        }
        assert_eq!(notes.made.len(), MOST_MADE);
        assert!(notes.made("ws-0190c0de-0000-7000-8000-000000000199").is_some());
        assert!(notes.to_text(vmid(777)).len() < 8192);
    }
}
