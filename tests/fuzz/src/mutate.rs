//! Makes a new input out of old ones.

use crate::random::Random;

/// Bytes and numbers that parsers stumble over.
const BYTES: &[u8] = &[
    0, 1, 0x09, 0x0a, 0x0d, 0x1b, b' ', b'"', b'\\', b'/', 0x7f, 0x80, 0xf5, 0xff,
];
const NUMBERS: &[&str] = &[
    "0",
    "-1",
    "1",
    "255",
    "256",
    "65535",
    "65536",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "1e309",
    "-0",
    "0x10",
    "1_000",
    ".inf",
];

/// What a mutation may draw on.
pub(crate) struct Pantry<'a> {
    pub(crate) corpus: &'a [Vec<u8>],
    pub(crate) words: &'a [&'a str],
    pub(crate) longest: usize,
}

/// One, two or four small changes to `input`.
pub(crate) fn mutate(input: &mut Vec<u8>, pantry: &Pantry<'_>, random: &mut Random) {
    for _ in 0..1 << random.below(3) {
        match random.below(10) {
            0 => flip_bit(input, random),
            1 => replace_byte(input, random),
            2 => insert(input, &[random.byte()], random),
            3 => remove_range(input, random),
            4 => repeat_range(input, pantry.longest, random),
            5 => splice(input, pantry.corpus, random),
            6 | 7 => word(input, pantry.words, random),
            8 => replace_number(input, random),
            _ => {
                let end = random.below(input.len() + 1);
                input.truncate(end);
            }
        }
        input.truncate(pantry.longest);
    }
}

fn range(input: &[u8], random: &mut Random) -> std::ops::Range<usize> {
    let start = random.below(input.len());
    let end = (start + 1 + random.length(input.len())).min(input.len());
    start.min(end)..end
}

fn insert(input: &mut Vec<u8>, bytes: &[u8], random: &mut Random) {
    let at = random.below(input.len() + 1);
    input.splice(at..at, bytes.iter().copied());
}

fn flip_bit(input: &mut [u8], random: &mut Random) {
    let at = random.below(input.len());
    if let Some(byte) = input.get_mut(at) {
        *byte ^= 1 << random.below(8);
    }
}

fn replace_byte(input: &mut [u8], random: &mut Random) {
    let at = random.below(input.len());
    if let Some(byte) = input.get_mut(at) {
        *byte = random.pick(BYTES).copied().unwrap_or_default();
    }
}

fn remove_range(input: &mut Vec<u8>, random: &mut Random) {
    let range = range(input, random);
    input.drain(range);
}

fn repeat_range(input: &mut Vec<u8>, longest: usize, random: &mut Random) {
    let range = range(input, random);
    let piece = input.get(range.clone()).unwrap_or_default().to_vec();
    let room = longest.saturating_sub(input.len()) / piece.len().max(1);
    let copies = random.length(room);
    input.splice(range.end..range.end, piece.repeat(copies));
}

fn splice(input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    let Some(other) = random.pick(corpus) else { return };
    let piece = other.get(range(other, random)).unwrap_or_default();
    if random.below(2) == 0 {
        insert(input, piece, random);
    } else {
        let range = range(input, random);
        input.splice(range, piece.iter().copied());
    }
}

fn word(input: &mut Vec<u8>, words: &[&str], random: &mut Random) {
    let Some(word) = random.pick(words) else { return };
    if random.below(2) == 0 {
        insert(input, word.as_bytes(), random);
    } else {
        let at = random.below(input.len() + 1);
        let end = (at + word.len()).min(input.len());
        input.splice(at..end, word.bytes());
    }
}

/// A run of digits becomes another number.
fn replace_number(input: &mut Vec<u8>, random: &mut Random) {
    let from = random.below(input.len());
    let digit = |byte: &u8| byte.is_ascii_digit();
    let Some(start) = input
        .get(from..)
        .and_then(|rest| rest.iter().position(digit))
        .map(|at| from + at)
    else {
        return;
    };
    let length = input
        .get(start..)
        .unwrap_or_default()
        .iter()
        .take_while(|byte| digit(byte))
        .count();
    let number = random.pick(NUMBERS).copied().unwrap_or_default();
    input.splice(start..start + length, number.bytes());
}
