//! One node as a client sees it: connections that are kept and reused, limits of time, and whether it
//! answered of late. What to do when it does not is for whoever asks.

use std::error::Error;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use varve_rdma::Domain;
use varve_snapshot::chain;

use crate::auth::{Key, Tenant};
use crate::connection::{Connection, Said, done, said};
use crate::error::PoolError;
use crate::sealed::Sealed;
use crate::until::deadline;
use crate::wire::{Answer, ObjectId, PublicationId, Request, Status, receive, send};

/// Connections that are kept for later.
const KEPT: usize = 16;
/// First pause after a failure; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long RDMA is left alone after it failed.
const RDMA_PAUSE: Duration = Duration::from_secs(30);

/// How long to wait.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a connection, and for a node's proof.
    pub connect: Duration,
    /// For an answer, however many pieces it comes in; many bytes may take longer.
    pub answer: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { connect: Duration::from_secs(2), answer: Duration::from_secs(2) }
    }
}

/// How bytes of objects come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// By RDMA where both sides have a port at the addresses of the connection, else by TCP.
    #[default]
    Auto,
    /// By TCP.
    Tcp,
    /// By RDMA, or not at all.
    Rdma,
}

/// Whether the node answered of late.
#[derive(Debug, Default)]
struct Health {
    failures: u32,
    resting_until: Option<Instant>,
}

/// The RDMA side of a node.
#[derive(Debug, Default)]
struct Rdma {
    /// Where links of this client are, once there was one.
    domain: Option<Domain>,
    resting_until: Option<Instant>,
}

/// What was released while connections are in use, which may keep some of it for their links.
#[derive(Debug, Default)]
struct Releases {
    in_use: usize,
    log: Vec<ObjectId>,
}

impl Releases {
    /// A connection is in use no more.
    fn one_less(&mut self) {
        self.in_use -= 1;
        if self.in_use == 0 {
            self.log.clear();
        }
    }
}

/// A node.
#[derive(Debug)]
pub struct NodeClient {
    address: String,
    tenant: Tenant,
    key: Key,
    patience: Patience,
    transport: Transport,
    idle: Mutex<Vec<Connection>>,
    health: Mutex<Health>,
    rdma: Mutex<Rdma>,
    releases: Mutex<Releases>,
}

impl NodeClient {
    /// The node at `address` (`host:port`); nothing is sent yet.
    pub fn new(address: impl Into<String>, tenant: Tenant, key: Key) -> NodeClient {
        NodeClient {
            address: address.into(),
            tenant,
            key,
            patience: Patience::default(),
            transport: Transport::default(),
            idle: Mutex::default(),
            health: Mutex::default(),
            rdma: Mutex::default(),
            releases: Mutex::default(),
        }
    }

    /// The same with other limits of time.
    #[must_use]
    pub fn with_patience(self, patience: Patience) -> NodeClient {
        NodeClient { patience, ..self }
    }

    /// The same, with bytes coming in another way.
    #[must_use]
    pub fn by(self, transport: Transport) -> NodeClient {
        NodeClient { transport, ..self }
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
        self.with_connection(|connection| {
            let read = connection.read(object, offset, buffer);
            if let (Err(e), true) = (&read, connection.is_linked()) {
                self.leave_rdma_alone(e);
            }
            read
        })
    }

    /// Figures of what the node keeps for this tenant.
    pub fn status(&self) -> Result<Status, PoolError> {
        self.with_connection(|connection| {
            connection.allow(0);
            let stream = &mut connection.stream;
            send(stream, &Request::Status)?;
            match receive(stream)? {
                Answer::Status(status) => Ok(Said::Yes(status)),
                other => Ok(said(other)),
            }
        })
    }

    /// Frees what only this publication keeps.
    pub fn forget(&self, publication: PublicationId) -> Result<(), PoolError> {
        self.with_connection(|connection| {
            connection.allow(0);
            let stream = &mut connection.stream;
            send(stream, &Request::Forget { publication })?;
            done(stream)
        })
    }

    /// Begins to publish: objects first, then their publication.
    pub fn begin(&self) -> Result<Publishing<'_>, PoolError> {
        let connection = self.judge(self.connect().map_err(|e| self.link("connect to it", e))?)?;
        Ok(Publishing { node: self, connection, objects: Vec::new() })
    }

    /// Begins to hold objects in the node's memory, for as long as what is returned lives.
    pub fn begin_to_hold(&self) -> Result<Holding, PoolError> {
        self.judge(self.connect().map_err(|e| self.link("connect to it", e))?).map(Holding)
    }

    /// Has the node hold an object; done when it does.
    pub fn hold(
        &self,
        Holding(connection): &mut Holding,
        object: ObjectId,
        bytes: &[u8],
    ) -> Result<(), PoolError> {
        let request = Request::Hold { object, len: bytes.len() as u64 };
        let len = bytes.len() as u64;
        self.ask(connection, &request, len, "send pages to it", |stream| give(stream, bytes))
    }

    /// Whether the node answers, and so holds what it was given over this connection.
    pub fn still_holds(&self, Holding(connection): &mut Holding) -> Result<(), PoolError> {
        let request = Request::Release { objects: Vec::new() };
        self.ask(connection, &request, 0, "get its answer", done)
    }

    /// Releases objects that were held, also where they have been read from.
    pub fn release(
        &self,
        Holding(connection): &mut Holding,
        objects: &[ObjectId],
    ) -> Result<(), PoolError> {
        let reaching: Vec<Connection> = {
            let mut releases = lock(&self.releases);
            if releases.in_use > 0 {
                releases.log.extend(objects);
            }
            lock(&self.idle).extract_if(.., |kept| kept.reaches(objects)).collect()
        };
        for mut reader in reaching {
            // One that fails is closed, which releases as well.
            if let Ok(Said::Yes(())) = reader.release(objects) {
                lock(&self.idle).push(reader);
            }
        }
        self.judge(connection.release(objects).map_err(|e| self.link("release pages", e))?)
    }

    fn ask(
        &self,
        connection: &mut Connection,
        request: &Request,
        bytes: u64,
        what: &'static str,
        answer: impl FnOnce(&mut Sealed) -> io::Result<Said<()>>,
    ) -> Result<(), PoolError> {
        let stream = &mut connection.stream;
        // A store may take its time to make an object durable.
        let patience = self.patience.answer * 10;
        stream.must_end(deadline(patience, bytes));
        let slow = stream.tcp().set_read_timeout(Some(patience));
        let said = slow.and_then(|()| send(stream, request)).and_then(|()| answer(stream));
        self.judge(said.map_err(|e| self.link(what, e))?)
    }

    /// Asks over a connection that is kept, or a new one. A kept one may have died meanwhile, which
    /// is no failure of the node's yet.
    fn with_connection<T>(
        &self,
        ask: impl FnMut(&mut Connection) -> io::Result<Said<T>>,
    ) -> Result<T, PoolError> {
        let since = {
            let mut releases = lock(&self.releases);
            releases.in_use += 1;
            releases.log.len()
        };
        match self.ask_over_one(ask) {
            Ok((said, connection)) => {
                self.keep(connection, since);
                self.judge(said)
            }
            Err(error) => {
                lock(&self.releases).one_less();
                Err(error)
            }
        }
    }

    /// Keeps a connection that was in use since the log of releases was so long, for later.
    fn keep(&self, mut connection: Connection, mut since: usize) {
        loop {
            let mut releases = lock(&self.releases);
            let released = releases.log.get(since..).unwrap_or_default();
            if !connection.reaches(released) {
                releases.one_less();
                let mut idle = lock(&self.idle);
                if idle.len() < KEPT {
                    idle.push(connection);
                }
                return;
            }
            let released = released.to_vec();
            since = releases.log.len();
            drop(releases);
            if !matches!(connection.release(&released), Ok(Said::Yes(()))) {
                // It is closed, which releases as well.
                return lock(&self.releases).one_less();
            }
        }
    }

    fn ask_over_one<T>(
        &self,
        mut ask: impl FnMut(&mut Connection) -> io::Result<Said<T>>,
    ) -> Result<(Said<T>, Connection), PoolError> {
        let kept = lock(&self.idle).pop();
        let first = kept.map(|mut connection| ask(&mut connection).map(|said| (said, connection)));
        let asked = match first {
            Some(Ok(answered)) => Ok(answered),
            // Silence is the node's; the rest may be the old connection's.
            Some(Err(e)) if is_timeout(&e) => Err(e),
            _ => {
                let mut connection = self.connect_for_reading().map_err(|e| self.failed(e))?;
                ask(&mut connection).map(|said| (said, connection))
            }
        };
        let (said, connection) = asked.map_err(|e| self.failed(self.link("get its answer", e)))?;
        *lock(&self.health) = Health::default();
        match said {
            // Its next words would be misunderstood.
            Said::Nonsense(problem) => Err(self.failed(self.protocol(problem))),
            said => Ok((said, connection)),
        }
    }

    fn connect(&self) -> io::Result<Said<Connection>> {
        Connection::open(&self.address, &self.tenant, &self.key, self.patience)
    }

    /// A connection, with a link where that is wanted and can be.
    fn connect_for_reading(&self) -> Result<Connection, PoolError> {
        let connect = || self.judge(self.connect().map_err(|e| self.link("connect to it", e))?);
        let mut connection = connect()?;
        let resting = lock(&self.rdma).resting_until.is_some_and(|until| Instant::now() < until);
        match self.transport {
            Transport::Tcp => Ok(connection),
            Transport::Auto if resting => Ok(connection),
            Transport::Auto => match self.join(&mut connection) {
                Ok(_) => Ok(connection),
                Err(e) => {
                    self.leave_rdma_alone(&e);
                    // What the two sides have said to each other may be incomplete.
                    connect()
                }
            },
            Transport::Rdma => match self.join(&mut connection)? {
                true => Ok(connection),
                false => Err(PoolError::Refused {
                    node: self.address.clone(),
                    reason: "there is no RDMA between it and this host".into(),
                }),
            },
        }
    }

    /// Joins a link to a connection; whether there is one now.
    fn join(&self, connection: &mut Connection) -> Result<bool, PoolError> {
        let rdma = |e| self.link("use RDMA with it", e);
        let mut state = lock(&self.rdma);
        if state.domain.is_none() {
            let Some(port) = connection.port().map_err(rdma)? else { return Ok(false) };
            state.domain = Some(Domain::new(port).map_err(|e| rdma(io::Error::other(e)))?);
        }
        let Some(domain) = state.domain.clone() else { return Ok(false) };
        drop(state);
        match connection.link(&domain).map_err(rdma)? {
            Said::Yes(()) => Ok(true),
            Said::No(reason) => {
                log::debug!("node {} refuses RDMA: {reason}", self.address);
                Ok(false)
            }
            Said::Nonsense(problem) => Err(self.protocol(problem)),
        }
    }

    fn leave_rdma_alone(&self, why: &dyn Error) {
        if self.transport == Transport::Auto {
            let (node, why) = (&self.address, chain(why));
            log::warn!("node {node}: RDMA failed, TCP serves for a while: {why}");
            lock(&self.rdma).resting_until = Some(Instant::now() + RDMA_PAUSE);
        }
    }

    fn judge<T>(&self, said: Said<T>) -> Result<T, PoolError> {
        match said {
            Said::Yes(answer) => Ok(answer),
            Said::No(reason) => Err(PoolError::Refused { node: self.address.clone(), reason }),
            Said::Nonsense(problem) => Err(self.protocol(problem)),
        }
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
    connection: Connection,
    objects: Vec<ObjectId>,
}

impl Publishing<'_> {
    /// Sends an object, unless the node has it.
    pub fn put(&mut self, object: ObjectId, bytes: &[u8]) -> Result<(), PoolError> {
        let request = Request::Put { object, len: bytes.len() as u64 };
        let (node, what) = (self.node, "send an object to it");
        let len = bytes.len() as u64;
        node.ask(&mut self.connection, &request, len, what, |stream| give(stream, bytes))?;
        self.objects.push(object);
        Ok(())
    }

    /// Makes what was sent stay.
    pub fn finish(mut self, publication: PublicationId) -> Result<(), PoolError> {
        let request = Request::Publish { publication, objects: std::mem::take(&mut self.objects) };
        self.node.ask(&mut self.connection, &request, 0, "publish", done)
    }
}

/// A connection that holds objects in a node's memory, until it is dropped.
#[derive(Debug)]
pub struct Holding(Connection);

/// The bytes of an object, if the node wants them.
fn give(stream: &mut Sealed, bytes: &[u8]) -> io::Result<Said<()>> {
    match receive(stream)? {
        Answer::Send => {
            stream.write_all(bytes)?;
            done(stream)
        }
        Answer::Done => Ok(Said::Yes(())),
        other => Ok(said(other)),
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
