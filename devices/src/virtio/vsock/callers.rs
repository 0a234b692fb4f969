//! Host programs that have connected and not named a port yet: a bounded number, for a bounded
//! time. They hold nothing but their socket; see [`greeting`].

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;

use super::endpoint::{Endpoint, Greeting, greeting};
use super::poller::Poller;

/// Callers at once.
pub const MAX_CALLERS: usize = 1023;
/// Callers accepted in a row before others have their turn.
const MAX_ACCEPTS: usize = 64;
/// How long a caller may take to name a port; people type it by hand.
const GREETING_TIME: Duration = Duration::from_secs(60);
/// How long none is accepted after descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

struct Caller {
    socket: UnixStream,
    deadline: Instant,
}

/// The callers, by their tokens in the poller.
#[derive(Default)]
pub struct Callers {
    waiting: HashMap<u64, Caller>,
    /// When the listener, out of descriptors, is watched again.
    accept_again: Option<Instant>,
}

impl Callers {
    /// Whether `token` is a caller's.
    pub fn contains(&self, token: u64) -> bool {
        self.waiting.contains_key(&token)
    }

    /// How many there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Hangs up on all.
    pub fn clear(&mut self) {
        self.waiting.clear();
    }

    /// Accepts those that wait at `endpoint`.
    pub fn accept(&mut self, endpoint: &Endpoint, poller: &mut Poller) {
        for _ in 0..MAX_ACCEPTS {
            let socket = match endpoint.accept() {
                Ok(Some(socket)) => socket,
                Ok(None) => return,
                Err(e) => {
                    log::error!("vsock: cannot accept a host program: {e}");
                    let at = Instant::now() + ACCEPT_PAUSE;
                    poller.forget(endpoint.listener());
                    self.accept_again = Some(at);
                    poller.alarm(at);
                    return;
                }
            };
            if self.waiting.len() >= MAX_CALLERS {
                log::debug!("vsock: {MAX_CALLERS} host programs wait, no more are accepted");
                continue;
            }
            let token = poller.new_token();
            if let Err(e) = poller.watch(&socket, token) {
                log::error!("vsock: cannot watch a host program: {e}");
                continue;
            }
            let deadline = Instant::now() + GREETING_TIME;
            poller.alarm(deadline);
            self.waiting.insert(token, Caller { socket, deadline });
        }
    }

    /// A caller has said something, or hung up: its socket and the port that it named, if it did.
    pub fn greet(&mut self, token: u64, events: EventFlags) -> Option<(UnixStream, u32)> {
        let answer = greeting(&self.waiting.get(&token)?.socket);
        if answer == Greeting::Unfinished && !events.contains(EventFlags::RDHUP) {
            return None;
        }
        let Caller { socket, deadline: _ } = self.waiting.remove(&token)?;
        match answer {
            Greeting::Port(port) => Some((socket, port)),
            answer => {
                log::debug!("vsock: a host program is turned away: {answer:?}");
                None
            }
        }
    }

    /// Hangs up on those out of time, and sets the alarm for those that are not.
    pub fn expire(&mut self, now: Instant, endpoint: &Endpoint, poller: &mut Poller) {
        self.waiting.retain(|_, caller| caller.deadline > now);
        if let Some(at) = self.waiting.values().map(|caller| caller.deadline).min() {
            poller.alarm(at);
        }
        match self.accept_again {
            Some(at) if at > now => poller.alarm(at),
            Some(_) => match poller.watch_listener(endpoint.listener()) {
                Ok(()) => self.accept_again = None,
                Err(e) => {
                    log::error!("vsock: cannot watch the socket: {e}");
                    poller.alarm(now + ACCEPT_PAUSE);
                }
            },
            None => {}
        }
    }
}
