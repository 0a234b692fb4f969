//! Bringing an image into a pool, and taking it out again.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use varve_snapshot::{Digest, chain};

use crate::auth::{Key, Tenant, nonce};
use crate::client::{NodeClient, Publishing};
use crate::error::PoolError;
use crate::place::{Place, Places, Shard, choose};

/// Length of a shard: many for a large image, so that it spreads; long enough to be a whole number
/// of 2 MiB pages in a node's memory.
pub const SHARD_BYTES: u64 = 8 << 20;

/// How an image is to be kept.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Addresses of the nodes, `host:port`.
    pub nodes: Vec<String>,
    /// On how many nodes each shard is.
    pub copies: usize,
    /// Whose it is.
    pub tenant: Tenant,
    /// The tenant's key.
    pub key: Key,
}

/// Brings `image`, whose file is `path`, of the snapshot in `dir` into a pool, and says so in the
/// snapshot's folder. Doing it again after it was interrupted, at any point, leaves nothing behind.
///
/// `progress` is told of the bytes that are there, copies not counted.
pub fn publish(
    dir: &Path,
    image: &str,
    path: &Path,
    wanted: &Wanted,
    mut progress: impl FnMut(u64),
) -> Result<Place, PoolError> {
    let Wanted { nodes, copies, tenant, key } = wanted;
    if nodes.len() < *copies || *copies == 0 {
        return Err(PoolError::TooFewNodes { copies: *copies, nodes: nodes.len() });
    }
    let mut places = Places::read(dir)?;
    // What an earlier place keeps elsewhere is freed when the new one stands.
    let before = places.images.get(image).cloned();
    let file = File::open(path).map_err(PoolError::io("open", path))?;
    let bytes = file.metadata().map_err(PoolError::io("look at", path))?.len();
    let publication = match before.as_ref().filter(|b| b.tenant == *tenant) {
        Some(before) => before.publication,
        None => Digest(nonce().map_err(PoolError::io("get random numbers for", path))?),
    };

    let mut shard = Vec::new();
    let mut read = |at: u64| {
        let len = SHARD_BYTES.min(bytes - at);
        shard.resize(len as usize, 0);
        file.read_exact_at(&mut shard, at).map_err(PoolError::io("read", path))?;
        Ok::<_, PoolError>((Digest::of(&shard).0, std::mem::take(&mut shard)))
    };
    let mut place = Place {
        tenant: tenant.clone(),
        publication,
        complete: false,
        bytes,
        shard_bytes: SHARD_BYTES,
        nodes: nodes.clone(),
        shards: Vec::new(),
    };
    for at in (0..bytes).step_by(SHARD_BYTES as usize) {
        let object = read(at)?.0;
        place.shards.push(Shard { object: Digest(object), nodes: choose(&object, nodes, *copies) });
    }
    // Said before it is done: whoever finds it can finish it, or take it out again.
    places.images.insert(image.into(), place.clone());
    places.write(dir)?;

    let clients: Vec<NodeClient> =
        nodes.iter().map(|n| NodeClient::new(n, tenant.clone(), key.clone())).collect();
    let mut on_the_way =
        clients.iter().map(NodeClient::begin).collect::<Result<Vec<Publishing<'_>>, _>>()?;
    for (shard, at) in place.shards.iter().zip((0..).step_by(SHARD_BYTES as usize)) {
        let (object, data) = read(at)?;
        if object != shard.object.0 {
            let problem = "it changed while it was published".into();
            return Err(PoolError::File { path: path.into(), problem });
        }
        for &node in &shard.nodes {
            if let Some(node) = on_the_way.get_mut(node) {
                node.put(object, &data)?;
            }
        }
        progress(at + data.len() as u64);
    }
    on_the_way.into_iter().try_for_each(|node| node.finish(publication.0))?;

    place.complete = true;
    places.images.insert(image.into(), place.clone());
    places.write(dir)?;
    if let Some(before) = before {
        for error in forget_at(&before, key, |node| !nodes.contains(node)) {
            log::warn!("it may keep an image that nobody uses: {}", chain(&error));
        }
    }
    Ok(place)
}

/// Takes an image out of the pool. A node that does not answer keeps it, which is an error; until it
/// is done again the snapshot's folder says where, and that the image is not whole.
pub fn forget(dir: &Path, image: &str, key: &Key) -> Result<bool, PoolError> {
    let mut places = Places::read(dir)?;
    let Some(place) = places.images.get_mut(image) else { return Ok(false) };
    // First nobody is told of it any more, then it goes.
    place.complete = false;
    let place = place.clone();
    places.write(dir)?;
    let failed = forget_at(&place, key, |_| true);
    if let Some(error) = failed.into_iter().next() {
        return Err(error);
    }
    places.images.remove(image);
    places.write(dir)?;
    Ok(true)
}

/// Has nodes forget an image; those that did not are told.
fn forget_at(place: &Place, key: &Key, at: impl Fn(&String) -> bool) -> Vec<PoolError> {
    let client = |node| NodeClient::new(node, place.tenant.clone(), key.clone());
    let nodes = place.nodes.iter().filter(|n| at(n));
    nodes.filter_map(|node| client(node).forget(place.publication.0).err()).collect()
}
