//! What is made of a question before anybody is asked. Without clock and I/O.

use hickory_proto::rr::RecordType;
use serde::{Deserialize, Serialize};

use crate::domain::{Allowed, Domain};

/// Resolvers that answer over HTTPS, and names by which browsers and systems look for one: who reaches one of them asks
/// past this resolver. An allowlist that wants one names it itself, without a wildcard.
const OTHER_RESOLVERS: [&str; 22] = [
    "use-application-dns.net",
    "resolver.arpa",
    "dns.google",
    "dns.google.com",
    "dns64.dns.google",
    "cloudflare-dns.com",
    "one.one.one.one",
    "cloudflare-gateway.com",
    "dns.quad9.net",
    "dns9.quad9.net",
    "dns10.quad9.net",
    "dns11.quad9.net",
    "doh.opendns.com",
    "dns.nextdns.io",
    "doh.cleanbrowsing.org",
    "dns.adguard.com",
    "dns.adguard-dns.com",
    "doh.dns.sb",
    "dns.alidns.com",
    "doh.pub",
    "doh.mullvad.net",
    "dns.mullvad.net",
];

/// Bytes of a name at most; those that people and services use have less than half of it.
const LONGEST_NAME: usize = 200;
/// Labels below a wildcard's parent, and bytes of them.
const MOST_FREE_LABELS: usize = 6;
const MOST_FREE_BYTES: usize = 120;
/// A label as long as this whose letters are spread like those of encoded data carries data.
const DATA_LABEL_BYTES: usize = 40;
const DATA_LABEL_BITS: f64 = 4.2;

/// What a guest may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Anything: `nat`.
    Forward,
    /// What the list names: `allowlist`.
    Filter(Allowed),
}

impl Mode {
    /// Names of its list that allow a name; none where there is no list.
    #[must_use]
    pub fn entries(&self, domain: &Domain) -> Vec<String> {
        match self {
            Self::Forward => Vec::new(),
            Self::Filter(allowed) => allowed.entries(domain),
        }
    }
}

/// Why a question got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The list does not name it.
    NameNotAllowed,
    /// A resolver other than this one.
    OtherResolver,
    /// Whole zones, or everything about a name.
    QuestionType,
    /// Longer than names are, or shaped like data.
    NameShape,
    /// More new names than a sandbox needs.
    NewNames,
    /// More questions than a sandbox needs.
    QuestionRate,
    /// A private, special or own address in the answer.
    PrivateAnswer,
    /// An answer that belongs to another name, or goes round in circles.
    AnswerChain,
    /// More addresses than a sandbox needs.
    NewAddresses,
}

impl Why {
    /// One word for programs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::NameNotAllowed => "name_not_allowed",
            Self::OtherResolver => "other_resolver",
            Self::QuestionType => "question_type",
            Self::NameShape => "name_shape",
            Self::NewNames => "new_names",
            Self::QuestionRate => "question_rate",
            Self::PrivateAnswer => "private_answer",
            Self::AnswerChain => "answer_chain",
            Self::NewAddresses => "new_addresses",
        }
    }

    /// What it means and what to do about it.
    #[must_use]
    pub fn hint(self) -> &'static str {
        match self {
            Self::NameNotAllowed => {
                "blocked by policy: name not on the allowlist; add it to the profile's network.allow"
            }
            Self::OtherResolver => "blocked by policy: names are resolved by the host's resolver only",
            Self::QuestionType => {
                "blocked by policy: zone transfers and questions for everything are not answered"
            }
            Self::NameShape => "blocked by policy: the name is longer than names are, or looks like data",
            Self::NewNames => {
                "blocked by policy: too many different names below wildcards; wait, or name them"
            }
            Self::QuestionRate => "blocked by policy: too many questions at once; wait and ask again",
            Self::PrivateAnswer => {
                "blocked by policy: the name stands for a private address; no mode opens one, use a public address"
            }
            Self::AnswerChain => "blocked by policy: the answer does not belong to the question",
            Self::NewAddresses => "blocked by policy: too many different addresses; wait and ask again",
        }
    }
}

/// What is made of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Somebody is asked. So many of the labels were the guest's choice.
    Ask {
        /// Of those on the left.
        free_labels: usize,
    },
    /// The name exists and has nothing of this type.
    Empty,
    /// No such name.
    NoSuchName(Why),
    /// Refused.
    Refused(Why),
}

/// Judges a question.
#[must_use]
pub fn judge(mode: &Mode, domain: &Domain, kind: RecordType) -> Verdict {
    if matches!(
        kind,
        RecordType::ANY | RecordType::AXFR | RecordType::IXFR | RecordType::OPT | RecordType::TSIG
    ) {
        return Verdict::Refused(Why::QuestionType);
    }
    let allowed = match mode {
        Mode::Forward => {
            return if is_other_resolver(domain) {
                Verdict::NoSuchName(Why::OtherResolver)
            } else {
                Verdict::Ask { free_labels: 0 }
            };
        }
        Mode::Filter(allowed) => allowed,
    };
    let Some(free_labels) = allowed.free_labels(domain) else {
        return Verdict::NoSuchName(Why::NameNotAllowed);
    };
    if is_other_resolver(domain) && !allowed.names(domain) {
        return Verdict::NoSuchName(Why::OtherResolver);
    }
    if !has_shape_of_a_name(domain, free_labels) {
        return Verdict::NoSuchName(Why::NameShape);
    }
    if kind == RecordType::A {
        Verdict::Ask { free_labels }
    } else {
        // IPv6 is closed, service bindings carry addresses past the filter, and text carries data.
        Verdict::Empty
    }
}

fn is_other_resolver(domain: &Domain) -> bool {
    OTHER_RESOLVERS
        .iter()
        .map(|text| Domain::plain(text))
        .any(|other| domain.is_at_or_below(&other))
}

fn has_shape_of_a_name(domain: &Domain, free_labels: usize) -> bool {
    let free = || domain.labels().take(free_labels);
    let free_bytes: usize = free().map(<[u8]>::len).sum();
    let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    domain.size() <= LONGEST_NAME
        && free().all(|label| label.iter().all(is_letter))
        && free_labels <= MOST_FREE_LABELS
        && free_bytes <= MOST_FREE_BYTES
        && !free().any(|label| label.len() >= DATA_LABEL_BYTES && bits_per_letter(label) >= DATA_LABEL_BITS)
}

/// Shannon's entropy of a label's letters. Words have about 3.5, random base 32 more than 4.2 from 40 letters on.
#[must_use]
pub fn bits_per_letter(label: &[u8]) -> f64 {
    let mut counts = [0_u32; 256];
    for byte in label {
        if let Some(count) = counts.get_mut(usize::from(*byte)) {
            *count += 1;
        }
    }
    let all = f64::from(u32::try_from(label.len().max(1)).unwrap_or(u32::MAX));
    counts
        .iter()
        .filter(|count| **count > 0)
        .map(|count| f64::from(*count) / all)
        .map(|share| -share * share.log2())
        .sum()
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::Name;
    use proptest::prelude::*;

    use super::*;

    fn filter(patterns: &[&str]) -> Mode {
        Mode::Filter(Allowed::new(patterns.iter().copied()))
    }

    fn verdict(mode: &Mode, name: &str, kind: RecordType) -> Verdict {
        judge(mode, &Domain::of(&Name::from_ascii(name).unwrap()), kind)
    }

    #[test]
    fn an_allowlist_answers_addresses_of_what_it_names_and_nothing_else() {
        use RecordType::{A, AAAA, ANY, AXFR, HTTPS, MX, PTR, SRV, SVCB, TXT};
        let mode = filter(&["example.com", "*.example.org", "*.google.com", "dns.google"]);
        let unknown = Verdict::NoSuchName(Why::NameNotAllowed);
        for (name, kind, expected) in [
            ("example.com", A, Verdict::Ask { free_labels: 0 }),
            ("a.example.org", A, Verdict::Ask { free_labels: 1 }),
            ("evilexample.com", A, unknown),
            ("evil.net", TXT, unknown),
            ("4.3.2.1.in-addr.arpa", PTR, unknown),
            ("example.com", AAAA, Verdict::Empty),
            ("example.com", HTTPS, Verdict::Empty),
            ("example.com", SVCB, Verdict::Empty),
            ("example.com", TXT, Verdict::Empty),
            ("example.com", MX, Verdict::Empty),
            ("example.com", SRV, Verdict::Empty),
            ("example.com", RecordType::Unknown(4711), Verdict::Empty),
            ("example.com", ANY, Verdict::Refused(Why::QuestionType)),
            ("example.com", AXFR, Verdict::Refused(Why::QuestionType)),
            ("dns.google.com", A, Verdict::NoSuchName(Why::OtherResolver)),
            ("dns.google", A, Verdict::Ask { free_labels: 0 }),
        ] {
            assert_eq!(verdict(&mode, name, kind), expected, "{name} {kind}");
        }
    }

    #[test]
    fn nat_forwards_all_but_whole_zones_and_other_resolvers() {
        let mode = Mode::Forward;
        let asks = Verdict::Ask { free_labels: 0 };
        assert_eq!(verdict(&mode, "example.com", RecordType::TXT), asks);
        assert_eq!(
            verdict(&mode, "_dns.resolver.arpa", RecordType::SVCB),
            Verdict::NoSuchName(Why::OtherResolver)
        );
        assert_eq!(
            verdict(&mode, "example.com", RecordType::ANY),
            Verdict::Refused(Why::QuestionType)
        );
    }

    #[test]
    fn names_that_carry_data_are_no_names() {
        let mode = filter(&["*.example.org"]);
        let data = "mzxw6ytboi5dsmrqgiydembsga3tkojzgu2tinrtgq4tcmbw";
        for good in [
            "d111111abcdef8.example.org",
            "productionresultssa12.blob.core.example.org",
            "k8s-ingressn-ingressn-3f1ab23c9d-8f2f3a1b2c3d4e5f.elb.us-east-1.example.org",
            "objects-origin.githubusercontent.example.org",
        ] {
            assert!(
                matches!(verdict(&mode, good, RecordType::A), Verdict::Ask { .. }),
                "{good}"
            );
        }
        let long = ["abcdefghij"; 13].join(".");
        let flat = "a".repeat(60);
        for bad in [
            format!("{data}.example.org"),
            format!("{long}.example.org"),
            format!("{flat}.{flat}.{flat}.example.org"),
        ] {
            assert_eq!(
                verdict(&mode, &bad, RecordType::A),
                Verdict::NoSuchName(Why::NameShape),
                "{bad}"
            );
        }
        let raw = Name::from_labels([&b"\x01\xff "[..], b"example", b"org"]).unwrap();
        assert_eq!(
            judge(&mode, &Domain::of(&raw), RecordType::A),
            Verdict::NoSuchName(Why::NameShape)
        );
    }

    proptest! {
        #[test]
        fn whatever_is_asked_only_listed_names_leave_the_host(
            labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 0..8),
            kind in any::<u16>(),
        ) {
            let name = Name::from_labels(labels.iter().map(Vec::as_slice)).unwrap();
            let mode = filter(&["example.com", "*.example.org"]);
            let asked = judge(&mode, &Domain::of(&name), RecordType::from(kind));
            if matches!(asked, Verdict::Ask { .. } | Verdict::Empty) {
                let lower: Vec<Vec<u8>> = labels.iter().map(|label| label.to_ascii_lowercase()).collect();
                let end = |labels: &[&[u8]]| lower.iter().rev().map(Vec::as_slice).take(labels.len()).eq(labels.iter().copied());
                prop_assert!(end(&[b"com", b"example"]) && lower.len() == 2 || end(&[b"org", b"example"]) && lower.len() > 2);
            }
        }

        #[test]
        fn what_stands_below_a_wildcard_is_found_however_it_is_written(
            free in "[a-z0-9]{1,12}(\\.[a-z0-9]{1,12}){0,3}", upper in any::<u64>(),
        ) {
            let name: String = format!("{free}.example.org").chars().enumerate()
                .map(|(at, letter)| if upper >> (at % 64) & 1 == 1 { letter.to_ascii_uppercase() } else { letter })
                .collect();
            let asked = verdict(&filter(&["*.example.org"]), &name, RecordType::A);
            prop_assert!(matches!(asked, Verdict::Ask { .. }), "{name}");
        }
    }
}
