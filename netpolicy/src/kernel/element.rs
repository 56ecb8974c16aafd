//! Set elements as messages, in the kernel's own format.
//!
//! libnftnl would have each element as an object of its own first, with its key copied twice; a thousand sandboxes are
//! seven thousand elements. It also adds them with `NLM_F_EXCL`, which fails when one is there already.

use std::ffi::c_void;

use nftnl::{MsgType, NlMsg};

use super::attributes::{nest, put, put_text};
use super::expressions::GOTO;
use super::standing;
use crate::ruleset::{Element, Lasts, Set, TABLE, Value};

const NFTABLES: u16 = 10 << 8;
const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;
const REQUEST: u16 = 0x1;
const CREATE: u16 = 0x400;

const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const KEY: u16 = 1;
const DATA: u16 = 2;
const FLAGS: u16 = 3;
const TIMEOUT: u16 = 4;
const EXPIRATION: u16 = 5;
const KEY_END: u16 = 10;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const INTERVAL_END: u32 = 1;

/// Bytes of a list beyond which the next element goes into another message: an attribute holds 64 KiB at most.
const FULL: usize = 60_000;

/// Width of a part of a key that has several.
pub(super) fn padded(width: usize) -> usize {
    width.next_multiple_of(4)
}

/// Elements of one set that are added or removed with one message.
pub(super) struct ElementsMessage {
    family: u8,
    attributes: Vec<u8>,
}

#[expect(unsafe_code, reason = "the trait writes into libnftnl's buffer")]
// SAFETY: what is written is a header of 20 bytes and the attributes, which are `FULL`, one element and two names at
// most: less than the largest message.
unsafe impl NlMsg for ElementsMessage {
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, action: MsgType) {
        let (kind, flags) = match action {
            MsgType::Add => (NEW_ELEMENT, REQUEST | CREATE),
            MsgType::Del => (DELETE_ELEMENT, REQUEST),
        };
        let mut message = Vec::with_capacity(20 + self.attributes.len());
        let length = u32::try_from(20 + self.attributes.len()).unwrap_or(u32::MAX);
        message.extend(length.to_ne_bytes());
        message.extend((NFTABLES | kind).to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(sequence.to_ne_bytes());
        // The sender's port, which the kernel fills in; family, version, and a number that only the batch has.
        message.extend([0, 0, 0, 0, self.family, 0, 0, 0]);
        message.extend(&self.attributes);
        // SAFETY: the caller promises room for the largest message, in memory that is nobody else's; see above.
        unsafe { std::ptr::copy_nonoverlapping(message.as_ptr(), buffer.cast(), message.len()) };
    }
}

/// Writes elements of one set, as many messages as it takes.
pub(super) struct ElementsWriter<'a> {
    family: u8,
    set: &'a Set,
    /// The list that is being written.
    list: Vec<u8>,
    messages: Vec<ElementsMessage>,
    /// Keys of the element that is being written: the first, and the last of a range.
    first: Vec<u8>,
    last: Vec<u8>,
}

/// What an element is besides its key.
#[derive(Default)]
struct Rest<'a> {
    flags: u32,
    chain: Option<&'a str>,
    lasts: Option<Lasts>,
}

impl<'a> ElementsWriter<'a> {
    pub(super) fn new(family: u8, set: &'a Set) -> Self {
        Self {
            family,
            set,
            list: Vec::new(),
            messages: Vec::new(),
            first: Vec::new(),
            last: Vec::new(),
        }
    }

    /// An element of the plan: a range of a set of single keys is two of the kernel's.
    pub(super) fn add(&mut self, element: &Element) {
        self.begin();
        self.read_keys(element);
        let rest = Rest {
            chain: element.chain,
            lasts: element.lasts,
            ..Rest::default()
        };
        let is_single = self.set.fields.len() == 1;
        let end = (self.set.interval && !is_single).then_some(self.last.as_slice());
        put_element(&mut self.list, &self.first, end, &rest);
        if self.set.interval && is_single {
            // A range that reaches the end of the address space has no end of its own.
            let last = self.last.first_chunk().map(|last| u32::from_be_bytes(*last));
            if let Some(after) = last.and_then(|last| last.checked_add(1)) {
                let end = Rest {
                    flags: INTERVAL_END,
                    ..Rest::default()
                };
                put_element(&mut self.list, &after.to_be_bytes(), None, &end);
            }
        }
    }

    /// An element as it was read.
    pub(super) fn add_read(&mut self, element: &standing::Element) {
        self.begin();
        let rest = Rest {
            flags: element.flags,
            chain: element.chain.as_deref(),
            lasts: element.lasts,
        };
        put_element(&mut self.list, &element.key, element.end.as_deref(), &rest);
    }

    pub(super) fn finish(mut self) -> Vec<ElementsMessage> {
        self.flush();
        self.messages
    }

    fn begin(&mut self) {
        if self.list.len() > FULL {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.list.is_empty() {
            return;
        }
        let mut attributes = Vec::with_capacity(self.list.len() + 64);
        put_text(&mut attributes, LIST_TABLE, TABLE);
        put_text(&mut attributes, LIST_SET, self.set.name);
        nest(&mut attributes, LIST_ELEMENTS, |attributes| {
            attributes.append(&mut self.list);
        });
        self.messages.push(ElementsMessage {
            family: self.family,
            attributes,
        });
    }

    /// The first and, for a range, the last key of an element, part by part.
    fn read_keys(&mut self, element: &Element) {
        self.first.clear();
        self.last.clear();
        let is_single = self.set.fields.len() == 1;
        for (value, field) in element.key().zip(self.set.fields) {
            let width = if is_single {
                field.width()
            } else {
                padded(field.width())
            };
            let mut both = |low: &[u8], high: &[u8]| {
                for (bytes, part) in [(&mut self.first, low), (&mut self.last, high)] {
                    let end = bytes.len() + width;
                    bytes.extend(part);
                    bytes.resize(end, 0);
                }
            };
            match value {
                Value::IfName(name) => both(&name.padded(), &name.padded()),
                Value::Ether(mac) => both(mac, mac),
                Value::Ipv4(address) => both(&address.octets(), &address.octets()),
                Value::Network(network) => {
                    both(&network.network().octets(), &network.broadcast().octets());
                }
                Value::Protocol(protocol) => both(&[protocol.number()], &[protocol.number()]),
                Value::Port(port) => both(&port.to_be_bytes(), &port.to_be_bytes()),
                Value::Ports(range) => both(&range.first.to_be_bytes(), &range.last.to_be_bytes()),
            }
        }
    }
}

fn put_element(list: &mut Vec<u8>, key: &[u8], end: Option<&[u8]>, rest: &Rest<'_>) {
    nest(list, LIST_ELEMENT, |list| {
        nest(list, KEY, |list| put(list, DATA_VALUE, key));
        if let Some(end) = end {
            nest(list, KEY_END, |list| put(list, DATA_VALUE, end));
        }
        if let Some(chain) = rest.chain {
            nest(list, DATA, |list| {
                nest(list, DATA_VERDICT, |list| {
                    put(list, VERDICT_CODE, &GOTO.to_be_bytes());
                    put_text(list, VERDICT_CHAIN, chain);
                });
            });
        }
        if rest.flags != 0 {
            put(list, FLAGS, &rest.flags.to_be_bytes());
        }
        if let Some(Lasts { given, left }) = rest.lasts {
            put(list, TIMEOUT, &given.to_be_bytes());
            put(list, EXPIRATION, &left.to_be_bytes());
        }
    });
}
