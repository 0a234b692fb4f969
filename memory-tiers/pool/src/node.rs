//! A memory node: takes objects, keeps them, and hands out their bytes to those who may have them.
//!
//! A thread serves each connection. Every number that a client sends is checked before it is used,
//! and what one client does costs others nothing but the node's bandwidth.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use varve_rdma::Endpoint;
use varve_snapshot::{Digest, SnapshotError, chain};

use crate::auth::{Keys, Tenant};
use crate::error::PoolError;
use crate::objects::{Holdings, Object, Objects};
use crate::remote::{Linked, Reaches};
use crate::sealed::{Handshake, Sealed};
use crate::shelf::Shelf;
use crate::until::{Until, deadline};
use crate::wire::{
    Answer, Introduction, MAX_INTRODUCTION, MAX_OBJECT, MAX_READ, ObjectId, PublicationId,
    Reception, Request, frame, receive, receive_magic, receive_short, send, send_magic,
};

/// Connections of one tenant at a time, if descriptors suffice.
const MAX_OF_TENANT: u64 = 1024;
/// Connections at a time of which nothing is proved yet; one more ends the oldest of them.
const MAX_UNPROVED: usize = 128;
/// Publications and names of objects in them that one tenant has: 8 TiB of shards. The lists take memory
/// beside the objects.
const MAX_NAMES: usize = 1 << 20;
/// Both sides prove themselves within this time, however many pieces it comes in.
const INTRODUCTION: Duration = Duration::from_secs(5);
/// Descriptors of one connection.
const DESCRIPTORS: u64 = 2;
/// A client that says nothing where it must speak is given up; so is one whose request, or the bytes of
/// an object beyond what [`deadline`] allows for them, take longer than that.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a node is to be.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Address to listen at, `host:port`.
    pub listen: String,
    /// Who may come.
    pub keys: Keys,
    /// Most bytes of objects that are kept in memory, of all tenants.
    pub limit: u64,
    /// Most bytes of objects of one tenant; none: an equal share for each.
    pub tenant_limit: Option<u64>,
    /// Folder in which objects are stored too, so that they outlive the process.
    pub store: Option<PathBuf>,
}

#[derive(Debug)]
struct Shared {
    keys: Keys,
    objects: Objects,
    reaches: Reaches,
    store: Option<PathBuf>,
    /// By age.
    connections: Mutex<BTreeMap<u64, Connected>>,
    /// Most connections of one tenant.
    of_tenant: u64,
    next: AtomicU64,
}

/// A connection, as who admits others sees it.
#[derive(Debug)]
struct Connected {
    stream: TcpStream,
    proved: bool,
}

/// A node that listens.
#[derive(Debug)]
pub struct Node {
    listener: TcpListener,
    shared: Arc<Shared>,
}

/// Ends a node from elsewhere.
#[derive(Debug)]
pub struct Stop {
    listener: TcpListener,
    shared: Arc<Shared>,
}

impl Node {
    /// Brings back what is stored, and listens.
    pub fn start(config: NodeConfig) -> Result<Node, PoolError> {
        let NodeConfig { listen, keys, limit, tenant_limit, store } = config;
        let tenants = (keys.tenants().count() as u64).max(1);
        let shared = Arc::new(Shared {
            objects: Objects::new(limit, tenant_limit.unwrap_or(limit / tenants)),
            of_tenant: connections_of_each(tenants),
            reaches: Reaches::default(),
            store,
            connections: Mutex::default(),
            next: AtomicU64::default(),
            keys,
        });
        for tenant in shared.keys.tenants() {
            shared.bring_back(tenant)?;
        }
        let listener = TcpListener::bind(&listen).map_err(|source| PoolError::Link {
            node: listen,
            what: "listen",
            source,
        })?;
        Ok(Node { listener, shared })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// A handle that ends [`Node::run`].
    pub fn stop(&self) -> io::Result<Stop> {
        Ok(Stop { listener: self.listener.try_clone()?, shared: self.shared.clone() })
    }

    /// Serves until it is stopped.
    pub fn run(&self) {
        loop {
            match self.listener.accept() {
                Ok((stream, from)) => self.admit(stream, from),
                // Woken by `Stop`: the listener listens no more.
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => return,
                Err(e) => {
                    log::warn!("pool: cannot accept a connection: {e}");
                    // No descriptors are left, perhaps; they come back as connections end.
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    fn admit(&self, stream: TcpStream, from: SocketAddr) {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        {
            let mut connections = self.shared.connections();
            let copy = match stream.try_clone() {
                Ok(copy) => copy,
                Err(e) => return log::warn!("pool: {from} is turned away: {e}"),
            };
            let unproved = || connections.iter().filter(|(_, c)| !c.proved);
            if unproved().count() >= MAX_UNPROVED
                && let Some(oldest) = unproved().next().map(|(&id, _)| id)
                && let Some(Connected { stream, .. }) = connections.remove(&oldest)
            {
                let _ = stream.shutdown(Shutdown::Both);
            }
            connections.insert(id, Connected { stream: copy, proved: false });
        }
        let shared = self.shared.clone();
        let run = move || {
            if let Err(e) = serve(&shared, id, stream) {
                log::debug!("pool: {from}: {e}");
            }
            shared.connections().remove(&id);
        };
        if let Err(e) = thread::Builder::new().name("pool-client".into()).spawn(run) {
            log::warn!("pool: no thread for {from}: {e}");
            self.shared.connections().remove(&id);
        }
    }
}

impl Stop {
    /// Ends the node: it listens no more, and its connections are closed.
    pub fn stop(&self) {
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        for connected in self.shared.connections().values() {
            let _ = connected.stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, BTreeMap<u64, Connected>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that is proved makes no room for others any more. False: it had to already.
    fn prove(&self, id: u64) -> bool {
        self.connections().get_mut(&id).map(|connected| connected.proved = true).is_some()
    }

    fn shelf(&self, tenant: &Tenant) -> Result<Option<Shelf>, PoolError> {
        Ok(self.store.as_deref().map(|root| Shelf::open(root, tenant)).transpose()?)
    }

    /// Loads what the tenant has on disk. A publication of which an object is lost is said, and
    /// left: a second node has it, or whoever published does.
    fn bring_back(&self, tenant: &Tenant) -> Result<(), PoolError> {
        let Some(shelf) = self.shelf(tenant)? else { return Ok(()) };
        let holdings = self.objects.of(tenant);
        for (publication, ids) in shelf.publications()? {
            let mut objects = Vec::with_capacity(ids.len());
            for id in &ids {
                match self.load(&shelf, &holdings, id) {
                    Ok(object) => objects.push(object),
                    Err(problem) => {
                        log::error!("pool: {:?} of {tenant}: {problem}", shelf.object(id));
                    }
                }
            }
            holdings.publish(publication, objects);
        }
        let living = holdings.living();
        Ok(shelf.sweep(|id| living.contains(id))?)
    }

    fn load(
        &self,
        shelf: &Shelf,
        holdings: &Holdings,
        id: &ObjectId,
    ) -> Result<Arc<Object>, String> {
        if let Some(object) = holdings.get(id) {
            return Ok(object);
        }
        let (mut file, len) = shelf.get(id).map_err(|e| e.to_string())?;
        let mut incoming = self.objects.make_room(holdings, len)?;
        file.read_exact(incoming.bytes()).map_err(|e| e.to_string())?;
        if Digest::of(incoming.bytes()).0 != *id {
            let gone = shelf.remove(id).map_err(|e| format!("; it stays: {}", chain(&e)));
            let stays = gone.err().unwrap_or_default();
            return Err(format!("its content is not what its name says; publish it again{stays}"));
        }
        Ok(holdings.add(*id, incoming.done()))
    }
}

fn serve(shared: &Shared, id: u64, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    keep_alive(&stream)?;
    let Some((tenant, mut stream)) = welcome(shared, stream)? else { return Ok(()) };
    let holdings = shared.objects.of(&tenant);
    let _counted = match Counted::new(&holdings, shared.of_tenant) {
        Some(counted) => counted,
        None => {
            // It stays among those that make room for others, with the deadline of its introduction:
            // else a tenant would have any number of connections that are refused and do not go.
            let most = shared.of_tenant;
            receive::<Request>(&mut stream)?;
            return refuse(&mut stream, format!("tenant {tenant} has {most} connections already"));
        }
    };
    if !shared.prove(id) {
        return Ok(());
    }
    stream.tcp().set_read_timeout(Some(PATIENCE))?;
    let shelf = match shared.shelf(&tenant) {
        Ok(shelf) => shelf,
        Err(e) => return refuse(&mut stream, chain(&e)),
    };
    let mut client =
        Client { shared, tenant, holdings, shelf, stream, held: HashMap::new(), linked: None };
    loop {
        // A client may be silent between two requests, but not within one.
        if !client.stream.wait()? {
            return Ok(());
        }
        client.allow(0);
        let request = receive(&mut client.stream)?;
        if let Err(reason) = client.answer(request)? {
            client.say(&Answer::Refused { reason })?;
        }
    }
}

/// One of a tenant's connections.
struct Counted(Arc<Holdings>);

impl Counted {
    /// None: the tenant has as many as it may have.
    fn new(holdings: &Arc<Holdings>, most: u64) -> Option<Counted> {
        let (order, one_more) = (Ordering::Relaxed, |now| (now < most).then_some(now + 1));
        let counted = holdings.connections.fetch_update(order, order, one_more);
        counted.is_ok().then(|| Counted(holdings.clone()))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many connections each tenant may have, so that descriptors suffice for all of them.
fn connections_of_each(tenants: u64) -> u64 {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limits = getrlimit(Resource::Nofile);
    limits.current = limits.maximum;
    if let Err(e) = setrlimit(Resource::Nofile, limits) {
        log::debug!("pool: the limit of descriptors stays: {e}");
    }
    let all = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let kept = 64 + DESCRIPTORS * MAX_UNPROVED as u64;
    (all.saturating_sub(kept) / DESCRIPTORS / tenants).clamp(8, MAX_OF_TENANT)
}

/// A host that is gone without a word is noticed within a minute: what it held is freed then.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt::*;
    set_socket_keepalive(stream, true)?;
    set_tcp_keepidle(stream, Duration::from_secs(30))?;
    set_tcp_keepintvl(stream, Duration::from_secs(10))?;
    Ok(set_tcp_keepcnt(stream, 3)?)
}

fn refuse(stream: &mut Sealed, reason: String) -> io::Result<()> {
    send(stream, &Answer::Refused { reason })
}

/// Both sides prove themselves. A tenant that is not known learns no more than one whose proof is
/// wrong.
fn welcome(shared: &Shared, mut stream: TcpStream) -> io::Result<Option<(Tenant, Sealed)>> {
    send_magic(&mut stream)?;
    let end = Instant::now() + INTRODUCTION;
    let mut from = Until { stream: &stream, end };
    receive_magic(&mut from)?;
    let Introduction { tenant, opening } = receive_short(&mut from, MAX_INTRODUCTION)?;
    let key = shared.keys.get(&tenant);
    let known = key.and_then(|key| Handshake::answer(&tenant, key, &opening).ok());
    let Some((handshake, reply)) = known else {
        log::warn!("pool: a client that says it is {tenant} has not its key");
        let reason = "the tenant or its key is not known here".into();
        send(&mut stream, &Reception::Refused { reason })?;
        return Ok(None);
    };
    send(&mut stream, &Reception::Welcome { reply })?;
    Ok(Some((tenant, handshake.prove(stream, end)?)))
}

/// Removes what nobody holds any more, from the disk too. With `changing` held.
fn clear(holdings: &Holdings, shelf: Option<&Shelf>) -> Result<(), SnapshotError> {
    match shelf {
        Some(shelf) if holdings.clear() => {
            let living = holdings.living();
            shelf.sweep(|id| living.contains(id))
        }
        Some(_) => Ok(()),
        None => {
            holdings.clear();
            Ok(())
        }
    }
}

/// What a client has put and not published, or held, goes with it.
impl Drop for Client<'_> {
    fn drop(&mut self) {
        let _changing = self.holdings.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.linked = None;
        self.held.clear();
        if let Err(e) = clear(&self.holdings, self.shelf.as_ref()) {
            log::warn!(
                "pool: objects of {} that nobody has published stay: {}",
                self.tenant,
                chain(&e)
            );
        }
    }
}

fn not_here(id: &ObjectId) -> String {
    format!("object {} is not here", Digest(*id))
}

/// A client that is known.
struct Client<'s> {
    shared: &'s Shared,
    tenant: Tenant,
    holdings: Arc<Holdings>,
    shelf: Option<Shelf>,
    stream: Sealed,
    /// What it has put or holds, until it leaves: what it then has not published goes with it.
    held: HashMap<ObjectId, Arc<Object>>,
    /// Its way to read by itself.
    linked: Option<Linked>,
}

/// Done, or why not; the connection itself is well.
type Outcome = Result<(), String>;

impl Client<'_> {
    /// Begins the time in which the next `bytes`, or a message, must come or go.
    fn allow(&mut self, bytes: u64) {
        self.stream.must_end(deadline(PATIENCE, bytes));
    }

    fn say(&mut self, answer: &Answer) -> io::Result<()> {
        self.allow(0);
        send(&mut self.stream, answer)
    }

    /// Carries out one request. `Err` if the connection cannot go on.
    fn answer(&mut self, request: Request) -> io::Result<Outcome> {
        match request {
            Request::Put { object, len } => self.put(object, len, self.shelf.clone()),
            Request::Hold { object, len } => self.put(object, len, None),
            Request::Release { objects } => {
                let outcome = self.release(&objects);
                self.done_if(outcome)
            }
            Request::Publish { publication, objects } => {
                let outcome = self.publish(publication, &objects);
                self.done_if(outcome)
            }
            Request::Forget { publication } => {
                let outcome = self.forget(&publication);
                self.done_if(outcome)
            }
            Request::Read { object, offset, len } => self.read(&object, offset, len),
            Request::Link { endpoint } => {
                let outcome = self.join(&endpoint);
                self.answer_if(outcome)
            }
            Request::Locate { object } => {
                let outcome = self.locate(object);
                self.answer_if(outcome)
            }
            Request::Status => {
                let status = self.shared.objects.status(&self.holdings);
                self.say(&Answer::Status(status)).map(Ok)
            }
        }
    }

    fn done_if(&mut self, outcome: Outcome) -> io::Result<Outcome> {
        self.answer_if(outcome.map(|()| Answer::Done))
    }

    fn answer_if(&mut self, outcome: Result<Answer, String>) -> io::Result<Outcome> {
        match outcome {
            Ok(answer) => self.say(&answer).map(Ok),
            Err(reason) => Ok(Err(reason)),
        }
    }

    fn join(&mut self, theirs: &Endpoint) -> Result<Answer, String> {
        let address = self.stream.tcp().local_addr().map_err(|e| e.to_string())?.ip();
        // An earlier link of this connection ends before.
        self.linked = None;
        let (linked, endpoint) = Linked::new(&self.shared.reaches, &self.tenant, address, theirs)?;
        self.linked = Some(linked);
        Ok(Answer::Linked { endpoint })
    }

    fn locate(&mut self, id: ObjectId) -> Result<Answer, String> {
        let object = self.holdings.get(&id).ok_or_else(|| not_here(&id))?;
        self.linked.as_mut().ok_or("there is no link to locate it for")?.locate(id, &object)
    }

    /// Takes an object, to `shelf` too.
    fn put(&mut self, id: ObjectId, len: u64, shelf: Option<Shelf>) -> io::Result<Outcome> {
        if len > MAX_OBJECT {
            return Ok(Err(format!("an object has at most {MAX_OBJECT} bytes, not {len}")));
        }
        let object = match self.holdings.get(&id) {
            Some(object) => object,
            None => {
                let mut incoming = match self.shared.objects.make_room(&self.holdings, len) {
                    Ok(incoming) => incoming,
                    Err(reason) => return Ok(Err(reason)),
                };
                self.say(&Answer::Send)?;
                self.allow(len);
                self.stream.read_exact(incoming.bytes())?;
                if Digest::of(incoming.bytes()).0 != id {
                    return Ok(Err("the bytes that came are not the object that was named".into()));
                }
                self.holdings.add(id, incoming.done())
            }
        };
        let stored = shelf.map_or(Ok(()), |shelf| shelf.put(&id, &object.bytes));
        let outcome = stored.map_err(|e| format!("it cannot be stored: {}", chain(&e)));
        if outcome.is_ok() {
            self.held.insert(id, object);
        }
        self.done_if(outcome)
    }

    fn release(&mut self, ids: &[ObjectId]) -> Outcome {
        let _changing = self.holdings.changing.lock().unwrap_or_else(PoisonError::into_inner);
        for id in ids {
            self.held.remove(id);
            if let Some(linked) = &mut self.linked {
                linked.leave(id);
            }
        }
        let stored = |e| format!("it cannot be removed from the store: {}", chain(&e));
        clear(&self.holdings, self.shelf.as_ref()).map_err(stored)
    }

    fn publish(&mut self, publication: PublicationId, ids: &[ObjectId]) -> Outcome {
        let _changing = self.holdings.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.holdings.names_beside(&publication) + 1 + ids.len() > MAX_NAMES {
            return Err(format!(
                "tenant {} has {MAX_NAMES} publications and objects in them at most: forget some",
                self.tenant
            ));
        }
        let find = |id: &ObjectId| {
            let object = self.held.get(id).cloned().or_else(|| self.holdings.get(id));
            object.ok_or_else(|| not_here(id))
        };
        let objects = ids.iter().map(find).collect::<Result<Vec<_>, _>>()?;
        if let Some(shelf) = &self.shelf {
            let stored = ids.iter().zip(&objects).try_for_each(|(id, o)| shelf.put(id, &o.bytes));
            stored
                .and_then(|()| shelf.publish(&publication, ids))
                .map_err(|e| format!("it cannot be stored: {}", chain(&e)))?;
        }
        self.holdings.publish(publication, objects);
        log::info!("pool: {} published {} objects", self.tenant, ids.len());
        Ok(())
    }

    fn forget(&mut self, publication: &PublicationId) -> Outcome {
        let _changing = self.holdings.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let stored = |e| format!("it cannot be removed from the store: {}", chain(&e));
        if let Some(shelf) = &self.shelf {
            shelf.forget(publication).map_err(stored)?;
        }
        self.holdings.forget(publication);
        self.holdings.clear();
        // On the disk there may be more than in memory.
        let living = self.holdings.living();
        let sweep = |shelf: &Shelf| shelf.sweep(|id| living.contains(id));
        self.shelf.as_ref().map_or(Ok(()), sweep).map_err(stored)
    }

    fn read(&mut self, id: &ObjectId, offset: u64, len: u32) -> io::Result<Outcome> {
        let Some(object) = self.holdings.get(id) else {
            return Ok(Err(not_here(id)));
        };
        let part = usize::try_from(offset).ok().filter(|_| len <= MAX_READ).and_then(|start| {
            object.bytes.get(start..start.checked_add(usize::try_from(len).ok()?)?)
        });
        let Some(part) = part else {
            let has = object.bytes.len();
            return Ok(Err(format!("{len} bytes at {offset} of an object of {has}")));
        };
        self.stream.must_end(deadline(PATIENCE, len.into()));
        self.stream.write_both(&frame(&Answer::Data { len })?, part)?;
        self.holdings.count_read(len.into());
        Ok(Ok(()))
    }
}
