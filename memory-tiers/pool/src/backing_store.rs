//! Pages of a running machine in the memory of other hosts: given to nodes, read back and verified,
//! released.
//!
//! A node holds them for as long as the connection lives over which it was given them, and in memory
//! only: what a machine has given away is of no use without the machine, and goes with it, however that
//! ends.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use varve_memory_tiers::{BackingStore, SourceError};
use varve_snapshot::{Digest, PAGE_SIZE, chain};

use crate::auth::{Key, Tenant, nonce};
use crate::client::{Holding, NodeClient, Transport};
use crate::error::PoolError;
use crate::place::choose;
use crate::source::{TRY_FOR, try_copies};
use crate::wire::ObjectId;

/// Where pages are to go.
#[derive(Clone, Debug)]
pub struct BackingStoreConfig {
    /// Addresses of the nodes, `host:port`.
    pub nodes: Vec<String>,
    /// On how many nodes each page is.
    pub copies: usize,
    /// Whose pages they are.
    pub tenant: Tenant,
    /// The tenant's key.
    pub key: Key,
    /// How they come back.
    pub transport: Transport,
}

/// Nodes that hold pages for one machine.
#[derive(Debug)]
pub struct PoolBackingStore {
    addresses: Vec<String>,
    nodes: Vec<Node>,
    copies: usize,
    held: Mutex<Held>,
    /// Random, and known to this process only: no node can make a tag for other bytes.
    secret: Secret,
    try_for: Duration,
}

/// A key that no log shows.
struct Secret([u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What proves a page, kept in this process.
type PageTag = [u8; 16];

#[derive(Debug)]
struct Node {
    client: NodeClient,
    /// None: nothing was given to it yet, or the connection failed, and what it held is gone.
    holding: Mutex<Option<Holding>>,
}

/// What nodes hold.
#[derive(Debug, Default)]
struct Held {
    next: u64,
    parcels: HashMap<u64, Arc<Parcel>>,
    /// Parcels of each object: equal ones are one for a node.
    objects: HashMap<ObjectId, usize>,
}

#[derive(Debug)]
struct Parcel {
    object: ObjectId,
    nodes: Vec<usize>,
    /// Of each page.
    tags: Vec<PageTag>,
}

impl PoolBackingStore {
    /// No node is asked yet.
    pub fn new(config: BackingStoreConfig) -> Result<PoolBackingStore, PoolError> {
        let BackingStoreConfig { nodes: addresses, copies, tenant, key, transport } = config;
        if addresses.len() < copies || copies == 0 {
            return Err(PoolError::TooFewNodes { copies, nodes: addresses.len() });
        }
        let node = |address: &String| Node {
            client: NodeClient::new(address, tenant.clone(), key.clone()).by(transport),
            holding: Mutex::default(),
        };
        let nodes = addresses.iter().map(node).collect();
        let secret =
            nonce().map_err(PoolError::io("get random numbers from", Path::new("the system")))?;
        let (secret, held) = (Secret(secret), Mutex::default());
        Ok(PoolBackingStore { addresses, nodes, copies, held, secret, try_for: TRY_FOR })
    }

    /// The same, trying for another time to get a page.
    #[must_use]
    pub fn trying_for(self, try_for: Duration) -> PoolBackingStore {
        PoolBackingStore { try_for, ..self }
    }

    /// Keyed BLAKE3 of each page, cut to 16 bytes: without the secret a forger can only guess.
    fn tags(&self, pages: &[u8]) -> Vec<PageTag> {
        let tag = |page| *blake3::keyed_hash(&self.secret.0, page).as_bytes();
        let short = |tag: [u8; 32]| *tag.first_chunk::<16>().unwrap_or(&[0; 16]);
        pages.chunks(PAGE_SIZE as usize).map(tag).map(short).collect()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chosen(&self, nodes: &[usize]) -> Vec<&Node> {
        nodes.iter().filter_map(|&at| self.nodes.get(at)).collect()
    }
}

impl BackingStore for PoolBackingStore {
    fn put(&self, pages: &[u8]) -> Result<u64, SourceError> {
        let object = Digest::of(pages).0;
        let nodes = choose(&object, &self.addresses, self.copies);
        for (at, node) in self.chosen(&nodes).into_iter().enumerate() {
            if let Err(error) = node.hold(object, pages) {
                if !self.held().objects.contains_key(&object) {
                    let before = nodes.get(..at).unwrap_or_default();
                    self.chosen(before).into_iter().for_each(|node| node.release(&[object]));
                }
                return Err(error.into());
            }
        }
        let tags = self.tags(pages);
        let mut held = self.held();
        let key = held.next;
        held.next += 1;
        *held.objects.entry(object).or_default() += 1;
        held.parcels.insert(key, Arc::new(Parcel { object, nodes, tags }));
        Ok(key)
    }

    fn confirm(&self) -> Result<(), SourceError> {
        self.nodes.iter().try_for_each(Node::confirm).map_err(SourceError::from)
    }

    fn read(&self, parcel: u64, first: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        let parcel = self.held().parcels.get(&parcel).cloned();
        let parcel = parcel.ok_or("it was released already")?;
        let in_order = || {
            let mut nodes = self.chosen(&parcel.nodes);
            nodes.sort_by_cached_key(|node| node.client.is_resting());
            nodes
        };
        try_copies("pages given away", self.try_for, in_order, |node| {
            let read = node.client.read(parcel.object, first * PAGE_SIZE, buffer);
            read.map_err(|e| chain(&e))?;
            match parcel.is_right(first, &self.tags(buffer)) {
                true => Ok(()),
                false => Err(format!("node {}: it sent other bytes", node.client.address())),
            }
        })
    }

    fn free(&self, parcels: &[u64]) {
        let mut of_node: HashMap<usize, Vec<ObjectId>> = HashMap::new();
        let mut held = self.held();
        for key in parcels {
            let Some(parcel) = held.parcels.remove(key) else { continue };
            let others = held.objects.entry(parcel.object).or_default();
            *others = others.saturating_sub(1);
            if *others == 0 {
                held.objects.remove(&parcel.object);
                for &node in &parcel.nodes {
                    of_node.entry(node).or_default().push(parcel.object);
                }
            }
        }
        drop(held);
        for (node, objects) in of_node {
            if let Some(node) = self.nodes.get(node) {
                node.release(&objects);
            }
        }
    }
}

impl Parcel {
    /// Whether pages with these tags are those of the parcel from `first` on. How long it takes tells a
    /// node nothing of the tags.
    fn is_right(&self, first: u64, found: &[PageTag]) -> bool {
        let stated = usize::try_from(first).ok().and_then(|first| self.tags.get(first..));
        let Some(stated) = stated.and_then(|stated| stated.get(..found.len())) else {
            return false;
        };
        let other = stated.as_flattened().iter().zip(found.as_flattened());
        std::hint::black_box(other.fold(0, |all, (a, b)| all | (a ^ b))) == 0
    }
}

impl Node {
    fn holding(&self) -> MutexGuard<'_, Option<Holding>> {
        self.holding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(&self, object: ObjectId, pages: &[u8]) -> Result<(), PoolError> {
        let mut holding = self.holding();
        let open = match &mut *holding {
            Some(open) => open,
            none => none.insert(self.client.begin_to_hold()?),
        };
        self.settle(self.client.hold(open, object, pages), holding)
    }

    fn confirm(&self) -> Result<(), PoolError> {
        let mut holding = self.holding();
        let Some(open) = &mut *holding else { return Ok(()) };
        self.settle(self.client.still_holds(open), holding)
    }

    fn release(&self, objects: &[ObjectId]) {
        let mut holding = self.holding();
        // Without a connection it holds nothing.
        let Some(open) = &mut *holding else { return };
        let released = self.client.release(open, objects);
        if let Err(e) = self.settle(released, holding) {
            log::warn!("pages that were given away: {}", chain(&e));
        }
    }

    /// A connection that failed is of no use any more, and holds nothing; one over which the node
    /// refused goes on.
    fn settle(
        &self,
        outcome: Result<(), PoolError>,
        mut holding: MutexGuard<'_, Option<Holding>>,
    ) -> Result<(), PoolError> {
        if matches!(outcome, Err(PoolError::Link { .. } | PoolError::Protocol { .. })) {
            *holding = None;
        }
        outcome
    }
}
