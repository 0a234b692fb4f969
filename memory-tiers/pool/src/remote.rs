//! A node's side of RDMA: objects registered for one tenant's links, and the links. What is asked
//! for is `node`'s.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use varve_rdma::{Domain, Endpoint, Half, Link, Port, Registered};
use varve_snapshot::chain;

use crate::auth::{Tenant, nonce};
use crate::memory::Memory;
use crate::objects::Object;
use crate::wire::{Answer, ObjectId};

/// Memory of an object that can be read from afar, and the object, whose place is kept by it.
#[derive(Debug)]
struct Shown {
    registered: Registered<Memory>,
    _object: Arc<Object>,
}

/// What one tenant's links can reach over one port.
#[derive(Debug)]
pub(crate) struct Reach {
    domain: Domain,
    shown: Mutex<HashMap<ObjectId, Weak<Shown>>>,
}

/// All that links reach, by tenant and by the node's address: one protection domain each, so that a
/// key of one tenant's is of no use over another's link.
#[derive(Debug, Default)]
pub(crate) struct Reaches(Mutex<HashMap<(Tenant, IpAddr), Arc<Reach>>>);

impl Reaches {
    fn of(&self, tenant: &Tenant, address: IpAddr) -> Result<Arc<Reach>, String> {
        let mut reaches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (tenant.clone(), address);
        if let Some(reach) = reaches.get(&key) {
            return Ok(reach.clone());
        }
        let port = Port::at(address).ok_or("it has no RDMA port at that address")?;
        let domain = Domain::new(port).map_err(|e| chain(&e))?;
        let reach = Arc::new(Reach { domain, shown: Mutex::default() });
        reaches.insert(key, reach.clone());
        Ok(reach)
    }
}

/// One connection's link, and the objects that it was told of. Field order is drop order: the link
/// ends first.
#[derive(Debug)]
pub(crate) struct Linked {
    _link: Link,
    reach: Arc<Reach>,
    told: HashMap<ObjectId, Arc<Shown>>,
}

impl Linked {
    /// Joins a client's link; the node's side of it.
    pub fn new(
        reaches: &Reaches,
        tenant: &Tenant,
        address: IpAddr,
        theirs: &Endpoint,
    ) -> Result<(Linked, Endpoint), String> {
        let reach = reaches.of(tenant, address)?;
        let half = Half::new(&reach.domain, sequence()).map_err(|e| chain(&e))?;
        let ours = half.endpoint();
        let link = half.join(theirs).map_err(|e| chain(&e))?;
        Ok((Linked { _link: link, reach, told: HashMap::new() }, ours))
    }

    /// Where an object is.
    pub fn locate(&mut self, id: ObjectId, object: &Arc<Object>) -> Result<Answer, String> {
        let shown = match self.told.get(&id) {
            Some(shown) => shown.clone(),
            None => self.reach.show(id, object)?,
        };
        let answer = Answer::Located {
            address: shown.registered.address(),
            key: shown.registered.key(),
            len: shown.registered.memory().len() as u64,
        };
        self.told.insert(id, shown);
        Ok(answer)
    }

    /// The link's client does not read an object any more.
    pub fn leave(&mut self, id: &ObjectId) {
        self.told.remove(id);
    }
}

impl Reach {
    fn show(&self, id: ObjectId, object: &Arc<Object>) -> Result<Arc<Shown>, String> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = shown.get(&id).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let registered = Registered::new(&self.domain, object.bytes.clone());
        let registered = registered.map_err(|e| chain(&e))?;
        let new = Arc::new(Shown { registered, _object: object.clone() });
        shown.retain(|_, known| known.strong_count() > 0);
        shown.insert(id, Arc::downgrade(&new));
        Ok(new)
    }
}

/// A sequence number to begin with; that others cannot guess it keeps their packets out.
pub(crate) fn sequence() -> u32 {
    nonce().map_or(0, |n| u32::from_le_bytes([n[0], n[1], n[2], 0]))
}
