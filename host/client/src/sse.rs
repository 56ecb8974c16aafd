//! Server-sent events (the HTML standard's `text/event-stream`), as bytes arrive. Pure.

/// Longest line accepted; the daemon's events and log records are far below it.
const LONGEST_LINE: usize = 8 << 20;

/// One event of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frame {
    /// `id:`, the last one seen so far on this stream.
    pub id: Option<String>,
    /// `event:`; empty when the sender named none.
    pub event: String,
    /// `data:` lines, joined by line ends.
    pub data: String,
}

/// Why a stream cannot be read on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// A sender without measure.
    #[error("The event stream holds a line of more than {LONGEST_LINE} bytes")]
    LineTooLong,
    /// Not text.
    #[error("The event stream is not UTF-8")]
    NotText,
}

/// Cuts bytes into frames, wherever the pieces happen to end.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    after_return: bool,
    begun: bool,
    frame: Frame,
    has_data: bool,
}

impl Parser {
    /// Takes the next bytes and gives the frames they complete.
    ///
    /// # Errors
    /// The stream is not one of events. The parser is of no use afterwards.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Frame>, SseError> {
        let mut frames = Vec::new();
        for &byte in bytes {
            // CR, LF and CRLF all end a line; the LF of a CRLF may come with the next piece.
            let second_of_pair = byte == b'\n' && self.after_return;
            self.after_return = byte == b'\r';
            if second_of_pair {
                continue;
            }
            if byte == b'\n' || byte == b'\r' {
                frames.extend(self.end_line()?);
            } else if self.line.len() == LONGEST_LINE {
                return Err(SseError::LineTooLong);
            } else {
                self.line.push(byte);
            }
        }
        Ok(frames)
    }

    fn end_line(&mut self) -> Result<Option<Frame>, SseError> {
        let bytes = std::mem::take(&mut self.line);
        let mut line = std::str::from_utf8(&bytes).map_err(|_| SseError::NotText)?;
        if !self.begun {
            self.begun = true;
            line = line.strip_prefix('\u{feff}').unwrap_or(line);
        }
        if line.is_empty() {
            return Ok(self.end_frame());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" if !value.contains('\0') => self.frame.id = Some(value.to_owned()),
            "event" => value.clone_into(&mut self.frame.event),
            "data" => {
                if self.has_data {
                    self.frame.data.push('\n');
                }
                self.frame.data.push_str(value);
                self.has_data = true;
            }
            // A comment (the daemon's keep-alive), `retry`, or a field of a later version.
            _ => {}
        }
        Ok(None)
    }

    fn end_frame(&mut self) -> Option<Frame> {
        let next = Frame {
            id: self.frame.id.clone(),
            ..Frame::default()
        };
        let frame = std::mem::replace(&mut self.frame, next);
        let had_data = std::mem::take(&mut self.has_data);
        // The standard drops frames without data; ours may end a stream with a bare `event: end`.
        (had_data || !frame.event.is_empty()).then_some(frame)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(id: Option<&str>, event: &str, data: &str) -> Frame {
        Frame {
            id: id.map(ToOwned::to_owned),
            event: event.to_owned(),
            data: data.to_owned(),
        }
    }

    #[test]
    fn frames_comments_and_unknown_fields_are_told_apart() {
        let text = "\u{feff}: hello\n\nid: 7\nevent: log\ndata: {\"a\":1}\nretry: 3\n\ndata:x\ndata\ndata:  y\n\n\
                    event: end\n\nid: 8\n";
        let frames = Parser::default().push(text.as_bytes()).unwrap();
        assert_eq!(
            frames,
            [
                frame(Some("7"), "log", "{\"a\":1}"),
                frame(Some("7"), "", "x\n\n y"),
                frame(Some("7"), "end", "")
            ]
        );
    }

    #[test]
    fn every_line_end_ends_a_line() {
        let expected = [frame(Some("1"), "", "a"), frame(Some("2"), "", "b")];
        for end in ["\n", "\r\n", "\r"] {
            let text = ["id: 1", "data: a", "", "id: 2", "data: b", "", ""].join(end);
            assert_eq!(
                Parser::default().push(text.as_bytes()).unwrap(),
                expected,
                "{end:?}"
            );
        }
    }

    #[test]
    fn a_stream_that_is_none_is_refused() {
        assert_eq!(Parser::default().push(b"data: \xff\n"), Err(SseError::NotText));
        let mut parser = Parser::default();
        parser.push(&vec![b'x'; LONGEST_LINE]).unwrap();
        assert_eq!(parser.push(b"x"), Err(SseError::LineTooLong));
    }

    proptest! {
        #[test]
        fn where_the_pieces_end_does_not_matter(
            text in "((id|event|data|)(: ?|)[a-c\u{e9}]{0,3}(\n|\r\n|\r)){0,30}",
            cuts in prop::collection::vec(0_usize..400, 0..8),
        ) {
            let bytes = text.as_bytes();
            let whole = Parser::default().push(bytes).unwrap();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.sort_unstable();
            cuts.push(bytes.len());
            let mut parser = Parser::default();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts {
                pieces.extend(parser.push(&bytes[from..cut]).unwrap());
                from = cut;
            }
            prop_assert_eq!(pieces, whole);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Parser::default().push(&bytes);
        }
    }
}
