//! Guest memory whose missing pages another process brings, by Firecracker's handshake: over a unix
//! socket it is sent the userfaultfd and, as JSON, where guest memory is. What it does with them is
//! its business; here it is only seen to that nobody waits for a handler that has ended.
//!
//! The connection stays open for as long as the machine lives, so that the handler learns of its end.

use std::io::{self, ErrorKind, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::error::TierError;
use crate::guest_ram::{GuestRam, HugePages};
use crate::sys::mmap::HUGE_PAGE;
use crate::sys::peer::peer_process;
use crate::sys::uffd::{Uffd, Watch};
use crate::watch::Watched;

/// How long a process may take to end after its connection has closed, before that is remarked upon.
const GRACE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// A run of guest memory, as the handler is told (Firecracker's `GuestRegionUffdMapping`).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct HandlerMapping {
    /// Address of its first byte in this process.
    pub base_host_virt_addr: u64,
    /// Bytes.
    pub size: u64,
    /// Where its content begins in the raw memory file.
    pub offset: u64,
    /// Bytes of the pages that it is made of.
    pub page_size: u64,
    /// The same, in bytes too: an older name that handlers may still read.
    pub page_size_kib: u64,
}

/// Guest memory in the care of another process, until this is dropped.
#[derive(Debug)]
pub struct Handler {
    watcher: Option<JoinHandle<()>>,
    stop: Arc<OwnedFd>,
}

impl Handler {
    /// Hands `ram`, which is fresh, to the handler that listens at `socket`. Should it end,
    /// `on_fatal` is called from a thread of its own: the machine must end, as with
    /// [`crate::Hooks::on_fatal`].
    pub fn start(
        ram: &GuestRam,
        socket: &Path,
        on_fatal: Box<dyn Fn(TierError) + Send + Sync>,
    ) -> Result<Handler, TierError> {
        let watched = Arc::new(Watched::by(Uffd::for_handler()?, true));
        ram.watch(watched.clone())?;
        for region in ram.regions() {
            watched.add(ram, region.pages, Watch::Missing)?;
        }
        let failed = |source| TierError::Handler { socket: socket.into(), source };
        let stream = UnixStream::connect(socket).map_err(failed)?;
        // Before it can end unseen.
        let process = peer_process(&stream)
            .inspect_err(|e| log::debug!("process of the page fault handler: {e}"))
            .ok();
        let text = serde_json::to_vec(&mappings(ram)).map_err(|e| failed(e.into()))?;
        send(&stream, &text, &watched.uffd).map_err(failed)?;

        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| TierError::Thread(e.into()))?;
        let stop = Arc::new(stop);
        let (of_thread, socket) = (stop.clone(), socket.to_owned());
        let run = move || {
            let _end = crate::faults::EndTogether;
            if !stopped_first(stream, process, &of_thread, &socket) {
                on_fatal(TierError::HandlerEnded(socket));
            }
        };
        Ok(Handler { watcher: Some(crate::threads::spawn("handler", run)?), stop })
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

fn mappings(ram: &GuestRam) -> Vec<HandlerMapping> {
    let page_size = if ram.huge_pages() == HugePages::Pool { HUGE_PAGE as u64 } else { 4096 };
    let mut offset = 0;
    let mapping = |region: &crate::RamRegion| {
        let size = region.pages.len();
        let from = offset;
        offset += size;
        HandlerMapping {
            base_host_virt_addr: region.host,
            size,
            offset: from,
            page_size,
            page_size_kib: page_size,
        }
    };
    ram.regions().iter().map(mapping).collect()
}

/// Sends both in one message, as handlers expect.
fn send(stream: &UnixStream, text: &[u8], uffd: &Uffd) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [uffd.as_fd()];
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(ErrorKind::OutOfMemory.into());
    }
    // A handler that has gone is an error, not a signal.
    let sent = sendmsg(stream, &[IoSlice::new(text)], &mut control, SendFlags::NOSIGNAL)?;
    if sent == text.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
}

/// Waits until the machine ends (true) or nobody answers for its pages any more (false).
///
/// A handler may close its connection and go on answering. So what counts is the process, where it
/// can be seen, and the connection only where it cannot.
fn stopped_first(
    mut stream: UnixStream,
    process: Option<OwnedFd>,
    stop: &OwnedFd,
    socket: &PathBuf,
) -> bool {
    let mut ignored = [0; 256];
    loop {
        match first_of(stop, &stream, None) {
            Some(true) => return true,
            Some(false) => match stream.read(&mut ignored) {
                // It has nothing to say in this protocol.
                Ok(1..) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => break,
            },
            None => {}
        }
    }
    let Some(process) = process else { return false };
    let mut patience = Some(GRACE);
    loop {
        match first_of(stop, &process, patience.as_ref()) {
            Some(stopped) => return stopped,
            None => log::warn!(
                "the page fault handler at {socket:?} closed its connection; as long as its \
                 process lives, it is taken to go on answering"
            ),
        }
        patience = None;
    }
}

/// Whether `stop` is ready, or else `other`; none if time is up.
fn first_of(stop: &OwnedFd, other: &impl AsFd, patience: Option<&Timespec>) -> Option<bool> {
    let mut fds = [PollFd::new(stop, PollFlags::IN), PollFd::new(other, PollFlags::IN)];
    loop {
        match poll(&mut fds, patience) {
            Ok(0) => return None,
            Ok(_) => return Some(!fds[0].revents().is_empty()),
            Err(rustix::io::Errno::INTR) => continue,
            // Cannot be waited for: taken for gone, rather than never to be told.
            Err(_) => return Some(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::uffd::Install;
    use crate::testing::*;
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    use std::os::unix::net::UnixListener;
    use std::sync::mpsc::channel;
    use std::time::Duration;
    use varve_snapshot::PageRange;

    /// The other side: what it is sent.
    fn accept(listener: &UnixListener) -> (UnixStream, Vec<HandlerMapping>, OwnedFd) {
        let (stream, _) = listener.accept().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut text = [0; 4096];
        let mut into = [io::IoSliceMut::new(&mut text)];
        let got = recvmsg(&stream, &mut into, &mut control, RecvFlags::empty()).unwrap();
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        (stream, serde_json::from_slice(&text[..got.bytes]).unwrap(), fd.unwrap())
    }

    #[test]
    fn pages_come_from_the_handler_and_it_may_close_its_connection() {
        if !has_uffd() {
            return;
        }
        let memory = [(0, 0x8000), (1 << 32, 0x4000)].map(|(at, n)| PageRange::new(at, n).unwrap());
        let ram = Arc::new(GuestRam::new(&memory, false).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let (fatal, lost) = channel();
        let on_fatal = Box::new(move |e: TierError| fatal.send(e).unwrap());
        let handler = Handler::start(&ram, &socket, on_fatal).unwrap();
        let (stream, mappings, fd) = accept(&listener);
        let of = |at: usize, size, offset| HandlerMapping {
            base_host_virt_addr: ram.regions()[at].host,
            size,
            offset,
            page_size: 4096,
            page_size_kib: 4096,
        };
        assert_eq!(mappings, [of(0, 0x8000, 0), of(1, 0x4000, 0x8000)]);
        drop(stream);

        let (asked, answered) = ((1 << 32) + 0x2000, content((1 << 32) + 0x2000, 0));
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| read_page(&ram, asked));
            // Through the descriptor that was sent, a fault is seen; any copy of it can answer.
            poll(&mut [PollFd::new(&fd, PollFlags::IN)], None).unwrap();
            let uffd = &ram.watched.get().unwrap().uffd;
            let fault = uffd.read().unwrap()[0];
            assert_eq!(ram.guest_address(fault.address), Some(asked));
            uffd.copy(fault.address, &answered, Install::Plain).unwrap();
            assert_eq!(reader.join().unwrap(), answered);
        });
        // This process, the handler's, lives on.
        assert!(lost.recv_timeout(Duration::from_millis(1200)).is_err());
        drop(handler);
    }

    #[test]
    fn nobody_listens() {
        if !has_uffd() {
            return;
        }
        let ram = GuestRam::new(&[PageRange::new(0, 0x1000).unwrap()], false).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let failed = Handler::start(&ram, &dir.path().join("none"), Box::new(|_| {})).unwrap_err();
        assert!(matches!(failed, TierError::Handler { .. }), "{failed}");
    }
}
