//! Clients that are slow, send garbage, far too much or several requests at once, or go away in the
//! middle: each costs itself alone. Whatever they do, the guest runs on, and a good client is answered.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use varve_agent::pattern;
use varve_agent::protocol::{Ping, Request};
use varve_tests::Vm;

/// Longest that a good client or the guest's agent waits, with room for the lab's slowness.
const PROMPT: Duration = Duration::from_secs(20);
const GET: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

/// A guest that is to live through it all.
struct Patient {
    vm: Vm,
    uptime_s: f64,
}

impl Patient {
    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.vm.api()).unwrap();
        stream.set_read_timeout(Some(PROMPT)).unwrap();
        stream.set_write_timeout(Some(PROMPT)).unwrap();
        stream
    }

    /// The guest's clock goes on, its vsock carries requests, and the API answers: all promptly.
    fn is_well(&mut self, after: &str) {
        let start = Instant::now();
        let ping: Ping = self.vm.agent().call(&Request::Ping).unwrap();
        assert!(ping.uptime_s > self.uptime_s, "{after}: the guest's time stands still");
        self.uptime_s = ping.uptime_s;
        let state = &self.vm.control("GET", "/", &Value::Null)["state"];
        assert_eq!(state, "Running", "{after}");
        let took = start.elapsed();
        assert!(took < PROMPT, "{after}: {took:?} for an answer");
    }

    /// The whole answer to somebody whose connection is closed after it.
    fn last_words(&self, said: &[u8]) -> String {
        let mut stream = self.connect();
        // The answer may come, and the connection be closed, before all is said.
        let _ = stream.write_all(said);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Err(e) if e.kind() != ErrorKind::ConnectionReset => panic!("no end: {e}"),
            _ => String::from_utf8(answer).unwrap(),
        }
    }
}

#[test]
fn bad_clients_cost_only_themselves() {
    let vm = Vm::builder().option("--memory", "128M").controlled().start();
    let mut patient = Patient { vm, uptime_s: 0.0 };
    patient.vm.info();
    patient.is_well("nothing yet");
    slow(&mut patient);
    garbage(&mut patient);
    too_much(&mut patient);
    pipelining(&mut patient);
    gone(&mut patient);
    too_many(&mut patient);
    patient.vm.signal("TERM");
    assert_eq!(patient.vm.wait().code, Some(0));
}

/// One byte at a time, with pauses in which the others must be served.
fn slow(patient: &mut Patient) {
    let mut client = patient.connect();
    let request = b"PATCH /vm HTTP/1.1\r\nContent-Length: 19\r\n\r\n{\"state\":\"Resumed\"}";
    for (at, byte) in request.iter().enumerate() {
        client.write_all(&[*byte]).unwrap();
        if at % 16 == 0 {
            patient.is_well("a byte of a request");
        }
    }
    let mut answer = [0; 12];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 204");
}

fn garbage(patient: &mut Patient) {
    let mut noise = vec![0; 64 << 10];
    for seed in 0..20 {
        pattern::fill(seed, 0, &mut noise);
        assert!(patient.last_words(&noise).starts_with("HTTP/1.1 400 "), "seed {seed}");
    }
    for said in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n",
        b"BREW /coffee HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"PUT /vm HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"PUT /vm HTTP/1.1\r\nno colon\r\n\r\n",
    ] {
        let answer = patient.last_words(said);
        let said = String::from_utf8_lossy(said);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{said:?}: {answer:?}");
        assert!(answer.contains("fault_message"), "{said:?}: {answer:?}");
    }
    for body in [&b"{"[..], b"\xff\xfe", b"[[[[[[[[", b"null", b"{\"state\": \"Pau\\u0000sed\"}"] {
        let mut said = format!(
            "PATCH /vm HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        said.extend(body);
        assert!(patient.last_words(&said).starts_with("HTTP/1.1 400 "), "{body:?}");
    }
    patient.is_well("garbage");
}

/// What is longer than it may be is refused where it is known, and not kept.
fn too_much(patient: &mut Patient) {
    let before = patient.vm.resident_kib();
    let head = |length: u64| format!("PUT /vm HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
    let long = vec![b'a'; 8 << 20];
    let line = [b"GET /", &long[..]].concat();
    let header = [b"GET / HTTP/1.1\r\nX-Long: ", &long[..]].concat();
    let headers = [b"GET / HTTP/1.1\r\n", &b"X: y\r\n".repeat(1 << 20)[..]].concat();
    for (what, said) in [("line", line), ("header", header), ("headers", headers)] {
        assert!(patient.last_words(&said).starts_with("HTTP/1.1 400 "), "{what}");
    }
    for length in [51_201, 1 << 30, u64::MAX] {
        let said = [head(length).as_bytes(), &long[..]].concat();
        assert!(patient.last_words(&said).starts_with("HTTP/1.1 413 "), "{length}");
    }
    // JSON that is deeper than any stack, within the limit.
    let deep = "[".repeat(51_200);
    let mut client = patient.connect();
    client.write_all(format!("{}{deep}", head(51_200)).as_bytes()).unwrap();
    let mut answer = [0; 12];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 400");
    patient.is_well("too much");
    let grown = patient.vm.resident_kib().saturating_sub(before);
    assert!(grown < 8 << 10, "{grown} KiB more are held");
}

/// Many requests at once are answered in order; one who never reads the answers is not listened to.
fn pipelining(patient: &mut Patient) {
    let mut client = patient.connect();
    let targets: Vec<_> = (0..100).map(|number| format!("/none/{number}")).collect();
    let asked: String = targets.iter().map(|t| format!("GET {t} HTTP/1.1\r\n\r\n")).collect();
    client.write_all(asked.as_bytes()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answers = String::new();
    client.read_to_string(&mut answers).unwrap();
    let mut rest = answers.as_str();
    for target in &targets {
        let words = format!("GET {}.\"", target.trim_start_matches('/'));
        let at = rest.find(&words).unwrap_or_else(|| panic!("no {words} in {rest:?}"));
        rest = &rest[at + words.len()..];
    }

    let before = patient.vm.resident_kib();
    let mut greedy = patient.connect();
    greedy.set_nonblocking(true).unwrap();
    let asked = GET.repeat(10_000);
    let mut wrote = 0;
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        // Whole requests or not does not matter: nobody reads the answers.
        match greedy.write(&asked[wrote % GET.len()..]) {
            Ok(n) => wrote += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => patient.is_well("a flood"),
            Err(e) => panic!("{e}"),
        }
    }
    assert!(wrote > 1 << 16, "no flood: {wrote} bytes");
    let grown = patient.vm.resident_kib().saturating_sub(before);
    assert!(grown < 8 << 10, "{grown} KiB more are held for {wrote} bytes");
}

/// Who goes away does so at any point: in a head, in a body, before the answer.
fn gone(patient: &mut Patient) {
    let request = b"PUT /logger HTTP/1.1\r\nContent-Length: 17\r\n\r\n{\"level\":\"Error\"}";
    for cut in (1..request.len()).step_by(7) {
        patient.connect().write_all(&request[..cut]).unwrap();
    }
    for _ in 0..20 {
        patient.connect().write_all(&GET.repeat(50)).unwrap();
    }
    patient.is_well("clients that go away");
    // What was asked for as a whole is done, whether or not anybody is told.
    let pause = json!({"state": "Paused"}).to_string();
    let length = pause.len();
    let head = format!("PATCH /vm HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
    patient.connect().write_all(format!("{head}{pause}").as_bytes()).unwrap();
    let deadline = Instant::now() + PROMPT;
    while patient.vm.control("GET", "/", &Value::Null)["state"] != "Paused" {
        assert!(Instant::now() < deadline, "it was not paused");
    }
    patient.vm.control("PATCH", "/vm", &json!({"state": "Resumed"}));
    patient.is_well("a pause that nobody waited for");
}

/// More than there is room for are told so, or make others go that are silent; they cost nothing that
/// they do not give back.
fn too_many(patient: &mut Patient) {
    let before = patient.vm.descriptors();
    let mut idle = Vec::new();
    for number in 0..40 {
        let mut client = patient.connect();
        // One that is turned away may be so before it has asked.
        let _ = client.write_all(GET);
        let mut answer = [0; 12];
        client.read_exact(&mut answer).unwrap();
        // Later ones are refused, or take the place of one that has been quiet for a second.
        assert!(&answer == b"HTTP/1.1 200" || number >= 10 && &answer == b"HTTP/1.1 503");
        idle.push(client);
    }
    let held = || patient.vm.descriptors().saturating_sub(before);
    let deadline = Instant::now() + PROMPT;
    // One that was turned away may be about to be closed.
    while held() > 16 {
        assert!(Instant::now() < deadline, "{} connections are held", held());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(held() >= 10, "{} connections are held", held());
    std::thread::sleep(Duration::from_secs(2));
    patient.is_well("silent clients in all places");
    drop(idle);
    patient.is_well("too many");
    let deadline = Instant::now() + PROMPT;
    while patient.vm.descriptors() > before {
        assert!(Instant::now() < deadline, "descriptors are kept: {}", patient.vm.descriptors());
        std::thread::sleep(Duration::from_millis(20));
    }
}
