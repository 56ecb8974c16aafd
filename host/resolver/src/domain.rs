//! Names as they are compared: label by label, without regard to case. Text never decides, so neither a dot inside a
//! label nor a suffix that ends in the middle of one can pass for something else.

use std::collections::HashSet;
use std::fmt;

use hickory_proto::rr::Name;

/// A domain name: each label with its length before it, in lower case, without the root.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(Vec<u8>);

impl Domain {
    /// The name of a message.
    #[must_use]
    pub fn of(name: &Name) -> Self {
        let mut bytes = Vec::with_capacity(name.len());
        name.iter().for_each(|label| push(&mut bytes, label));
        Self(bytes)
    }

    /// A plain name such as `example.com`; whoever wrote it has checked it.
    #[must_use]
    pub fn plain(text: &str) -> Self {
        let mut bytes = Vec::with_capacity(text.len() + 1);
        for label in text.split('.').filter(|label| !label.is_empty()) {
            push(&mut bytes, label.as_bytes());
        }
        Self(bytes)
    }

    /// Its labels, the leftmost first.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        self.ends()
            .filter_map(|end| end.get(1..=usize::from(*end.first()?)))
    }

    /// Bytes of it.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.len()
    }

    /// Whether it is another name or lies below it.
    #[must_use]
    pub fn is_at_or_below(&self, other: &Self) -> bool {
        self.ends().any(|end| end == other.0)
    }

    /// Itself, itself without its first label, and so on; never the root.
    fn ends(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.0.as_slice();
        std::iter::from_fn(move || {
            let end = rest;
            let length = usize::from(*end.first()?);
            rest = end.get(length + 1..).unwrap_or_default();
            Some(end)
        })
    }
}

fn push(bytes: &mut Vec<u8>, label: &[u8]) {
    // A label of a message has at most 63 bytes, and one of the daemon was checked.
    let label = label.get(..63).unwrap_or(label);
    bytes.extend(u8::try_from(label.len()));
    bytes.extend(label.iter().map(u8::to_ascii_lowercase));
}

impl fmt::Display for Domain {
    /// As in a zone file, so that no byte of a guest reaches a terminal as it is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str(".");
        }
        for (index, label) in self.labels().enumerate() {
            if index > 0 {
                f.write_str(".")?;
            }
            for byte in label {
                match byte {
                    b'.' | b'\\' | b'"' => write!(f, "\\{}", char::from(*byte))?,
                    0x21..=0x7e => write!(f, "{}", char::from(*byte))?,
                    other => write!(f, "\\{other:03}")?,
                }
            }
        }
        Ok(())
    }
}

/// The names of one allowlist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowed {
    exact: HashSet<Domain>,
    below: HashSet<Domain>,
}

impl Allowed {
    /// `example.com` means that name alone, `*.example.com` every name below it.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Self {
        let mut allowed = Self::default();
        for pattern in patterns {
            match pattern.strip_prefix("*.") {
                Some(parent) => allowed.below.insert(Domain::plain(parent)),
                None => allowed.exact.insert(Domain::plain(pattern)),
            };
        }
        // What is below nothing would be everything.
        allowed.below.remove(&Domain(Vec::new()));
        allowed
    }

    /// Whether a name itself stands in the list.
    #[must_use]
    pub fn names(&self, domain: &Domain) -> bool {
        self.exact.contains(domain)
    }

    /// Names of the list that allow this one, as they stand there.
    #[must_use]
    pub fn entries(&self, domain: &Domain) -> Vec<String> {
        let exact = self.exact.get(domain).map(ToString::to_string);
        let parents = domain.ends().skip(1).map(|end| Domain(end.to_vec()));
        let below = parents
            .filter(|parent| self.below.contains(parent))
            .map(|parent| format!("*.{parent}"));
        exact.into_iter().chain(below).collect()
    }

    /// Labels of an allowed name that the guest was free to choose, or `None` for a name that is not allowed.
    #[must_use]
    pub fn free_labels(&self, domain: &Domain) -> Option<usize> {
        if self.exact.contains(domain) {
            return Some(0);
        }
        // The longest parent leaves the guest the least.
        (1..)
            .zip(domain.ends().skip(1))
            .find(|(_, end)| self.below.contains(&Domain(end.to_vec())))
            .map(|(labels, _)| labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(text: &str) -> Domain {
        Domain::of(&Name::from_ascii(text).unwrap())
    }

    #[test]
    fn only_whole_labels_match_and_case_and_final_dots_do_not_count() {
        let allowed = Allowed::new(["example.com", "*.example.org", "*.s3.amazonaws.com"]);
        for (name, free) in [
            ("example.com", Some(0)),
            ("EXAMPLE.com.", Some(0)),
            ("www.example.com", None),
            ("evilexample.com", None),
            ("example.com.evil.net", None),
            ("example.org", None),
            ("a.example.org", Some(1)),
            ("A.B.Example.ORG.", Some(2)),
            ("evilexample.org", None),
            ("a.example.org.evil.net", None),
            ("bucket.s3.amazonaws.com", Some(1)),
            ("amazonaws.com", None),
            ("com", None),
            (".", None),
            ("*.example.org", Some(1)),
            ("*.org", None),
        ] {
            assert_eq!(allowed.free_labels(&domain(name)), free, "{name}");
        }
    }

    #[test]
    fn every_entry_that_allows_a_name_is_named_as_it_stands_in_the_list() {
        let allowed = Allowed::new([
            "a.b.example.org",
            "*.b.example.org",
            "*.example.org",
            "example.org",
        ]);
        let all = ["a.b.example.org", "*.b.example.org", "*.example.org"];
        assert_eq!(allowed.entries(&domain("A.b.Example.org.")), all);
        assert_eq!(allowed.entries(&domain("example.org")), ["example.org"]);
        assert_eq!(allowed.entries(&domain("org")), [""; 0]);
    }

    #[test]
    fn a_dot_inside_a_label_is_no_boundary() {
        let allowed = Allowed::new(["example.com", "*.example.org"]);
        let odd = |labels: &[&[u8]]| Domain::of(&Name::from_labels(labels.iter().copied()).unwrap());
        assert_eq!(allowed.free_labels(&odd(&[b"example.com"])), None);
        assert_eq!(allowed.free_labels(&odd(&[b"a.example", b"org"])), None);
        assert_eq!(
            allowed.free_labels(&odd(&[b"evil.net", b"example", b"org"])),
            Some(1)
        );
        assert_eq!(odd(&[b"a.b\x1b[2J\"", b"c"]).to_string(), r#"a\.b\027[2j\".c"#);
    }

    #[test]
    fn nothing_is_below_the_root() {
        let allowed = Allowed::new(["*.", ""]);
        assert_eq!(allowed.free_labels(&domain("a.b")), None);
    }
}
