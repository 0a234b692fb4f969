//! How an image is published, attached and revoked on memory that several hosts share and whose caches
//! do not know of each other.
//!
//! Memory has *slots*. Of each, three things are written, by one host each:
//!
//! | line | written by | says |
//! | --- | --- | --- |
//! | content | the owner | the image, its checksum, and the epoch that it is of |
//! | state | the owner | free, writing, published or revoked, and the epoch |
//! | lease of host `h` | host `h` | the epoch that `h` uses, and whether `h` has verified it |
//!
//! ```text
//!          publish                        revoke, when no lease is of this epoch
//!  free(e) ──> writing(e+1) ──> published(e+1) ──> revoked(e+1) ──> free(e+1)
//!                  └── recover (the publisher died) ──> free(e+1)
//! ```
//!
//! - *Publish*: content, flush, then the state, flush. Who sees the state can see the content.
//! - *Attach*: read the state; write the lease, flush; read the state again. If it is the same, whoever
//!   revokes reads the lease after that, and waits. The first user on a host has its caches forget the
//!   content, which they may have from before, and verifies it.
//! - *Revoke*: the state, flush, then read all leases.
//!
//! A host's own processes attach one at a time; its lease goes when it has no user. A host that died
//! keeps its lease until its operator says that it is dead ([`Fence`]).
//!
//! What is here decides the order of loads, stores and flushes, one of them for each step; a test walks
//! through all their interleavings over caches that write back and fetch when they please.

/// What a slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// It has no image.
    Free,
    /// An image is put there; nobody may look yet.
    Writing,
    /// It has an image, which does not change.
    Published,
    /// It has an image for those that use it, and for no others.
    Revoked,
}

/// The state line: a state, and how often the slot was given to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Word {
    /// The state.
    pub state: State,
    /// The epoch.
    pub epoch: u64,
}

impl Word {
    /// As it is in memory. A slot of zeros is free.
    pub fn pack(self) -> u64 {
        self.epoch << 8 | self.state as u64
    }

    /// What is in memory, if it is a state.
    pub fn unpack(word: u64) -> Option<Word> {
        let state = match word & 0xff {
            0 => State::Free,
            1 => State::Writing,
            2 => State::Published,
            3 => State::Revoked,
            _ => return None,
        };
        Some(Word { state, epoch: word >> 8 })
    }
}

/// A lease line: no lease if it is zero.
fn lease(epoch: u64, verified: bool) -> u64 {
    epoch << 1 | u64::from(verified)
}

/// The epoch that a lease is of.
pub fn leased(lease: u64) -> u64 {
    lease >> 1
}

/// What is loaded, stored and flushed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Line {
    /// A packed [`Word`].
    State,
    /// Of this host.
    Lease(usize),
    /// The image with what describes it. Its value is the epoch of which it is whole, or 0.
    Content,
}

/// A slot as one host sees it.
pub trait Slot {
    /// Why it cannot be reached.
    type Error;

    /// What this host's caches have, or else memory.
    fn load(&mut self, line: Line) -> Result<u64, Self::Error>;

    /// Into this host's caches, and from there to memory at any time.
    fn store(&mut self, line: Line, value: u64) -> Result<(), Self::Error>;

    /// Has this host's caches write the line back and forget it, before anything that comes later.
    fn flush(&mut self, line: Line) -> Result<(), Self::Error>;
}

/// What a step came to.
pub type Step<T, E> = Result<Option<T>, E>;

/// Something that is done in steps, each with one access at most.
pub trait Steps: Sized {
    /// What comes of it.
    type Out;

    /// Does the next step.
    fn step<S: Slot>(&mut self, slot: &mut S) -> Step<Self::Out, S::Error>;

    /// Does all of it.
    fn run<S: Slot>(mut self, slot: &mut S) -> Result<Self::Out, S::Error> {
        loop {
            if let Some(out) = self.step(slot)? {
                return Ok(out);
            }
        }
    }
}

/// Puts an image into a free slot. By the owner, one process at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Publish {
    at: u8,
    epoch: u64,
}

impl Steps for Publish {
    /// The epoch; none if the slot is not free.
    type Out = Option<u64>;

    fn step<S: Slot>(&mut self, slot: &mut S) -> Step<Option<u64>, S::Error> {
        let word = |state| Word { state, epoch: self.epoch }.pack();
        match self.at {
            0 => slot.flush(Line::State)?,
            1 => match Word::unpack(slot.load(Line::State)?) {
                Some(Word { state: State::Free, epoch }) => self.epoch = epoch + 1,
                _ => return Ok(Some(None)),
            },
            2 => slot.store(Line::State, word(State::Writing))?,
            3 => slot.flush(Line::State)?,
            4 => slot.store(Line::Content, self.epoch)?,
            5 => slot.flush(Line::Content)?,
            6 => slot.store(Line::State, word(State::Published))?,
            7 => slot.flush(Line::State)?,
            _ => return Ok(Some(Some(self.epoch))),
        }
        self.at += 1;
        Ok(None)
    }
}

/// What attaching came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Attach {
    /// The image of this epoch may be used, until the host's lease is released.
    Attached(u64),
    /// There is none, or it is being revoked.
    Gone,
    /// What is there is not what was published.
    Damaged,
}

/// Makes a host a user of the image in a slot. One process of a host at a time, which is counted as a
/// user of the slot by then.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attaching {
    host: usize,
    at: u8,
    epoch: u64,
    verified: bool,
}

impl Attaching {
    /// By host `host`.
    pub fn new(host: usize) -> Attaching {
        Attaching { host, at: 0, epoch: 0, verified: false }
    }
}

impl Steps for Attaching {
    type Out = Attach;

    fn step<S: Slot>(&mut self, slot: &mut S) -> Step<Attach, S::Error> {
        let own = Line::Lease(self.host);
        match self.at {
            0 => slot.flush(Line::State)?,
            1 => match Word::unpack(slot.load(Line::State)?) {
                Some(Word { state: State::Published, epoch }) => self.epoch = epoch,
                _ => return Ok(Some(Attach::Gone)),
            },
            2 => self.verified = slot.load(own)? == lease(self.epoch, true),
            3 => slot.store(own, lease(self.epoch, self.verified))?,
            4 => slot.flush(own)?,
            // Whoever revokes writes the state first and reads the lease then: one of the two sees the
            // other.
            5 => slot.flush(Line::State)?,
            6 => {
                let wanted = Word { state: State::Published, epoch: self.epoch };
                if slot.load(Line::State)? != wanted.pack() {
                    return Ok(Some(Attach::Gone));
                }
                if self.verified {
                    return Ok(Some(Attach::Attached(self.epoch)));
                }
            }
            7 => slot.flush(Line::Content)?,
            8 => {
                if slot.load(Line::Content)? != self.epoch {
                    return Ok(Some(Attach::Damaged));
                }
            }
            9 => slot.store(own, lease(self.epoch, true))?,
            10 => slot.flush(own)?,
            _ => return Ok(Some(Attach::Attached(self.epoch))),
        }
        self.at += 1;
        Ok(None)
    }
}

/// Gives a host's lease back, when none of its processes uses the slot, nor is about to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Release {
    host: usize,
    at: u8,
}

impl Release {
    /// Of host `host`.
    pub fn new(host: usize) -> Release {
        Release { host, at: 0 }
    }
}

/// Takes the lease of another host that is dead, and will not come back with what it had in its caches.
pub type Fence = Release;

impl Steps for Release {
    type Out = ();

    fn step<S: Slot>(&mut self, slot: &mut S) -> Step<(), S::Error> {
        let line = Line::Lease(self.host);
        match self.at {
            0 => slot.store(line, 0)?,
            1 => slot.flush(line)?,
            _ => return Ok(Some(())),
        }
        self.at += 1;
        Ok(None)
    }
}

/// What revoking came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Revoke {
    /// The slot is free.
    Free,
    /// This host uses the image. It has no new users; to be tried again later.
    InUse(usize),
}

/// Keeps new users away from a slot, and frees it if it has none. By the owner, one process at a time.
/// Also frees a slot whose publisher died.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Revoking {
    hosts: usize,
    at: u8,
    host: usize,
    epoch: u64,
}

impl Revoking {
    /// With hosts `0..hosts` as possible users.
    pub fn new(hosts: usize) -> Revoking {
        Revoking { hosts, at: 0, host: 0, epoch: 0 }
    }
}

impl Steps for Revoking {
    type Out = Revoke;

    fn step<S: Slot>(&mut self, slot: &mut S) -> Step<Revoke, S::Error> {
        let word = |state| Word { state, epoch: self.epoch }.pack();
        match self.at {
            0 => slot.flush(Line::State)?,
            1 => match Word::unpack(slot.load(Line::State)?) {
                Some(Word { state: State::Free, .. }) => return Ok(Some(Revoke::Free)),
                Some(Word { epoch, .. }) => self.epoch = epoch,
                // No state that anybody wrote: nobody could attach.
                None => self.at = 5,
            },
            2 => slot.store(Line::State, word(State::Revoked))?,
            3 => slot.flush(Line::State)?,
            4 => slot.flush(Line::Lease(self.host))?,
            5 => {
                if leased(slot.load(Line::Lease(self.host))?) == self.epoch {
                    return Ok(Some(Revoke::InUse(self.host)));
                }
                self.host += 1;
                if self.host < self.hosts {
                    self.at = 4;
                    return Ok(None);
                }
            }
            6 => slot.store(Line::State, word(State::Free))?,
            7 => slot.flush(Line::State)?,
            _ => return Ok(Some(Revoke::Free)),
        }
        self.at += 1;
        Ok(None)
    }
}
