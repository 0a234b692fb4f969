//! Reading a file of metrics back: the sum of its lines.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::tree::{self, Tree};

/// Longest line that is read, in bytes; one of a machine with all its devices has some 30,000.
const MAX_LINE: usize = 1 << 20;

/// Why a file of metrics cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It does not open, or a read fails.
    #[error("metrics file {0:?}")]
    Io(PathBuf, #[source] io::Error),
    /// What is read from a pipe is gone for others.
    #[error("{0:?} is not a regular file: its reader takes the lines; use --api-sock instead")]
    NotAFile(PathBuf),
    /// A line is not what the monitor writes.
    #[error("{path:?}, line {line}: not an object of metrics: {cause}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Which, from 1.
        line: usize,
        /// What is wrong with it.
        cause: String,
    },
    /// Nothing has been written.
    #[error("{0:?} has no metrics yet: varve writes them each minute and on FlushMetrics")]
    Empty(PathBuf),
}

/// The totals that the lines of `path` come to. A last line that is still being written is left
/// out.
pub fn read(path: &Path) -> Result<Tree, ReadError> {
    let io = |e| ReadError::Io(path.into(), e);
    // A pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(ReadError::NotAFile(path.into()));
    }
    let mut lines = BufReader::new(File::open(path).map_err(io)?);
    let mut totals: Option<Tree> = None;
    let mut text = Vec::new();
    for line in 1.. {
        text.clear();
        let mut limited = io::Read::take(&mut lines, MAX_LINE as u64);
        limited.read_until(b'\n', &mut text).map_err(io)?;
        let bad = |cause: String| ReadError::Line { path: path.into(), line, cause };
        if text.len() == MAX_LINE {
            return Err(bad(format!("longer than {MAX_LINE} bytes")));
        }
        if !text.ends_with(b"\n") {
            break;
        }
        let added = match serde_json::from_slice(&text) {
            Ok(Value::Object(tree)) => tree,
            Ok(_) => return Err(bad("no object".into())),
            Err(e) => return Err(bad(e.to_string())),
        };
        totals = Some(match totals {
            None => added,
            Some(before) => tree::plus(&before, &added),
        });
    }
    totals.ok_or_else(|| ReadError::Empty(path.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Tree, ReadError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(file.path())
    }

    #[test]
    fn lines_add_up() {
        let line = |n| format!("{{\"utc_timestamp_ms\":{n},\"vcpu\":{{\"exit_io_in\":{n}}}}}\n");
        let totals = read_text(&format!("{}{}{{\"vcpu\":{{", line(3), line(4))).unwrap();
        assert_eq!(
            (&totals["vcpu"]["exit_io_in"], &totals["utc_timestamp_ms"]),
            (&7.into(), &4.into())
        );
    }

    #[test]
    fn what_is_wrong_is_said() {
        let text = |result: Result<Tree, ReadError>| result.unwrap_err().to_string();
        assert!(text(read_text("")).contains("no metrics yet"));
        assert!(text(read_text("{}\n[1]\n")).contains("line 2"));
        assert!(text(read_text("{}\n{}\nhello\n")).contains("line 3"));
        assert!(text(read_text(&"x".repeat(MAX_LINE + 5))).contains("longer than"));
        assert!(text(read(Path::new("/dev/null"))).contains("not a regular file"));
        assert!(text(read(Path::new("/nowhere"))).contains("/nowhere"));
    }
}
