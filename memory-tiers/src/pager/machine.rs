//! One machine: it connects, hands over its memory, and is answered until it ends.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::{Signal, pidfd_send_signal};
use varve_snapshot::chain;

use super::handshake::{HandshakeError, receive, regions};
use super::{Served, Settings};
use crate::error::TierError;
use crate::fault::answer::FaultContext;
use crate::fault::external::Reply;
use crate::fault::threads::FaultThreads;
use crate::fault::watchdog::lock;
use crate::fault::watched::Watched;
use crate::ram::sys::peer::peer_process;
use crate::ram::sys::uffd::Uffd;

/// Time that a machine may take to end after the pager reported a lost page.
const GRACE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// The reason for the end of a machine's connection.
pub(super) enum End {
    /// The machine's process ended, or the pager did.
    Over,
    /// A page could not be had.
    Lost,
}

/// Serves a machine that has connected until it ends, or until `stop` is ready.
pub(super) fn serve(
    stream: &UnixStream,
    served: &Served,
    settings: &Settings,
    stop: &OwnedFd,
    introduced: impl FnOnce() -> bool,
) -> Result<End, HandshakeError> {
    let hello = receive(stream)?;
    let (regions, page_size) = regions(&hello.mappings, &served.order)?;
    let process =
        peer_process(stream).inspect_err(|e| log::debug!("process of a machine: {e}")).ok();
    let first = hello.mappings.first().map_or(0, |m| m.base_host_virt_addr);
    let uffd = Uffd::of_another(hello.uffd, first).map_err(HandshakeError::NotUffd)?;
    if !introduced() {
        return Err(io::Error::from(io::ErrorKind::ConnectionAborted).into());
    }
    let watched = Watched::by(uffd, true);
    {
        let mut pages = watched.pages.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        regions.all().iter().for_each(|region| pages.insert(region.pages));
    }
    let failed = Arc::new(Failure::new()?);
    let of_threads = failed.clone();
    let context = FaultContext {
        regions,
        page_size,
        watched: Arc::new(watched),
        layout: served.layout.clone(),
        order: served.by_image.clone(),
        sources: served.sources.clone(),
        stats: served.stats.clone(),
        deadline: settings.deadline,
        on_fatal: Arc::new(move |error| of_threads.tell(error)),
    };
    let threads = FaultThreads::start(context, settings.threads)
        .map_err(|e| HandshakeError::Io(io::Error::other(chain(&e))))?;

    // A machine may close its connection and go on: what counts is its process, if it can be seen.
    let alive: &dyn AsFd = process.as_ref().map_or(stream as &dyn AsFd, |p| p as &dyn AsFd);
    let error = match first_of(&[&stop, &failed.event, alive], None) {
        Some(1) => failed.take(),
        _ => None,
    };
    let Some(error) = error else { return Ok(End::Over) };
    log::error!("{}: a machine is lost: {}", served.name, chain(&error));
    say(stream, chain(&error));
    if first_of(&[&stop, alive], Some(&GRACE)).is_none() {
        end(process.as_ref());
    }
    drop(threads);
    Ok(End::Lost)
}

/// Tells a machine why its pages will not come; Firecracker's do not listen.
pub(super) fn say(mut stream: &UnixStream, error: String) {
    let mut said = serde_json::to_vec(&Reply { error }).unwrap_or_default();
    said.push(b'\n');
    if let Err(e) = stream.write_all(&said) {
        log::debug!("telling a machine: {e}");
    }
}

/// A machine that does not listen would wait for its page for ever.
fn end(process: Option<&OwnedFd>) {
    match process.map(|process| pidfd_send_signal(process, Signal::KILL)) {
        Some(Ok(())) => log::warn!("a machine that lost a page and did not end was killed"),
        Some(Err(e)) => log::warn!("a machine that lost a page does not end: {e}"),
        None => log::warn!("a machine that lost a page is not to be seen, and may wait for ever"),
    }
}

/// The first failure of a machine's threads.
struct Failure {
    error: Mutex<Option<TierError>>,
    event: OwnedFd,
}

impl Failure {
    fn new() -> io::Result<Failure> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Failure { error: Mutex::default(), event })
    }

    fn tell(&self, error: TierError) {
        lock(&self.error).get_or_insert(error);
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    fn take(&self) -> Option<TierError> {
        lock(&self.error).take()
    }
}

/// Which is ready first; none if time is up.
fn first_of(fds: &[&dyn AsFd], time: Option<&Timespec>) -> Option<usize> {
    let mut fds: Vec<_> =
        fds.iter().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)).collect();
    loop {
        match poll(&mut fds, time) {
            Ok(0) => return None,
            Err(rustix::io::Errno::INTR) => {}
            // Cannot be waited for: as if the first, which ends it, were ready.
            Err(_) => return Some(0),
            Ok(_) => return fds.iter().position(|fd| !fd.revents().is_empty()),
        }
    }
}
