//! The host's side of the bridge: the socket that it listens on, the sockets that guests call,
//! and the line by which a host program names a guest port.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, socket_with,
};

use super::error::VsockError;
use crate::socket_file::SocketFile;

/// Longest line that a host program may send, in bytes with its end. `CONNECT` and a port fit well.
const MAX_LINE: usize = 32;

/// A listening unix socket; its file goes when this does.
pub struct Endpoint {
    listener: UnixListener,
    file: SocketFile,
}

impl Endpoint {
    /// Makes the socket file at `path` and listens.
    pub fn new(path: &Path) -> Result<Endpoint, VsockError> {
        let fail = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => VsockError::Exists(path.to_owned()),
            _ => VsockError::Listen { path: path.to_owned(), source },
        };
        let (listener, file) = SocketFile::bind(path).map_err(fail)?;
        Ok(Endpoint { listener, file })
    }

    /// The listening socket.
    pub fn listener(&self) -> impl AsFd + '_ {
        &self.listener
    }

    /// The next host program that waits, if any.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.listener.accept() {
            Ok((socket, _)) => {
                socket.set_nonblocking(true)?;
                Ok(Some(socket))
            }
            Err(e) if would_block(&e) => Ok(None),
            // It went away while it waited.
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Calls the host program that serves `port` at `<path>_<port>`. Never waits: a program whose
    /// queue of callers is full refuses.
    pub fn call(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = self.file.path().as_os_str().to_owned();
        path.push(format!("_{port}"));
        let address = SocketAddrUnix::new(path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &address)?;
        Ok(UnixStream::from(socket))
    }
}

pub(super) fn would_block(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// What a host program has said so far.
#[derive(Debug, PartialEq, Eq)]
pub enum Greeting {
    /// `CONNECT <port>`: the line is consumed, what follows it is data for the guest.
    Port(u32),
    /// The line has not ended yet.
    Unfinished,
    /// Anything else, or it hung up.
    Bad,
}

/// Reads the greeting of a host program.
///
/// An unfinished line stays in the socket, so that a slow or silent program takes no memory here.
pub fn greeting(socket: &UnixStream) -> Greeting {
    let mut line = [0u8; MAX_LINE];
    let seen = match recv(socket, &mut line[..], RecvFlags::PEEK) {
        Ok((_, 0)) => return Greeting::Bad,
        Ok((_, seen)) => seen,
        Err(e) if would_block(&e.into()) => return Greeting::Unfinished,
        Err(_) => return Greeting::Bad,
    };
    let Some(end) = line[..seen].iter().position(|&b| b == b'\n') else {
        return if seen == MAX_LINE { Greeting::Bad } else { Greeting::Unfinished };
    };
    let Some(port) = parse(&line[..end]) else { return Greeting::Bad };
    match recv(socket, &mut line[..=end], RecvFlags::empty()) {
        Ok((_, taken)) if taken == end + 1 => Greeting::Port(port),
        _ => Greeting::Bad,
    }
}

/// The port of a `CONNECT <port>` line; the word in any case, as Firecracker takes it.
fn parse(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let verb = words.next()?;
    let port = words.next()?;
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    let well_formed = verb.eq_ignore_ascii_case("connect") && digits && words.next().is_none();
    if well_formed { port.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn lines() {
        let good: [(&[u8], u32); 4] = [
            (b"CONNECT 52", 52),
            (b"connect 0\r", 0),
            (b"Connect  4294967295", u32::MAX),
            (b"CONNECT 007", 7),
        ];
        for (line, port) in good {
            assert_eq!(parse(line), Some(port));
        }
        let bad: [&[u8]; 9] = [
            b"",
            b"CONNECT",
            b"CONNECT x",
            b"CONNECT -1",
            b"CONNECT +1",
            b"CONNECT 4294967296",
            b"CONNECT 1 2",
            b"GET /",
            b"CONNECT \xff",
        ];
        for line in bad {
            assert_eq!(parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn a_line_may_come_in_pieces_and_with_data_behind_it() {
        let (mut program, socket) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        assert_eq!(greeting(&socket), Greeting::Unfinished);
        for byte in b"CONNECT 1024" {
            program.write_all(&[*byte]).unwrap();
            assert_eq!(greeting(&socket), Greeting::Unfinished);
        }
        program.write_all(b"\nhello").unwrap();
        assert_eq!(greeting(&socket), Greeting::Port(1024));
        let mut data = [0; 5];
        (&socket).read_exact(&mut data).unwrap();
        assert_eq!(&data, b"hello");
    }

    #[test]
    fn endless_lines_and_hang_ups_are_bad() {
        let (mut program, socket) = UnixStream::pair().unwrap();
        program.write_all(&[b'C'; MAX_LINE - 1]).unwrap();
        assert_eq!(greeting(&socket), Greeting::Unfinished);
        program.write_all(b"C").unwrap();
        assert_eq!(greeting(&socket), Greeting::Bad);
        let (program, socket) = UnixStream::pair().unwrap();
        drop(program);
        assert_eq!(greeting(&socket), Greeting::Bad);
    }

    #[test]
    fn only_the_file_it_made_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let first = Endpoint::new(&path).unwrap();
        let refused = Endpoint::new(&path).err().expect("the path is taken");
        assert!(matches!(&refused, VsockError::Exists(p) if *p == path), "{refused}");
        assert!(path.exists(), "a refused device leaves the other's socket alone");
        drop(first);
        assert!(!path.exists());
        let second = Endpoint::new(&path).unwrap();
        std::fs::rename(&path, dir.path().join("moved")).unwrap();
        std::fs::write(&path, "someone else's").unwrap();
        drop(second);
        assert!(path.exists());
        let far = dir.path().join("no/such/folder");
        assert!(matches!(Endpoint::new(&far), Err(VsockError::Listen { .. })));
    }
}
