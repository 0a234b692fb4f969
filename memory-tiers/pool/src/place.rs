//! Where images are in a pool: the file beside a snapshot that says so. Plain data and its rules.

use serde::{Deserialize, Serialize};
use varve_snapshot::{Digest, Placed};

use crate::auth::Tenant;
use crate::wire::MAX_OBJECT;

/// All images of a snapshot that are in a pool.
pub type Places = varve_snapshot::Places<Place>;

/// Where one image is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Whose it is.
    pub tenant: Tenant,
    /// What keeps it there.
    pub publication: Digest,
    /// Every node has all that it should have: otherwise publishing did not end.
    pub complete: bool,
    /// Length of the image's file.
    pub bytes: u64,
    /// Length of a shard; the last one may be shorter.
    pub shard_bytes: u64,
    /// The nodes, `host:port`.
    pub nodes: Vec<String>,
    /// The shards, in order.
    pub shards: Vec<Shard>,
}

/// A part of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Its name in the pool.
    pub object: Digest,
    /// The nodes that have it, as indices.
    pub nodes: Vec<usize>,
}

impl Placed for Place {
    const FILE: &'static str = "pool.json";
    const CURE: &'static str = "restore without --pool-keys, or publish again after removing it";

    fn check(&self) -> Result<(), String> {
        if self.shard_bytes == 0 || self.shard_bytes > MAX_OBJECT {
            return Err(format!("shard_bytes is {}, not 1 to {MAX_OBJECT}", self.shard_bytes));
        }
        let wanted = self.bytes.div_ceil(self.shard_bytes);
        if wanted != self.shards.len() as u64 {
            let found = self.shards.len();
            return Err(format!("{} bytes are {wanted} shards, not {found}", self.bytes));
        }
        for (shard, at) in self.shards.iter().zip(0..) {
            if shard.nodes.is_empty() || shard.nodes.iter().any(|&n| n >= self.nodes.len()) {
                return Err(format!("shard {at} is on none of the nodes, or on one not named"));
            }
        }
        Ok(())
    }
}

impl Place {
    /// Copies that every shard has.
    pub fn copies(&self) -> usize {
        self.shards.iter().map(|s| s.nodes.len()).min().unwrap_or(0)
    }
}

/// The `copies` nodes that an object goes to: those whose name together with the object's hashes
/// highest (rendezvous hashing, Thaler and Ravishankar 1998), so that naming one node more moves few
/// objects.
pub fn choose(object: &[u8; 32], nodes: &[String], copies: usize) -> Vec<usize> {
    let weight = |node: &String| {
        let mut bytes = object.to_vec();
        bytes.extend(node.as_bytes());
        Digest::of(&bytes)
    };
    let mut order: Vec<usize> = (0..nodes.len()).collect();
    order.sort_by_cached_key(|&n| std::cmp::Reverse(nodes.get(n).map(weight)));
    order.truncate(copies);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            tenant: "acme".to_owned().try_into().unwrap(),
            publication: Digest([3; 32]),
            complete: true,
            bytes: 25,
            shard_bytes: 10,
            nodes: vec!["a:1".into(), "b:1".into()],
            shards: vec![Shard { object: Digest([1; 32]), nodes: vec![0, 1] }; 3],
        }
    }

    #[test]
    fn shards_that_are_nowhere_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut places = Places::default();
        places.images.insert("cold".into(), place());
        places.write(dir.path()).unwrap();
        assert_eq!(Places::read(dir.path()).unwrap(), places);
        let mut bad: Vec<Place> = vec![place(); 4];
        bad[0].shards.pop();
        bad[1].shard_bytes = 0;
        bad[2].shards[1].nodes = vec![2];
        bad[3].shards[1].nodes.clear();
        for place in bad {
            places.images.insert("cold".into(), place);
            places.write(dir.path()).unwrap();
            let error = Places::read(dir.path()).unwrap_err().to_string();
            assert!(error.contains("pool.json") && error.contains("image cold"), "{error}");
        }
    }

    #[test]
    fn objects_spread_and_stay_when_a_node_comes() {
        let mut nodes: Vec<String> = (0..4).map(|n| format!("node{n}:7000")).collect();
        let objects: Vec<[u8; 32]> =
            (0..200).map(|n: u32| Digest::of(&n.to_le_bytes()).0).collect();
        let before: Vec<_> = objects.iter().map(|o| choose(o, &nodes, 2)).collect();
        assert!(before.iter().all(|c| c.len() == 2 && c[0] != c[1]));
        for node in 0..4 {
            let has = before.iter().filter(|c| c.contains(&node)).count();
            assert!((60..140).contains(&has), "{has} of 200 are on node {node}");
        }
        nodes.push("node4:7000".into());
        let moved = objects.iter().zip(&before).filter(|(o, b)| choose(o, &nodes, 2)[0] != b[0]);
        assert!((10..80).contains(&moved.count()));
    }
}
