//! Clients of the socket, good and bad, without a machine.

use super::*;
use crate::config::MAX_BODY;
use event_manager::{EventManager, SubscriberOps};
use std::sync::Arc;
use std::time::Duration;

struct Rig {
    events: EventManager<Arc<Server>>,
    server: Arc<Server>,
    dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let server = Arc::new(Server::bind(&dir.path().join("s"), MAX_BODY).unwrap());
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(server.clone());
        Rig { events, server, dir }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.dir.path().join("s")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
    }

    /// Handles events and answers every request with its path, until nothing is left to do.
    /// Says how much there was.
    fn run(&mut self) -> usize {
        let mut done = 0;
        loop {
            while let Some(pending) = self.server.next_request() {
                let body = serde_json::json!(pending.request.path);
                self.server.respond(&pending, &Response::ok(&body));
                done += 1;
            }
            match self.events.run_with_timeout(0).unwrap() {
                0 => return done,
                events => done += events,
            }
        }
    }
}

fn read_available(stream: &mut UnixStream) -> String {
    stream.set_nonblocking(true).unwrap();
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let mut rig = Rig::new();
    let mut client = rig.connect();
    client.write_all(b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\nGET /c").unwrap();
    rig.run();
    client.write_all(b" HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
    rig.run();
    let text = read_available(&mut client);
    let at = |needle: &str| text.find(needle).unwrap();
    assert!(at("\"/a\"") < at("\"/b\"") && at("\"/b\"") < at("\"/c\""), "{text}");
    assert!(rig.server.state().connections.is_empty(), "closed as asked");
}

#[test]
fn bad_clients_cost_only_themselves() {
    let mut rig = Rig::new();
    let mut garbage = rig.connect();
    garbage.write_all(b"\x16\x03\x01 tls?").unwrap();
    let half = rig.connect();
    (&half).write_all(b"PUT /x HTTP/1.1\r\nContent-Length: 9\r\n\r\n{").unwrap();
    drop(half);
    let mut slow = rig.connect();
    slow.write_all(b"GET /slow HT").unwrap();
    rig.run();
    assert!(read_available(&mut garbage).starts_with("HTTP/1.1 400 "));
    let mut good = rig.connect();
    good.write_all(b"GET /good HTTP/1.1\r\n\r\n").unwrap();
    rig.run();
    assert!(read_available(&mut good).contains("/good"));
    slow.write_all(b"TP/1.1\r\n\r\n").unwrap();
    rig.run();
    assert!(read_available(&mut slow).contains("/slow"));
    assert_eq!(rig.server.state().connections.len(), 2, "garbage and half are gone");
}

#[test]
fn who_never_reads_is_not_listened_to() {
    let mut rig = Rig::new();
    let mut greedy = rig.connect();
    greedy.set_nonblocking(true).unwrap();
    let asked = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1000));
    let mut wrote = 0;
    // Far more than sockets hold: at some point nobody takes any more of it.
    while wrote < 64 << 20 {
        match greedy.write(asked.as_bytes().get(wrote % asked.len()..).unwrap()) {
            Ok(n) => wrote += n,
            Err(_) if rig.run() == 0 => break,
            Err(_) => {}
        }
    }
    assert!(wrote < 16 << 20, "{wrote} bytes were taken");
    let held = |rig: &Rig| {
        let state = rig.server.state();
        state.connections.values().map(|c| c.input.len() + c.output.len()).sum::<usize>()
    };
    assert!(held(&rig) < 3 * MAX_BODY + MAX_HEAD, "{} bytes are held", held(&rig));
    // As soon as it reads, it gets on.
    let mut answers = String::new();
    loop {
        let more = read_available(&mut greedy);
        if more.is_empty() && rig.run() == 0 {
            break;
        }
        answers.push_str(&more);
    }
    let whole = wrote / asked.len();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), whole);
}

#[test]
fn an_answer_reaches_who_sends_no_more() {
    let mut rig = Rig::new();
    let mut client = rig.connect();
    client.write_all(b"GET /last HTTP/1.1\r\n\r\n").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    rig.run();
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert!(text.ends_with("\"/last\""), "{text}");
    assert!(rig.server.state().connections.is_empty());
}

#[test]
fn a_quiet_connection_makes_room_and_a_busy_one_does_not() {
    let mut rig = Rig::new();
    // They ask, and are not answered yet.
    let mut others: Vec<_> = (0..MAX_CONNECTIONS).map(|_| rig.connect()).collect();
    others.iter_mut().for_each(|c| c.write_all(b"GET /o HTTP/1.1\r\n\r\n").unwrap());
    while rig.events.run_with_timeout(0).unwrap() > 0 {}
    let mut late = rig.connect();
    while rig.events.run_with_timeout(0).unwrap() > 0 {}
    assert!(read_available(&mut late).starts_with("HTTP/1.1 503 "));
    rig.run();
    others.iter_mut().for_each(|c| assert!(read_available(c).contains("\"/o\"")));

    // All are quiet now, one in the middle of a request; the one that spoke last stays.
    others[0].write_all(b"GET /half HT").unwrap();
    rig.run();
    let mut next = rig.connect();
    next.write_all(b"GET /next HTTP/1.1\r\n\r\n").unwrap();
    rig.run();
    assert!(read_available(&mut next).contains("/next"));
    assert_eq!(rig.server.state().connections.len(), MAX_CONNECTIONS);
    others[0].write_all(b"TP/1.1\r\n\r\n").unwrap();
    rig.run();
    assert!(read_available(&mut others[0]).contains("/half"));
    let gone = others.iter_mut().filter_map(|c| c.read(&mut [0; 1]).ok()).count();
    assert_eq!(gone, 1, "one was hung up on");
}

#[test]
fn the_socket_file_is_removed() {
    let rig = Rig::new();
    let path = rig.dir.path().join("s");
    assert!(Server::bind(&path, MAX_BODY).is_err(), "in use");
    drop(rig.events);
    drop(rig.server);
    assert!(!path.exists());
}

/// Another process may have put its socket in the place.
#[test]
fn the_socket_file_of_another_stays() {
    let rig = Rig::new();
    let path = rig.dir.path().join("s");
    std::fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(rig.events);
    drop(rig.server);
    assert!(path.exists());
}
