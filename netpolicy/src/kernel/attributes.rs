//! Netlink messages and attributes as bytes, read and written without any unsafe code.

/// Set in an attribute's type when it holds attributes itself.
const NESTED: u16 = 0x8000;
/// Both flag bits of an attribute's type.
const TYPE_MASK: u16 = 0x3fff;
/// Size of `nlmsghdr`.
pub(crate) const HEADER: usize = 16;
/// `NLMSG_ERROR`: an answer, which may say that all is well.
pub(crate) const ERROR: u16 = 2;
/// Size of `nfgenmsg`.
pub(crate) const FAMILY_HEADER: usize = 4;

/// One attribute.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attribute<'a> {
    pub(crate) kind: u16,
    pub(crate) nested: bool,
    pub(crate) value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// Attributes inside.
    pub(crate) fn inside(&self) -> Attributes<'a> {
        Attributes(self.value)
    }

    /// A big-endian number, as nf_tables has them.
    pub(crate) fn number(&self) -> u32 {
        self.value
            .first_chunk()
            .map_or(0, |bytes| u32::from_be_bytes(*bytes))
    }

    /// A big-endian counter.
    pub(crate) fn long(&self) -> u64 {
        self.value
            .first_chunk()
            .map_or(0, |bytes| u64::from_be_bytes(*bytes))
    }

    /// Text up to its terminating zero.
    pub(crate) fn text(&self) -> String {
        let end = self
            .value
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(self.value.len());
        String::from_utf8_lossy(self.value.get(..end).unwrap_or_default()).into_owned()
    }
}

/// Walks attributes; ends at the first malformed one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Attributes<'a> {
    /// The first attribute of a kind.
    pub(crate) fn find(mut self, kind: u16) -> Option<Attribute<'a>> {
        Iterator::find(&mut self, |attribute| attribute.kind == kind)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let [a, b, c, d] = *self.0.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let kind = u16::from_ne_bytes([c, d]);
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Attribute {
            kind: kind & TYPE_MASK,
            nested: kind & NESTED != 0,
            value,
        })
    }
}

/// One netlink message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// Family and attributes of a netfilter message.
    pub(crate) fn netfilter(&self) -> Option<(u8, Attributes<'a>)> {
        Some((
            *self.payload.first()?,
            Attributes(self.payload.get(FAMILY_HEADER..)?),
        ))
    }
}

/// Walks the messages of a datagram; ends at the first malformed one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header: [u8; HEADER] = *self.0.first_chunk()?;
        let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = header;
        let length = usize::try_from(u32::from_ne_bytes([a, b, c, d])).ok()?;
        let payload = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([e, f]),
            flags: u16::from_ne_bytes([g, h]),
            sequence: u32::from_ne_bytes([i, j, k, l]),
            payload,
        })
    }
}

/// Appends an attribute.
pub(crate) fn put(buffer: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    buffer.extend(length.to_ne_bytes());
    buffer.extend(kind.to_ne_bytes());
    buffer.extend(value);
    buffer.resize(buffer.len().next_multiple_of(4), 0);
}

/// Appends an attribute that holds the attributes that `fill` appends.
pub(crate) fn nest(buffer: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let begin = buffer.len();
    buffer.extend([0; 4]);
    fill(buffer);
    let length = u16::try_from(buffer.len() - begin).unwrap_or(u16::MAX);
    let header = length
        .to_ne_bytes()
        .into_iter()
        .chain((kind | NESTED).to_ne_bytes());
    for (place, byte) in buffer.iter_mut().skip(begin).zip(header) {
        *place = byte;
    }
}

/// Appends text with its terminating zero.
pub(crate) fn put_text(buffer: &mut Vec<u8>, kind: u16, text: &str) {
    let length = u16::try_from(text.len() + 5).unwrap_or(u16::MAX);
    buffer.extend(length.to_ne_bytes());
    buffer.extend(kind.to_ne_bytes());
    buffer.extend(text.as_bytes());
    buffer.push(0);
    buffer.resize(buffer.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_that_lie_end_the_walk_instead_of_reading_on() {
        let mut good = Vec::new();
        put(&mut good, 1, b"abc");
        nest(&mut good, 2, |_| {});
        assert_eq!(
            Attributes(&good)
                .map(|attribute| attribute.kind)
                .collect::<Vec<_>>(),
            [1, 2]
        );
        for lie in [0_u8, 3, 200] {
            let mut bad = good.clone();
            bad[0] = lie;
            assert!(
                Attributes(&bad).find(2).is_none() || lie == 0,
                "length {lie} was believed"
            );
            assert!(Attributes(&bad).count() <= 1);
        }
        assert_eq!(Messages(&[16, 0, 0, 0, 1, 0]).count(), 0);
        assert_eq!(Messages(&[0xff; 32]).count(), 0);
    }
}
