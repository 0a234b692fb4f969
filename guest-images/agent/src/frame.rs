//! Framing: one JSON value a line, of bounded length.

use std::io::{self, BufRead, Read, Write};

use serde::Serialize;

/// The longest line, in bytes, in either direction.
pub const MAX_LINE: u64 = 16 << 20;

/// Reads one line of at most `limit` bytes, without its end; `None` at the end of the stream.
///
/// A longer line, and a stream that ends within a line, are errors of kind `InvalidData` and
/// `UnexpectedEof`.
pub fn read_line(reader: &mut impl BufRead, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    reader.take(limit + 1).read_until(b'\n', &mut line)?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) if line.len() as u64 >= limit => {
            let text = format!("the line is longer than {limit} bytes");
            Err(io::Error::new(io::ErrorKind::InvalidData, text))
        }
        Some(_) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the stream ended in a line")),
    }
}

/// Writes `value` as one line.
pub fn write_line(writer: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    writer.write_all(&line)?;
    writer.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_one_by_one() {
        let mut stream = &b"one\n\ntwo\n"[..];
        let mut next = || read_line(&mut stream, 10).unwrap();
        assert_eq!(next().unwrap(), b"one");
        assert_eq!(next().unwrap(), b"");
        assert_eq!(next().unwrap(), b"two");
        assert!(next().is_none());
    }

    #[test]
    fn the_limit_counts_the_line_without_its_end() {
        assert_eq!(read_line(&mut &b"12345\n"[..], 5).unwrap().unwrap(), b"12345");
        let error = read_line(&mut &b"123456\n"[..], 5).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn an_unfinished_line_is_an_error() {
        let error = read_line(&mut &b"1234"[..], 5).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
