//! What guests ask the resolver and what distant servers answer: the first byte says which of the two the rest is. A
//! wrong reading here opens addresses that no name on a list stands for.

use std::net::Ipv4Addr;

use agentlab_resolver::domain::Allowed;
use agentlab_resolver::judge::{Mode, Verdict, judge};
use agentlab_resolver::message::MOST_ADDRESSES;
use agentlab_resolver::question::{Read, decode, read};
use agentlab_resolver::sift::{is_special, sift};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::Name;

use super::{Outcome, Target};

const OWN: Ipv4Addr = Ipv4Addr::new(5, 5, 5, 5);
const SECONDS: std::ops::RangeInclusive<u32> = 30..=3600;
/// What a guest's datagram holds at least, whatever it says.
const LEAST_UDP: usize = 512;

pub(super) const TARGET: Target = Target {
    name: "dns",
    seeds,
    words: &[
        "\u{7}example\u{3}org\u{0}",
        "\u{0}\u{1}\u{0}\u{1}",
        "\u{0}\u{5}\u{0}\u{1}",
        "\u{0}\u{4}",
        "\u{3}www",
    ],
    run,
    longest: 2048,
    base_bytes: 512 << 10,
    bytes_per_byte: 512,
    inputs: 10_000,
};

/// A header with these flags and counts of questions and answers.
fn header(flags: u16, questions: u16, answers: u16) -> Vec<u8> {
    [0x1234, flags, questions, answers, 0, 0]
        .map(u16::to_be_bytes)
        .concat()
}

fn seeds() -> Vec<Vec<u8>> {
    let question = b"\x07example\x03org\x00\x00\x01\x00\x01";
    let address = |last: u8| {
        [
            b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\x08\x08\x08".as_slice(),
            &[last],
        ]
        .concat()
    };
    let private = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\x0a\x00\x00\x01";
    vec![
        [b"q".as_slice(), &header(0x0100, 1, 0), question].concat(),
        [b"q".as_slice(), &header(0x0100, 2, 0), question].concat(),
        [
            b"a".as_slice(),
            &header(0x8180, 1, 2),
            question,
            &address(8),
            &address(9),
        ]
        .concat(),
        [b"a".as_slice(), &header(0x8180, 1, 1), question, private].concat(),
    ]
}

fn run(input: &[u8]) -> Outcome {
    match input.split_first() {
        Some((b'a', bytes)) => answered(bytes),
        Some((_, bytes)) => asked(bytes),
        None => Outcome::refused("empty"),
    }
}

fn asked(bytes: &[u8]) -> Outcome {
    let asked = match read(bytes) {
        Read::Nothing => return Outcome::refused("silence"),
        Read::Answer(answer) => {
            assert!(
                answer.len() <= LEAST_UDP,
                "what is wrong takes {} bytes",
                answer.len()
            );
            assert_eq!(answer.get(..2), bytes.get(..2), "another question is answered");
            return Outcome::refused(format!("{:?}", answer.get(3).map(|flags| flags & 0x0f)));
        }
        Read::Asked(asked) => asked,
    };
    let reply = asked.reply(ResponseCode::Refused, &[], &[], asked.fits);
    let Some(reply) = reply else {
        panic!("a question that was read cannot be repeated");
    };
    assert!(
        reply.len() <= usize::from(asked.fits),
        "an answer of {} bytes does not fit",
        reply.len()
    );
    assert_eq!(reply.get(..2), bytes.get(..2), "another question is answered");
    let mode = Mode::Filter(Allowed::new(["example.org", "*.example.com"]));
    let verdict = judge(&mode, &asked.domain, asked.kind);
    if let Verdict::Ask { free_labels } = verdict {
        let entries = mode.entries(&asked.domain);
        assert!(
            !entries.is_empty(),
            "{} is asked and stands in no list",
            asked.domain
        );
        assert_eq!(free_labels == 0, entries == ["example.org"], "{}", asked.domain);
    }
    Outcome::accepted(format!("{verdict:?}"))
}

fn answered(bytes: &[u8]) -> Outcome {
    let (Some(message), Ok(name)) = (decode(bytes), Name::from_ascii("example.org.")) else {
        return Outcome::refused("no message");
    };
    match sift(&name, &message, &[OWN], SECONDS) {
        Err(why) => Outcome::refused(why.word()),
        Ok(sifted) => {
            assert!(
                sifted.addresses.len() <= MOST_ADDRESSES,
                "{} addresses",
                sifted.addresses.len()
            );
            let inside = |address: &&Ipv4Addr| is_special(**address) || **address == OWN;
            assert_eq!(
                sifted.addresses.iter().find(inside),
                None,
                "an address inside is opened"
            );
            assert!(SECONDS.contains(&sifted.seconds), "good for {} s", sifted.seconds);
            Outcome::accepted(format!("{:?} {}", sifted.code, sifted.addresses.len()))
        }
    }
}
