//! userfaultfd: being asked for pages, and putting them in place.
//!
//! UNSAFETY: the ioctls take addresses. What is watched is checked by its [`Reservation`]. What is put
//! in place, protected or woken may be any address: the kernel refuses all that no userfaultfd of the
//! descriptor's process watches, which in this one is memory of reservations, and fills only what is
//! missing there. Each structure's size and ioctl number is proved below.
#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use linux_raw_sys::general as raw;
use linux_raw_sys::ioctl as number;

use varve_snapshot::PAGE_SIZE;

use super::mmap::Reservation;

/// `_IO(0xAA, 0)` on /dev/userfaultfd: a new descriptor (linux/userfaultfd.h, since Linux 6.1).
const USERFAULTFD_IOC_NEW: u32 = raw::USERFAULTFD_IOC << 8;

/// Number of a read-write ioctl of the userfaultfd group on a structure of type `T`.
const fn read_write<T>(nr: u32) -> u32 {
    3 << 30 | (size_of::<T>() as u32) << 16 | raw::UFFDIO << 8 | nr
}

const _: () = {
    assert!(size_of::<raw::uffd_msg>() == 32);
    assert!(size_of::<raw::uffdio_api>() == 24);
    assert!(number::UFFDIO_API == read_write::<raw::uffdio_api>(raw::_UFFDIO_API));
    assert!(number::UFFDIO_REGISTER == read_write::<raw::uffdio_register>(raw::_UFFDIO_REGISTER));
    assert!(number::UFFDIO_COPY == read_write::<raw::uffdio_copy>(raw::_UFFDIO_COPY));
    assert!(number::UFFDIO_ZEROPAGE == read_write::<raw::uffdio_zeropage>(raw::_UFFDIO_ZEROPAGE));
    assert!(
        number::UFFDIO_WRITEPROTECT
            == read_write::<raw::uffdio_writeprotect>(raw::_UFFDIO_WRITEPROTECT)
    );
    // Those that only read their argument: `_IOR`.
    let range = 2 << 30 | (size_of::<raw::uffdio_range>() as u32) << 16 | raw::UFFDIO << 8;
    assert!(number::UFFDIO_UNREGISTER == range | raw::_UFFDIO_UNREGISTER);
    assert!(number::UFFDIO_WAKE == range | raw::_UFFDIO_WAKE);
};

/// userfaultfd cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum UffdError {
    /// Not for this user.
    #[error(
        "userfaultfd on memory that KVM uses needs a privilege that this process lacks: give it \
         access to /dev/userfaultfd, or CAP_SYS_PTRACE, or set vm.unprivileged_userfaultfd=1; or \
         let cold pages be mapped, which needs none"
    )]
    NotPermitted(#[source] io::Error),
    /// Not in this kernel, or without what is needed.
    #[error("this kernel has no userfaultfd with features {features:#x}")]
    Missing {
        /// The UFFD_FEATURE bits asked for.
        features: u64,
        /// The system's answer.
        source: io::Error,
    },
}

/// What a range is watched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Pages that are not there.
    Missing,
    /// Those, and writes to pages that were installed write-protected.
    MissingAndWrites,
}

/// A thread waits for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Host address of the page.
    pub address: u64,
    /// It was a write. Of a missing page this over-reports: KVM and the kernel's copy routines may
    /// ask for write access to pages they only read.
    pub write: bool,
    /// The page is there, but write-protected.
    pub protected: bool,
    /// Who waits: a thread of this process, or of the kernel.
    pub thread: u32,
}

/// What a userfaultfd tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A thread waits for a page.
    Fault(Fault),
    /// Memory from one host address to another is being given back: it is missing from now on, and
    /// nothing can be put in place until this has been read.
    Removed(u64, u64),
}

/// The way that pages are installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Install {
    /// Who waits for them is woken.
    Plain,
    /// The same, and a later write is reported.
    Protected,
    /// Nobody is woken.
    Quiet,
}

/// The outcome of installing several pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// All bytes.
    All,
    /// So many bytes, then the mapping changed under it: go on from there. None at all while an event
    /// that tells of the change waits to be read.
    Part(usize),
    /// None: the first page is there already.
    Present,
}

/// Whether this process can have missing pages of memory that KVM uses asked for.
pub fn can_watch() -> Result<(), UffdError> {
    Uffd::open(Watch::MissingAndWrites).map(drop)
}

/// A userfaultfd.
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
}

impl Uffd {
    /// Opens one that also reports faults taken inside the kernel, as KVM's are.
    pub fn open(watch: Watch) -> Result<Uffd, UffdError> {
        Uffd::with_features(match watch {
            Watch::Missing => raw::UFFD_FEATURE_THREAD_ID,
            Watch::MissingAndWrites => {
                raw::UFFD_FEATURE_THREAD_ID | raw::UFFD_FEATURE_PAGEFAULT_FLAG_WP
            }
        })
    }

    /// Opens one for another process to answer: it is told of pages that are given back, too, and
    /// whoever gives them back waits until it has read that.
    pub fn for_handler() -> Result<Uffd, UffdError> {
        Uffd::with_features(raw::UFFD_FEATURE_EVENT_REMOVE)
    }

    /// One that another process opened on its own memory and handed over.
    ///
    /// # Errors
    ///
    /// If the descriptor is none.
    pub fn of_another(fd: OwnedFd, page_of_it: u64) -> io::Result<Uffd> {
        // Two threads must not wait where one event is.
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        let uffd = Uffd { fd };
        // Does nothing, where there is a userfaultfd to do it.
        uffd.wake(page_of_it, PAGE_SIZE as usize)?;
        Ok(uffd)
    }

    fn with_features(features: u32) -> Result<Uffd, UffdError> {
        let features = u64::from(features);
        let fd = open_fd().map_err(|source| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => UffdError::NotPermitted(source),
            _ => UffdError::Missing { features, source },
        })?;
        let uffd = Uffd { fd };
        let mut api = raw::uffdio_api { api: raw::UFFD_API.into(), features, ioctls: 0 };
        // SAFETY: the number belongs to this structure.
        unsafe { uffd.ioctl(number::UFFDIO_API, &mut api) }
            .map_err(|source| UffdError::Missing { features, source })?;
        Ok(uffd)
    }

    /// Watches a range from now on. Pages that are present stay.
    pub fn register(
        &self,
        memory: &Reservation,
        offset: usize,
        len: usize,
        watch: Watch,
    ) -> io::Result<()> {
        let mode = match watch {
            Watch::Missing => raw::UFFDIO_REGISTER_MODE_MISSING,
            Watch::MissingAndWrites => {
                raw::UFFDIO_REGISTER_MODE_MISSING | raw::UFFDIO_REGISTER_MODE_WP
            }
        };
        let range = range(memory.at(offset, len)? as u64, len)?;
        let mut arg = raw::uffdio_register { range, mode: mode.into(), ioctls: 0 };
        // SAFETY: the number belongs to this structure; the range is the reservation's.
        unsafe { self.ioctl(number::UFFDIO_REGISTER, &mut arg) }
    }

    /// Ends the watch over a range; who waits for its pages looks again.
    pub fn unregister(&self, memory: &Reservation, offset: usize, len: usize) -> io::Result<()> {
        let mut arg = range(memory.at(offset, len)? as u64, len)?;
        // SAFETY: the number belongs to this structure; the range is the reservation's.
        unsafe { self.ioctl(number::UFFDIO_UNREGISTER, &mut arg) }
    }

    /// Puts `data` (whole pages) in place at a host address.
    pub fn copy(&self, at: u64, data: &[u8], how: Install) -> io::Result<Installed> {
        let raw::uffdio_range { start, len } = range(at, data.len())?;
        let mode = match how {
            Install::Plain => 0,
            Install::Protected => raw::UFFDIO_COPY_MODE_WP,
            Install::Quiet => raw::UFFDIO_COPY_MODE_DONTWAKE,
        };
        let src = data.as_ptr() as u64;
        let mut arg = raw::uffdio_copy { dst: start, src, len, mode: mode.into(), copy: 0 };
        // SAFETY: the number belongs to this structure; the source is `data`, the target is watched.
        let done = unsafe { self.ioctl(number::UFFDIO_COPY, &mut arg) };
        installed(done, arg.copy)
    }

    /// Puts the zero page in place throughout a range that is missing, and wakes nobody.
    pub fn zero(&self, at: u64, len: usize) -> io::Result<Installed> {
        let range = range(at, len)?;
        let mode = raw::UFFDIO_ZEROPAGE_MODE_DONTWAKE.into();
        let mut arg = raw::uffdio_zeropage { range, mode, zeropage: 0 };
        // SAFETY: the number belongs to this structure; the target is watched.
        let done = unsafe { self.ioctl(number::UFFDIO_ZEROPAGE, &mut arg) };
        installed(done, arg.zeropage)
    }

    /// Protects pages that are present against writes, or lets writes through again and wakes who
    /// waits for that.
    pub fn protect(&self, at: u64, len: usize, protect: bool) -> io::Result<()> {
        let range = range(at, len)?;
        loop {
            // UFFDIO_WRITEPROTECT_MODE_WP is bit 0 (linux/userfaultfd.h).
            let mut arg = raw::uffdio_writeprotect { range, mode: protect.into() };
            // SAFETY: the number belongs to this structure; the range is watched.
            match unsafe { self.ioctl(number::UFFDIO_WRITEPROTECT, &mut arg) } {
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => continue,
                done => return done,
            }
        }
    }

    /// Lets threads that wait for pages of a range look again.
    pub fn wake(&self, at: u64, len: usize) -> io::Result<()> {
        let mut arg = range(at, len)?;
        // SAFETY: the number belongs to this structure; no memory is changed.
        unsafe { self.ioctl(number::UFFDIO_WAKE, &mut arg) }
    }

    /// The faults that wait to be answered; none if there are none now. Several threads may read at
    /// once: each fault goes to one of them.
    pub fn read(&self) -> io::Result<Vec<Fault>> {
        const BATCH: usize = 16;
        let fault = |event| match event {
            Event::Fault(fault) => Some(fault),
            Event::Removed(..) => None,
        };
        Ok(self.messages::<BATCH>()?.into_iter().filter_map(fault).collect())
    }

    /// The next event, if there is one now.
    pub fn next(&self) -> io::Result<Option<Event>> {
        Ok(self.messages::<1>()?.pop())
    }

    fn messages<const BATCH: usize>(&self) -> io::Result<Vec<Event>> {
        // SAFETY: the message is plain numbers, for which zero is a value.
        let mut messages: [raw::uffd_msg; BATCH] = unsafe { zeroed() };
        let len = size_of::<raw::uffd_msg>();
        // SAFETY: the kernel writes at most the buffer's length.
        let read =
            unsafe { libc::read(self.fd.as_raw_fd(), messages.as_mut_ptr().cast(), BATCH * len) };
        let Ok(read) = usize::try_from(read) else {
            let error = io::Error::last_os_error();
            let none = matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR));
            return if none { Ok(Vec::new()) } else { Err(error) };
        };
        Ok(messages[..read / len].iter().filter_map(event).collect())
    }

    /// Calls with an exclusive argument; the caller vouches that `request` takes a `T`.
    unsafe fn ioctl<T>(&self, request: u32, arg: &mut T) -> io::Result<()> {
        // SAFETY: `arg` is valid for reads and writes for the length of the call.
        match unsafe { libc::ioctl(self.fd.as_raw_fd(), request.into(), std::ptr::from_mut(arg)) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A new descriptor: from the device, which is a matter of file permissions, or by the system call,
/// which is one of capabilities and a sysctl.
fn open_fd() -> io::Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    if let Ok(device) = std::fs::File::open("/dev/userfaultfd") {
        // SAFETY: takes flags and returns a descriptor.
        let fd = unsafe {
            libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW.into(), libc::c_long::from(flags))
        };
        if fd >= 0 {
            // SAFETY: a new descriptor that nobody else has.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    // SAFETY: takes flags and returns a descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    match i32::try_from(fd) {
        // SAFETY: a new descriptor that nobody else has.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whole pages at a host address.
fn range(at: u64, len: usize) -> io::Result<raw::uffdio_range> {
    let len = len as u64;
    let whole = at.is_multiple_of(PAGE_SIZE) && len.is_multiple_of(PAGE_SIZE) && len > 0;
    if whole && at.checked_add(len).is_some() {
        return Ok(raw::uffdio_range { start: at, len });
    }
    Err(io::ErrorKind::InvalidInput.into())
}

fn installed(done: io::Result<()>, bytes: i64) -> io::Result<Installed> {
    match done {
        Ok(()) => Ok(Installed::All),
        Err(e) => match (usize::try_from(bytes), e.raw_os_error()) {
            (Ok(bytes), _) if bytes > 0 => Ok(Installed::Part(bytes)),
            (_, Some(libc::EEXIST)) => Ok(Installed::Present),
            (_, Some(libc::EAGAIN)) => Ok(Installed::Part(0)),
            _ => Err(e),
        },
    }
}

fn event(message: &raw::uffd_msg) -> Option<Event> {
    match u32::from(message.event) {
        raw::UFFD_EVENT_PAGEFAULT => Some(Event::Fault(fault(message))),
        raw::UFFD_EVENT_REMOVE | raw::UFFD_EVENT_UNMAP => {
            // SAFETY: for these events the kernel filled in this member.
            let range = unsafe { message.arg.remove };
            Some(Event::Removed(range.start, range.end))
        }
        _ => None,
    }
}

/// The message of a page fault.
fn fault(message: &raw::uffd_msg) -> Fault {
    // SAFETY: for this event the kernel filled in this member.
    let fault = unsafe { message.arg.pagefault };
    // SAFETY: the union holds a number: the thread's, if UFFD_FEATURE_THREAD_ID is on.
    let thread = unsafe { fault.feat.ptid };
    let has = |flag: u32| fault.flags & u64::from(flag) != 0;
    Fault {
        address: fault.address & !0xfff,
        write: has(raw::UFFD_PAGEFAULT_FLAG_WRITE),
        protected: has(raw::UFFD_PAGEFAULT_FLAG_WP),
        thread,
    }
}
