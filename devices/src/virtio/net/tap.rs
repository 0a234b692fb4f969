//! A tap: the host's end of a virtual network cable.
//!
//! UNSAFETY: two ioctls take a pointer and one an integer; rustix has no wrappers for them.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Opcode, Setter, Updater, ioctl, opcode};

use super::NetError;

/// Bytes of an interface's name with its final zero (IFNAMSIZ).
const NAME_LEN: usize = 16;

const TUNSETIFF: Opcode = opcode::write::<libc::c_int>(b'T', 202);
const TUNSETOFFLOAD: Opcode = opcode::write::<libc::c_uint>(b'T', 208);
const TUNSETVNETHDRSZ: Opcode = opcode::write::<libc::c_int>(b'T', 216);

/// `struct ifreq` as `TUNSETIFF` reads and writes it.
#[repr(C)]
struct IfReq {
    name: [u8; NAME_LEN],
    flags: libc::c_short,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<IfReq>() == size_of::<libc::ifreq>());

/// A tap that this process is attached to.
///
/// It is watched by an epoll instance of its own, edge-triggered, and that one is what the event
/// loop watches: it becomes readable when a frame arrives or when there is room again, and
/// [`Tap::acknowledge`] makes it unreadable whether the frames were taken or not. So nothing spins
/// while the guest has no buffers, and whoever gets buffers reads until there are no more frames.
#[derive(Debug)]
pub(super) struct Tap {
    file: File,
    epoll: OwnedFd,
}

impl Tap {
    /// Attaches to tap `name`, which is created if there is none and this process may. It then
    /// goes when the process ends.
    pub(super) fn open(name: &str, header_len: usize) -> Result<Tap, NetError> {
        let bad = |c: char| c.is_whitespace() || c.is_control() || "/%:".contains(c);
        if name.is_empty()
            || name.len() >= NAME_LEN
            || name == "."
            || name == ".."
            || name.contains(bad)
        {
            return Err(NetError::Name(name.into()));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(NetError::Tun)?;
        attach(&file, name).map_err(|e| match e {
            Errno::BUSY => NetError::Busy(name.into()),
            Errno::PERM | Errno::ACCESS => NetError::Denied(name.into()),
            Errno::INVAL => NetError::NotATap(name.into()),
            e => NetError::Attach { tap: name.into(), source: e.into() },
        })?;
        let fail = |e: Errno| NetError::Attach { tap: name.into(), source: e.into() };
        set_header_len(&file, header_len).map_err(fail)?;
        Tap::watched(file).map_err(fail)
    }

    /// A tap of any descriptor that moves a packet a call and does not wait.
    pub(super) fn watched(file: File) -> rustix::io::Result<Tap> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let (data, flags) = interest();
        epoll::add(&epoll, &file, data, flags)?;
        Ok(Tap { file, epoll })
    }

    /// What the event loop watches.
    pub(super) fn event_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Makes the event descriptor unreadable until something new happens.
    pub(super) fn acknowledge(&self) {
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }];
        let _ = epoll::wait(&self.epoll, &mut events, Some(&Timespec::default()));
    }

    /// Makes the event descriptor readable if there are frames or room, new or not.
    pub(super) fn rearm(&self) -> io::Result<()> {
        let (data, flags) = interest();
        Ok(epoll::modify(&self.epoll, &self.file, data, flags)?)
    }

    /// Tells the kernel what the reader of this tap can deal with: a set of `TUN_F_` bits.
    pub(super) fn set_offloads(&self, bits: u32) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory.
        unsafe {
            let request = IntegerSetter::<TUNSETOFFLOAD>::new_usize(bits as usize);
            Ok(ioctl(&self.file, request)?)
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn interest() -> (EventData, EventFlags) {
    (EventData::new_u64(0), EventFlags::IN | EventFlags::OUT | EventFlags::ET)
}

fn attach(file: &File, name: &str) -> rustix::io::Result<()> {
    let mut request = IfReq {
        name: [0; NAME_LEN],
        flags: (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short,
        rest: [0; 22],
    };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, whose size `IfReq` has.
    unsafe { ioctl(file, Updater::<TUNSETIFF, _>::new(&mut request)) }
}

fn set_header_len(file: &File, len: usize) -> rustix::io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    unsafe { ioctl(file, Setter::<TUNSETVNETHDRSZ, _>::new(len as libc::c_int)) }
}
