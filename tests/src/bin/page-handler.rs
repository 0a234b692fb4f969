//! A page fault handler as users of Firecracker write them: it listens, is handed a userfaultfd and
//! the layout of guest memory, and answers from the raw memory file. It knows nothing of varve.
//!
//! `page-handler SOCKET MEMORY_FILE [--hang-up]`; with `--hang-up` it closes the connection as soon as
//! it has what it needs. It prints a line for each handshake, and how many faults it answered when the
//! connection ends.
//!
//! UNSAFETY: the ioctls of userfaultfd, which have no safe wrapper here.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a tool of the tests: what fails ends it")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::Deserialize;

// linux/userfaultfd.h.
const UFFDIO_WAKE: u64 = 0x8010_aa02;
const UFFDIO_COPY: u64 = 0xc028_aa03;
const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_REMOVE: u8 = 0x15;
const MESSAGE: usize = 32;

/// A run of guest memory, as Firecracker documents it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mapping {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    page_size: u64,
    page_size_kib: u64,
}

struct Handler {
    uffd: OwnedFd,
    mappings: Vec<Mapping>,
    memory: File,
    /// Pages that the balloon gave back, and so are zero: starts and ends.
    removed: BTreeMap<u64, u64>,
    answered: u64,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // The socket gets its name when somebody listens: the name is what others wait for.
    let unheard = format!("{}.new", args[0]);
    let listener = UnixListener::bind(&unheard).unwrap();
    std::fs::rename(unheard, &args[0]).unwrap();
    let (stream, _) = listener.accept().unwrap();
    let (mappings, uffd) = handshake(&stream);
    println!("{mappings:?}");
    assert!(mappings.iter().all(|m| m.page_size == m.page_size_kib));
    let memory = File::open(&args[1]).unwrap();
    let mut handler = Handler { uffd, mappings, memory, removed: BTreeMap::new(), answered: 0 };
    let stream = (!args.iter().any(|arg| arg == "--hang-up")).then_some(stream);
    handler.run(stream);
    println!("answered {}", handler.answered);
}

fn handshake(stream: &UnixStream) -> (Vec<Mapping>, OwnedFd) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0; 4096];
    let mut into = [IoSliceMut::new(&mut text)];
    let got = recvmsg(stream, &mut into, &mut control, RecvFlags::empty()).unwrap();
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    (serde_json::from_slice(&text[..got.bytes]).unwrap(), fd.unwrap())
}

impl Handler {
    /// Until the machine's end, which the connection tells; without one, until it is killed.
    fn run(&mut self, stream: Option<UnixStream>) {
        loop {
            let mut fds = vec![PollFd::new(&self.uffd, PollFlags::IN)];
            if let Some(stream) = &stream {
                fds.push(PollFd::new(stream, PollFlags::IN));
            }
            poll(&mut fds, None).unwrap();
            if fds.get(1).is_some_and(|fd| !fd.revents().is_empty()) {
                return;
            }
            if let Some(message) = self.event() {
                self.handle(&message);
            }
        }
    }

    fn handle(&mut self, message: &[u8; MESSAGE]) {
        let word = |at: usize| u64::from_ne_bytes(message[at..at + 8].try_into().unwrap());
        match message[0] {
            EVENT_PAGEFAULT => self.answer(word(16)),
            EVENT_REMOVE => drop(self.removed.insert(word(8), word(16))),
            other => panic!("event {other:#x}"),
        }
    }

    fn is_removed(&self, page: u64) -> bool {
        self.removed.range(..=page).any(|(_, &end)| page < end)
    }

    /// One at a time: a page that was given back must not be answered with what it held before.
    fn event(&self) -> Option<[u8; MESSAGE]> {
        let mut message = [0; MESSAGE];
        match rustix::io::read(&self.uffd, &mut message) {
            Ok(n) => (n == MESSAGE).then_some(message),
            Err(rustix::io::Errno::AGAIN) => None,
            Err(e) => panic!("reading events: {e}"),
        }
    }

    fn answer(&mut self, address: u64) {
        let inside = |m: &&Mapping| {
            (m.base_host_virt_addr..m.base_host_virt_addr + m.size).contains(&address)
        };
        let mapping = self.mappings.iter().find(inside).unwrap();
        let (page_size, base) = (mapping.page_size, mapping.base_host_virt_addr);
        let page = address & !(page_size - 1);
        let from = mapping.offset + (page - base);
        self.answered += 1;
        let mut data = vec![0; page_size as usize];
        if !self.is_removed(page) {
            self.memory.read_exact_at(&mut data, from).unwrap();
        }
        loop {
            let copy = [page, data.as_ptr() as u64, page_size, 0, 0];
            let done = self.ioctl(UFFDIO_COPY, copy);
            match done.map_err(|e| e.raw_os_error()) {
                Ok(()) => return,
                Err(Some(libc::EEXIST)) => {
                    return self.ioctl(UFFDIO_WAKE, [page, page_size, 0, 0, 0]).unwrap();
                }
                // Something is being given back, which has to be read first.
                Err(Some(libc::EAGAIN)) => {
                    if let Some(message) = self.event() {
                        self.handle(&message);
                    }
                    if self.is_removed(page) {
                        data.fill(0);
                    }
                }
                Err(e) => panic!("answering for {page:#x}: {e:?}"),
            }
        }
    }

    /// A call of userfaultfd whose argument is at most these words.
    fn ioctl(&self, request: u64, mut argument: [u64; 5]) -> io::Result<()> {
        const { assert!(size_of::<[u64; 5]>() >= 0x28) };
        // SAFETY: the argument is as large as the largest of them; pages are copied from `data`, which
        // the caller keeps, into another process's memory.
        match unsafe { libc::ioctl(self.uffd.as_raw_fd(), request as _, argument.as_mut_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
