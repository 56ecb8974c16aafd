//! Rules as lists of kernel expressions: the same bytecode that nft makes of the same words.

use std::ffi::CStr;
use std::ptr::NonNull;

use nftnl::expr::Expression;
use nftnl_sys as sys;

use crate::Cidr;
use crate::ruleset::{Action, Direction, EtherType, Is, LOGGED_BYTES, Match, Rule, Selector, Side};

const LINK_LAYER: u32 = 0;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_SKUID: u32 = 10;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const META_BRIDGE_IN: u32 = 17;
const META_PKTTYPE: u32 = 19;
const CT_STATE: u32 = 0;
const CT_DIRECTION: u32 = 1;
const CT_INVALID: u32 = 1;
const CT_NEW: u32 = 8;
const CONNLIMIT_INVERTED: u32 = 1;
const DYNSET_ADD: u32 = 0;
const DYNSET_UPDATE: u32 = 1;
const CT_ESTABLISHED: u32 = 2;
const CT_ESTABLISHED_OR_RELATED: u32 = CT_ESTABLISHED | 4;
const CT_FROM_RESPONDER: u8 = 1;
/// `PACKET_HOST`.
const TO_HOST: u8 = 0;
const NFPROTO_IPV4: u8 = 2;
const FIB_ADDRESS_TYPE: u32 = 3;
const FIB_DESTINATION: u32 = 2;
const UNICAST: u32 = 1;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const AT_MOST: u32 = 3;
const AT_LEAST: u32 = 5;
const TO_NETWORK_ORDER: u32 = 1;
const REJECT_RESET: u32 = 1;
const REJECT_ICMPX: u32 = 2;
const ADMIN_PROHIBITED: u8 = 3;
const LOOKUP_INVERTED: u32 = 1;
const VERDICT_REGISTER: u32 = 0;
const BURST: u32 = 5;

/// One expression: its kernel name and its attributes.
#[derive(Debug)]
pub(crate) struct Raw {
    name: &'static CStr,
    attributes: Vec<(u32, Datum)>,
}

#[derive(Debug)]
enum Datum {
    Byte(u8),
    Short(u16),
    Number(u32),
    Long(u64),
    Bytes(Vec<u8>),
    Text(std::ffi::CString),
    Expression(Raw),
}

impl Raw {
    fn new(name: &'static CStr) -> Self {
        Self {
            name,
            attributes: Vec::new(),
        }
    }

    fn number(mut self, attribute: u32, value: u32) -> Self {
        self.attributes.push((attribute, Datum::Number(value)));
        self
    }

    fn long(mut self, attribute: u32, value: u64) -> Self {
        self.attributes.push((attribute, Datum::Long(value)));
        self
    }

    fn short(mut self, attribute: u32, value: u16) -> Self {
        self.attributes.push((attribute, Datum::Short(value)));
        self
    }

    fn byte(mut self, attribute: u32, value: u8) -> Self {
        self.attributes.push((attribute, Datum::Byte(value)));
        self
    }

    fn bytes(mut self, attribute: u32, value: impl Into<Vec<u8>>) -> Self {
        self.attributes.push((attribute, Datum::Bytes(value.into())));
        self
    }

    fn expression(mut self, attribute: u32, value: Self) -> Self {
        self.attributes.push((attribute, Datum::Expression(value)));
        self
    }

    fn text(mut self, attribute: u32, value: &str) -> Self {
        self.attributes.push((attribute, Datum::Text(c_string(value))));
        self
    }
}

/// Our names hold no zero byte; a name that did would end there.
pub(crate) fn c_string(text: &str) -> std::ffi::CString {
    let bytes: Vec<u8> = text.bytes().take_while(|byte| *byte != 0).collect();
    std::ffi::CString::new(bytes).unwrap_or_default()
}

/// The attribute numbers of libnftnl are small, whatever their C type.
fn short(attribute: u32) -> u16 {
    u16::try_from(attribute).unwrap_or(u16::MAX)
}

impl Expression for Raw {
    fn to_expr(&self, _: &nftnl::Rule<'_>) -> NonNull<sys::nftnl_expr> {
        self.build()
    }
}

impl Raw {
    #[expect(unsafe_code, reason = "libnftnl is a C library")]
    fn build(&self) -> NonNull<sys::nftnl_expr> {
        // SAFETY: the name is a C string; the result is checked before it is used.
        let Some(expression) = NonNull::new(unsafe { sys::nftnl_expr_alloc(self.name.as_ptr()) }) else {
            // Out of memory for a few bytes, or a libnftnl without this expression: there is no policy to go on with.
            std::process::abort();
        };
        for (attribute, datum) in &self.attributes {
            let (to, attribute) = (expression.as_ptr(), short(*attribute));
            // SAFETY: `to` is a live expression that nobody else holds, and libnftnl copies every value it is given
            // with the length it is given. An expression inside another is not copied: it is given away whole, and
            // freed with the outer one.
            unsafe {
                match datum {
                    Datum::Byte(value) => sys::nftnl_expr_set_u8(to, attribute, *value),
                    Datum::Short(value) => sys::nftnl_expr_set_u16(to, attribute, *value),
                    Datum::Number(value) => sys::nftnl_expr_set_u32(to, attribute, *value),
                    Datum::Long(value) => sys::nftnl_expr_set_u64(to, attribute, *value),
                    Datum::Bytes(value) => {
                        let length = u32::try_from(value.len()).unwrap_or(0);
                        sys::nftnl_expr_set(to, attribute, value.as_ptr().cast(), length);
                    }
                    Datum::Expression(value) => {
                        let inner = value.build();
                        sys::nftnl_expr_set(to, attribute, inner.as_ptr().cast(), 0);
                    }
                    Datum::Text(value) => {
                        sys::nftnl_expr_set_str(to, attribute, value.as_ptr());
                    }
                }
            }
        }
        expression
    }
}

/// Everything a rule does, in order.
pub(crate) fn expressions(rule: &Rule) -> Vec<Raw> {
    let mut list = Vec::new();
    for one in &rule.matches {
        matching(one, &mut list);
    }
    if rule.counted {
        list.push(
            Raw::new(c"counter")
                .long(sys::NFTNL_EXPR_CTR_PACKETS, 0)
                .long(sys::NFTNL_EXPR_CTR_BYTES, 0),
        );
    }
    acting(rule.action, &mut list);
    list
}

/// The number of a register by its 32-bit slot, as the kernel itself writes it back.
fn register(slot: u32) -> u32 {
    if slot.is_multiple_of(4) {
        1 + slot / 4
    } else {
        8 + slot
    }
}

fn meta(key: u32, into: u32) -> Raw {
    Raw::new(c"meta")
        .number(sys::NFTNL_EXPR_META_KEY, key)
        .number(sys::NFTNL_EXPR_META_DREG, into)
}

fn ct(key: u32) -> Raw {
    Raw::new(c"ct")
        .number(sys::NFTNL_EXPR_CT_KEY, key)
        .number(sys::NFTNL_EXPR_CT_DREG, register(0))
}

fn payload(base: u32, offset: u32, length: u32, into: u32) -> Raw {
    Raw::new(c"payload")
        .number(sys::NFTNL_EXPR_PAYLOAD_DREG, into)
        .number(sys::NFTNL_EXPR_PAYLOAD_BASE, base)
        .number(sys::NFTNL_EXPR_PAYLOAD_OFFSET, offset)
        .number(sys::NFTNL_EXPR_PAYLOAD_LEN, length)
}

fn compare(operation: u32, value: &[u8]) -> Raw {
    Raw::new(c"cmp")
        .number(sys::NFTNL_EXPR_CMP_SREG, register(0))
        .number(sys::NFTNL_EXPR_CMP_OP, operation)
        .bytes(sys::NFTNL_EXPR_CMP_DATA, value)
}

fn mask(mask: &[u8]) -> Raw {
    Raw::new(c"bitwise")
        .number(sys::NFTNL_EXPR_BITWISE_SREG, register(0))
        .number(sys::NFTNL_EXPR_BITWISE_DREG, register(0))
        .number(sys::NFTNL_EXPR_BITWISE_OP, 0)
        .number(
            sys::NFTNL_EXPR_BITWISE_LEN,
            u32::try_from(mask.len()).unwrap_or(0),
        )
        .bytes(sys::NFTNL_EXPR_BITWISE_MASK, mask)
        .bytes(sys::NFTNL_EXPR_BITWISE_XOR, vec![0; mask.len()])
}

fn operation(is: Is) -> u32 {
    match is {
        Is::Equal => EQUAL,
        Is::Not => NOT_EQUAL,
    }
}

fn offset(side: Side) -> u32 {
    match side {
        Side::Source => 12,
        Side::Destination => 16,
    }
}

fn name_key(direction: Direction) -> u32 {
    match direction {
        Direction::In => META_IIFNAME,
        Direction::Out => META_OIFNAME,
    }
}

/// nft compares whole bytes where the prefix allows it, and masks otherwise.
fn inside(side: Side, network: Cidr, list: &mut Vec<Raw>) {
    let bytes = network.network().octets();
    let whole = usize::from(network.prefix() / 8);
    if network.prefix().is_multiple_of(8) && whole > 0 {
        list.push(payload(
            NETWORK,
            offset(side),
            u32::from(network.prefix() / 8),
            register(0),
        ));
        list.push(compare(EQUAL, bytes.get(..whole).unwrap_or(&bytes)));
    } else {
        let bits = network.network().to_bits() ^ network.broadcast().to_bits();
        list.push(payload(NETWORK, offset(side), 4, register(0)));
        list.push(mask(&(!bits).to_be_bytes()));
        list.push(compare(EQUAL, &bytes));
    }
}

fn state(bits: u32, list: &mut Vec<Raw>) {
    list.push(ct(CT_STATE));
    list.push(mask(&bits.to_ne_bytes()));
    list.push(compare(NOT_EQUAL, &0_u32.to_ne_bytes()));
}

/// Compares bytes of a packet.
fn at(base: u32, offset: u32, is: Is, value: &[u8]) -> [Raw; 2] {
    let length = u32::try_from(value.len()).unwrap_or(0);
    [
        payload(base, offset, length, register(0)),
        compare(operation(is), value),
    ]
}

/// Compares what the kernel knows about a packet.
fn about(key: u32, is: Is, value: &[u8]) -> [Raw; 2] {
    [meta(key, register(0)), compare(operation(is), value)]
}

fn owner(first: u32, last: u32) -> [Raw; 4] {
    [
        meta(META_SKUID, register(0)),
        // Greater and less are asked of bytes, so the most significant one must be the first.
        Raw::new(c"byteorder")
            .number(sys::NFTNL_EXPR_BYTEORDER_SREG, register(0))
            .number(sys::NFTNL_EXPR_BYTEORDER_DREG, register(0))
            .number(sys::NFTNL_EXPR_BYTEORDER_OP, TO_NETWORK_ORDER)
            .number(sys::NFTNL_EXPR_BYTEORDER_LEN, 4)
            .number(sys::NFTNL_EXPR_BYTEORDER_SIZE, 4),
        compare(AT_LEAST, &first.to_be_bytes()),
        compare(AT_MOST, &last.to_be_bytes()),
    ]
}

/// Notes the source in a set, with an expression of its own that decides whether the packet matches.
fn of_source(operation: u32, set: &str, expression: Raw) -> [Raw; 2] {
    [
        payload(NETWORK, offset(Side::Source), 4, register(0)),
        Raw::new(c"dynset")
            .number(sys::NFTNL_EXPR_DYNSET_SREG_KEY, register(0))
            .number(sys::NFTNL_EXPR_DYNSET_OP, operation)
            .text(sys::NFTNL_EXPR_DYNSET_SET_NAME, set)
            .number(sys::NFTNL_EXPR_DYNSET_SET_ID, 0)
            .expression(sys::NFTNL_EXPR_DYNSET_EXPR, expression),
    ]
}

/// Matches when there are more flows than that.
fn flows_over(count: u32) -> Raw {
    Raw::new(c"connlimit")
        .number(sys::NFTNL_EXPR_CONNLIMIT_COUNT, count)
        .number(sys::NFTNL_EXPR_CONNLIMIT_FLAGS, CONNLIMIT_INVERTED)
}

fn at_most_each_second(rate: u32) -> Raw {
    Raw::new(c"limit")
        .long(sys::NFTNL_EXPR_LIMIT_RATE, u64::from(rate))
        .long(sys::NFTNL_EXPR_LIMIT_UNIT, 1)
        .number(sys::NFTNL_EXPR_LIMIT_BURST, BURST)
        .number(sys::NFTNL_EXPR_LIMIT_TYPE, 0)
        .number(sys::NFTNL_EXPR_LIMIT_FLAGS, 0)
}

fn matching(one: &Match, list: &mut Vec<Raw>) {
    match one {
        Match::Name(direction, is, name) => list.extend(about(name_key(*direction), *is, &name.padded())),
        Match::Mark(is, mark) => list.extend(about(META_MARK, *is, &mark.to_ne_bytes())),
        Match::NotToHost => list.extend(about(META_PKTTYPE, Is::Not, &[TO_HOST])),
        Match::Ipv4(is) => list.extend(about(META_NFPROTO, *is, &[NFPROTO_IPV4])),
        Match::EtherType(EtherType::Ip) => list.extend(at(LINK_LAYER, 12, Is::Equal, &[0x08, 0x00])),
        Match::EtherType(EtherType::Arp) => list.extend(at(LINK_LAYER, 12, Is::Equal, &[0x08, 0x06])),
        Match::ArpForEthernet => {
            list.extend(at(NETWORK, 0, Is::Equal, &[0, 1, 0x08, 0x00]));
            list.extend(at(NETWORK, 4, Is::Equal, &[6, 4]));
        }
        Match::ArpOperation(number) => list.extend(at(NETWORK, 6, Is::Equal, &number.to_be_bytes())),
        Match::ToLinkLocalGroup => list.extend([
            payload(LINK_LAYER, 0, 6, register(0)),
            mask(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xf0]),
            compare(EQUAL, &[0x01, 0x80, 0xc2, 0, 0, 0]),
        ]),
        Match::Address(side, is, address) => list.extend(at(NETWORK, offset(*side), *is, &address.octets())),
        Match::Inside(side, network) => inside(*side, *network, list),
        Match::DestinationNotUnicast => list.extend([
            Raw::new(c"fib")
                .number(sys::NFTNL_EXPR_FIB_DREG, register(0))
                .number(sys::NFTNL_EXPR_FIB_RESULT, FIB_ADDRESS_TYPE)
                .number(sys::NFTNL_EXPR_FIB_FLAGS, FIB_DESTINATION),
            compare(NOT_EQUAL, &UNICAST.to_ne_bytes()),
        ]),
        Match::TransportProtocol(protocol) => {
            list.extend(about(META_L4PROTO, Is::Equal, &[protocol.number()]))
        }
        Match::DestinationPort(port) => list.extend(at(TRANSPORT, 2, Is::Equal, &port.to_be_bytes())),
        Match::Owner(first, last) => list.extend(owner(*first, *last)),
        Match::CtInvalid => state(CT_INVALID, list),
        Match::CtNew => state(CT_NEW, list),
        Match::CtEstablished => state(CT_ESTABLISHED, list),
        Match::FlowsOver(count, set) => list.extend(of_source(DYNSET_ADD, set, flows_over(*count))),
        Match::CtReply => {
            state(CT_ESTABLISHED_OR_RELATED, list);
            list.extend([ct(CT_DIRECTION), compare(EQUAL, &[CT_FROM_RESPONDER])]);
        }
        Match::Limit(rate) => list.push(at_most_each_second(*rate)),
        Match::LimitOfSource(rate, set) => {
            list.extend(of_source(DYNSET_UPDATE, set, at_most_each_second(*rate)));
        }
        Match::OnBridge(name) => list.extend(about(META_BRIDGE_IN, Is::Equal, &name.padded())),
        Match::In(selectors, is, set) => {
            load(selectors, list);
            let lookup = lookup(set);
            list.push(match is {
                Is::Equal => lookup,
                Is::Not => lookup.number(sys::NFTNL_EXPR_LOOKUP_FLAGS, LOOKUP_INVERTED),
            });
        }
        Match::Map(selectors, map) => {
            load(selectors, list);
            list.push(lookup(map).number(sys::NFTNL_EXPR_LOOKUP_DREG, VERDICT_REGISTER));
        }
    }
}

fn lookup(set: &str) -> Raw {
    Raw::new(c"lookup")
        .number(sys::NFTNL_EXPR_LOOKUP_SREG, register(0))
        .text(sys::NFTNL_EXPR_LOOKUP_SET, set)
        .number(sys::NFTNL_EXPR_LOOKUP_SET_ID, 0)
}

/// Puts the parts of a key side by side, each in as many 32-bit slots as it needs.
fn load(selectors: &[Selector], list: &mut Vec<Raw>) {
    let mut slot = 0;
    for selector in selectors {
        let into = register(slot);
        list.push(match selector {
            Selector::InName => meta(META_IIFNAME, into),
            Selector::OutName => meta(META_OIFNAME, into),
            Selector::EtherSource => payload(LINK_LAYER, 6, 6, into),
            Selector::EtherDestination => payload(LINK_LAYER, 0, 6, into),
            Selector::IpSource => payload(NETWORK, 12, 4, into),
            Selector::IpDestination => payload(NETWORK, 16, 4, into),
            Selector::ArpSenderEther => payload(NETWORK, 8, 6, into),
            Selector::ArpSenderIp => payload(NETWORK, 14, 4, into),
            Selector::ArpTargetIp => payload(NETWORK, 24, 4, into),
            Selector::IpProtocol => payload(NETWORK, 9, 1, into),
            Selector::DestinationPort => payload(TRANSPORT, 2, 2, into),
        });
        slot += u32::try_from(selector.field().width().div_ceil(4)).unwrap_or(0);
    }
}

/// `NF_DROP`, `NF_ACCEPT` and `NFT_GOTO`, as the unsigned numbers libnftnl takes.
pub(crate) const DROP: u32 = 0;
pub(crate) const ACCEPT: u32 = 1;
pub(crate) const GOTO: u32 = u32::MAX - 3;

fn acting(action: Action, list: &mut Vec<Raw>) {
    let verdict = |number| {
        Raw::new(c"immediate")
            .number(sys::NFTNL_EXPR_IMM_DREG, VERDICT_REGISTER)
            .number(sys::NFTNL_EXPR_IMM_VERDICT, number)
    };
    match action {
        Action::Continue => {}
        Action::Log(group) => list.push(
            Raw::new(c"log")
                .short(sys::NFTNL_EXPR_LOG_GROUP, group)
                .number(sys::NFTNL_EXPR_LOG_SNAPLEN, LOGGED_BYTES),
        ),
        Action::Accept => list.push(verdict(ACCEPT)),
        Action::Drop => list.push(verdict(DROP)),
        Action::Goto(chain) => list.push(verdict(GOTO).text(sys::NFTNL_EXPR_IMM_CHAIN, chain)),
        Action::SetMark(mark) => list.extend([
            Raw::new(c"immediate")
                .number(sys::NFTNL_EXPR_IMM_DREG, register(0))
                .bytes(sys::NFTNL_EXPR_IMM_DATA, mark.to_ne_bytes()),
            Raw::new(c"meta")
                .number(sys::NFTNL_EXPR_META_KEY, META_MARK)
                .number(sys::NFTNL_EXPR_META_SREG, register(0)),
        ]),
        Action::Masquerade => list.push(Raw::new(c"masq")),
        Action::RejectWithReset => {
            list.push(Raw::new(c"reject").number(sys::NFTNL_EXPR_REJECT_TYPE, REJECT_RESET));
        }
        Action::RejectProhibited => list.push(
            Raw::new(c"reject")
                .number(sys::NFTNL_EXPR_REJECT_TYPE, REJECT_ICMPX)
                .byte(sys::NFTNL_EXPR_REJECT_CODE, ADMIN_PROHIBITED),
        ),
    }
}
