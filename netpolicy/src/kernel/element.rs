//! Set elements as the kernel takes them.

use nftnl::set::SetKey;
use nftnl_sys as sys;

use super::expressions::{GOTO, c_string};
use super::standing;
use crate::ruleset::{Element, Lasts, Set, Value};

const INTERVAL_END: u32 = 1;

/// A set whose type was chosen at run time; nftnl wants it at compile time.
pub(super) struct AnyKey;

impl SetKey for AnyKey {
    const TYPE: u32 = 0;
    const LEN: u32 = 0;

    fn data(&self) -> Box<[u8]> {
        Box::default()
    }
}

pub(super) fn padded(width: usize) -> usize {
    width.next_multiple_of(4)
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

/// One element as the kernel takes it: a range of a set of single keys is two of them.
#[derive(Default)]
pub(super) struct RawElement<'a> {
    key: &'a [u8],
    end: Option<&'a [u8]>,
    flags: u32,
    chain: Option<&'a str>,
    lasts: Option<Lasts>,
}

pub(super) fn add_element(handle: &nftnl::set::Set<'_, AnyKey>, set: &Set, element: &Element) {
    let (first, last) = key(set, element);
    let raw = RawElement {
        key: &first,
        chain: element.chain,
        lasts: element.lasts,
        ..RawElement::default()
    };
    if !set.interval {
        push(handle, &raw);
    } else if set.fields.len() > 1 {
        let end = Some(last.as_slice());
        push(handle, &RawElement { end, ..raw });
    } else {
        push(handle, &raw);
        // A range that reaches the end of the address space has no end of its own.
        if let Some(after) = last
            .first_chunk()
            .and_then(|last| u32::from_be_bytes(*last).checked_add(1))
        {
            let end = RawElement {
                key: &after.to_be_bytes(),
                flags: INTERVAL_END,
                ..RawElement::default()
            };
            push(handle, &end);
        }
    }
}

#[expect(unsafe_code, reason = "libnftnl is a C library")]
pub(super) fn push(handle: &nftnl::set::Set<'_, AnyKey>, raw: &RawElement<'_>) {
    let short = |attribute: u32| u16::try_from(attribute).unwrap_or(u16::MAX);
    let bytes = [
        (sys::NFTNL_SET_ELEM_KEY, Some(raw.key)),
        (sys::NFTNL_SET_ELEM_KEY_END, raw.end),
    ];
    // SAFETY: the element is checked to exist before it is filled; libnftnl copies every value with the length given;
    // the set is alive and becomes the element's owner.
    unsafe {
        let element = sys::nftnl_set_elem_alloc();
        if element.is_null() {
            std::process::abort();
        }
        for (attribute, value) in bytes {
            if let Some(value) = value {
                let length = u32::try_from(value.len()).unwrap_or(0);
                sys::nftnl_set_elem_set(element, short(attribute), value.as_ptr().cast(), length);
            }
        }
        if raw.flags != 0 {
            sys::nftnl_set_elem_set_u32(element, short(sys::NFTNL_SET_ELEM_FLAGS), raw.flags);
        }
        if let Some(Lasts { given, left }) = raw.lasts {
            sys::nftnl_set_elem_set_u64(element, short(sys::NFTNL_SET_ELEM_TIMEOUT), given);
            sys::nftnl_set_elem_set_u64(element, short(sys::NFTNL_SET_ELEM_EXPIRATION), left);
        }
        if let Some(chain) = raw.chain {
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

impl<'a> From<&'a standing::Element> for RawElement<'a> {
    fn from(element: &'a standing::Element) -> Self {
        Self {
            key: &element.key,
            end: element.end.as_deref(),
            flags: element.flags,
            chain: element.chain.as_deref(),
            lasts: element.lasts,
        }
    }
}
