//! Writing without waiting: to standard output, to standard error, and to files and pipes that were
//! opened so.
//!
//! The open file behind a standard stream is shared with other processes, so its O_NONBLOCK flag is
//! not changed. A pipe or terminal is opened a second time where /proc is there and allows it; a
//! socket is asked not to wait at each call; what is left is asked for room before each write.

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags, openat, statx};
use rustix::io::{Errno, ReadWriteFlags};

/// Bytes that a pipe with any room takes at once (PIPE_BUF).
const PIPE_BUF: usize = 4096;
/// How long the last words of a process wait for room, in milliseconds.
const PATIENCE_MS: i64 = 200;

#[derive(Debug)]
enum Descriptor {
    Own(OwnedFd),
    Standard(BorrowedFd<'static>),
}

/// How a write is kept from waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The open file does not wait: it is non-blocking and this process's own, or a regular file.
    Plain,
    /// MSG_DONTWAIT.
    Socket,
    /// RWF_NOWAIT, which pipes know since Linux 6.4.
    NoWait,
    /// A look for room first, and then no more than so many bytes.
    Look(usize),
}

/// Something to write to that never makes its writer wait.
#[derive(Debug)]
pub struct Stream {
    descriptor: Descriptor,
    way: Way,
}

/// Standard output and standard error, as they were found when they were first needed.
static STDOUT: OnceLock<Stream> = OnceLock::new();
static STDERR: OnceLock<Stream> = OnceLock::new();

/// Finds out what the standard streams are, which filtered threads may not.
pub fn prepare() {
    Stream::stdout();
    Stream::stderr();
}

impl Stream {
    /// Standard output.
    pub fn stdout() -> Stream {
        Stream::of(
            STDOUT.get_or_init(|| Stream::standard(rustix::stdio::stdout(), c"/proc/self/fd/1")),
        )
    }

    /// Standard error.
    pub fn stderr() -> Stream {
        Stream::of(
            STDERR.get_or_init(|| Stream::standard(rustix::stdio::stderr(), c"/proc/self/fd/2")),
        )
    }

    fn of(standard: &'static Stream) -> Stream {
        Stream { descriptor: Descriptor::Standard(standard.as_fd()), way: standard.way }
    }

    /// A file that was opened with O_NONBLOCK.
    pub fn nonblocking(file: File) -> Stream {
        Stream { descriptor: Descriptor::Own(file.into()), way: Way::Plain }
    }

    fn standard(stream: BorrowedFd<'static>, path: &std::ffi::CStr) -> Stream {
        let shared = |way| Stream { descriptor: Descriptor::Standard(stream), way };
        let pipe = match kind(stream) {
            Ok(FileType::Fifo) => true,
            Ok(FileType::CharacterDevice) if rustix::termios::isatty(stream) => false,
            Ok(FileType::Socket) => return shared(Way::Socket),
            _ => return shared(Way::Plain),
        };
        match (reopen(path, OFlags::WRONLY), pipe) {
            (Ok(own), _) => Stream { descriptor: Descriptor::Own(own), way: Way::Plain },
            (Err(_), true) => shared(Way::NoWait),
            (Err(_), false) => shared(Way::Look(1)),
        }
    }

    /// Writes the front of `bytes`, as much as goes at once. [`ErrorKind::WouldBlock`]: there is no
    /// room now.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let fd = self.as_fd();
            let written = match self.way {
                Way::Plain => rustix::io::write(fd, bytes),
                Way::Socket => {
                    use rustix::net::{SendFlags, send};
                    send(fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
                }
                Way::NoWait => {
                    let all = [IoSlice::new(bytes)];
                    rustix::io::pwritev2(fd, &all, u64::MAX, ReadWriteFlags::NOWAIT)
                }
                Way::Look(most) if self.has_room(0) => {
                    rustix::io::write(fd, &bytes[..bytes.len().min(most)])
                }
                Way::Look(_) => Err(Errno::AGAIN),
            };
            match written {
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) if self.way == Way::NoWait => {
                    self.way = Way::Look(PIPE_BUF);
                }
                written => return Ok(written?),
            }
        }
    }

    /// Whether there is room within `ms` milliseconds. An error counts: the write says which.
    pub fn has_room(&self, ms: i64) -> bool {
        let time = Timespec { tv_sec: ms / 1000, tv_nsec: ms % 1000 * 1_000_000 };
        poll(&mut [PollFd::new(self, PollFlags::OUT)], Some(&time)) != Ok(0)
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.descriptor {
            Descriptor::Own(fd) => fd.as_fd(),
            Descriptor::Standard(fd) => *fd,
        }
    }
}

fn kind(fd: BorrowedFd) -> rustix::io::Result<FileType> {
    let found = statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::TYPE)?;
    Ok(FileType::from_raw_mode(found.stx_mode.into()))
}

fn reopen(path: &std::ffi::CStr, access: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty())
}

/// Standard input, opened a second time so that its reads do not wait; none if it is no pipe or
/// terminal, or cannot be opened.
pub fn own_stdin() -> Option<OwnedFd> {
    let stdin = rustix::stdio::stdin();
    let waits = kind(stdin).ok()? == FileType::Fifo || rustix::termios::isatty(stdin);
    if waits { reopen(c"/proc/self/fd/0", OFlags::RDONLY).ok() } else { None }
}

/// Writes one line to standard error. What does not fit is lost: for threads that must not wait.
pub fn say(line: &str) {
    write_line(line, 0);
}

/// The same for a process that ends: it waits for room, a fifth of a second at most.
pub fn last_words(line: &str) {
    write_line(line, PATIENCE_MS);
}

fn write_line(line: &str, patience_ms: i64) {
    let mut stream = Stream::stderr();
    let line = format!("{line}\n");
    let mut rest = line.as_bytes();
    while !rest.is_empty() {
        match stream.write(rest) {
            Ok(n) => rest = &rest[n..],
            Err(e) if e.kind() == ErrorKind::WouldBlock && stream.has_room(patience_ms) => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    /// A descriptor that stands for a standard stream, for as long as the test runs.
    fn leak(fd: impl Into<OwnedFd>) -> BorrowedFd<'static> {
        let fd: &'static OwnedFd = Box::leak(Box::new(fd.into()));
        fd.as_fd()
    }

    fn path_of(fd: BorrowedFd) -> std::ffi::CString {
        use std::os::fd::AsRawFd;
        std::ffi::CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
    }

    fn fill(stream: &mut Stream) -> usize {
        let mut taken = 0;
        loop {
            match stream.write(&[b'x'; 1000]) {
                Ok(n) => taken += n,
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::WouldBlock, "{:?}: {e}", stream.way);
                    return taken;
                }
            }
            assert!(taken < 64 << 20, "{:?} has no end", stream.way);
        }
    }

    /// The other end is closed. A process that another test is starting may hold it for a moment.
    fn breaks(stream: &mut Stream) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while stream.write(b"y").err().map(|e| e.kind()) != Some(ErrorKind::BrokenPipe) {
            assert!(std::time::Instant::now() < deadline, "{:?} does not break", stream.way);
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_full_pipe_takes_no_more_and_keeps_its_flags() {
        let nowhere = c"/proc/self/nowhere";
        for way in [Way::Plain, Way::NoWait, Way::Look(PIPE_BUF)] {
            let (mut read, write) = io::pipe().unwrap();
            let write = leak(OwnedFd::from(write));
            let own = path_of(write);
            let mut stream =
                Stream::standard(write, if way == Way::Plain { &own } else { nowhere });
            if way != Way::Plain {
                assert_eq!(stream.way, Way::NoWait);
                stream.way = way;
            }
            let taken = fill(&mut stream);
            assert!(taken >= 4096, "{way:?}: {taken}");
            let flags = rustix::fs::fcntl_getfl(write).unwrap();
            assert!(!flags.contains(OFlags::NONBLOCK), "others share the open file");
            // A reader makes room.
            let mut bytes = vec![0; taken];
            read.read_exact(&mut bytes).unwrap();
            assert_eq!(stream.write(b"y").unwrap(), 1);
            drop(read);
            breaks(&mut stream);
        }
    }

    #[test]
    fn a_full_socket_takes_no_more() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut stream = Stream::standard(leak(theirs), c"/nowhere");
        assert_eq!(stream.way, Way::Socket);
        assert!(fill(&mut stream) > 4096);
        drop(ours);
        breaks(&mut stream);
    }

    #[test]
    fn a_terminal_that_nobody_reads_takes_no_more() {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let open = || rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty());
        let slave = leak(open().unwrap());
        let own = path_of(slave);
        let mut stream = Stream::standard(slave, &own);
        assert_eq!(stream.way, Way::Plain);
        assert!(fill(&mut stream) > 100);
        let mut shared = Stream::standard(slave, c"/nowhere");
        assert_eq!(shared.way, Way::Look(1));
        assert_eq!(fill(&mut shared), 0);
        assert!(!rustix::fs::fcntl_getfl(slave).unwrap().contains(OFlags::NONBLOCK));
    }

    #[test]
    fn files_and_devices_take_all() {
        let file = tempfile::tempfile().unwrap();
        let null = File::options().write(true).open("/dev/null").unwrap();
        for file in [file, null] {
            let mut stream = Stream::standard(leak(file), c"/nowhere");
            assert_eq!((stream.way, stream.write(&[1; 9000]).unwrap()), (Way::Plain, 9000));
        }
    }
}
