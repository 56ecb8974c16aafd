//! From the bytes of a guest to a question, and from an answer to bytes.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

use crate::domain::Domain;

/// A question has a name and, perhaps, options; nobody needs more bytes for it.
const LARGEST_QUESTION: usize = 1232;
const HEADER: usize = 12;
/// What a UDP answer may have where nobody says more, and whatever anybody says.
const LEAST_UDP: u16 = 512;
const MOST_UDP: u16 = 1232;

/// What bytes turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// Nothing that could be answered.
    Nothing,
    /// What is wrong with it is the answer.
    Answer(Vec<u8>),
    /// A question.
    Asked(Box<Asked>),
}

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The guest's.
    pub id: u16,
    /// As the guest wrote it: its answer repeats it letter by letter.
    pub name: Name,
    /// As it is compared.
    pub domain: Domain,
    /// Type.
    pub kind: RecordType,
    /// Signatures are wanted.
    pub dnssec: bool,
    /// Bytes that fit over UDP.
    pub fits: u16,
    recursion: bool,
    checking_disabled: bool,
    has_options: bool,
}

/// A message, if it is one. What claims more records than its bytes could hold is none: room would be made for all of
/// them before the first is read.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<Message> {
    const LEAST_QUESTION: usize = 5;
    const LEAST_RECORD: usize = 11;
    let mut claimed = HEADER;
    for (place, least) in [
        (4, LEAST_QUESTION),
        (6, LEAST_RECORD),
        (8, LEAST_RECORD),
        (10, LEAST_RECORD),
    ] {
        let count = u16::from_be_bytes(*bytes.get(place..)?.first_chunk()?);
        claimed += usize::from(count) * least;
    }
    if claimed > bytes.len() {
        return None;
    }
    Message::from_vec(bytes).ok()
}

/// Reads what a guest sent. Whatever options it names, none of them goes further.
#[must_use]
pub fn read(bytes: &[u8]) -> Read {
    // An answer is answered by nobody: two resolvers would talk for ever.
    let (Some(id), Some(flags)) = (bytes.first_chunk(), bytes.get(2)) else {
        return Read::Nothing;
    };
    if bytes.len() < HEADER || flags & 0x80 != 0 {
        return Read::Nothing;
    }
    let (id, op_code) = (u16::from_be_bytes(*id), OpCode::from_u8(flags >> 3 & 0x0f));
    let wrong = |code| bare(id, op_code, code);
    if op_code != OpCode::Query {
        return wrong(ResponseCode::NotImp);
    }
    if bytes.len() > LARGEST_QUESTION {
        return wrong(ResponseCode::FormErr);
    }
    let Some(message) = decode(bytes) else {
        return wrong(ResponseCode::FormErr);
    };
    let [query] = message.queries.as_slice() else {
        return wrong(ResponseCode::FormErr);
    };
    if !message.answers.is_empty() || !message.authorities.is_empty() {
        return wrong(ResponseCode::FormErr);
    }
    let asked = Asked {
        id,
        name: query.name.clone(),
        domain: Domain::of(&query.name),
        kind: query.query_type,
        dnssec: message.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok),
        fits: message.max_payload().clamp(LEAST_UDP, MOST_UDP),
        recursion: message.metadata.recursion_desired,
        checking_disabled: message.metadata.checking_disabled,
        has_options: message.edns.is_some(),
    };
    let code = if message.version() != 0 {
        ResponseCode::BADVERS
    } else if query.query_class != DNSClass::IN {
        ResponseCode::Refused
    } else {
        return Read::Asked(Box::new(asked));
    };
    asked
        .reply(code, &[], &[], LEAST_UDP)
        .map_or(Read::Nothing, Read::Answer)
}

fn bare(id: u16, op_code: OpCode, code: ResponseCode) -> Read {
    let bytes = Message::error_msg(id, op_code, code).to_vec();
    bytes.map_or(Read::Nothing, Read::Answer)
}

impl Asked {
    /// An answer of at most so many bytes; what does not fit is left out, and marked as left out. `None` for records
    /// that cannot be written.
    #[must_use]
    pub fn reply(
        &self,
        code: ResponseCode,
        records: &[Record],
        authorities: &[Record],
        most: u16,
    ) -> Option<Vec<u8>> {
        let mut message = Message::new(self.id, MessageType::Response, OpCode::Query);
        message.metadata.recursion_desired = self.recursion;
        message.metadata.recursion_available = true;
        message.metadata.checking_disabled = self.checking_disabled;
        message.metadata.response_code = code;
        let mut query = Query::query(self.name.clone(), self.kind);
        query.set_query_class(DNSClass::IN);
        message.add_query(query);
        message.answers = records.to_vec();
        message.authorities = authorities.to_vec();
        if self.has_options {
            let mut edns = Edns::new();
            edns.set_max_payload(MOST_UDP);
            message.set_edns(edns);
        }
        encode(&message, most)
    }
}

/// Writes a message of at most so many bytes.
pub(crate) fn encode(message: &Message, most: u16) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::from(LEAST_UDP));
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(most);
    message.emit(&mut encoder).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::RData;
    use hickory_proto::rr::rdata::A;
    use proptest::prelude::*;

    use super::*;

    fn query(name: &str) -> Message {
        let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        message
    }

    fn code(bytes: &[u8]) -> Option<ResponseCode> {
        match read(bytes) {
            Read::Answer(answer) => Some(Message::from_vec(&answer).unwrap().metadata.response_code),
            Read::Nothing | Read::Asked(_) => None,
        }
    }

    #[test]
    fn what_is_no_question_is_told_so_or_met_with_silence() {
        let good = query("a.com.").to_vec().unwrap();
        assert!(matches!(read(&good), Read::Asked(_)));
        assert_eq!(read(&good[..11]), Read::Nothing);
        let mut answer = good.clone();
        answer[2] |= 0x80;
        assert_eq!(read(&answer), Read::Nothing, "an answer is not answered");
        let mut update = good.clone();
        update[2] = 5 << 3;
        assert_eq!(code(&update), Some(ResponseCode::NotImp));
        assert_eq!(code(&good[..good.len() - 1]), Some(ResponseCode::FormErr));
        let mut two = query("a.com.");
        two.add_query(Query::query(Name::root(), RecordType::A));
        assert_eq!(code(&two.to_vec().unwrap()), Some(ResponseCode::FormErr));
        let mut large = good.clone();
        large.resize(LARGEST_QUESTION + 1, 0);
        assert_eq!(code(&large), Some(ResponseCode::FormErr));
        let mut chaos = query("version.bind.");
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert_eq!(code(&chaos.to_vec().unwrap()), Some(ResponseCode::Refused));
        // A name that points at itself.
        let mut circle = good[..12].to_vec();
        circle.extend([0xc0, 12, 0, 1, 0, 1]);
        assert_eq!(code(&circle), Some(ResponseCode::FormErr));
    }

    #[test]
    fn an_answer_repeats_the_question_and_says_what_did_not_fit() {
        let Read::Asked(asked) = read(&query("wWw.Example.COM.").to_vec().unwrap()) else {
            panic!("no question");
        };
        let records: Vec<Record> = (0..60_u8)
            .map(|last| RData::A(A(Ipv4Addr::new(1, 1, 1, last))))
            .map(|data| Record::from_rdata(asked.name.clone(), 60, data))
            .collect();
        for (most, whole) in [(512, false), (u16::MAX, true)] {
            let bytes = asked.reply(ResponseCode::NoError, &records, &[], most).unwrap();
            assert!(bytes.len() <= usize::from(most));
            let answer = Message::from_vec(&bytes).unwrap();
            assert_eq!((answer.metadata.id, answer.metadata.truncation), (4711, !whole));
            assert!(answer.queries[0].name.eq_case(&asked.name));
            assert_eq!(answer.answers.len() == records.len(), whole);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_fail_badly(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            match read(&bytes) {
                Read::Nothing | Read::Asked(_) => {}
                Read::Answer(answer) => prop_assert!(answer.len() <= 512 && answer[2] & 0x80 != 0),
            }
        }

        #[test]
        fn nor_does_a_question_with_one_byte_changed(at in 0..60_usize, to in any::<u8>()) {
            let mut bytes = query("www.example.com.").to_vec().unwrap();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = to;
            }
            if let Read::Asked(asked) = read(&bytes) {
                prop_assert!(asked.reply(ResponseCode::NoError, &[], &[], 512).is_some());
            }
        }
    }
}
