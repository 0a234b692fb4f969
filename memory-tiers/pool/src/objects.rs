//! What a node keeps, by tenant: objects, and the publications that keep them. Whether it is on disk
//! too is `shelf`'s; who may ask is `node`'s.
//!
//! An object lives as long as somebody holds it: a publication, the connection that put it, or a
//! read that is being answered. No count is kept beside that.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::auth::Tenant;
use crate::memory::{Filling, Memory, room_for};
use crate::wire::{ObjectId, PublicationId, Status};

/// An object.
#[derive(Debug)]
pub(crate) struct Object {
    /// Its bytes.
    pub bytes: Arc<Memory>,
    _room: Room,
}

/// A part of the node's limit, given back when dropped.
#[derive(Debug)]
struct Room {
    used: Arc<AtomicU64>,
    used_by_tenant: Arc<AtomicU64>,
    len: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.used.fetch_sub(self.len, Ordering::Relaxed);
        self.used_by_tenant.fetch_sub(self.len, Ordering::Relaxed);
    }
}

/// Memory for an object that is being received.
#[derive(Debug)]
pub(crate) struct Incoming {
    filling: Filling,
    room: Room,
}

impl Incoming {
    /// Where its bytes go.
    pub fn bytes(&mut self) -> &mut [u8] {
        self.filling.bytes()
    }

    /// All bytes are there.
    pub fn done(self) -> Arc<Object> {
        Arc::new(Object { bytes: Arc::new(self.filling.done()), _room: self.room })
    }
}

#[derive(Debug, Default)]
struct Shelves {
    objects: HashMap<ObjectId, Weak<Object>>,
    publications: HashMap<PublicationId, Vec<Arc<Object>>>,
}

/// What one tenant has here. Another's is out of reach: there is no name for it.
#[derive(Debug, Default)]
pub(crate) struct Holdings {
    /// Held while the tenant's publications and objects change on disk.
    pub changing: Mutex<()>,
    /// Connections of the tenant now.
    pub connections: AtomicU64,
    /// Bytes that its objects take.
    used: Arc<AtomicU64>,
    shelves: Mutex<Shelves>,
    reads: AtomicU64,
    read_bytes: AtomicU64,
}

impl Holdings {
    fn shelves(&self) -> MutexGuard<'_, Shelves> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The object of that name, if it lives.
    pub fn get(&self, id: &ObjectId) -> Option<Arc<Object>> {
        self.shelves().objects.get(id).and_then(Weak::upgrade)
    }

    /// Makes an object known; if another of that name came first, it is that one.
    pub fn add(&self, id: ObjectId, object: Arc<Object>) -> Arc<Object> {
        let shelves = &mut *self.shelves();
        let known = shelves.objects.entry(id).or_default();
        if let Some(first) = known.upgrade() {
            return first;
        }
        *known = Arc::downgrade(&object);
        object
    }

    /// Keeps objects under a publication's name, in place of what it kept before.
    pub fn publish(&self, publication: PublicationId, objects: Vec<Arc<Object>>) {
        let before = self.shelves().publications.insert(publication, objects);
        // Freed outside of the lock.
        drop(before);
    }

    /// Publications, and names of objects in them, all but in that one.
    pub fn names_beside(&self, publication: &PublicationId) -> usize {
        let shelves = self.shelves();
        let others = shelves.publications.iter().filter(|(id, _)| *id != publication);
        others.map(|(_, objects)| 1 + objects.len()).sum()
    }

    /// Forgets a publication; whether it was there.
    pub fn forget(&self, publication: &PublicationId) -> bool {
        let gone = self.shelves().publications.remove(publication);
        let was = gone.is_some();
        // Freed outside of the lock.
        drop(gone);
        was
    }

    /// Drops the names of objects that nobody holds any more; whether there were any.
    pub fn clear(&self) -> bool {
        let objects = &mut self.shelves().objects;
        let before = objects.len();
        objects.retain(|_, object| object.strong_count() > 0);
        objects.len() < before
    }

    /// The names of objects that a publication keeps, or somebody still holds.
    pub fn living(&self) -> HashSet<ObjectId> {
        let shelves = self.shelves();
        let living = shelves.objects.iter().filter(|(_, object)| object.strong_count() > 0);
        living.map(|(id, _)| *id).collect()
    }

    /// Counts an answered read.
    pub fn count_read(&self, len: u64) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.read_bytes.fetch_add(len, Ordering::Relaxed);
    }
}

/// All that a node keeps.
#[derive(Debug)]
pub(crate) struct Objects {
    limit: u64,
    tenant_limit: u64,
    used: Arc<AtomicU64>,
    tenants: Mutex<HashMap<Tenant, Arc<Holdings>>>,
}

impl Objects {
    /// Nothing, and at most `limit` bytes ever, of which at most `tenant_limit` are one tenant's.
    pub fn new(limit: u64, tenant_limit: u64) -> Objects {
        Objects { limit, tenant_limit, used: Arc::default(), tenants: Mutex::default() }
    }

    /// What a tenant has.
    pub fn of(&self, tenant: &Tenant) -> Arc<Holdings> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        tenants.entry(tenant.clone()).or_default().clone()
    }

    /// Memory for an object of a tenant of `len` bytes. What counts is what it takes, so that many small ones
    /// are not had for nothing.
    pub fn make_room(&self, tenant: &Holdings, len: u64) -> Result<Incoming, String> {
        let needed = room_for(len).ok_or_else(|| format!("no memory has {len} bytes"))?;
        let order = Ordering::Relaxed;
        let take = |used: &AtomicU64, limit: u64| {
            let fits = |used: u64| used.checked_add(needed).filter(|&sum| sum <= limit);
            used.fetch_update(order, order, fits)
        };
        take(&tenant.used, self.tenant_limit).map_err(|used| {
            let limit = self.tenant_limit;
            format!("{needed} bytes more than the tenant's {used} exceed its limit of {limit}")
        })?;
        take(&self.used, self.limit).map_err(|_| {
            tenant.used.fetch_sub(needed, order);
            format!("{needed} bytes more exceed its limit of {} for all tenants", self.limit)
        })?;
        let (used, used_by_tenant) = (self.used.clone(), tenant.used.clone());
        let room = Room { used, used_by_tenant, len: needed };
        let filling = usize::try_from(len)
            .map_err(std::io::Error::other)
            .and_then(Filling::new)
            .map_err(|e| format!("no memory for {len} bytes: {e}"))?;
        Ok(Incoming { filling, room })
    }

    /// Figures for a tenant.
    pub fn status(&self, holdings: &Holdings) -> Status {
        let shelves = holdings.shelves();
        let objects: Vec<_> = shelves.objects.values().filter_map(Weak::upgrade).collect();
        Status {
            publications: shelves.publications.len() as u64,
            objects: objects.len() as u64,
            bytes: objects.iter().map(|o| o.bytes.len() as u64).sum(),
            limit: self.limit.min(self.tenant_limit),
            used: holdings.used.load(Ordering::Relaxed),
            reads: holdings.reads.load(Ordering::Relaxed),
            read_bytes: holdings.read_bytes.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    fn tenant(name: &str) -> Tenant {
        name.to_owned().try_into().unwrap()
    }

    #[test]
    fn objects_live_as_long_as_somebody_holds_them() {
        let objects = Objects::new(3 * PAGE, 3 * PAGE);
        let acme = objects.of(&tenant("acme"));
        let one = acme.add([1; 32], objects.make_room(&acme, 2 * PAGE).unwrap().done());
        assert!(objects.make_room(&acme, PAGE + 1).unwrap_err().contains("limit of 12288"));
        acme.publish([9; 32], vec![one.clone()]);
        drop(one);
        assert_eq!(objects.status(&acme).used, 2 * PAGE);
        assert!(objects.of(&tenant("other")).get(&[1; 32]).is_none());
        let read = acme.get(&[1; 32]).unwrap();
        assert!(acme.forget(&[9; 32]) && !acme.forget(&[9; 32]));
        assert_eq!(objects.status(&acme).used, 2 * PAGE, "it is being read");
        drop(read);
        assert!(acme.get(&[1; 32]).is_none());
        assert_eq!(objects.status(&acme).used, 0);
        objects.make_room(&acme, 3 * PAGE).unwrap();
        assert!(acme.clear() && !acme.clear());
    }

    #[test]
    fn a_tenant_leaves_others_their_share() {
        let objects = Objects::new(4 * PAGE, 2 * PAGE);
        let (acme, other) = (objects.of(&tenant("acme")), objects.of(&tenant("other")));
        let all = objects.make_room(&acme, 2 * PAGE).unwrap();
        assert!(objects.make_room(&acme, 1).unwrap_err().contains("the tenant's 8192"));
        let theirs = objects.make_room(&other, 2 * PAGE).unwrap();
        let status = objects.status(&other);
        assert_eq!((status.used, status.limit), (2 * PAGE, 2 * PAGE), "what others use is theirs");
        drop((all, theirs));
        objects.make_room(&acme, 2 * PAGE).unwrap();
    }

    #[test]
    fn the_first_of_two_equal_objects_stays() {
        let objects = Objects::new(3 * PAGE, 3 * PAGE);
        let acme = objects.of(&tenant("acme"));
        let first = acme.add([1; 32], objects.make_room(&acme, 1).unwrap().done());
        let second = acme.add([1; 32], objects.make_room(&acme, 1).unwrap().done());
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(objects.status(&acme).used, PAGE);
    }
}
