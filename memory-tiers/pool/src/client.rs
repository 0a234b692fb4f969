//! One node as a client sees it: connections that are kept and reused, limits of time, and whether it
//! answered of late. What to do when it does not is for whoever asks.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::auth::{Key, Role, Tenant, nonce};
use crate::error::PoolError;
use crate::wire::{
    Answer, Credentials, Hello, MAX_READ, ObjectId, PublicationId, Request, Status, receive,
    receive_magic, send, send_magic,
};

/// Connections that are kept for later.
const KEPT: usize = 16;
/// First pause after a failure; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How long to wait.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a connection, and for a node's proof.
    pub connect: Duration,
    /// For each piece of an answer.
    pub answer: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { connect: Duration::from_secs(2), answer: Duration::from_secs(2) }
    }
}

/// Whether the node answered of late.
#[derive(Debug, Default)]
struct Health {
    failures: u32,
    resting_until: Option<Instant>,
}

/// A node.
#[derive(Debug)]
pub struct NodeClient {
    address: String,
    tenant: Tenant,
    key: Key,
    patience: Patience,
    idle: Mutex<Vec<TcpStream>>,
    health: Mutex<Health>,
}

impl NodeClient {
    /// The node at `address` (`host:port`); nothing is sent yet.
    pub fn new(address: impl Into<String>, tenant: Tenant, key: Key) -> NodeClient {
        NodeClient {
            address: address.into(),
            tenant,
            key,
            patience: Patience::default(),
            idle: Mutex::default(),
            health: Mutex::default(),
        }
    }

    /// The same with other limits of time.
    #[must_use]
    pub fn with_patience(self, patience: Patience) -> NodeClient {
        NodeClient { patience, ..self }
    }

    /// Its address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether it failed of late, so that another one should be asked first.
    pub fn is_resting(&self) -> bool {
        lock(&self.health).resting_until.is_some_and(|until| Instant::now() < until)
    }

    /// Fills `buffer` with bytes of an object.
    pub fn read(&self, object: ObjectId, offset: u64, buffer: &mut [u8]) -> Result<(), PoolError> {
        let mut offset = offset;
        for part in buffer.chunks_mut(MAX_READ as usize) {
            let len = part.len() as u32;
            self.with_connection(|stream| {
                send(stream, &Request::Read { object, offset, len })?;
                match receive(stream)? {
                    Answer::Data { len: sent } if sent == len => {
                        stream.read_exact(part)?;
                        Ok(Said::Yes(()))
                    }
                    other => Ok(said(other)),
                }
            })?;
            offset += u64::from(len);
        }
        Ok(())
    }

    /// Figures of what the node keeps for this tenant.
    pub fn status(&self) -> Result<Status, PoolError> {
        self.with_connection(|stream| {
            send(stream, &Request::Status)?;
            match receive(stream)? {
                Answer::Status(status) => Ok(Said::Yes(status)),
                other => Ok(said(other)),
            }
        })
    }

    /// Frees what only this publication keeps.
    pub fn forget(&self, publication: PublicationId) -> Result<(), PoolError> {
        self.with_connection(|stream| {
            send(stream, &Request::Forget { publication })?;
            done(stream)
        })
    }

    /// Begins to publish: objects first, then their publication.
    pub fn begin(&self) -> Result<Publishing<'_>, PoolError> {
        let stream = self.connect().map_err(|e| self.link("connect to it", e))??;
        Ok(Publishing { node: self, stream, objects: Vec::new() })
    }

    /// Asks over a connection that is kept, or a new one. A kept one may have died meanwhile, which
    /// is no failure of the node's yet.
    fn with_connection<T>(
        &self,
        mut ask: impl FnMut(&mut TcpStream) -> io::Result<Said<T>>,
    ) -> Result<T, PoolError> {
        let kept = lock(&self.idle).pop();
        let first = kept.map(|mut stream| ask(&mut stream).map(|said| (said, stream)));
        let asked = match first {
            Some(Ok(answered)) => Ok(answered),
            // Silence is the node's; the rest may be the old connection's.
            Some(Err(e)) if is_timeout(&e) => Err(e),
            _ => match self.connect() {
                Ok(Ok(mut stream)) => ask(&mut stream).map(|said| (said, stream)),
                Ok(Err(refused)) => return Err(self.failed(refused)),
                Err(e) => return Err(self.failed(self.link("connect to it", e))),
            },
        };
        let (said, stream) = asked.map_err(|e| self.failed(self.link("get its answer", e)))?;
        *lock(&self.health) = Health::default();
        match said {
            Said::Yes(answer) => {
                self.keep(stream);
                Ok(answer)
            }
            Said::No(reason) => {
                self.keep(stream);
                Err(PoolError::Refused { node: self.address.clone(), reason })
            }
            // Its next words would be misunderstood.
            Said::Nonsense(problem) => Err(self.failed(self.protocol(problem))),
        }
    }

    fn keep(&self, stream: TcpStream) {
        let mut idle = lock(&self.idle);
        if idle.len() < KEPT {
            idle.push(stream);
        }
    }

    fn connect(&self) -> io::Result<Result<TcpStream, PoolError>> {
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in self.address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, self.patience.connect) {
                Ok(mut stream) => return self.introduce(&mut stream).map(|r| r.map(|()| stream)),
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    /// Both sides prove themselves.
    fn introduce(&self, stream: &mut TcpStream) -> io::Result<Result<(), PoolError>> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(self.patience.connect))?;
        stream.set_write_timeout(Some(self.patience.connect))?;
        let mine = nonce()?;
        receive_magic(stream)?;
        let Hello { nonce: node } = receive(stream)?;
        send_magic(stream)?;
        let proof = self.key.prove(Role::Client, &mine, &node);
        send(stream, &Credentials { tenant: self.tenant.clone(), nonce: mine, proof })?;
        let answer = receive(stream)?;
        stream.set_read_timeout(Some(self.patience.answer))?;
        stream.set_write_timeout(Some(self.patience.answer))?;
        Ok(match answer {
            Answer::Welcome { proof } if self.key.verify(Role::Node, &mine, &node, &proof) => {
                Ok(())
            }
            Answer::Welcome { .. } => Err(self.protocol("it has not the tenant's key".into())),
            Answer::Refused { reason } => {
                Err(PoolError::Refused { node: self.address.clone(), reason })
            }
            other => Err(self.protocol(format!("it answered {other:?}"))),
        })
    }

    /// Lets the node rest for a while, longer each time.
    fn failed(&self, error: PoolError) -> PoolError {
        let mut health = lock(&self.health);
        let pause = FIRST_PAUSE.saturating_mul(1 << health.failures.min(16)).min(LONGEST_PAUSE);
        health.failures += 1;
        health.resting_until = Some(Instant::now() + pause);
        error
    }

    fn link(&self, what: &'static str, source: io::Error) -> PoolError {
        PoolError::Link { node: self.address.clone(), what, source }
    }

    fn protocol(&self, problem: String) -> PoolError {
        PoolError::Protocol { node: self.address.clone(), problem }
    }
}

/// Objects on their way to a node. Dropped before [`Publishing::finish`], they are freed there.
#[derive(Debug)]
pub struct Publishing<'n> {
    node: &'n NodeClient,
    stream: TcpStream,
    objects: Vec<ObjectId>,
}

impl Publishing<'_> {
    /// Sends an object, unless the node has it.
    pub fn put(&mut self, object: ObjectId, bytes: &[u8]) -> Result<(), PoolError> {
        let request = Request::Put { object, len: bytes.len() as u64 };
        self.ask(&request, "send an object to it", |stream| match receive(stream)? {
            Answer::Send => {
                stream.write_all(bytes)?;
                done(stream)
            }
            Answer::Done => Ok(Said::Yes(())),
            other => Ok(said(other)),
        })?;
        self.objects.push(object);
        Ok(())
    }

    /// Makes what was sent stay.
    pub fn finish(mut self, publication: PublicationId) -> Result<(), PoolError> {
        let request = Request::Publish { publication, objects: std::mem::take(&mut self.objects) };
        self.ask(&request, "publish", done)
    }

    fn ask(
        &mut self,
        request: &Request,
        what: &'static str,
        answer: impl FnOnce(&mut TcpStream) -> io::Result<Said<()>>,
    ) -> Result<(), PoolError> {
        let node = self.node;
        // A store may take its time to make an object durable.
        let slow = self.stream.set_read_timeout(Some(node.patience.answer * 10));
        let said = slow.and_then(|()| send(&mut self.stream, request));
        match said.and_then(|()| answer(&mut self.stream)).map_err(|e| node.link(what, e))? {
            Said::Yes(()) => Ok(()),
            Said::No(reason) => Err(PoolError::Refused { node: node.address.clone(), reason }),
            Said::Nonsense(problem) => Err(node.protocol(problem)),
        }
    }
}

/// What became of a question.
enum Said<T> {
    Yes(T),
    No(String),
    Nonsense(String),
}

fn done(stream: &mut TcpStream) -> io::Result<Said<()>> {
    Ok(match receive(stream)? {
        Answer::Done => Said::Yes(()),
        other => said(other),
    })
}

/// An answer that is not the one hoped for.
fn said<T>(answer: Answer) -> Said<T> {
    match answer {
        Answer::Refused { reason } => Said::No(reason),
        other => Said::Nonsense(format!("it answered {other:?}")),
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
