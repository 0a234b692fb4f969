//! A way past the tap: a station on the guest's own cable, which the host's network never sees.

use std::os::fd::RawFd;

use vm_memory::Bytes;

use super::super::buffers::{Run, Slice};
use super::super::{BrokenQueue, DeviceIo};
use super::{HEADER, MAX_FRAME, Net};

/// A station that takes some of the guest's frames and sends frames of its own.
///
/// Frames are those of Ethernet, without virtio's header and without a frame check sequence. The
/// guest may have left checksums of what it sends to the device; what it is sent is complete. All
/// calls come from the device, under its transport's lock; none may wait.
pub trait Detour: Send {
    /// How many bytes of a frame [`Detour::wants`] has to see, if there are so many.
    fn head(&self) -> usize;
    /// Whether a frame that begins with `head` is for this station.
    fn wants(&self, head: &[u8]) -> bool;
    /// Takes such a frame, whole.
    fn receive(&mut self, frame: &[u8]);
    /// Whether there is a frame for the guest.
    fn waits(&self) -> bool;
    /// The next frame for the guest. One that does not fit into the guest's buffers is lost.
    fn next(&mut self) -> Option<Vec<u8>>;
    /// A descriptor that becomes readable when [`Detour::tick`] is due.
    fn timer(&self) -> RawFd;
    /// The timer went off.
    fn tick(&mut self);
    /// The guest's driver starts over.
    fn reset(&mut self);
}

impl Net {
    /// Whether a frame of the guest went the other way; it is done with then.
    pub(super) fn diverts(&mut self, frame: &Run) -> bool {
        let Some(detour) = &mut self.detour else { return false };
        // Others are the tap's to refuse.
        if frame.len() > MAX_FRAME {
            return false;
        }
        let copy = |len: usize| {
            let mut bytes = vec![0; len.min(frame.len())];
            frame.peek(&mut bytes).ok().filter(|&n| n == bytes.len() && n > HEADER)?;
            Some(bytes.split_off(HEADER))
        };
        if !copy(HEADER + detour.head()).is_some_and(|head| detour.wants(&head)) {
            return false;
        }
        if let Some(whole) = copy(frame.len()) {
            detour.receive(&whole);
        }
        true
    }

    /// The detour's next frame for the guest.
    pub(super) fn diverted(&mut self) -> Option<Vec<u8>> {
        self.detour.as_mut()?.next()
    }

    /// Lets the detour act on time.
    pub(super) fn tick(&mut self) {
        if let Some(detour) = &mut self.detour {
            detour.tick();
        }
    }

    /// Delivers what the detour has for the guest.
    pub(super) fn answer(&mut self, io: &mut DeviceIo) -> Result<(), BrokenQueue> {
        match &self.detour {
            Some(detour) if detour.waits() => self.receive(io),
            _ => Ok(()),
        }
    }
}

/// Writes `frame` behind an empty header to `pieces`, which have room for `room` bytes; `false` if
/// that is too little, or if guest memory is gone.
pub(super) fn write_frame(pieces: &[&Slice], room: usize, frame: &[u8]) -> bool {
    if HEADER + frame.len() > room {
        return false;
    }
    let mut bytes = vec![0; HEADER];
    bytes.extend_from_slice(frame);
    let mut rest = &bytes[..];
    for piece in pieces {
        let (front, behind) = rest.split_at(piece.len().min(rest.len()));
        if front.is_empty() {
            break;
        }
        if piece.write_slice(front, 0).is_err() {
            return false;
        }
        rest = behind;
    }
    true
}
