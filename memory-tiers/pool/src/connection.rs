//! One connection to a node: the two prove themselves, and then bytes of objects come over it, or over
//! the RDMA link that belongs to it.

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use varve_rdma::{Domain, Half, Port, RdmaError, Reader, Remote};

use crate::auth::{Key, Tenant};
use crate::client::Patience;
use crate::remote::sequence;
use crate::sealed::{Handshake, Sealed};
use crate::until::{Until, deadline};
use crate::wire::{
    Answer, Introduction, MAX_INTRODUCTION, MAX_READ, ObjectId, Reception, Request, receive,
    receive_magic, receive_short, send, send_magic,
};

/// Most objects that one request names; they fit into a frame.
const MAX_NAMES: usize = 16 << 10;

/// A connection whose two sides know each other.
#[derive(Debug)]
pub(crate) struct Connection {
    pub stream: Sealed,
    link: Option<Linked>,
    patience: Duration,
}

#[derive(Debug)]
struct Linked {
    reader: Reader,
    located: HashMap<ObjectId, Remote>,
}

/// What became of a question.
pub(crate) enum Said<T> {
    /// This is the answer.
    Yes(T),
    /// The other side will not, and says why.
    No(String),
    /// The other side does not speak the protocol.
    Nonsense(String),
}

impl Connection {
    /// Connects, and has both sides prove themselves.
    pub fn open(
        address: &str,
        tenant: &Tenant,
        key: &Key,
        patience: Patience,
    ) -> io::Result<Said<Connection>> {
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, patience.connect) {
                Ok(stream) => {
                    let known = introduce(stream, tenant, key, patience)?;
                    let patience = patience.answer;
                    return Ok(known.map(|stream| Connection { stream, link: None, patience }));
                }
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    /// Begins the time in which the node must have answered: its patience, and more for `bytes` that
    /// come or go.
    pub fn allow(&mut self, bytes: u64) {
        self.stream.must_end(deadline(self.patience, bytes));
    }

    /// The RDMA port that this connection's own address is at.
    pub fn port(&self) -> io::Result<Option<Port>> {
        Ok(Port::at(self.stream.tcp().local_addr()?.ip()))
    }

    /// Joins an RDMA link; later reads go over it.
    pub fn link(&mut self, domain: &Domain) -> io::Result<Said<()>> {
        let half = Half::new(domain, sequence()).map_err(io::Error::other)?;
        self.allow(0);
        send(&mut self.stream, &Request::Link { endpoint: half.endpoint() })?;
        let endpoint = match receive(&mut self.stream)? {
            Answer::Linked { endpoint } => endpoint,
            other => return Ok(said(other)),
        };
        let reader = half.join(&endpoint).and_then(Reader::new).map_err(io::Error::other)?;
        self.link = Some(Linked { reader, located: HashMap::new() });
        Ok(Said::Yes(()))
    }

    /// Whether reads go over RDMA.
    pub fn is_linked(&self) -> bool {
        self.link.is_some()
    }

    /// Whether the node keeps one of `objects` for this connection's link.
    pub fn reaches(&self, objects: &[ObjectId]) -> bool {
        let located = self.link.as_ref().map(|link| &link.located);
        located.is_some_and(|located| objects.iter().any(|id| located.contains_key(id)))
    }

    /// Releases objects, in whatever way this connection keeps them.
    pub fn release(&mut self, objects: &[ObjectId]) -> io::Result<Said<()>> {
        if let Some(link) = &mut self.link {
            link.located.retain(|id, _| !objects.contains(id));
        }
        for objects in objects.chunks(MAX_NAMES) {
            self.allow(0);
            send(&mut self.stream, &Request::Release { objects: objects.to_vec() })?;
            match done(&mut self.stream)? {
                Said::Yes(()) => {}
                other => return Ok(other),
            }
        }
        Ok(Said::Yes(()))
    }

    /// Fills `buffer` with bytes of an object.
    pub fn read(
        &mut self,
        object: ObjectId,
        offset: u64,
        buffer: &mut [u8],
    ) -> io::Result<Said<()>> {
        self.allow(buffer.len() as u64);
        match &mut self.link {
            Some(link) => link.read(&mut self.stream, self.patience, object, offset, buffer),
            None => read_by_stream(&mut self.stream, object, offset, buffer),
        }
    }
}

impl Linked {
    fn read(
        &mut self,
        stream: &mut Sealed,
        patience: Duration,
        object: ObjectId,
        offset: u64,
        buffer: &mut [u8],
    ) -> io::Result<Said<()>> {
        let from = match self.located.get(&object) {
            Some(&from) => from,
            None => {
                send(stream, &Request::Locate { object })?;
                match receive(stream)? {
                    Answer::Located { address, key, len } => {
                        let from = Remote { address, key, len };
                        self.located.insert(object, from);
                        from
                    }
                    other => return Ok(said(other)),
                }
            }
        };
        match self.reader.read(from, offset, buffer, patience) {
            Ok(()) => Ok(Said::Yes(())),
            Err(e @ RdmaError::Outside { .. }) => Ok(Said::No(e.to_string())),
            Err(e @ RdmaError::Silent(_)) => Err(io::Error::new(io::ErrorKind::TimedOut, e)),
            Err(e) => Err(io::Error::other(e)),
        }
    }
}

fn read_by_stream(
    stream: &mut Sealed,
    object: ObjectId,
    offset: u64,
    buffer: &mut [u8],
) -> io::Result<Said<()>> {
    let mut offset = offset;
    for part in buffer.chunks_mut(MAX_READ as usize) {
        let len = part.len() as u32;
        send(stream, &Request::Read { object, offset, len })?;
        match receive(stream)? {
            Answer::Data { len: sent } if sent == len => stream.read_exact(part)?,
            other => return Ok(said(other)),
        }
        offset += u64::from(len);
    }
    Ok(Said::Yes(()))
}

/// Both sides prove themselves.
fn introduce(
    mut stream: TcpStream,
    tenant: &Tenant,
    key: &Key,
    patience: Patience,
) -> io::Result<Said<Sealed>> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(patience.connect))?;
    let (handshake, opening) = Handshake::open(tenant, key)?;
    // Nothing is proved yet: neither the node's pace nor its lengths count for anything.
    let end = Instant::now() + patience.connect;
    receive_magic(&mut Until { stream: &stream, end })?;
    send_magic(&mut stream)?;
    send(&mut stream, &Introduction { tenant: tenant.clone(), opening })?;
    let reception = receive_short(&mut Until { stream: &stream, end }, MAX_INTRODUCTION)?;
    stream.set_read_timeout(Some(patience.answer))?;
    stream.set_write_timeout(Some(patience.answer))?;
    Ok(match reception {
        // Anybody's words, up to here.
        Reception::Refused { reason } => Said::No(reason.escape_debug().to_string()),
        Reception::Welcome { reply } => match handshake.close(&reply, stream) {
            Ok(sealed) => Said::Yes(sealed),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                Said::Nonsense("it has not the tenant's key".into())
            }
            Err(e) => return Err(e),
        },
    })
}

impl<T> Said<T> {
    /// The same with another answer.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Said<U> {
        match self {
            Said::Yes(answer) => Said::Yes(f(answer)),
            Said::No(reason) => Said::No(reason),
            Said::Nonsense(problem) => Said::Nonsense(problem),
        }
    }
}

/// Receives the answer to a request that is to be done and says nothing.
pub(crate) fn done(stream: &mut Sealed) -> io::Result<Said<()>> {
    Ok(match receive(stream)? {
        Answer::Done => Said::Yes(()),
        other => said(other),
    })
}

/// An answer that is not the one hoped for.
pub(crate) fn said<T>(answer: Answer) -> Said<T> {
    match answer {
        Answer::Refused { reason } => Said::No(reason),
        other => Said::Nonsense(format!("it answered {other:?}")),
    }
}
