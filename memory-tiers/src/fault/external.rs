//! Guest memory whose missing pages another process brings, by Firecracker's handshake: over a unix
//! socket it is sent the userfaultfd and, as JSON, where guest memory is. What it does with them is
//! its business; here it is only seen to that nobody waits for a handler that has ended.
//!
//! The connection stays open for as long as the machine lives, so that the handler learns of its end.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use varve_snapshot::{FlatOrder, PAGE_SIZE, PageRange};

use crate::error::TierError;
use crate::fault::watched::Watched;
use crate::ram::error::RamError;
use crate::ram::guest_ram::GuestRam;
use crate::ram::kind::{HUGE_PAGE, HugePages};
use crate::ram::sys::peer::peer_process;
use crate::ram::sys::uffd::{Uffd, Watch};

/// Time that a process may take to end after its connection closed, before a warning.
const GRACE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Limit of the time for the connection, and again for the message.
const PATIENCE: Duration = Duration::from_secs(10);

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
    #[serde(default)]
    pub page_size: u64,
    /// The same, in bytes too: an older name that handlers may still read.
    #[serde(default)]
    pub page_size_kib: u64,
}

impl HandlerMapping {
    /// Bytes of its pages; older senders say it under the older name, or have no others than these.
    pub(crate) fn bytes_of_page(&self) -> u64 {
        let said = [self.page_size, self.page_size_kib].into_iter().find(|&size| size != 0);
        said.unwrap_or(PAGE_SIZE)
    }
}

/// The one thing that a handler may say, as a line of JSON: why it cannot go on. varve's pager says it;
/// others say nothing.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Reply {
    pub error: String,
}

/// Longest line that is listened to.
const MAX_SAID: usize = 64 << 10;

/// Guest memory in the care of another process, until this is dropped.
#[derive(Debug)]
pub struct ExternalHandler {
    watcher: Option<JoinHandle<()>>,
    stop: Arc<OwnedFd>,
}

impl ExternalHandler {
    /// Hands `ram`, which is fresh, to the handler that listens at `socket`. Should it end,
    /// `on_fatal` is called from a thread of its own: the machine must end, as with
    /// [`crate::Hooks::on_fatal`].
    pub fn start(
        ram: &GuestRam,
        socket: &Path,
        on_fatal: Box<dyn Fn(TierError) + Send + Sync>,
    ) -> Result<ExternalHandler, TierError> {
        let watched = Arc::new(Watched::by_handler()?);
        ram.watch(watched.clone())?;
        for region in ram.regions() {
            watched.add(ram, region.pages, Watch::Missing)?;
        }
        ExternalHandler::hand_over(ram, &watched, socket, on_fatal.into())
    }

    /// The same for the part of `ram` that is `watched`, [by a handler](Watched::by_handler).
    pub(crate) fn hand_over(
        ram: &GuestRam,
        watched: &Watched,
        socket: &Path,
        on_fatal: Arc<dyn Fn(TierError) + Send + Sync>,
    ) -> Result<ExternalHandler, TierError> {
        let failed = |source| TierError::Handler { socket: socket.into(), source };
        let stream = connect(socket).map_err(failed)?;
        // Before it can end unseen.
        let process = peer_process(&stream)
            .inspect_err(|e| log::debug!("process of the page fault handler: {e}"))
            .ok();
        let text = serde_json::to_vec(&mappings(ram, watched)).map_err(|e| failed(e.into()))?;
        send(&stream, &text, &watched.uffd).map_err(failed)?;

        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| RamError::Thread(e.into()))?;
        let stop = Arc::new(stop);
        let (of_thread, socket) = (stop.clone(), socket.to_owned());
        let run = move || {
            let _end = crate::fault::threads::EndTogether;
            match wait(stream, process, &of_thread, &socket) {
                End::Stopped => {}
                End::Gone => on_fatal(TierError::HandlerEnded(socket)),
                End::Failed(said) => on_fatal(TierError::HandlerFailed { socket, said }),
            }
        };
        Ok(ExternalHandler { watcher: Some(crate::ram::threads::spawn("handler", run)?), stop })
    }
}

impl Drop for ExternalHandler {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

/// The runs of `ram` that are watched.
fn mappings(ram: &GuestRam, watched: &Watched) -> Vec<HandlerMapping> {
    let page_size = if ram.huge_pages() == HugePages::Pool { HUGE_PAGE as u64 } else { PAGE_SIZE };
    let memory: Vec<PageRange> = ram.regions().iter().map(|r| r.pages).collect();
    let order = FlatOrder::new(&memory);
    let mapping = |pages: PageRange| {
        Some(HandlerMapping {
            base_host_virt_addr: ram.places().host(pages).ok()?,
            size: pages.len(),
            offset: order.of_pages(&pages)? * PAGE_SIZE,
            page_size,
            page_size_kib: page_size,
        })
    };
    let watched = watched.pages.read().unwrap_or_else(PoisonError::into_inner).ranges();
    watched.into_iter().flat_map(|range| ram.places().within(range)).filter_map(mapping).collect()
}

/// Connects to a handler; neither that nor a message to it takes longer than [`PATIENCE`].
fn connect(socket: &Path) -> io::Result<UnixStream> {
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with, sockopt,
    };
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&stream, sockopt::Timeout::Send, Some(PATIENCE))?;
    rustix::net::connect(&stream, &SocketAddrUnix::new(socket)?)?;
    Ok(stream.into())
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
    let mut stream = stream;
    stream.write_all(text.get(sent..).unwrap_or_default())
}

/// What a machine's time with its handler ends with.
enum End {
    /// The machine.
    Stopped,
    /// The handler.
    Gone,
    /// The handler, as far as this machine goes, in its words.
    Failed(String),
}

/// Waits until the machine ends or nobody answers for its pages any more.
///
/// A handler may close its connection and go on answering. So what counts is the process, where it
/// can be seen, and the connection only where it cannot.
fn wait(mut stream: UnixStream, process: Option<OwnedFd>, stop: &OwnedFd, socket: &PathBuf) -> End {
    let (mut said, mut warned) = (Vec::new(), false);
    let mut piece = [0; 4096];
    loop {
        match first_of(stop, &stream, None) {
            Some(true) => return End::Stopped,
            Some(false) => match stream.read(&mut piece) {
                Ok(len @ 1..) => {
                    said.extend_from_slice(piece.get(..len).unwrap_or_default());
                    let (end, strange) = listen(&mut said);
                    if let Some(error) = end {
                        return End::Failed(error);
                    }
                    // Handlers other than varve's pager may say what they like.
                    if let Some(line) = strange.filter(|_| !warned) {
                        warned = true;
                        log::warn!(
                            "the page fault handler at {socket:?} says {line:?}, which is no \
                             {{\"error\": ...}}: ignored, as is all of that kind after it"
                        );
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => break,
            },
            None => {}
        }
    }
    let Some(process) = process else { return End::Gone };
    let mut patience = Some(GRACE);
    loop {
        match first_of(stop, &process, patience.as_ref()) {
            Some(true) => return End::Stopped,
            Some(false) => return End::Gone,
            None => log::warn!(
                "the page fault handler at {socket:?} closed its connection; as long as its \
                 process lives, it is taken to go on answering"
            ),
        }
        patience = None;
    }
}

/// Takes whole lines out of what was said: the words of the first that is understood, and the beginning of
/// the first that is not.
fn listen(said: &mut Vec<u8>) -> (Option<String>, Option<String>) {
    const SHOWN: usize = 200;
    let mut strange = None;
    loop {
        let end = said.iter().position(|&byte| byte == b'\n').map(|end| end + 1);
        // The last line may end with the connection.
        let line = said.get(..end.unwrap_or(said.len())).unwrap_or_default().trim_ascii();
        if let Ok(Reply { error }) = serde_json::from_slice(line) {
            return (Some(error), strange);
        }
        let whole = end.or(Some(said.len()).filter(|&len| len > MAX_SAID));
        let Some(end) = whole else { return (None, strange) };
        if !line.is_empty() && strange.is_none() {
            let shown = line.get(..SHOWN).unwrap_or(line);
            strange = Some(String::from_utf8_lossy(shown).into_owned());
        }
        said.drain(..end);
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
    use crate::ram::sys::uffd::Install;
    use crate::testing::*;
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    use std::os::unix::net::UnixListener;
    use std::sync::mpsc::channel;

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
        let handler = ExternalHandler::start(&ram, &socket, on_fatal).unwrap();
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
        let refused = crate::Offload::new(ram.clone(), None, hooks().0).err();
        assert!(matches!(refused, Some(crate::OffloadError::Handled)), "{refused:?}");

        let (context, answered) = ((1 << 32) + 0x2000, content((1 << 32) + 0x2000, 0));
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| read_page(&ram, context));
            // Through the descriptor that was sent, a fault is seen; any copy of it can answer.
            poll(&mut [PollFd::new(&fd, PollFlags::IN)], None).unwrap();
            let watched = Watched::of(&ram).unwrap();
            let uffd = &watched.uffd;
            let fault = uffd.read().unwrap()[0];
            assert_eq!(ram.guest_address(fault.address), Some(context));
            uffd.copy(fault.address, &answered, Install::Plain).unwrap();
            assert_eq!(reader.join().unwrap(), answered);
        });
        // This process, the handler's, lives on.
        assert!(lost.recv_timeout(Duration::from_millis(1200)).is_err());
        drop(handler);
    }

    /// What a machine makes of what its handler said before it closed the connection.
    fn heard(text: &[u8]) -> End {
        let (here, mut there) = UnixStream::pair().unwrap();
        there.write_all(text).unwrap();
        drop(there);
        let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        wait(here, None, &stop, &PathBuf::from("s"))
    }

    #[test]
    fn changed_words_of_a_handler_are_ignored_or_shown() {
        let mut line = serde_json::to_vec(&Reply { error: "page 7 is lost".into() }).unwrap();
        line.push(b'\n');
        for at in 0..line.len() {
            for bit in 0..8 {
                let mut changed = line.clone();
                changed[at] ^= 1 << bit;
                assert!(!matches!(heard(&changed), End::Stopped));
                // What follows on a line of its own is understood.
                changed.push(b'\n');
                changed.extend(&line);
                let End::Failed(said) = heard(&changed) else { panic!("{at}, {bit}") };
                assert!(said.contains("page 7") || at < line.len() - 2, "{said}");
            }
            assert!(matches!(heard(&line[..at]), End::Gone) || at == line.len() - 1, "{at}");
        }
        let mut said = [b"what is this?\n", &line[..], b"rest"].concat();
        let (words, strange) = listen(&mut said);
        assert_eq!(words.as_deref(), Some("page 7 is lost"));
        assert_eq!(strange.as_deref(), Some("what is this?"));
        let mut long = vec![b'x'; MAX_SAID + 1];
        assert_eq!(listen(&mut long).1.map(|shown| shown.len()), Some(200));
        assert!(long.is_empty());
    }

    #[test]
    fn nobody_listens() {
        if !has_uffd() {
            return;
        }
        let ram = GuestRam::new(&[PageRange::new(0, 0x1000).unwrap()], false).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let failed =
            ExternalHandler::start(&ram, &dir.path().join("none"), Box::new(|_| {})).unwrap_err();
        assert!(matches!(failed, TierError::Handler { .. }), "{failed}");
    }
}
