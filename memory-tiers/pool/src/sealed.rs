//! A connection that is sealed for its whole life: Noise (revision 34), pattern `NNpsk0`.
//!
//! Both sides have the tenant's key. The handshake mixes it with fresh Diffie-Hellman keys; from then on
//! each record is encrypted and numbered, so that bytes which a stranger changes, repeats, leaves out or
//! adds end the connection, and a key that is lost later opens no earlier connection.
//!
//! ```text
//!  client                                        node
//!                                          <──   magic
//!  magic, Introduction { tenant, opening } ──>
//!                                          <──   Reception::Welcome { reply }
//!  an empty record                         ──>
//!  record       length u16 LE, then that many bytes: AES-256-GCM with its tag of 16 bytes
//! ```
//!
//! After the handshake no record is empty, and each direction's key changes after 2^20 records.
//!
//! A stranger can send an opening again that it has seen. So a client is proved by its first record, which
//! needs the keys of this connection.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use snow::{Builder, HandshakeState, TransportState};

use crate::auth::{Key, Tenant};

const PATTERN: &str = "Noise_NNpsk0_25519_AESGCM_SHA256";
/// Begins what both sides must agree on (the prologue); the tenant's name follows.
const PROLOGUE: &[u8] = b"varve pool 3 ";
/// Longest message of the handshake: a public key and a tag.
const MAX_HANDSHAKE: usize = 64;
/// Bytes of a record's length.
const LENGTH: usize = 2;
/// Longest record (Noise, 3).
const MAX_RECORD: usize = 65_535;
/// Bytes of a record's tag.
const TAG: usize = 16;
/// Most bytes of content in a record.
const MAX_CONTENT: usize = MAX_RECORD - TAG;
/// Records that are written by one system call.
const RECORDS_AT_ONCE: usize = 4;
/// Bytes that are read by one system call, at most.
const READ_AT_ONCE: usize = 4 * (LENGTH + MAX_RECORD);
/// Records of one direction after which its key changes (Noise, 11.3): 64 GiB, so that the bound on what
/// AES-GCM may encrypt with one key (RFC 8446, 5.5) is far.
const RECORDS_OF_A_KEY: u64 = if cfg!(test) { 1 << 4 } else { 1 << 20 };

/// One side of a handshake.
pub struct Handshake(Box<HandshakeState>);

impl Handshake {
    /// The client's side, and its opening.
    ///
    /// # Errors
    ///
    /// If the system has no random numbers.
    pub fn open(tenant: &Tenant, key: &Key) -> io::Result<(Handshake, Vec<u8>)> {
        let prologue = prologue(tenant);
        let mut state = builder(&prologue, key)?.build_initiator().map_err(broken)?;
        let opening = message(&mut state)?;
        Ok((Handshake(Box::new(state)), opening))
    }

    /// The client's side goes on with the node's reply.
    ///
    /// # Errors
    ///
    /// If the other side has another key, or answers something else.
    pub fn close(mut self, reply: &[u8], stream: TcpStream) -> io::Result<Sealed> {
        self.0.read_message(reply, &mut []).map_err(broken)?;
        let mut sealed = Sealed::new(self.0.into_transport_mode().map_err(broken)?, stream);
        sealed.write_record(&[])?;
        Ok(sealed)
    }

    /// The node's side: takes the client's opening, and returns the reply.
    ///
    /// # Errors
    ///
    /// If the client has another key.
    pub fn answer(tenant: &Tenant, key: &Key, opening: &[u8]) -> io::Result<(Handshake, Vec<u8>)> {
        let prologue = prologue(tenant);
        let mut state = builder(&prologue, key)?.build_responder().map_err(broken)?;
        state.read_message(opening, &mut []).map_err(broken)?;
        let reply = message(&mut state)?;
        Ok((Handshake(Box::new(state)), reply))
    }

    /// The node's side: waits until `end` for the client's first record, which proves the client. The
    /// connection keeps this deadline.
    ///
    /// # Errors
    ///
    /// If the record does not come, or is not the client's.
    pub fn prove(self, stream: TcpStream, end: Instant) -> io::Result<Sealed> {
        let mut sealed = Sealed::new(self.0.into_transport_mode().map_err(broken)?, stream);
        sealed.end = Some(end);
        let left = end.saturating_duration_since(Instant::now());
        sealed.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match sealed.read_record(&mut [])? {
            Some(_) if sealed.content.is_empty() => Ok(sealed),
            Some(_) => Err(invalid("the client's first record is not empty")),
            None => Err(ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn prologue(tenant: &Tenant) -> Vec<u8> {
    [PROLOGUE, tenant.to_string().as_bytes()].concat()
}

fn builder<'a>(prologue: &'a [u8], key: &'a Key) -> io::Result<Builder<'a>> {
    let builder = Builder::new(PATTERN.parse().map_err(broken)?);
    builder.psk(0, key.bytes()).and_then(|builder| builder.prologue(prologue)).map_err(broken)
}

fn message(state: &mut HandshakeState) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; MAX_HANDSHAKE];
    let len = state.write_message(&[], &mut bytes).map_err(broken)?;
    bytes.truncate(len);
    Ok(bytes)
}

fn broken(error: snow::Error) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("not sealed by the tenant's key ({error})"))
}

fn changed(error: snow::Error) -> io::Error {
    let problem = format!("bytes were changed, added or lost on their way ({error})");
    io::Error::new(ErrorKind::InvalidData, problem)
}

fn invalid(problem: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, problem)
}

/// A connection whose two sides are proved. What is read is what the other side wrote, in that order.
#[derive(Debug)]
pub struct Sealed {
    stream: TcpStream,
    state: TransportState,
    /// Reading and writing fail from then on.
    end: Option<Instant>,
    /// Bytes that came; those in `unread` belong to records that were not opened.
    came: Vec<u8>,
    unread: Range<usize>,
    /// Content of the last record, of which `taken` bytes are read.
    content: Vec<u8>,
    taken: usize,
    /// Records on their way out: the first `sealed` bytes.
    out: Vec<u8>,
    sealed: usize,
}

impl Sealed {
    fn new(state: TransportState, stream: TcpStream) -> Sealed {
        Sealed {
            stream,
            state,
            end: None,
            came: Vec::new(),
            unread: 0..0,
            content: Vec::new(),
            taken: 0,
            out: Vec::new(),
            sealed: 0,
        }
    }

    /// The connection beneath, for its addresses and its limits of time for each piece.
    pub fn tcp(&self) -> &TcpStream {
        &self.stream
    }

    /// What is read and written from now on must have come and gone by `end`, in however many pieces.
    /// The limit of the connection for one piece may come on top.
    pub fn must_end(&mut self, end: Instant) {
        self.end = Some(end);
    }

    /// Waits for as long as it takes for the other side to begin to say something. False: it has ended
    /// the connection.
    ///
    /// # Errors
    ///
    /// Those of the connection.
    pub fn wait(&mut self) -> io::Result<bool> {
        if self.taken < self.content.len() || !self.unread.is_empty() {
            return Ok(true);
        }
        loop {
            match poll(&mut [PollFd::new(&self.stream, PollFlags::IN)], None) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.end = None;
        self.fill()
    }

    /// Opens the next record: into `buffer` if it fits there with its tag, else into `content`. The
    /// number of bytes in `buffer`; none if the connection ended behind the last record.
    fn read_record(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            let unread = self.came.get(self.unread.clone()).unwrap_or_default();
            if let Some((length, rest)) = unread.split_first_chunk::<LENGTH>() {
                let len = usize::from(u16::from_le_bytes(*length));
                if let Some(record) = rest.get(..len) {
                    self.content.clear();
                    self.taken = 0;
                    let direct = buffer.len() >= len;
                    let into = if direct {
                        &mut *buffer
                    } else {
                        self.content.resize(len, 0);
                        &mut self.content
                    };
                    let n = self.state.read_message(record, into).map_err(changed)?;
                    self.content.truncate(if direct { 0 } else { n });
                    self.unread.start += LENGTH + len;
                    if self.state.receiving_nonce().is_multiple_of(RECORDS_OF_A_KEY) {
                        self.state.rekey_incoming();
                    }
                    return Ok(Some(if direct { n } else { 0 }));
                }
            }
            if !self.fill()? {
                return match self.unread.is_empty() {
                    true => Ok(None),
                    false => Err(ErrorKind::UnexpectedEof.into()),
                };
            }
        }
    }

    /// Reads what came, after what did before. False: nothing more comes.
    fn fill(&mut self) -> io::Result<bool> {
        if self.came.is_empty() {
            self.came = vec![0; READ_AT_ONCE];
        }
        // There is room for the whole of the record that began.
        if self.unread.is_empty() {
            self.unread = 0..0;
        } else if self.came.len() - self.unread.start < LENGTH + MAX_RECORD {
            self.came.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
        }
        self.in_time()?;
        let room = self.came.get_mut(self.unread.end..).unwrap_or_default();
        let n = self.stream.read(room)?;
        self.unread.end += n;
        Ok(n > 0)
    }

    fn in_time(&self) -> io::Result<()> {
        match self.end {
            Some(end) if Instant::now() >= end => Err(ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }

    /// Adds a record to what goes out.
    fn seal(&mut self, content: &[u8]) -> io::Result<()> {
        let end = self.sealed + LENGTH + content.len() + TAG;
        if self.out.len() < end {
            self.out.resize(end, 0);
        }
        let Some((length, record)) = self
            .out
            .get_mut(self.sealed..end)
            .and_then(|out| out.split_first_chunk_mut::<LENGTH>())
        else {
            return Err(ErrorKind::InvalidInput.into());
        };
        let len = self.state.write_message(content, record).map_err(broken)?;
        *length = u16::try_from(len).map_err(io::Error::other)?.to_le_bytes();
        self.sealed = end;
        if self.state.sending_nonce().is_multiple_of(RECORDS_OF_A_KEY) {
            self.state.rekey_outgoing();
        }
        Ok(())
    }

    /// Writes the records that were added.
    fn send_sealed(&mut self) -> io::Result<()> {
        let mut rest = self.out.get(..std::mem::take(&mut self.sealed)).unwrap_or_default();
        while !rest.is_empty() {
            self.in_time()?;
            match (&self.stream).write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn write_record(&mut self, content: &[u8]) -> io::Result<()> {
        self.seal(content)?;
        self.send_sealed()
    }

    /// Writes `first` and `rest`, with one system call if they are short: no second packet wakes the
    /// other side.
    ///
    /// # Errors
    ///
    /// Those of the connection.
    pub fn write_both(&mut self, first: &[u8], rest: &[u8]) -> io::Result<()> {
        first.chunks(MAX_CONTENT).try_for_each(|content| self.seal(content))?;
        for records in rest.chunks(RECORDS_AT_ONCE * MAX_CONTENT) {
            records.chunks(MAX_CONTENT).try_for_each(|content| self.seal(content))?;
            self.send_sealed()?;
        }
        self.send_sealed()
    }
}

impl Read for Sealed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.content.len() && !buffer.is_empty() {
            match self.read_record(buffer)? {
                None => return Ok(0),
                Some(0) if self.content.is_empty() => return Err(invalid("an empty record")),
                Some(0) => {}
                Some(n) => return Ok(n),
            }
        }
        let rest = self.content.get(self.taken..).unwrap_or_default();
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        self.taken += n;
        Ok(n)
    }
}

impl Write for Sealed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = bytes.get(..RECORDS_AT_ONCE * MAX_CONTENT).unwrap_or(bytes);
        self.write_both(bytes, &[])?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn key(byte: &str) -> Key {
        Key::from_hex(&byte.repeat(32)).unwrap()
    }

    fn tenant(name: &str) -> Tenant {
        Tenant::try_from(name.to_owned()).unwrap()
    }

    fn streams() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn sealed() -> (Sealed, Sealed) {
        let (client, node) = streams();
        let (acme, key) = (tenant("acme"), key("0a"));
        let (handshake, opening) = Handshake::open(&acme, &key).unwrap();
        let (answer, reply) = Handshake::answer(&acme, &key, &opening).unwrap();
        let client = handshake.close(&reply, client).unwrap();
        (client, answer.prove(node, soon()).unwrap())
    }

    #[test]
    fn bytes_come_as_they_were_written() {
        let (mut client, mut node) = sealed();
        let long: Vec<u8> = (0..3_000_000u32).map(|n| (n * 7) as u8).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                client.write_all(b"short").unwrap();
                client.write_all(&long).unwrap();
                drop(client);
            });
            let mut all = Vec::new();
            assert!(node.wait().unwrap());
            node.read_to_end(&mut all).unwrap();
            assert!(all == [b"short", &long[..]].concat());
            assert!(!node.wait().unwrap());
        });
    }

    #[test]
    fn another_key_or_name_is_found_out() {
        let (acme, right) = (tenant("acme"), key("0a"));
        for (name, key) in [("acme", key("0b")), ("other", right.clone())] {
            let (_, opening) = Handshake::open(&tenant(name), &key).unwrap();
            assert!(Handshake::answer(&acme, &right, &opening).is_err());
        }
        let (handshake, opening) = Handshake::open(&acme, &right).unwrap();
        let (_, mut reply) = Handshake::answer(&acme, &right, &opening).unwrap();
        reply[40] ^= 1;
        assert!(handshake.close(&reply, streams().0).is_err());
    }

    /// The opening alone proves nothing.
    #[test]
    fn an_opening_that_is_sent_again_does_not_become_a_connection() {
        let (acme, key) = (tenant("acme"), key("0a"));
        let (first, opening) = Handshake::open(&acme, &key).unwrap();
        let (_, reply) = Handshake::answer(&acme, &key, &opening).unwrap();
        let (mut tapped, from) = streams();
        first.close(&reply, from).unwrap();
        let (again, _) = Handshake::answer(&acme, &key, &opening).unwrap();
        let (mut stranger, node) = streams();
        let mut record = Vec::new();
        tapped.read_to_end(&mut record).unwrap();
        stranger.write_all(&record).unwrap();
        let error = again.prove(node, soon()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn bytes_that_a_stranger_adds_or_changes_are_errors() {
        for add in [true, false] {
            let (mut client, mut node) = sealed();
            if add {
                client.stream.write_all(&[20, 0]).unwrap();
                client.stream.write_all(&[7; 20]).unwrap();
            } else {
                client.seal(b"pages").unwrap();
                client.out[5] ^= 1;
                client.send_sealed().unwrap();
            }
            let error = node.read(&mut [0; 8]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
        }
        // Cut inside a record: no end like another.
        let (client, mut node) = sealed();
        (&client.stream).write_all(&[20, 0, 1]).unwrap();
        drop(client);
        assert_eq!(node.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    /// One that sends nothing in many records would keep its reader for ever.
    #[test]
    fn an_empty_record_is_an_error_later() {
        let (mut client, mut node) = sealed();
        client.write_all(b"ok").unwrap();
        client.write_record(&[]).unwrap();
        node.read_exact(&mut [0; 2]).unwrap();
        assert_eq!(node.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn keys_change_with_the_number_of_records() {
        let (mut client, mut node) = sealed();
        for n in 0..5 * RECORDS_OF_A_KEY {
            client.write_all(&n.to_le_bytes()).unwrap();
            let mut found = [0; 8];
            node.read_exact(&mut found).unwrap();
            node.write_all(&found).unwrap();
            client.read_exact(&mut found).unwrap();
            assert_eq!(u64::from_le_bytes(found), n);
        }
        // A reader that keeps its first key comes no further than it should.
        let (mut client, mut node) = sealed();
        let mut opened = 1;
        while opened < 3 * RECORDS_OF_A_KEY {
            client.seal(b"pages").unwrap();
            let record = client.out[LENGTH..std::mem::take(&mut client.sealed)].to_vec();
            if node.state.read_message(&record, &mut [0; 64]).is_err() {
                break;
            }
            opened += 1;
        }
        assert_eq!(opened, RECORDS_OF_A_KEY);
    }

    #[test]
    fn a_deadline_holds_however_many_pieces_come() {
        let (client, mut node) = sealed();
        node.must_end(Instant::now() + Duration::from_secs(1));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // A record of 60,000 bytes, of which no piece is long in coming.
                (&client.stream).write_all(&60_000u16.to_le_bytes()).unwrap();
                for _ in 0..600 {
                    if (&client.stream).write_all(&[0]).is_err() {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
            let error = node.read(&mut [0; 8]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
            let error = node.write_all(b"answer").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
            node.stream.shutdown(std::net::Shutdown::Both).unwrap();
        });
    }
}
