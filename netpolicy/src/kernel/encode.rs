//! Rulesets and changes of elements as netlink transactions.

use std::{fmt, io};

use nftnl::set::SetKey;
use nftnl::{Batch, ChainType, MsgType, NlMsg, Policy, ProtoFamily};
use nftnl_sys as sys;

use super::attributes::{Message, Messages};
use super::element::{ElementsWriter, padded};
use super::error::{EnforceError, hint};
use super::expressions::{c_string, expressions};
use super::lack;
use super::observer::Resolved;
use super::socket::Refusal;
use super::standing::{self, FAMILIES};
use crate::binding::Elements;
use crate::ruleset::{
    Action, BaseKind, Chain, Element, Family, Field, Hook, Match, Rule as RulesetRule, Ruleset, Set, TABLE,
};

const SET_INTERVAL: u32 = 0x4;
const SET_MAP: u32 = 0x8;
/// Elements end by themselves.
pub(crate) const SET_TIMEOUT: u32 = 0x10;
/// Rules add elements that hold an expression's state.
pub(crate) const SET_EVAL: u32 = 0x20;
const SET_CONCAT: u32 = 0x80;
/// `NFT_DATA_VERDICT`.
const VERDICT: u32 = 0xffff_ff00;
/// An entry of a set's user data, and its two values, in nft's own numbering.
const KEY_BYTE_ORDER: u8 = 0;
const HOST_ORDER: u32 = 1;
const BIG_ENDIAN: u32 = 2;
/// Bytes of a message that is not counted otherwise, generously.
pub(super) const PER_RULE: usize = 1024;
pub(super) const PER_ELEMENT: usize = 160;
const SPARE: usize = 256 << 10;
/// Two tables that never exist.
const QUESTION: &str = "agentlab-question";
const ABSENT: &str = "agentlab-none";

/// One transaction, ready to be sent in one piece.
pub(crate) struct Transaction {
    batch: nftnl::FinalizedBatch,
    objects: Vec<Object>,
}

/// What a message is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Object {
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
                builder.rules(family, chain, handle);
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

    /// A transaction that is refused whatever the kernel can do, and at its first rule where it has no `meta ibrname`.
    pub(crate) fn question() -> Result<Self, EnforceError> {
        let name = |text| c_string(text);
        let handle = nftnl::Table::new(name(QUESTION), ProtoFamily::Bridge);
        let absent = nftnl::Table::new(name(ABSENT), ProtoFamily::Bridge);
        let chain = nftnl::Chain::new(name("question"), &handle);
        let mut rule = nftnl::Rule::new(&chain);
        let bridge = "vmbr1".parse().map_err(|_| EnforceError::Netfilter {
            action: "asking what it can do",
            source: std::io::ErrorKind::InvalidInput.into(),
        })?;
        for expression in expressions(&RulesetRule::new([Match::OnBridge(bridge)], Action::Drop)) {
            rule.add_expr(&expression);
        }
        let mut builder = Builder::new(PER_RULE);
        builder.add(Object::Table(Family::Bridge), &handle, MsgType::Add);
        builder.add(Object::Chain(Family::Bridge, "question"), &chain, MsgType::Add);
        builder.add(
            Object::Rule(Family::Bridge, "question", 1, None),
            &rule,
            MsgType::Add,
        );
        builder.add(Object::Table(Family::Bridge), &absent, MsgType::Del);
        Ok(builder.finish())
    }

    /// Gives elements that end by themselves a new time, whether they are there or not; with `gone`, takes them away.
    ///
    /// Each is added, which is allowed of one that is there, then removed, which is allowed only of one that is there.
    pub(crate) fn renew(shape: &Ruleset, resolved: &[Resolved], gone: bool) -> Self {
        let mut builder = Builder::new(resolved.len() * 4 * PER_ELEMENT);
        let tables = shape.tables.iter().filter(|table| table.family == Family::Inet);
        for set in tables.flat_map(|table| &table.sets) {
            let of_set = || resolved.iter().filter(|one| one.set == set.name);
            let steps = [MsgType::Add, MsgType::Del, MsgType::Add];
            for action in steps.into_iter().take(if gone { 2 } else { 3 }) {
                let elements = of_set().map(|one| &one.element);
                builder.elements(Family::Inet, set, elements, action);
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

    /// The message with this sequence number, and what it is about.
    fn message<'a>(&self, bytes: &'a [u8], sequence: u32) -> Option<(&Object, Message<'a>)> {
        // The first message begins the transaction.
        let mut messages = Messages(bytes).skip(1).zip(&self.objects);
        let (message, object) = messages.find(|(message, _)| message.sequence == sequence)?;
        Some((object, message))
    }

    /// The kernel's refusal of this transaction, in words.
    pub(crate) fn refused(&self, bytes: &[u8], refusal: Refusal) -> EnforceError {
        let code = io::Error::from_raw_os_error(refusal.code);
        let about = self.message(bytes, refusal.sequence);
        let lack = about.and_then(|(object, message)| lack::hint(object, &message, &code));
        EnforceError::Refused {
            object: about.map_or_else(
                || "the transaction as a whole".to_owned(),
                |(object, _)| object.to_string(),
            ),
            text: refusal.text,
            hint: lack.unwrap_or_else(|| hint(&code).to_owned()),
            code,
        }
    }
}

pub(super) struct Builder {
    batch: Batch,
    objects: Vec<Object>,
}

impl Builder {
    pub(super) fn new(size: usize) -> Self {
        let page = u32::try_from(size + SPARE).unwrap_or(u32::MAX / 2);
        Self {
            batch: Batch::with_page_size(page),
            objects: Vec::new(),
        }
    }

    pub(super) fn add<T: NlMsg>(&mut self, object: Object, message: &T, action: MsgType) {
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
        let mut writer = ElementsWriter::new(number(family), set);
        elements.for_each(|element| writer.add(element));
        self.messages(family, set, writer, action);
    }

    fn messages(&mut self, family: Family, set: &Set, writer: ElementsWriter<'_>, action: MsgType) {
        for message in writer.finish() {
            self.add(Object::Elements(family, set.name), &message, action);
        }
    }

    /// Appends all rules of a chain.
    pub(super) fn rules(&mut self, family: Family, chain: &Chain, handle: &nftnl::Chain<'_>) {
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
            self.add(
                Object::Rule(family, chain.name, index + 1, rule.comment),
                &message,
                MsgType::Add,
            );
        }
    }

    /// Adds or removes elements as they were read.
    pub(super) fn read_elements(
        &mut self,
        family: Family,
        set: &Set,
        elements: &[&standing::Element],
        action: MsgType,
    ) {
        let mut writer = ElementsWriter::new(number(family), set);
        elements.iter().for_each(|element| writer.add_read(element));
        self.messages(family, set, writer, action);
    }

    pub(super) fn finish(self) -> Transaction {
        Transaction {
            batch: self.batch.finalize(),
            objects: self.objects,
        }
    }
}

/// A set whose type was chosen at run time; nftnl wants it at compile time.
pub(super) struct AnyKey;

impl SetKey for AnyKey {
    const TYPE: u32 = 0;
    const LEN: u32 = 0;

    fn data(&self) -> Box<[u8]> {
        Box::default()
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

pub(super) fn protocol(family: Family) -> ProtoFamily {
    match family {
        Family::Bridge => ProtoFamily::Bridge,
        Family::Arp => ProtoFamily::Arp,
        Family::Inet => ProtoFamily::Inet,
    }
}

/// A family as the kernel numbers it.
pub(super) fn number(family: Family) -> u8 {
    let [bridge, arp, inet] = FAMILIES;
    match family {
        Family::Bridge => bridge.0,
        Family::Arp => arp.0,
        Family::Inet => inet.0,
    }
}

pub(super) fn chain_of<'a>(chain: &Chain, table: &'a nftnl::Table) -> nftnl::Chain<'a> {
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

pub(super) fn set_of<'a>(set: &Set, index: usize, table: &'a nftnl::Table) -> nftnl::set::Set<'a, AnyKey> {
    let id = u32::try_from(index + 1).unwrap_or(0);
    let message = nftnl::set::Set::new_named(&c_string(set.name), id, table, table.get_family());
    let mut flags = 0;
    flags |= if set.interval { SET_INTERVAL } else { 0 };
    flags |= if set.verdicts { SET_MAP } else { 0 };
    flags |= if set.dynamic { SET_EVAL } else { 0 };
    flags |= if set.timed { SET_TIMEOUT } else { 0 };
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
    if let Some(size) = set.size {
        put(&message, sys::NFTNL_SET_DESC_SIZE, size);
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
