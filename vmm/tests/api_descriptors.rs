//! The API socket of a process that has no descriptor left. Alone in its process, whose limit it
//! changes.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberOps};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use varve_vmm::api::{Response, Server};
use varve_vmm::config::MAX_BODY;

const PATIENCE: Duration = Duration::from_secs(60);

struct Rig {
    events: EventManager<Arc<Server>>,
    server: Arc<Server>,
}

impl Rig {
    /// Handles events for `time`, and answers requests; how many rounds had an event.
    fn run(&mut self, time: Duration) -> usize {
        let (until, mut rounds) = (Instant::now() + time, 0);
        while Instant::now() < until {
            rounds += usize::from(self.events.run_with_timeout(20).unwrap() > 0);
            while let Some(pending) = self.server.next_request() {
                self.server.respond(&pending, &Response::no_content());
            }
        }
        rounds
    }
}

fn answered(client: &mut UnixStream) -> bool {
    client.set_nonblocking(true).unwrap();
    let mut answer = [0; 12];
    client.read(&mut answer).is_ok_and(|n| n == 12 && answer == *b"HTTP/1.1 204")
}

#[test]
fn without_descriptors_it_waits_and_then_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let server = Arc::new(Server::bind(&path, MAX_BODY).unwrap());
    let mut events = EventManager::new().unwrap();
    events.add_subscriber(server.clone());
    let mut rig = Rig { events, server };
    let connect = || {
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        client
    };
    let mut clients: Vec<_> = (0..5).map(|_| connect()).collect();
    let before = getrlimit(Resource::Nofile);
    // Every number below is in use.
    let next = rustix::io::fcntl_dupfd_cloexec(&clients[0], 0).unwrap();
    let most = std::os::fd::AsRawFd::as_raw_fd(&next) as u64;
    drop(next);
    setrlimit(Resource::Nofile, Rlimit { current: Some(most), ..before }).unwrap();
    let rounds = rig.run(Duration::from_secs(2));
    assert!(rounds < 40, "the loop spins: {rounds} rounds in 2 s");
    assert!(!clients.iter_mut().any(answered), "there was a descriptor");

    // One more: the clients take turns, since one that is quiet makes room.
    setrlimit(Resource::Nofile, Rlimit { current: Some(most + 1), ..before }).unwrap();
    let until = Instant::now() + PATIENCE;
    let mut waiting: Vec<_> = clients.iter_mut().collect();
    while !waiting.is_empty() {
        assert!(Instant::now() < until, "{} clients wait", waiting.len());
        rig.run(Duration::from_millis(200));
        waiting.retain_mut(|client| !answered(client));
    }
    setrlimit(Resource::Nofile, before).unwrap();
}
