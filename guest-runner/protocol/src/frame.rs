//! Frames on a serial line, which has no connections: bytes of a peer that died are still queued, half a frame of
//! theirs may precede ours. Every frame carries the connection it belongs to and a checksum; the decoder finds the
//! next whole frame in whatever it is given.
//!
//! ```text
//!  0       4      5      6        8            12        12+n    16+n
//!  ├ magic ┼ kind ┼ zero ┼ length n ┼ connection ┼ payload ┼ CRC32 ┤
//! ```
//! Numbers are big-endian; the CRC32 covers bytes 4 to 12+n. Before SYN and ACK go [`FLUSH_BYTES`] zero bytes: they
//! complete any half-written frame, whose checksum then fails, so that it cannot swallow what follows.

/// First bytes of every frame; 0xF5 occurs in no UTF-8 text. The last one is the version.
pub const FRAME_MAGIC: [u8; 4] = [0xf5, b'A', b'L', 1];
/// Most bytes a frame carries.
pub const MAX_PAYLOAD: usize = 16 * 1024;
/// Bytes around a payload.
pub const OVERHEAD: usize = HEADER_BYTES + 4;
/// Largest frame.
pub const MAX_FRAME: usize = MAX_PAYLOAD + OVERHEAD;
/// Zero bytes to send before SYN and ACK.
pub const FLUSH_BYTES: usize = MAX_FRAME;

const HEADER_BYTES: usize = 12;

/// What a frame does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// Guest: a new connection begins, whatever was before is gone. Repeated until ACK.
    Syn,
    /// Host: that connection stands.
    Ack,
    /// Bytes of the connection.
    Data,
    /// The sender will send no more bytes; it still reads.
    Fin,
    /// The sender does not know, or has dropped, this connection.
    Reset,
}

impl FrameKind {
    fn code(self) -> u8 {
        match self {
            Self::Syn => 1,
            Self::Ack => 2,
            Self::Data => 3,
            Self::Fin => 4,
            Self::Reset => 5,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Syn, Self::Ack, Self::Data, Self::Fin, Self::Reset]
            .into_iter()
            .find(|kind| kind.code() == code)
    }
}

/// One whole frame, its payload still in the decoder's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it does.
    pub kind: FrameKind,
    /// Chosen at random by the guest with each SYN.
    pub connection: u32,
    /// Empty for all kinds but DATA.
    pub payload: &'a [u8],
}

/// Appends one frame to `out` and returns how many bytes of `payload` it took: at most [`MAX_PAYLOAD`].
pub fn encode(kind: FrameKind, connection: u32, payload: &[u8], out: &mut Vec<u8>) -> usize {
    let taken = payload.get(..MAX_PAYLOAD).unwrap_or(payload);
    // MAX_PAYLOAD fits in 16 bits, so this conversion cannot fail.
    let length = u16::try_from(taken.len()).unwrap_or(0);
    out.reserve(taken.len() + OVERHEAD);
    out.extend_from_slice(&FRAME_MAGIC);
    let checked_from = out.len();
    out.extend_from_slice(&[kind.code(), 0]);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&connection.to_be_bytes());
    out.extend_from_slice(taken);
    let checksum = crc32fast::hash(&out[checked_from..]);
    out.extend_from_slice(&checksum.to_be_bytes());
    taken.len()
}

/// Finds frames in a byte stream and skips everything else. Holds at most [`MAX_FRAME`] bytes, whatever it is fed.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
    skipped: u64,
}

enum Found {
    /// A whole frame of this many bytes begins at `start`.
    Whole(FrameKind, usize),
    /// What is there may become a frame.
    Partial,
    /// No frame begins at `start`.
    Garbage,
}

impl Decoder {
    /// An empty one; it takes no memory before its first byte.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes [`Decoder::push`] would take now.
    #[must_use]
    pub fn room(&self) -> usize {
        MAX_FRAME - (self.buffer.len() - self.start)
    }

    /// Copies bytes in and returns how many: all of them, or as many as fit. After [`Decoder::take_frame`] has
    /// returned `None` there is room for at least one.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        self.buffer.drain(..self.start);
        self.start = 0;
        let room = MAX_FRAME - self.buffer.len();
        let taken = bytes.get(..room).unwrap_or(bytes);
        // Exact, so that growth by doubling never holds more than one frame.
        self.buffer.reserve_exact(taken.len());
        self.buffer.extend_from_slice(taken);
        taken.len()
    }

    /// The next whole frame, or `None` until more bytes are pushed.
    pub fn take_frame(&mut self) -> Option<Frame<'_>> {
        loop {
            match self.look() {
                Found::Whole(kind, total) => {
                    let from = self.start;
                    self.start += total;
                    let frame = self.buffer.get(from..self.start)?;
                    let connection = u32::from_be_bytes(*frame.get(8..)?.first_chunk()?);
                    return Some(Frame {
                        kind,
                        connection,
                        payload: frame.get(HEADER_BYTES..total - 4)?,
                    });
                }
                Found::Partial => return None,
                Found::Garbage => self.skip(),
            }
        }
    }

    /// Bytes that belonged to no frame so far: a number for logs.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    fn look(&self) -> Found {
        let bytes = self.buffer.get(self.start..).unwrap_or_default();
        let magic = bytes.get(..4).unwrap_or(bytes);
        if !FRAME_MAGIC.starts_with(magic) {
            return Found::Garbage;
        }
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Found::Partial;
        };
        let length = usize::from(u16::from_be_bytes([header[6], header[7]]));
        let Some(kind) = FrameKind::from_code(header[4]) else {
            return Found::Garbage;
        };
        let fits = header[5] == 0 && length <= MAX_PAYLOAD && (length == 0 || kind == FrameKind::Data);
        if !fits {
            return Found::Garbage;
        }
        let total = length + OVERHEAD;
        let Some((content, checksum)) = bytes
            .get(4..total)
            .and_then(|frame| frame.split_last_chunk::<4>())
        else {
            return Found::Partial;
        };
        if crc32fast::hash(content).to_be_bytes() == *checksum {
            Found::Whole(kind, total)
        } else {
            Found::Garbage
        }
    }

    /// Past the byte that begins no frame, to the next one that could.
    fn skip(&mut self) {
        let rest = self.buffer.get(self.start + 1..).unwrap_or_default();
        let distance = rest
            .iter()
            .position(|byte| *byte == FRAME_MAGIC[0])
            .unwrap_or(rest.len())
            + 1;
        self.start += distance;
        self.skipped = self
            .skipped
            .saturating_add(u64::try_from(distance).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Owned = (FrameKind, u32, Vec<u8>);

    fn decode_in_pieces(bytes: &[u8], piece: usize) -> Vec<Owned> {
        let mut decoder = Decoder::new();
        let mut frames = Vec::new();
        for mut part in bytes.chunks(piece.max(1)) {
            while !part.is_empty() {
                let taken = decoder.push(part);
                part = &part[taken..];
                while let Some(frame) = decoder.take_frame() {
                    frames.push((frame.kind, frame.connection, frame.payload.to_vec()));
                }
                assert!(
                    decoder.buffer.capacity() <= 2 * MAX_FRAME,
                    "{}",
                    decoder.buffer.capacity()
                );
            }
        }
        frames
    }

    #[test]
    fn the_document_shows_the_frame_this_crate_writes() {
        let mut bytes = Vec::new();
        encode(FrameKind::Data, 0x0102_0304, b"hello", &mut bytes);
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let document: String = include_str!("../../../docs/protocol.md")
            .split_whitespace()
            .collect();
        assert!(document.contains(&text), "{text}");
    }

    #[test]
    fn a_half_written_frame_does_not_swallow_the_next_connection() {
        let mut bytes = Vec::new();
        encode(FrameKind::Data, 1, &[7; MAX_PAYLOAD], &mut bytes);
        bytes.truncate(20);
        bytes.extend_from_slice(&[0; FLUSH_BYTES]);
        encode(FrameKind::Syn, 2, b"", &mut bytes);
        assert_eq!(decode_in_pieces(&bytes, 1000), [(FrameKind::Syn, 2, vec![])]);
    }

    #[test]
    fn a_frame_that_breaks_a_rule_is_garbage() {
        let mut oversized = FRAME_MAGIC.to_vec();
        oversized.extend_from_slice(&[3, 0, 0xff, 0xff, 0, 0, 0, 1]);
        let mut good = Vec::new();
        encode(FrameKind::Data, 1, b"x", &mut good);
        for damage in [4, 5, 6, 8, 12, 13] {
            let mut bytes = good.clone();
            bytes[damage] ^= 0x80;
            bytes.extend_from_slice(&[0; FLUSH_BYTES]);
            assert_eq!(decode_in_pieces(&bytes, 7), [], "byte {damage}");
        }
        oversized.extend_from_slice(&good);
        assert_eq!(
            decode_in_pieces(&oversized, 5),
            [(FrameKind::Data, 1, b"x".to_vec())]
        );
    }

    fn kind() -> impl Strategy<Value = FrameKind> {
        prop_oneof![
            Just(FrameKind::Syn),
            Just(FrameKind::Ack),
            Just(FrameKind::Data),
            Just(FrameKind::Fin),
            Just(FrameKind::Reset)
        ]
    }

    proptest! {
        #[test]
        fn frames_are_found_between_garbage_and_zeroes(
            parts in proptest::collection::vec(
                (kind(), any::<u32>(), proptest::collection::vec(any::<u8>(), 0..300),
                 proptest::collection::vec(0u8..0xf5, 0..40)), 1..12),
            piece in 1usize..2000,
        ) {
            let mut bytes = Vec::new();
            let mut expected = Vec::new();
            for (kind, connection, payload, garbage) in parts {
                // Garbage cannot hold the first magic byte here, so it cannot pass for the head of a frame.
                bytes.extend_from_slice(&garbage);
                let payload = if kind == FrameKind::Data { payload } else { Vec::new() };
                encode(kind, connection, &payload, &mut bytes);
                expected.push((kind, connection, payload));
            }
            prop_assert_eq!(decode_in_pieces(&bytes, piece), expected);
        }

        #[test]
        fn any_garbage_then_zeroes_then_a_frame_gives_that_frame(
            garbage in proptest::collection::vec(prop_oneof![any::<u8>(), Just(0xf5u8), Just(b'A'), Just(b'L'), Just(1u8)], 0..600),
            piece in 1usize..5000,
        ) {
            let mut bytes = garbage;
            bytes.extend_from_slice(&[0; FLUSH_BYTES]);
            encode(FrameKind::Syn, 77, b"", &mut bytes);
            let frames = decode_in_pieces(&bytes, piece);
            prop_assert_eq!(frames.last(), Some(&(FrameKind::Syn, 77, Vec::new())));
        }
    }
}
