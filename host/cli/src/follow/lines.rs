//! Pieces of output made into lines. A piece ends where the guest's read ended, which may be inside a line or inside a
//! control sequence; judging half a sequence would let the other half through.

use agentlab_api::LogStream;

/// A line may be this long before it is shown without its end.
const LONGEST: usize = 16 << 10;

/// One buffer per stream.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    stdout: String,
    stderr: String,
    runner: String,
}

impl Lines {
    /// Takes a piece and gives the lines it completes, without their ends.
    pub(crate) fn push(&mut self, stream: LogStream, text: &str) -> Vec<String> {
        let buffer = self.buffer(stream);
        buffer.push_str(text);
        let mut lines = Vec::new();
        while let Some(end) = buffer.find('\n') {
            let line: String = buffer.drain(..=end).collect();
            let line = line.trim_end_matches('\n');
            lines.push(line.strip_suffix('\r').unwrap_or(line).to_owned());
        }
        if buffer.len() > LONGEST {
            lines.push(std::mem::take(buffer));
        }
        lines
    }

    /// What is left when nothing more comes.
    pub(crate) fn rest(&mut self) -> Vec<(LogStream, String)> {
        [LogStream::Runner, LogStream::Stdout, LogStream::Stderr]
            .into_iter()
            .map(|stream| (stream, std::mem::take(self.buffer(stream))))
            .filter(|(_, text)| !text.is_empty())
            .collect()
    }

    fn buffer(&mut self, stream: LogStream) -> &mut String {
        match stream {
            LogStream::Stdout => &mut self.stdout,
            LogStream::Stderr => &mut self.stderr,
            LogStream::Runner => &mut self.runner,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_lines_and_streams_do_not_mix() {
        let mut lines = Lines::default();
        assert!(lines.push(LogStream::Stdout, "one").is_empty());
        assert_eq!(lines.push(LogStream::Stderr, "oops\n"), ["oops"]);
        assert_eq!(lines.push(LogStream::Stdout, " two\r\n\nthree"), ["one two", ""]);
        assert_eq!(lines.rest(), [(LogStream::Stdout, "three".to_owned())]);
        assert!(lines.rest().is_empty());
    }

    #[test]
    fn a_line_without_end_does_not_grow_forever() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(LogStream::Stdout, &"x".repeat(LONGEST + 1)).len(), 1);
        assert!(lines.rest().is_empty());
    }
}
