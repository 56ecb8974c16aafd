//! Rulesets and changes of elements as netlink transactions.

use std::fmt;

use nftnl::set::SetKey;
use nftnl::{Batch, ChainType, MsgType, NlMsg, Policy, ProtoFamily};
use nftnl_sys as sys;

use super::attributes::Messages;
use super::error::EnforceError;
use super::expressions::{GOTO, c_string, expressions};
use crate::binding::Elements;
use crate::ruleset::{
    BaseKind, Chain, DYNAMIC_SIZE, Element, Family, Field, Hook, Ruleset, Set, TABLE, Value,
};

const SET_INTERVAL: u32 = 0x4;
const SET_MAP: u32 = 0x8;
/// Rules add elements that hold an expression's state.
pub(crate) const SET_EVAL: u32 = 0x20;
const SET_CONCAT: u32 = 0x80;
/// `NFT_DATA_VERDICT`.
const VERDICT: u32 = 0xffff_ff00;
const INTERVAL_END: u32 = 1;
/// An entry of a set's user data, and its two values, in nft's own numbering.
const KEY_BYTE_ORDER: u8 = 0;
const HOST_ORDER: u32 = 1;
const BIG_ENDIAN: u32 = 2;
/// Bytes of a message that is not counted otherwise, generously.
const PER_RULE: usize = 1024;
const PER_ELEMENT: usize = 160;
const SPARE: usize = 256 << 10;

/// One transaction, ready to be sent in one piece.
pub(crate) struct Transaction {
    batch: nftnl::FinalizedBatch,
    objects: Vec<Object>,
}

/// What a message is about.
#[derive(Debug, Clone, Copy)]
enum Object {
    Table(Family),
    Chain(Family, &'static str),
    Rule(Family, &'static str, usize, Option<&'static str>),
    Set(Family, &'static str),
    Elements(Family, &'static str),
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(family) => write!(f, "table {family} {TABLE}"),
            Self::Chain(family, chain) => write!(f, "chain {chain} of table {family} {TABLE}"),
            Self::Rule(family, chain, number, comment) => {
                write!(f, "rule {number} of chain {chain} of table {family} {TABLE}")?;
                comment.map_or(Ok(()), |comment| write!(f, " (\"{comment}\")"))
            }
            Self::Set(family, set) => write!(f, "set {set} of table {family} {TABLE}"),
            Self::Elements(family, set) => write!(f, "elements of set {set} of table {family} {TABLE}"),
        }
    }
}

impl Transaction {
    /// Replaces all our tables by these. Whatever stood under our name goes, in the same instant.
    pub(crate) fn replace(ruleset: &Ruleset) -> Self {
        let mut builder =
            Builder::new(ruleset.rule_count() * PER_RULE + ruleset.element_count() * 2 * PER_ELEMENT);
        for table in &ruleset.tables {
            let family = table.family;
            let handle = nftnl::Table::new(c_string(TABLE), protocol(family));
            for action in [MsgType::Add, MsgType::Del, MsgType::Add] {
                builder.add(Object::Table(family), &handle, action);
            }
            let chains: Vec<_> = table
                .chains
                .iter()
                .map(|chain| chain_of(chain, &handle))
                .collect();
            for (chain, message) in table.chains.iter().zip(&chains) {
                builder.add(Object::Chain(family, chain.name), message, MsgType::Add);
            }
            for (index, set) in table.sets.iter().enumerate() {
                let message = set_of(set, index, &handle);
                builder.add(Object::Set(family, set.name), &message, MsgType::Add);
            }
            for (chain, handle) in table.chains.iter().zip(&chains) {
                for (index, rule) in chain.rules.iter().enumerate() {
                    let mut message = nftnl::Rule::new(handle);
                    for expression in expressions(rule) {
                        message.add_expr(&expression);
                    }
                    if let Some(comment) = rule.comment
                        && let Err(error) = message.set_comment(c_string(comment))
                    {
                        tracing::warn!(comment, error, "a rule stays without its comment");
                    }
                    builder.add(
                        Object::Rule(family, chain.name, index + 1, rule.comment),
                        &message,
                        MsgType::Add,
                    );
                }
            }
            for set in &table.sets {
                builder.elements(family, set, set.elements.iter(), MsgType::Add);
            }
        }
        builder.finish()
    }

    /// Takes elements away and adds others. `shape` is any ruleset of the same host: it tells what the sets are like.
    pub(crate) fn update(shape: &Ruleset, removed: &Elements, added: &Elements) -> Self {
        let count = removed.iter().count() + added.iter().count();
        let mut builder = Builder::new(count * 2 * PER_ELEMENT);
        for (elements, action) in [(removed, MsgType::Del), (added, MsgType::Add)] {
            let all: Vec<_> = elements.iter().collect();
            for group in all.chunk_by(|one, other| (one.0, one.1) == (other.0, other.1)) {
                let Some((family, name, _)) = group.first() else {
                    continue;
                };
                let set = shape
                    .tables
                    .iter()
                    .filter(|table| table.family == *family)
                    .flat_map(|table| &table.sets);
                if let Some(set) = set.into_iter().find(|set| set.name == *name) {
                    builder.elements(*family, set, group.iter().map(|(_, _, element)| element), action);
                }
            }
        }
        builder.finish()
    }

    /// The datagram. A transaction in two datagrams would be two transactions, so it is refused.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>, EnforceError> {
        let mut pages = self.batch.iter();
        match (pages.next(), pages.next()) {
            (Some(page), None) => Ok(page.to_vec()),
            (None, _) | (Some(_), Some(_)) => Err(EnforceError::Netfilter {
                action: "building a transaction",
                source: std::io::Error::other("it does not fit into one message"),
            }),
        }
    }

    /// What the message with this sequence number is about.
    pub(crate) fn object(&self, bytes: &[u8], sequence: u32) -> String {
        // The first message begins the transaction.
        let place = Messages(bytes)
            .skip(1)
            .position(|message| message.sequence == sequence);
        place
            .and_then(|place| self.objects.get(place))
            .map_or_else(|| "the transaction as a whole".to_owned(), ToString::to_string)
    }
}

struct Builder {
    batch: Batch,
    objects: Vec<Object>,
}

impl Builder {
    fn new(size: usize) -> Self {
        let page = u32::try_from(size + SPARE).unwrap_or(u32::MAX / 2);
        Self {
            batch: Batch::with_page_size(page),
            objects: Vec::new(),
        }
    }

    fn add<T: NlMsg>(&mut self, object: Object, message: &T, action: MsgType) {
        self.batch.add(&Quiet(message), action);
        self.objects.push(object);
    }

    fn elements<'a>(
        &mut self,
        family: Family,
        set: &Set,
        elements: impl Iterator<Item = &'a Element>,
        action: MsgType,
    ) {
        let table = nftnl::Table::new(c_string(TABLE), protocol(family));
        let handle = set_of(
            &Set {
                elements: std::collections::BTreeSet::new(),
                ..set.clone()
            },
            0,
            &table,
        );
        let mut any = false;
        for element in elements {
            add_element(&handle, set, element);
            any = true;
        }
        if any {
            for message in handle.elems_iter() {
                self.add(Object::Elements(family, set.name), &message, action);
            }
        }
    }

    fn finish(self) -> Transaction {
        Transaction {
            batch: self.batch.finalize(),
            objects: self.objects,
        }
    }
}

/// A message that asks for no acknowledgement and may be repeated.
///
/// nftnl asks for one acknowledgement per message, which overflows the receive buffer of a large transaction and makes
/// a success look like a failure, and adds elements with `NLM_F_EXCL`, which fails when they are there already. Errors
/// are reported without being asked for.
struct Quiet<'a, T>(&'a T);

#[expect(unsafe_code, reason = "the trait writes into libnftnl's buffer")]
// SAFETY: writes exactly what `T` writes, so never more than the largest message.
unsafe impl<T: NlMsg> NlMsg for Quiet<'_, T> {
    unsafe fn write(&self, buffer: *mut std::ffi::c_void, sequence: u32, action: MsgType) {
        // SAFETY: the caller promises the same that `T` asks for.
        unsafe { self.0.write(buffer, sequence, action) };
        let unwanted = u16::try_from(libc::NLM_F_ACK | libc::NLM_F_EXCL).unwrap_or(0);
        let header = buffer.cast::<libc::nlmsghdr>();
        // SAFETY: `T` has just written a message, which begins with its header; libnftnl aligns messages to 4 bytes,
        // and the pointer is not kept.
        unsafe { (*header).nlmsg_flags &= !unwanted };
    }
}

fn protocol(family: Family) -> ProtoFamily {
    match family {
        Family::Bridge => ProtoFamily::Bridge,
        Family::Arp => ProtoFamily::Arp,
        Family::Inet => ProtoFamily::Inet,
    }
}

fn chain_of<'a>(chain: &Chain, table: &'a nftnl::Table) -> nftnl::Chain<'a> {
    let mut message = nftnl::Chain::new(c_string(chain.name), table);
    if let Some(base) = chain.base {
        message.set_type(match base.kind {
            BaseKind::Filter => ChainType::Filter,
            BaseKind::Nat => ChainType::Nat,
        });
        // The arp family numbers its hooks on its own: input is the first.
        let hook = match (table.get_family(), base.hook) {
            (ProtoFamily::Arp, Hook::Input) | (_, Hook::Prerouting) => nftnl::Hook::PreRouting,
            (_, Hook::Input) => nftnl::Hook::In,
            (_, Hook::Forward) => nftnl::Hook::Forward,
            (_, Hook::Output) => nftnl::Hook::Out,
            (_, Hook::Postrouting) => nftnl::Hook::PostRouting,
        };
        message.set_hook(hook, base.priority);
        message.set_policy(Policy::Accept);
    }
    message
}

/// A set whose type was chosen at run time; nftnl wants it at compile time.
struct AnyKey;

impl SetKey for AnyKey {
    const TYPE: u32 = 0;
    const LEN: u32 = 0;

    fn data(&self) -> Box<[u8]> {
        Box::default()
    }
}

/// Number of a type in nft's own numbering, which the kernel keeps for nft to read back.
fn type_number(field: Field) -> u32 {
    match field {
        Field::IfName => 41,
        Field::Ether => 9,
        Field::Ipv4 => 7,
        Field::Protocol => 12,
        Field::Service => 13,
    }
}

fn padded(width: usize) -> usize {
    width.next_multiple_of(4)
}

fn set_of<'a>(set: &Set, index: usize, table: &'a nftnl::Table) -> nftnl::set::Set<'a, AnyKey> {
    let id = u32::try_from(index + 1).unwrap_or(0);
    let message = nftnl::set::Set::new_named(&c_string(set.name), id, table, table.get_family());
    let mut flags = 0;
    flags |= if set.interval { SET_INTERVAL } else { 0 };
    flags |= if set.verdicts { SET_MAP } else { 0 };
    flags |= if set.dynamic { SET_EVAL } else { 0 };
    flags |= if set.fields.len() > 1 { SET_CONCAT } else { 0 };
    let key_type = set
        .fields
        .iter()
        .fold(0, |number, field| number << 6 | type_number(*field));
    let key_length = match set.fields {
        [only] => only.width(),
        several => several.iter().map(|field| padded(field.width())).sum(),
    };
    put(&message, sys::NFTNL_SET_FLAGS, flags);
    put(&message, sys::NFTNL_SET_KEY_TYPE, key_type);
    put(
        &message,
        sys::NFTNL_SET_KEY_LEN,
        u32::try_from(key_length).unwrap_or(0),
    );
    if set.dynamic {
        put(&message, sys::NFTNL_SET_DESC_SIZE, DYNAMIC_SIZE);
    }
    if set.verdicts {
        put(&message, sys::NFTNL_SET_DATA_TYPE, VERDICT);
        put(&message, sys::NFTNL_SET_DATA_LEN, 0);
    }
    // nft cannot list names without being told in which order their bytes stand.
    let order = if set.fields == [Field::IfName] {
        HOST_ORDER
    } else {
        BIG_ENDIAN
    };
    let mut note = vec![KEY_BYTE_ORDER, 4];
    note.extend(order.to_ne_bytes());
    put_bytes(&message, sys::NFTNL_SET_USERDATA, &note);
    if set.fields.len() > 1 {
        let widths: Vec<u8> = set
            .fields
            .iter()
            .filter_map(|field| u8::try_from(field.width()).ok())
            .collect();
        put_bytes(&message, sys::NFTNL_SET_DESC_CONCAT, &widths);
    }
    message
}

#[expect(unsafe_code, reason = "libnftnl is a C library")]
fn put(set: &nftnl::set::Set<'_, AnyKey>, attribute: sys::nftnl_set_attr, value: u32) {
    // SAFETY: the set is alive, and the attribute is one that holds a u32.
    unsafe {
        sys::nftnl_set_set_u32(
            set.as_ptr().as_ptr(),
            u16::try_from(attribute).unwrap_or(u16::MAX),
            value,
        )
    };
}

#[expect(unsafe_code, reason = "libnftnl is a C library")]
fn put_bytes(set: &nftnl::set::Set<'_, AnyKey>, attribute: sys::nftnl_set_attr, value: &[u8]) {
    let length = u32::try_from(value.len()).unwrap_or(0);
    // SAFETY: the set is alive, and libnftnl copies `length` bytes, which `value` has.
    unsafe {
        sys::nftnl_set_set_data(
            set.as_ptr().as_ptr(),
            u16::try_from(attribute).unwrap_or(u16::MAX),
            value.as_ptr().cast(),
            length,
        );
    }
}

/// The first and, for a range, the last key of an element, part by part.
fn key(set: &Set, element: &Element) -> (Vec<u8>, Vec<u8>) {
    let (mut first, mut last) = (Vec::new(), Vec::new());
    let single = element.key.len() == 1;
    for (value, field) in element.key.iter().zip(set.fields) {
        let (low, high): (Vec<u8>, Vec<u8>) = match value {
            Value::IfName(name) => (name.padded().into(), name.padded().into()),
            Value::Ether(mac) => ((*mac).into(), (*mac).into()),
            Value::Ipv4(address) => (address.octets().into(), address.octets().into()),
            Value::Network(network) => (
                network.network().octets().into(),
                network.broadcast().octets().into(),
            ),
            Value::Protocol(protocol) => (vec![protocol.number()], vec![protocol.number()]),
            Value::Port(port) => (port.to_be_bytes().into(), port.to_be_bytes().into()),
            Value::Ports(range) => (range.first.to_be_bytes().into(), range.last.to_be_bytes().into()),
        };
        let width = if single {
            field.width()
        } else {
            padded(field.width())
        };
        for (bytes, part) in [(&mut first, low), (&mut last, high)] {
            let end = bytes.len() + width;
            bytes.extend(part);
            bytes.resize(end, 0);
        }
    }
    (first, last)
}

fn add_element(handle: &nftnl::set::Set<'_, AnyKey>, set: &Set, element: &Element) {
    let (first, last) = key(set, element);
    if !set.interval {
        push(handle, &first, None, 0, element.chain);
    } else if set.fields.len() > 1 {
        push(handle, &first, Some(&last), 0, element.chain);
    } else {
        push(handle, &first, None, 0, element.chain);
        // A range that reaches the end of the address space has no end of its own.
        if let Some(after) = last
            .first_chunk()
            .and_then(|last| u32::from_be_bytes(*last).checked_add(1))
        {
            push(handle, &after.to_be_bytes(), None, INTERVAL_END, None);
        }
    }
}

#[expect(unsafe_code, reason = "libnftnl is a C library")]
fn push(
    handle: &nftnl::set::Set<'_, AnyKey>,
    key: &[u8],
    end: Option<&[u8]>,
    flags: u32,
    chain: Option<&str>,
) {
    let short = |attribute: u32| u16::try_from(attribute).unwrap_or(u16::MAX);
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(0);
    // SAFETY: the element is checked to exist before it is filled; libnftnl copies every value with the length given;
    // the set is alive and becomes the element's owner.
    unsafe {
        let element = sys::nftnl_set_elem_alloc();
        if element.is_null() {
            std::process::abort();
        }
        sys::nftnl_set_elem_set(
            element,
            short(sys::NFTNL_SET_ELEM_KEY),
            key.as_ptr().cast(),
            length(key),
        );
        if let Some(end) = end {
            sys::nftnl_set_elem_set(
                element,
                short(sys::NFTNL_SET_ELEM_KEY_END),
                end.as_ptr().cast(),
                length(end),
            );
        }
        if flags != 0 {
            sys::nftnl_set_elem_set_u32(element, short(sys::NFTNL_SET_ELEM_FLAGS), flags);
        }
        if let Some(chain) = chain {
            sys::nftnl_set_elem_set_u32(element, short(sys::NFTNL_SET_ELEM_VERDICT), GOTO);
            sys::nftnl_set_elem_set_str(
                element,
                short(sys::NFTNL_SET_ELEM_CHAIN),
                c_string(chain).as_ptr(),
            );
        }
        sys::nftnl_set_elem_add(handle.as_ptr().as_ptr(), element);
    }
}
