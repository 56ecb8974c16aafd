//! Takes secrets out of everything the guest prints, by value and in a stream.
//!
//! An Aho-Corasick automaton over every spelling of every secret reads the output byte by byte. Its depth is the
//! length of the longest tail that may still become a secret; exactly that tail is held back, so a secret is found
//! however the output was cut into chunks, and ordinary text is never delayed.
//!
//! ```text
//!   ... text text s3cr | et text        depth 4: "s3cr" waits for the next chunk
//!   └── emitted ─────┘ └─ next chunk
//! ```
//!
//! `base64` and `xxd` break their lines wherever the width says. A second automaton looks for those spellings and passes
//! over line ends within them.
//!
//! This guards against accidents, not against an agent that wants to print what it was given: it can always invent
//! a spelling that nobody listed.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use agentlab_protocol::secret::SHORTEST_REDACTED;

mod spellings;

use spellings::Spellings;

/// A line end is passed over after this many characters of an encoded secret: fewer are ordinary text, which must not
/// wait for the next line. So secrets are looked for without their first group too, which is all that is then shown.
const GROUP: usize = 4;
/// Line ends that are passed over one after the other, as CRLF is two. More of them are no line that was broken, and an
/// end to waiting.
const MOST_LINE_ENDS: usize = 2;
/// Stands where a secret stood.
pub const MARK: &str = "[redacted]";

const ROOT: usize = 0;

#[derive(Default)]
struct Node {
    next: Vec<(u8, usize)>,
    fail: usize,
    depth: usize,
    /// Length of the longest needle that ends here, 0 for none.
    longest: usize,
}

impl Node {
    fn child(&self, byte: u8) -> Option<usize> {
        self.next
            .iter()
            .find(|(key, _)| *key == byte)
            .map(|(_, node)| *node)
    }
}

/// A set of texts, searched for byte by byte.
struct Automaton {
    nodes: Vec<Node>,
    /// Transitions of the root, dense: nearly every byte of ordinary text ends here.
    first: [usize; 256],
}

impl Automaton {
    fn of(needles: &BTreeSet<Vec<u8>>) -> Self {
        let mut automaton = Self {
            nodes: vec![Node::default()],
            first: [ROOT; 256],
        };
        for needle in needles {
            automaton.insert(needle);
        }
        automaton.link();
        automaton
    }

    fn insert(&mut self, needle: &[u8]) {
        let mut at = ROOT;
        for &byte in needle {
            at = match self.nodes[at].child(byte) {
                Some(child) => child,
                None => {
                    let child = self.nodes.len();
                    let depth = self.nodes[at].depth + 1;
                    self.nodes.push(Node {
                        depth,
                        ..Node::default()
                    });
                    self.nodes[at].next.push((byte, child));
                    child
                }
            };
        }
        self.nodes[at].longest = needle.len();
    }

    fn link(&mut self) {
        let mut queue = VecDeque::new();
        for (byte, child) in self.nodes[ROOT].next.clone() {
            self.first[usize::from(byte)] = child;
            queue.push_back(child);
        }
        while let Some(at) = queue.pop_front() {
            for (byte, child) in self.nodes[at].next.clone() {
                let fail = self.step(self.nodes[at].fail, byte);
                self.nodes[child].fail = fail;
                self.nodes[child].longest = self.nodes[child].longest.max(self.nodes[fail].longest);
                queue.push_back(child);
            }
        }
    }

    fn step(&self, mut state: usize, byte: u8) -> usize {
        loop {
            if state == ROOT {
                return self.first[usize::from(byte)];
            }
            if let Some(child) = self.nodes[state].child(byte) {
                return child;
            }
            state = self.nodes[state].fail;
        }
    }

    fn depth(&self, state: usize) -> usize {
        self.nodes[state].depth
    }

    /// Length of the longest needle that ends here, 0 for none.
    fn longest(&self, state: usize) -> usize {
        self.nodes[state].longest
    }
}

/// Every spelling of every secret, ready to search. Never printed.
pub struct Needles {
    plain: Automaton,
    /// Spellings that may be spread over several lines.
    wrapped: Automaton,
    beginnings: Beginnings,
}

/// The first two bytes of every spelling. Ordinary text hardly ever has them, and is passed on without a further look.
struct Beginnings(Vec<u64>);

impl Beginnings {
    fn of<'a>(needles: impl Iterator<Item = &'a Vec<u8>>) -> Self {
        let mut bits = vec![0; (1 << 16) / 64];
        for needle in needles {
            if let [first, second, ..] = needle.as_slice() {
                let (word, bit) = Self::place(*first, *second);
                bits[word] |= bit;
            }
        }
        Self(bits)
    }

    /// The word that stands for a pair, and its bit there.
    fn place(first: u8, second: u8) -> (usize, u64) {
        let pair = u16::from_be_bytes([first, second]);
        (usize::from(pair / 64), 1 << (pair % 64))
    }

    fn holds(&self, pair: &[u8]) -> bool {
        let (word, bit) = Self::place(pair[0], pair[1]);
        self.0[word] & bit != 0
    }

    /// How many bytes stand before the first pair with which a spelling begins. The last byte is not among them: what
    /// follows it decides.
    fn before(&self, text: &[u8]) -> usize {
        let mut pairs = text.windows(2);
        let found = pairs.position(|pair| self.holds(pair));
        found.unwrap_or(text.len().saturating_sub(1))
    }
}

impl fmt::Debug for Needles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Needles([redacted])")
    }
}

impl Needles {
    /// Prepares the search. Values shorter than [`SHORTEST_REDACTED`] are ignored.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Self {
        let mut spellings = Spellings::default();
        for secret in secrets {
            spellings.add(secret);
        }
        Self {
            plain: Automaton::of(&spellings.plain),
            wrapped: Automaton::of(&spellings.wrapped),
            beginnings: Beginnings::of(spellings.plain.iter().chain(&spellings.wrapped)),
        }
    }

    /// Whether there is nothing to look for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.plain.nodes.len() <= 1
    }

    /// One whole text, as for a message.
    #[must_use]
    pub fn redact(self: &Arc<Self>, text: &str) -> String {
        let mut redactor = Redactor::new(Arc::clone(self));
        let mut out = Vec::with_capacity(text.len());
        redactor.push(text.as_bytes(), &mut out);
        redactor.finish(&mut out);
        String::from_utf8_lossy(&out).into_owned()
    }
}

/// One stream being redacted.
#[derive(Debug)]
pub struct Redactor {
    needles: Arc<Needles>,
    plain: usize,
    wrapped: usize,
    held: Held,
}

/// Bytes that were read and not yet emitted, with the parts of them that are secret.
#[derive(Default)]
struct Held {
    /// A secret was seen at all.
    found: bool,
    bytes: Vec<u8>,
    /// Where in `bytes` the line ends are that the search for wrapped spellings passed over, ascending.
    breaks: Vec<usize>,
    /// Half-open ranges of `bytes`, ascending, never touching.
    secret: Vec<(usize, usize)>,
    /// What was emitted last was the mark.
    in_mark: bool,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Held({} bytes)", self.bytes.len())
    }
}

impl Redactor {
    /// A stream at its beginning.
    #[must_use]
    pub fn new(needles: Arc<Needles>) -> Self {
        Self {
            needles,
            plain: ROOT,
            wrapped: ROOT,
            held: Held::default(),
        }
    }

    /// Reads a chunk and appends to `out` all that cannot be part of a secret any more.
    pub fn push(&mut self, chunk: &[u8], out: &mut Vec<u8>) {
        let mut rest = chunk;
        while let Some((&byte, following)) = rest.split_first() {
            let ordinary = match (self.plain, self.wrapped) {
                (ROOT, ROOT) => self.needles.beginnings.before(rest),
                _ => 0,
            };
            if ordinary > 0 {
                // Nothing is held at the root.
                out.extend_from_slice(&rest[..ordinary]);
                self.held.in_mark = false;
                rest = &rest[ordinary..];
                continue;
            }
            self.step(byte, out);
            rest = following;
        }
        self.held.release(self.undecided(), out);
    }

    /// One byte that may be of a secret.
    fn step(&mut self, byte: u8, out: &mut Vec<u8>) {
        let passed_over = self.read(byte);
        if self.plain == ROOT && self.wrapped == ROOT {
            self.held.release(0, out);
            self.held.in_mark = false;
            out.push(byte);
            return;
        }
        self.held.push(byte, passed_over);
        let Needles { plain, wrapped, .. } = &*self.needles;
        self.held.mark(plain.longest(self.plain));
        if !passed_over {
            self.held.mark(self.held.tail(wrapped.longest(self.wrapped)));
        }
    }

    /// Whether the search for wrapped spellings passed over this byte.
    fn read(&mut self, byte: u8) -> bool {
        let Needles { plain, wrapped, .. } = &*self.needles;
        self.plain = plain.step(self.plain, byte);
        let passed_over = matches!(byte, b'\r' | b'\n')
            && wrapped.depth(self.wrapped) >= GROUP
            && self.held.last_breaks() < MOST_LINE_ENDS;
        if !passed_over {
            self.wrapped = wrapped.step(self.wrapped, byte);
        }
        passed_over
    }

    /// How many of the last bytes may still become a secret.
    fn undecided(&self) -> usize {
        let Needles { plain, wrapped, .. } = &*self.needles;
        let wrapped = self.held.tail(wrapped.depth(self.wrapped));
        plain.depth(self.plain).max(wrapped)
    }

    /// Whether a secret was seen so far.
    #[must_use]
    pub fn found(&self) -> bool {
        self.held.found
    }

    /// The stream ended. A tail that is the beginning of a secret is kept back when it is long enough to be one.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        let undecided = self.undecided();
        if undecided >= SHORTEST_REDACTED {
            self.held.mark(undecided);
        }
        self.held.release(0, out);
        (self.plain, self.wrapped) = (ROOT, ROOT);
    }
}

impl Held {
    fn push(&mut self, byte: u8, passed_over: bool) {
        if passed_over {
            self.breaks.push(self.bytes.len());
        }
        self.bytes.push(byte);
    }

    /// How many of the last bytes were passed over.
    fn last_breaks(&self) -> usize {
        let from_the_end = self.breaks.iter().rev().zip((0..self.bytes.len()).rev());
        from_the_end.take_while(|(at, end)| *at == end).count()
    }

    /// How many of the last bytes hold this many characters, without the line ends that were passed over.
    fn tail(&self, characters: usize) -> usize {
        let mut length = characters;
        for at in self.breaks.iter().rev() {
            if self.bytes.len() - at > length {
                break;
            }
            length += 1;
        }
        length
    }

    /// The last `length` bytes are a secret; none when it is 0.
    fn mark(&mut self, length: usize) {
        if length == 0 {
            return;
        }
        self.found = true;
        let end = self.bytes.len();
        let mut start = end.saturating_sub(length);
        while let Some(&(last_start, last_end)) = self.secret.last() {
            if last_end < start {
                break;
            }
            start = start.min(last_start);
            self.secret.pop();
        }
        self.secret.push((start, end));
    }

    /// Emits all but the last `keep` bytes.
    fn release(&mut self, keep: usize, out: &mut Vec<u8>) {
        let count = self.bytes.len().saturating_sub(keep);
        if count == 0 {
            return;
        }
        let mut at = 0;
        for &(start, end) in &self.secret {
            let (start, end) = (start.min(count), end.min(count));
            if start > at {
                out.extend_from_slice(&self.bytes[at..start]);
                self.in_mark = false;
            }
            if end > start && !self.in_mark {
                out.extend_from_slice(MARK.as_bytes());
                self.in_mark = true;
            }
            at = end.max(at);
        }
        if count > at {
            out.extend_from_slice(&self.bytes[at..count]);
            self.in_mark = false;
        }
        self.bytes.drain(..count);
        self.breaks.retain_mut(|at| {
            let stays = *at >= count;
            *at = at.saturating_sub(count);
            stays
        });
        self.secret.retain_mut(|(start, end)| {
            *start = start.saturating_sub(count);
            *end = end.saturating_sub(count);
            *end > *start
        });
    }
}

#[cfg(test)]
#[path = "redact_tests.rs"]
mod tests;
