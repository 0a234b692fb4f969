//! The protocol of shared memory, walked through: every interleaving of an owner that publishes, revokes
//! and publishes again, of readers on other hosts, of crashes, and of caches that fetch and write back
//! lines whenever they please. What is checked is the code that runs on devices, over modelled memory.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashSet;
use std::convert::Infallible;

use varve_shared::protocol::{
    Attach, Attaching, Fence, Line, Publish, Release, Revoke, Revoking, Slot, State, Step, Steps,
    Word, leased,
};

/// Host 0 owns; readers are on the others.
const HOSTS: usize = 3;
/// Lines of memory: the state, the content, one lease for each host. One line stands for every line of
/// the content: no step tells them apart.
const LINES: usize = 2 + HOSTS;
const STATE: usize = 0;
const CONTENT: usize = 1;
/// The image is published in so many epochs.
const EPOCHS: u64 = 2;

fn lease(host: usize) -> usize {
    2 + host
}

/// What a host's caches have of a line. A copy of what memory has is like no copy: it may have been
/// fetched, or dropped, at any time before.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Cell {
    Same,
    /// What memory had before.
    Stale(u8),
    /// What memory will have.
    Dirty(u8),
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Memory {
    lines: [u8; LINES],
    caches: [[Cell; LINES]; HOSTS],
}

/// What is left out of the protocol, to see that it is missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    None,
    /// The publisher does not flush the content before it says that it is there.
    PublisherKeepsContent,
    /// Readers look at content that their caches have from before.
    ReaderTrustsItsCache,
    /// Readers do not have their caches forget the state before they look again.
    ReaderTrustsItsState,
    /// A lease is not flushed.
    LeaseStaysInCache,
    /// Whoever revokes looks at leases that its caches have from before.
    OwnerTrustsItsCache,
    /// Revoking does not flush the state before it looks at leases.
    RevocationStaysInCache,
    /// Processes of one host attach beside each other.
    NoTurns,
}

struct View<'a> {
    memory: &'a mut Memory,
    host: usize,
    defect: Defect,
    /// The step has to wait until a line is written back.
    waits: bool,
}

fn index(line: Line) -> usize {
    match line {
        Line::State => STATE,
        Line::Content => CONTENT,
        Line::Lease(host) => lease(host),
    }
}

impl View<'_> {
    fn left_out(&self, line: Line) -> bool {
        let owner = self.host == 0;
        match (self.defect, line) {
            (Defect::PublisherKeepsContent, Line::Content) => owner,
            (Defect::ReaderTrustsItsCache, Line::Content) => !owner,
            (Defect::ReaderTrustsItsState, Line::State) => !owner,
            (Defect::LeaseStaysInCache, Line::Lease(_)) => !owner,
            (Defect::OwnerTrustsItsCache, Line::Lease(_)) => owner,
            (Defect::RevocationStaysInCache, Line::State) => owner,
            _ => false,
        }
    }
}

impl Memory {
    fn seen(&self, host: usize, line: usize) -> u8 {
        match self.caches[host][line] {
            Cell::Same => self.lines[line],
            Cell::Stale(value) | Cell::Dirty(value) => value,
        }
    }

    /// What can come of it when a host's caches write a line back: who looks at the line, too, may have
    /// fetched it before. (A copy that is dropped before it is looked at is like one that was never
    /// fetched, and each look but at content in use comes after a flush.)
    fn let_go(&self, host: usize, line: usize, readers: &[(usize, Reader)]) -> Vec<Memory> {
        let mut next = self.clone();
        next.caches[host][line] = Cell::Same;
        let Cell::Dirty(value) = self.caches[host][line] else { return vec![next] };
        next.lines[line] = value;
        let mut all = vec![next];
        let there = |&other: &usize| other == 0 || readers.iter().any(|r| r.0 == other);
        for other in (0..HOSTS).filter(|&o| o != host && looks(o, line)).filter(there) {
            match self.caches[other][line] {
                Cell::Same => {
                    let mut fetched = all.clone();
                    let stale = Cell::Stale(self.lines[line]);
                    fetched.iter_mut().for_each(|m| m.caches[other][line] = stale);
                    all.extend(fetched);
                }
                Cell::Stale(old) if old == value => {
                    all.iter_mut().for_each(|m| m.caches[other][line] = Cell::Same);
                }
                _ => {}
            }
        }
        all
    }
}

impl Slot for View<'_> {
    type Error = Infallible;

    fn load(&mut self, line: Line) -> Result<u64, Infallible> {
        let value = self.memory.seen(self.host, index(line)).into();
        Ok(if line == Line::State { unpack(value) } else { value })
    }

    fn store(&mut self, line: Line, value: u64) -> Result<(), Infallible> {
        let value = if line == Line::State { pack(value) } else { value as u8 };
        let same = self.memory.lines[index(line)] == value;
        let cell = if same { Cell::Same } else { Cell::Dirty(value) };
        self.memory.caches[self.host][index(line)] = cell;
        Ok(())
    }

    fn flush(&mut self, line: Line) -> Result<(), Infallible> {
        if !self.left_out(line) {
            let cell = &mut self.memory.caches[self.host][index(line)];
            self.waits = matches!(cell, Cell::Dirty(_));
            *cell = Cell::Same;
        }
        Ok(())
    }
}

/// States as they fit into a byte.
fn pack(word: u64) -> u8 {
    let word = Word::unpack(word).unwrap();
    (word.epoch as u8) << 2 | word.state as u8
}

fn unpack(byte: u64) -> u64 {
    let states = [State::Free, State::Writing, State::Published, State::Revoked];
    Word { state: states[byte as usize & 3], epoch: byte >> 2 }.pack()
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Owner {
    Idle,
    Publishing(Publish),
    Published,
    Revoking(Revoking),
    Fencing(usize, Fence),
    Done,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Reader {
    Idle,
    Attaching(Attaching),
    Using(u64),
    Damaged,
    /// The process is gone, or the image was; its host holds on to the lease.
    Ended,
    Releasing(Release),
    /// It does not come any more.
    Away,
    /// The whole host is gone.
    Dead,
}

/// What the owner does.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Span {
    /// All, from an empty slot to an empty slot.
    Whole,
    /// From the first image's publication to the second's: nothing before it and nothing after it puts
    /// readers of both in danger.
    Middle,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct World {
    memory: Memory,
    owner: Owner,
    epoch: u64,
    span: Span,
    crashes: u8,
    /// A step that cannot be taken yet led here.
    waits: bool,
    readers: Vec<(usize, Reader)>,
}

/// What a search found.
struct Found {
    states: usize,
    /// All readers used the image of the last epoch at once.
    all: bool,
    /// All was freed at the end.
    freed: bool,
    fenced: bool,
    recovered: bool,
    wrong: Option<String>,
}

impl World {
    fn new(hosts: &[usize], crashes: u8, span: Span) -> World {
        let mut memory = Memory { lines: [0; LINES], caches: [[Cell::Same; LINES]; HOSTS] };
        let (owner, epoch) = match span {
            Span::Whole => (Owner::Idle, 0),
            Span::Middle => {
                memory.lines[STATE] = pack(Word { state: State::Published, epoch: 1 }.pack());
                memory.lines[CONTENT] = 1;
                (Owner::Published, 1)
            }
        };
        let readers = hosts.iter().map(|&host| (host, Reader::Idle)).collect();
        World { memory, owner, epoch, span, crashes, waits: false, readers }
    }

    fn step<T: Steps>(&mut self, host: usize, defect: Defect, steps: &mut T) -> Option<T::Out> {
        let mut view = View { memory: &mut self.memory, host, defect, waits: false };
        let step: Step<T::Out, Infallible> = steps.step(&mut view);
        self.waits = view.waits;
        step.unwrap()
    }

    /// Every state that can come next.
    fn next(&self, defect: Defect) -> Vec<World> {
        let mut next = Vec::new();
        for (host, cache) in self.memory.caches.iter().enumerate() {
            for line in (0..LINES).filter(|&line| matches!(cache[line], Cell::Dirty(_))) {
                let after = self.memory.let_go(host, line, &self.readers).into_iter();
                next.extend(after.map(|memory| World { memory, ..self.clone() }));
            }
        }
        let mut push = |world: World| {
            if !world.waits {
                next.push(world);
            }
        };
        self.owner_next(defect, &mut push);
        for reader in 0..self.readers.len() {
            self.reader_next(reader, defect, &mut push);
        }
        next
    }

    fn owner_next(&self, defect: Defect, push: &mut impl FnMut(World)) {
        let mut world = self.clone();
        world.owner = match self.owner.clone() {
            Owner::Idle => Owner::Publishing(Publish::default()),
            Owner::Publishing(mut steps) => match world.step(0, defect, &mut steps) {
                None => Owner::Publishing(steps),
                Some(epoch) => {
                    world.epoch = epoch.expect("the slot was free");
                    Owner::Published
                }
            },
            Owner::Published if self.span == Span::Middle && self.epoch == EPOCHS => return,
            Owner::Published => Owner::Revoking(Revoking::new(HOSTS)),
            Owner::Revoking(mut steps) => match world.step(0, defect, &mut steps) {
                None => Owner::Revoking(steps),
                Some(Revoke::Free) if self.epoch >= EPOCHS => Owner::Done,
                Some(Revoke::Free) => Owner::Idle,
                // Tried again; or the host is known to be dead.
                Some(Revoke::InUse(host)) => {
                    let on_host = |r: &&(usize, Reader)| r.0 == host;
                    match self.readers.iter().filter(on_host).all(|r| r.1 == Reader::Dead) {
                        true => Owner::Fencing(host, Fence::new(host)),
                        false => Owner::Revoking(Revoking::new(HOSTS)),
                    }
                }
            },
            Owner::Fencing(host, mut steps) => match world.step(0, defect, &mut steps) {
                None => Owner::Fencing(host, steps),
                Some(()) => Owner::Revoking(Revoking::new(HOSTS)),
            },
            Owner::Done => return,
        };
        push(world);
        // It is killed in the middle, alone or with its host, and recovers.
        if self.crashes > 0 && matches!(self.owner, Owner::Publishing(_) | Owner::Revoking(_)) {
            for whole_host in [false, true] {
                let mut world = self.clone();
                world.crashes -= 1;
                world.owner = Owner::Revoking(Revoking::new(HOSTS));
                if whole_host {
                    world.memory.caches[0] = [Cell::Same; LINES];
                }
                push(world);
            }
        }
    }

    fn reader_next(&self, at: usize, defect: Defect, push: &mut impl FnMut(World)) {
        let (host, reader) = self.readers[at].clone();
        let others = || self.readers.iter().enumerate().filter(|(i, r)| *i != at && r.0 == host);
        let busy = |r: &Reader| matches!(r, Reader::Attaching(_) | Reader::Releasing(_));
        let turn = defect == Defect::NoTurns || others().all(|(_, r)| !busy(&r.1));
        let users = others().any(|(_, r)| busy(&r.1) || matches!(r.1, Reader::Using(_)));
        let mut world = self.clone();
        world.readers[at].1 = match reader.clone() {
            Reader::Idle if turn => Reader::Attaching(Attaching::new(host)),
            Reader::Attaching(mut steps) => match world.step(host, defect, &mut steps) {
                None => Reader::Attaching(steps),
                Some(Attach::Attached(epoch)) => Reader::Using(epoch),
                Some(Attach::Gone) => Reader::Ended,
                Some(Attach::Damaged) => Reader::Damaged,
            },
            Reader::Using(_) => Reader::Ended,
            // Its host's next collection gives the lease back, if nobody else there uses it.
            Reader::Ended if turn && !users => Reader::Releasing(Release::new(host)),
            Reader::Releasing(mut steps) => match world.step(host, defect, &mut steps) {
                None => Reader::Releasing(steps),
                // The first reader comes again and again, another one once.
                Some(()) if at == 0 => Reader::Idle,
                Some(()) => Reader::Away,
            },
            _ => return,
        };
        push(world);
        if self.crashes > 0 && matches!(reader, Reader::Attaching(_) | Reader::Using(_)) {
            let mut killed = self.clone();
            killed.crashes -= 1;
            killed.readers[at].1 = Reader::Ended;
            push(killed);
            let mut host_died = self.clone();
            host_died.crashes -= 1;
            host_died.memory.caches[host] = [Cell::Same; LINES];
            host_died.readers.iter_mut().filter(|r| r.0 == host).for_each(|r| r.1 = Reader::Dead);
            push(host_died);
        }
    }

    /// Whoever uses an image sees all of it, whatever its caches have of it.
    fn wrong(&self) -> Option<String> {
        self.readers.iter().find_map(|(host, reader)| {
            let seen = u64::from(self.memory.seen(*host, CONTENT));
            match reader {
                Reader::Using(epoch) if seen != *epoch => {
                    Some(format!("host {host} uses {epoch} and sees {seen}"))
                }
                // The checksum saved it: but nothing was wrong with what was published.
                Reader::Damaged => Some(format!("host {host} finds the content damaged")),
                _ => None,
            }
        })
    }
}

/// Lines that a host loads without having stored them.
fn looks(host: usize, line: usize) -> bool {
    match host {
        0 => line > CONTENT,
        _ => line <= CONTENT,
    }
}

fn search(hosts: &[usize], crashes: u8, span: Span, defect: Defect) -> Found {
    let first = World::new(hosts, crashes, span);
    let (mut seen, mut todo) = (HashSet::from([first.clone()]), vec![first]);
    let mut found =
        Found { states: 0, all: false, freed: false, fenced: false, recovered: false, wrong: None };
    while let Some(world) = todo.pop() {
        found.wrong = world.wrong();
        if found.wrong.is_some() {
            break;
        }
        found.all |= world.readers.iter().all(|r| r.1 == Reader::Using(EPOCHS));
        found.freed |= world.owner == Owner::Done;
        found.fenced |= matches!(world.owner, Owner::Fencing(..));
        found.recovered |= crashes > 0 && world.crashes == 0 && world.owner == Owner::Published;
        for next in world.next(defect) {
            if seen.insert(next.clone()) {
                todo.push(next);
            }
        }
    }
    found.states = seen.len();
    found
}

#[test]
fn no_reader_ever_sees_a_part_of_an_image() {
    // Two readers that nothing happens to, on one host and on two; and one, where there is a crash.
    for (hosts, crashes, span) in
        [(&[1, 1][..], 0, Span::Whole), (&[1, 2], 0, Span::Middle), (&[1], 1, Span::Whole)]
    {
        all_is_right(hosts, crashes, span);
    }
}

#[test]
#[ignore = "8 million states: 3 GiB of memory, and a minute if it is optimised"]
fn no_reader_on_two_hosts_ever_sees_a_part_of_an_image() {
    all_is_right(&[1, 2], 0, Span::Whole);
}

fn all_is_right(hosts: &[usize], crashes: u8, span: Span) {
    let found = search(hosts, crashes, span, Defect::None);
    println!("readers on hosts {hosts:?}, {crashes} crashes: {} states", found.states);
    assert_eq!(found.wrong, None);
    // It is not right only because nothing happens.
    assert!(found.all && found.freed == (span == Span::Whole));
    assert_eq!((found.fenced, found.recovered), (crashes > 0, crashes > 0));
}

#[test]
fn each_defect_is_found() {
    for (defect, hosts) in [
        (Defect::PublisherKeepsContent, [1, 2]),
        (Defect::ReaderTrustsItsCache, [1, 2]),
        (Defect::ReaderTrustsItsState, [1, 2]),
        (Defect::LeaseStaysInCache, [1, 2]),
        (Defect::OwnerTrustsItsCache, [1, 2]),
        (Defect::RevocationStaysInCache, [1, 2]),
        (Defect::NoTurns, [1, 1]),
    ] {
        let found = search(&hosts, 0, Span::Whole, defect);
        println!("{defect:?}: {:?} after {} states", found.wrong, found.states);
        assert!(found.wrong.is_some(), "{defect:?} is not found");
    }
}

#[test]
fn words_are_what_they_were() {
    for state in [State::Free, State::Writing, State::Published, State::Revoked] {
        let word = Word { state, epoch: 77 };
        assert_eq!(Word::unpack(word.pack()), Some(word));
    }
    assert_eq!(Word::unpack(4), None);
    assert_eq!(leased(0), 0);
}
