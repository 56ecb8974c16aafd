//! What of an upstream's answer may reach a guest in `allowlist`, and which addresses it opens. Without clock and I/O.

use std::net::Ipv4Addr;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, Record};

use crate::judge::Why;
use crate::message::MOST_ADDRESSES;

/// Aliases that lead from the asked name to its addresses, at most.
const MOST_ALIASES: usize = 8;

/// Private and special networks, which no answer may lead to. The packet policy closes them once more.
const SPECIAL: [(Ipv4Addr, u8); 14] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// Whether an address is private or special.
#[must_use]
pub fn is_special(address: Ipv4Addr) -> bool {
    SPECIAL.iter().any(|(network, prefix)| {
        let mask = u32::MAX.checked_shl(32 - u32::from(*prefix)).unwrap_or(0);
        address.to_bits() & mask == network.to_bits()
    })
}

/// What may reach the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sifted {
    /// The asked name's aliases, and the addresses at their end.
    pub records: Vec<Record>,
    /// What it opens.
    pub addresses: Vec<Ipv4Addr>,
    /// Whether there is such a name.
    pub code: ResponseCode,
    /// Seconds it is good for, within what is allowed.
    pub seconds: u32,
}

/// Follows the asked name through its aliases to its addresses, and leaves out everything else.
///
/// # Errors
/// An alias leads round in circles or to two names, there are too many of them, or an address is private, special or
/// one of `own`.
pub fn sift(
    asked: &Name,
    answer: &Message,
    own: &[Ipv4Addr],
    seconds: std::ops::RangeInclusive<u32>,
) -> Result<Sifted, Why> {
    let mut owner = asked.clone();
    let mut records = Vec::new();
    let mut passed: Vec<Name> = Vec::new();
    // A name is its aliases' only by the alias before it: what stands beside is somebody else's.
    while let Some(alias) = alias_of(&owner, answer)? {
        if passed.len() >= MOST_ALIASES || passed.contains(alias.1) {
            return Err(Why::AnswerChain);
        }
        passed.push(owner.clone());
        records.push(Record::from_rdata(owner, alias.0.ttl, alias.0.data.clone()));
        owner = alias.1.clone();
    }
    let mut addresses = Vec::new();
    for record in answer.answers.iter().filter(|record| record.name == owner) {
        let RData::A(address) = &record.data else { continue };
        if is_special(address.0) || own.contains(&address.0) {
            return Err(Why::PrivateAnswer);
        }
        if addresses.len() < MOST_ADDRESSES && !addresses.contains(&address.0) {
            addresses.push(address.0);
            records.push(Record::from_rdata(owner.clone(), record.ttl, record.data.clone()));
        }
    }
    let least = records.iter().map(|record| record.ttl).min().unwrap_or(0);
    let seconds = least.clamp(*seconds.start(), *seconds.end());
    for record in &mut records {
        record.ttl = seconds;
    }
    Ok(Sifted {
        records,
        addresses,
        code: answer.metadata.response_code,
        seconds,
    })
}

fn alias_of<'a>(owner: &Name, answer: &'a Message) -> Result<Option<(&'a Record, &'a Name)>, Why> {
    let mut found: Option<(&Record, &Name)> = None;
    for record in answer.answers.iter().filter(|record| record.name == *owner) {
        if let RData::CNAME(target) = &record.data {
            if found.is_some_and(|(_, other)| *other != target.0) {
                return Err(Why::AnswerChain);
            }
            found = Some((record, &target.0));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{MessageType, OpCode};
    use hickory_proto::rr::rdata::{A, CNAME, TXT};
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    /// `name ttl target`: an address or an alias.
    fn answer(lines: &[&str]) -> Message {
        let mut message = Message::new(1, MessageType::Response, OpCode::Query);
        for line in lines {
            let words: Vec<&str> = line.split(' ').collect();
            let data = match words[2].parse::<Ipv4Addr>() {
                Ok(address) => RData::A(A(address)),
                Err(_) => RData::CNAME(CNAME(name(words[2]))),
            };
            message.add_answer(Record::from_rdata(
                name(words[0]),
                words[1].parse().unwrap(),
                data,
            ));
        }
        message
    }

    fn sifted(lines: &[&str]) -> Result<Vec<String>, Why> {
        let own = ["5.5.5.5".parse().unwrap()];
        let sifted = sift(&name("a.com."), &answer(lines), &own, 30..=3600)?;
        assert!(sifted.records.iter().all(|record| record.ttl == sifted.seconds));
        Ok(sifted.addresses.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn only_what_the_asked_name_leads_to_is_opened() {
        let open = |lines: &[&str]| sifted(lines).unwrap().join(" ");
        assert_eq!(open(&["a.com. 60 1.1.1.1", "b.com. 60 2.2.2.2"]), "1.1.1.1");
        assert_eq!(open(&["A.COM. 60 1.1.1.1", "a.com. 60 1.1.1.1"]), "1.1.1.1");
        let chain = [
            "c.net. 60 3.3.3.3",
            "a.com. 60 b.net.",
            "b.net. 60 c.net.",
            "d.net. 60 4.4.4.4",
        ];
        assert_eq!(open(&chain), "3.3.3.3");
        // An address beside an alias is not at its end.
        assert_eq!(open(&["a.com. 60 b.net.", "a.com. 60 1.1.1.1"]), "");
        assert_eq!(open(&[]), "");
        let many: Vec<String> = (1..100).map(|last| format!("a.com. 60 1.1.1.{last}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(sifted(&many).unwrap().len(), MOST_ADDRESSES);
    }

    #[test]
    fn one_private_address_spoils_the_whole_answer() {
        for private in [
            "0.0.0.0",
            "10.77.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.31.255.255",
            "192.168.1.1",
            "198.19.0.1",
            "224.0.0.251",
            "255.255.255.255",
            "5.5.5.5",
        ] {
            let line = format!("a.com. 60 {private}");
            assert_eq!(
                sifted(&["a.com. 60 1.1.1.1", &line]),
                Err(Why::PrivateAnswer),
                "{private}"
            );
            let line = format!("b.net. 60 {private}");
            assert_eq!(
                sifted(&["a.com. 60 b.net.", &line]),
                Err(Why::PrivateAnswer),
                "{private}"
            );
        }
    }

    #[test]
    fn circles_forks_and_long_ways_are_refused() {
        assert_eq!(sifted(&["a.com. 60 a.com."]), Err(Why::AnswerChain));
        assert_eq!(
            sifted(&["a.com. 60 b.com.", "b.com. 60 a.com."]),
            Err(Why::AnswerChain)
        );
        assert_eq!(
            sifted(&["a.com. 60 b.com.", "a.com. 60 c.com."]),
            Err(Why::AnswerChain)
        );
        let way = |aliases: usize| {
            let mut lines = vec!["a.com. 60 n0.".to_owned()];
            lines.extend((1..aliases).map(|at| format!("n{}. 60 n{at}.", at - 1)));
            lines.push(format!("n{}. 60 1.1.1.1", aliases - 1));
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            sifted(&lines).map(|addresses| addresses.len())
        };
        assert_eq!(way(MOST_ALIASES), Ok(1));
        assert_eq!(way(MOST_ALIASES + 1), Err(Why::AnswerChain));
    }

    #[test]
    fn times_are_kept_within_bounds_and_other_types_left_out() {
        let seconds = |lines: &[&str]| {
            let mut message = answer(lines);
            let text = RData::TXT(TXT::new(vec!["data".to_owned()]));
            message.add_answer(Record::from_rdata(name("a.com."), 1, text));
            let sifted = sift(&name("a.com."), &message, &[], 30..=3600).unwrap();
            (sifted.seconds, sifted.records.len())
        };
        assert_eq!(seconds(&["a.com. 0 1.1.1.1"]), (30, 1));
        assert_eq!(seconds(&["a.com. 4294967295 1.1.1.1"]), (3600, 1));
        assert_eq!(seconds(&["a.com. 100 b.com.", "b.com. 90 1.1.1.1"]), (90, 2));
    }

    proptest! {
        #[test]
        fn no_answer_opens_a_private_address(
            records in proptest::collection::vec((0..5_usize, any::<u32>(), 0..5_usize, any::<bool>()), 0..12),
        ) {
            let names = ["a.com.", "b.com.", "c.com.", "d.com.", "e.com."];
            let mut message = Message::new(1, MessageType::Response, OpCode::Query);
            for (owner, bits, target, is_alias) in records {
                let data = if is_alias {
                    RData::CNAME(CNAME(name(names[target])))
                } else {
                    RData::A(A(Ipv4Addr::from_bits(bits)))
                };
                message.add_answer(Record::from_rdata(name(names[owner]), bits, data));
            }
            if let Ok(sifted) = sift(&name("a.com."), &message, &[], 30..=3600) {
                prop_assert!(!sifted.addresses.iter().copied().any(is_special));
                prop_assert!(sifted.addresses.iter().all(|address| !address.is_private() && !address.is_loopback()));
                prop_assert!((30..=3600).contains(&sifted.seconds));
            }
        }
    }
}
