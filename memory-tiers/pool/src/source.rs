//! An image in a pool as a page source: the first copy that has the right bytes serves.
//!
//! A node that failed is asked last for a while; a copy whose bytes do not have the manifest's
//! checksum counts as a failure like silence does. When all copies failed they are asked again, with
//! growing pauses, until the time is over: the error then names each node and what it did.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::Level;
use varve_memory_tiers::{ImageInfo, ImageResolver, PageSource, SourceError, Tier};
use varve_snapshot::{Backing, Image, ImageEntry, ImageReader, SnapshotError, chain};

use crate::auth::Keys;
use crate::client::{NodeClient, Transport};
use crate::error::PoolError;
use crate::place::{Place, Places};

/// How long a page is tried for: less than a restore waits for one, so that the cause is told.
pub(crate) const TRY_FOR: Duration = Duration::from_secs(8);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A snapshot's images in a pool, and the keys to them.
#[derive(Debug)]
pub struct Pool {
    places: Places,
    keys: Keys,
    transport: Transport,
}

impl Pool {
    /// The images at `places`; each needs its tenant's key.
    pub fn new(places: Places, keys: Keys, transport: Transport) -> Pool {
        Pool { places, keys, transport }
    }
}

impl ImageResolver for Pool {
    fn info(&self, entry: &ImageEntry, local: &ImageInfo) -> Option<ImageInfo> {
        let there = self.places.images.contains_key(&entry.name);
        there.then(|| ImageInfo { tier: Tier::Remote, mappable: false, ..local.clone() })
    }

    fn open(
        &self,
        image: &Image,
        info: &ImageInfo,
    ) -> Result<Option<Arc<dyn PageSource>>, SourceError> {
        let Some(place) = self.places.images.get(&image.entry.name) else { return Ok(None) };
        Ok(Some(Arc::new(PoolSource::open(
            image,
            info.clone(),
            place,
            &self.keys,
            self.transport,
        )?)))
    }
}

/// An image in a pool.
#[derive(Debug)]
pub struct PoolSource {
    info: ImageInfo,
    /// One reader per copy.
    copies: Vec<ImageReader<Copy>>,
    try_for: Duration,
}

/// The image as its `which`th copies have it.
#[derive(Debug)]
struct Copy {
    place: Arc<Place>,
    nodes: Arc<Vec<NodeClient>>,
    which: usize,
}

impl PoolSource {
    /// An image at a place. No node is asked yet.
    ///
    /// # Errors
    ///
    /// If the image was published in part or in another state, if its manifest cannot prove what nodes
    /// send, or if `keys` has none of its tenant.
    pub fn open(
        image: &Image,
        info: ImageInfo,
        place: &Place,
        keys: &Keys,
        transport: Transport,
    ) -> Result<PoolSource, SourceError> {
        let name = &image.entry.name;
        if !place.complete {
            return Err(format!(
                "publishing image {name} was interrupted: publish it again, or restore with its \
                 local file"
            )
            .into());
        }
        if image.digests.is_none() {
            return Err(format!(
                "the manifest has no digests to prove image {name} by, as a varve before format 1.2 \
                 wrote it: tier the snapshot again and publish it, or restore with its local file"
            )
            .into());
        }
        if place.bytes != image.entry.bytes {
            let (found, stated) = (place.bytes, image.entry.bytes);
            return Err(format!(
                "image {name} has {stated} bytes and {found} in the pool: publish it again"
            )
            .into());
        }
        let tenant = &place.tenant;
        let key = keys.get(tenant).ok_or_else(|| format!("there is no key of tenant {tenant}"))?;
        let node = |n: &String| NodeClient::new(n, tenant.clone(), key.clone()).by(transport);
        let nodes: Arc<Vec<NodeClient>> = Arc::new(place.nodes.iter().map(node).collect());
        let place = Arc::new(place.clone());
        let copies = (0..place.copies()).map(|which| {
            let copy = Copy { place: place.clone(), nodes: nodes.clone(), which };
            ImageReader::over(image.clone(), format!("copy {which} in the pool"), copy)
        });
        Ok(PoolSource { info, copies: copies.collect(), try_for: TRY_FOR })
    }

    /// The same, trying for another time.
    #[must_use]
    pub fn trying_for(self, try_for: Duration) -> PoolSource {
        PoolSource { try_for, ..self }
    }

    /// The copies, those whose node for a page failed of late at the end.
    fn in_order(&self, page: u64) -> Vec<&ImageReader<Copy>> {
        let mut copies: Vec<_> = self.copies.iter().collect();
        copies.sort_by_cached_key(|copy| copy.backing().rests(copy.stored_at(page)));
        copies
    }
}

impl PageSource for PoolSource {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn read(&self, first: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        let what = format!("image {}", self.info.name);
        try_copies(
            &what,
            self.try_for,
            || self.in_order(first),
            |copy| copy.read_pages(first, buffer).map_err(|e| by_node(copy, first, &e)),
        )
    }

    fn file(&self) -> Option<(&std::fs::File, u64)> {
        None
    }
}

/// What is wrong with a copy of a page, with the node that sent it.
fn by_node(copy: &ImageReader<Copy>, first: u64, error: &SnapshotError) -> String {
    let page = if let SnapshotError::Chunk { page, .. } = error { *page } else { first };
    let text = chain(error);
    match copy.backing().node_of(copy.stored_at(page)) {
        Some(node) if !text.contains(node.address()) => format!("node {}: {text}", node.address()),
        _ => text,
    }
}

/// Reads `what` from one copy after another, all of them again with growing pauses, until one serves
/// or the time is over.
pub(crate) fn try_copies<C>(
    what: &str,
    try_for: Duration,
    in_order: impl Fn() -> Vec<C>,
    mut read: impl FnMut(C) -> Result<(), String>,
) -> Result<(), SourceError> {
    let began = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut level = Level::Warn;
    loop {
        let mut problems = Vec::new();
        for copy in in_order() {
            match read(copy) {
                Ok(()) => return Ok(()),
                Err(problem) => {
                    log::log!(level, "{what}: {problem}");
                    problems.push(problem);
                }
            }
        }
        if began.elapsed() + pause > try_for {
            return Err(format!("no copy has it: {}", problems.join("; ")).into());
        }
        level = Level::Debug;
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

impl Copy {
    /// The node that has this copy of a shard.
    fn node(&self, shard: usize) -> Option<&NodeClient> {
        let nodes = &self.place.shards.get(shard)?.nodes;
        nodes.get(self.which).and_then(|&node| self.nodes.get(node))
    }

    /// The node that has this copy of a byte.
    fn node_of(&self, offset: u64) -> Option<&NodeClient> {
        let shard = usize::try_from(offset / self.place.shard_bytes).ok();
        shard.and_then(|shard| self.node(shard))
    }

    /// Whether the node that has this copy of a byte failed of late.
    fn rests(&self, offset: u64) -> bool {
        self.node_of(offset).is_some_and(NodeClient::is_resting)
    }
}

impl Backing for Copy {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= self.place.bytes);
        end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let (mut rest, mut at) = (buf, offset);
        while !rest.is_empty() {
            let (index, inside) = (at / self.place.shard_bytes, at % self.place.shard_bytes);
            let here = (self.place.shard_bytes - inside).min(rest.len() as u64);
            let (now, later) = rest.split_at_mut(here as usize);
            let index = usize::try_from(index).map_err(io::Error::other)?;
            let missing = || io::Error::other(format!("shard {index} has no such copy"));
            let shard = self.place.shards.get(index).ok_or_else(missing)?;
            let node = self.node(index).ok_or_else(missing)?;
            node.read(shard.object.0, inside, now)
                .map_err(|e: PoolError| io::Error::other(chain(&e)))?;
            rest = later;
            at += here;
        }
        Ok(())
    }
}
