//! A file, named pipe or standard stream that takes whole lines and never makes the writer wait.

use std::io::{self, ErrorKind};
use std::path::Path;

use crate::stdio::Stream;

/// Where lines go. A pipe whose reader is slow loses lines, never parts of them.
#[derive(Debug)]
pub struct Sink {
    stream: Stream,
    /// What a full pipe did not take of a line that it has begun.
    rest: Vec<u8>,
}

impl Sink {
    /// Opens `path`, as [`crate::output::open`] does.
    pub fn open(path: &Path) -> io::Result<Sink> {
        Ok(Sink::to(Stream::nonblocking(crate::output::open(path)?)))
    }

    /// Lines go to `stream`.
    pub fn to(stream: Stream) -> Sink {
        Sink { stream, rest: Vec::new() }
    }

    /// Writes `line`, which ends in a line feed. An error means that nothing of it was or will be
    /// written.
    pub fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            let written = self.write(&rest);
            self.rest = rest[*written.as_ref().unwrap_or(&0)..].into();
            written?;
            if !self.rest.is_empty() {
                return Err(ErrorKind::WouldBlock.into());
            }
        }
        match self.write(line)? {
            0 => Err(ErrorKind::WouldBlock.into()),
            done => {
                self.rest = line[done..].into();
                Ok(())
            }
        }
    }

    /// Writes as much as there is room for.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < bytes.len() {
            match self.stream.write(&bytes[done..]) {
                Ok(n) => done += n,
                // What was begun is ended the next time, whatever kept it from ending now.
                Err(e) if e.kind() == ErrorKind::WouldBlock || done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;

    #[test]
    fn files_are_made_and_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines");
        for line in ["a\n", "b\n"] {
            Sink::open(&path).unwrap().write_line(line.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a\nb\n");
        assert!(Sink::open(dir.path()).is_err());
        assert!(Sink::open(&path.join("below")).is_err());
    }

    #[test]
    fn a_full_pipe_loses_whole_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).unwrap();
        let mut sink = Sink::open(&path).unwrap();
        // Longer than a pipe writes at once, so that the last one is cut.
        let line = |n: u32| format!("{n}{}\n", "x".repeat(9_999));
        let taken: Vec<u32> =
            (10..40).filter(|&n| sink.write_line(line(n).as_bytes()).is_ok()).collect();
        assert!((5..20).contains(&taken.len()), "{taken:?}");

        let mut got = vec![0; 1 << 20];
        let mut reader = File::open(&path).unwrap();
        let n = reader.read(&mut got).unwrap();
        sink.write_line(b"last\n").unwrap();
        let more = reader.read(&mut got[n..]).unwrap();
        let text = String::from_utf8(got[..n + more].to_vec()).unwrap();
        let whole: String = taken.iter().map(|&n| line(n)).chain(["last\n".into()]).collect();
        assert!(text == whole, "{} bytes, not {}", text.len(), whole.len());
    }
}
