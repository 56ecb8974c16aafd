//! Frames on a serial line that a hostile guest writes to.

use agentlab_protocol::frame::{Decoder, FLUSH_BYTES, FRAME_MAGIC, FrameKind, MAX_PAYLOAD, OVERHEAD, encode};

use super::{Outcome, Target};
use crate::input::Input;

pub(super) const TARGET: Target = Target {
    name: "frame",
    seeds,
    words: &[
        "\u{0}\u{0}\u{0}\u{0}",
        "AL\u{1}",
        "\u{3}\u{0}@\u{0}",
        "\u{3}\u{0}\u{0}\u{1}",
    ],
    run,
    longest: 40_000,
    base_bytes: 256 << 10,
    bytes_per_byte: 64,
    inputs: 1_500,
};

/// Whoever comes after the noise.
const NEWCOMER: u32 = 0x7700_0077;

type Owned = (FrameKind, u32, Vec<u8>);

pub(super) fn kind(byte: u8) -> FrameKind {
    [
        FrameKind::Syn,
        FrameKind::Ack,
        FrameKind::Data,
        FrameKind::Fin,
        FrameKind::Reset,
    ]
    .into_iter()
    .cycle()
    .nth(usize::from(byte))
    .unwrap_or(FrameKind::Data)
}

fn seeds() -> Vec<Vec<u8>> {
    let mut conversation = vec![50];
    encode(FrameKind::Syn, 1, b"", &mut conversation);
    encode(FrameKind::Ack, 1, b"", &mut conversation);
    encode(
        FrameKind::Data,
        1,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &mut conversation,
    );
    encode(FrameKind::Fin, 1, b"", &mut conversation);
    encode(FrameKind::Reset, 1, b"", &mut conversation);
    let mut largest = vec![255];
    encode(FrameKind::Data, 7, &[0x5a; MAX_PAYLOAD], &mut largest);
    let mut cut = largest.get(..40).unwrap_or_default().to_vec();
    encode(FrameKind::Data, 8, b"behind a frame that was cut short", &mut cut);
    // Every header promises more than follows: each must be given up in its turn.
    let promise = [&FRAME_MAGIC[..], &[3, 0, 0x40, 0, 0, 0, 0, 1]].concat();
    vec![
        conversation,
        largest,
        cut,
        promise.repeat(200),
        b"\x20no frame at all".to_vec(),
    ]
}

fn run(input: &[u8]) -> Outcome {
    let outcome = as_stream(input);
    as_script(input);
    outcome
}

/// The input as it stands, after one byte that says in which pieces it arrives.
fn as_stream(input: &[u8]) -> Outcome {
    let mut script = Input::new(input);
    let piece = usize::from(script.byte()) * 7 + 1;
    let stream = script.rest();
    let (whole, skipped) = decode(stream, stream.len());
    assert_eq!(
        decode(stream, piece),
        (whole.clone(), skipped),
        "pieces of {piece} bytes give other frames"
    );
    let taken: usize = whole.iter().map(|(_, _, payload)| payload.len() + OVERHEAD).sum();
    assert!(
        taken + usize::try_from(skipped).unwrap_or(usize::MAX) <= stream.len(),
        "{taken} bytes of frames and {skipped} skipped out of {}",
        stream.len()
    );

    let mut written = Vec::new();
    for (kind, connection, payload) in &whole {
        assert!(payload.len() <= MAX_PAYLOAD && (*kind == FrameKind::Data || payload.is_empty()));
        encode(*kind, *connection, payload, &mut written);
    }
    assert_eq!(
        decode(&written, piece),
        (whole.clone(), 0),
        "written and read back they differ"
    );

    let mut followed = stream.to_vec();
    followed.resize(stream.len() + FLUSH_BYTES, 0);
    encode(FrameKind::Syn, NEWCOMER, b"", &mut followed);
    let (all, _) = decode(&followed, piece.max(64));
    assert_eq!(
        all.last(),
        Some(&(FrameKind::Syn, NEWCOMER, Vec::new())),
        "a newcomer is not heard"
    );
    let words: String = whole
        .iter()
        .take(8)
        .map(|(kind, _, _)| format!("{kind:?} "))
        .collect();
    Outcome {
        accepted: !whole.is_empty(),
        words: format!("{words}{}", if skipped > 0 { "skipped" } else { "clean" }),
    }
}

/// The input as orders: write a frame, part of a frame, or the bytes themselves. What was written whole arrives.
fn as_script(input: &[u8]) {
    let mut script = Input::new(input);
    let mut stream = Vec::new();
    let mut expected: Vec<Owned> = Vec::new();
    while !script.is_empty() && stream.len() < 64 * 1024 {
        let order = script.byte();
        let connection = u32::from(script.byte());
        let length = usize::from(script.short()) % 600;
        let bytes = script.take(length);
        let mut frame = Vec::new();
        match order % 4 {
            0 => frame.extend_from_slice(bytes),
            1 => {
                encode(FrameKind::Data, connection, bytes, &mut frame);
                frame.truncate(length);
                // Cut by one byte at least, so that it is no frame.
                frame.truncate((bytes.len() + OVERHEAD).saturating_sub(1));
            }
            _ => {
                let kind = kind(order);
                let payload = if kind == FrameKind::Data { bytes } else { b"" };
                encode(kind, connection, payload, &mut frame);
                expected.push((kind, connection, payload.to_vec()));
            }
        }
        stream.extend_from_slice(&frame);
    }
    stream.resize(stream.len() + FLUSH_BYTES, 0);
    let (found, _) = decode(&stream, 1000);
    let mut rest = found.iter();
    for frame in &expected {
        assert!(
            rest.any(|other| other == frame),
            "{frame:?} was swallowed: found {found:?}"
        );
    }
}

/// All frames, and how many bytes belonged to none.
fn decode(bytes: &[u8], piece: usize) -> (Vec<Owned>, u64) {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    for mut part in bytes.chunks(piece.max(1)) {
        while !part.is_empty() {
            let room = decoder.room();
            let taken = decoder.push(part);
            assert_eq!(taken, room.min(part.len()), "it takes other than it said");
            assert!(taken > 0, "a decoder that gave all its frames has no room");
            part = part.get(taken..).unwrap_or_default();
            while let Some(frame) = decoder.take_frame() {
                frames.push((frame.kind, frame.connection, frame.payload.to_vec()));
            }
        }
    }
    (frames, decoder.skipped())
}
