//! The metadata service as a guest sees it, frame by frame: a guest with a TCP of its own, which
//! shares no code with the station's.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use varve_devices::metrics::MmdsMetrics;
use varve_devices::mmds::Mmds;

#[path = "../fuzz/fuzz_targets/guest.rs"]
mod guest;

use guest::{ADDRESS, GUEST, Guest, RST, SYN, arp, ipv4, misbehave, mmds, tcp};

const GET: &str = "GET /latest/id HTTP/1.1\r\n\r\n";

#[test]
fn only_frames_for_the_station_are_taken() {
    let guest = Guest::new(mmds(0), "V1", None);
    let wants = |frame: &[u8]| guest.stack.wants(frame);
    assert!(wants(&arp(1, GUEST)) && wants(&ipv4(6, b"")) && wants(&ipv4(17, b"")));
    assert!(!wants(&arp(1, GUEST)[..41]) && !wants(&ipv4(6, b"")[..33]) && !wants(b""));
    let mut other = ipv4(6, b"");
    other[33] ^= 1;
    assert!(!wants(&other));
    let mut question = arp(1, GUEST);
    question[38..42].copy_from_slice(&GUEST.octets());
    assert!(!wants(&question));
    for kind in [[0x86, 0xdd], [0x81, 0]] {
        let mut frame = ipv4(6, b"");
        frame[12..14].copy_from_slice(&kind);
        assert!(!wants(&frame));
    }
}

#[test]
fn questions_for_the_address_are_answered() {
    let mut guest = Guest::new(mmds(0), "V1", None);
    guest.send(&arp(1, GUEST));
    let reply = guest.stack.next(guest.now).unwrap();
    assert_eq!(reply[..12], [&[2, 0, 0, 0, 0, 2][..], &guest::STATION_MAC].concat());
    assert_eq!(reply[20..22], [0, 2], "a reply");
    assert_eq!(reply[22..28], guest::STATION_MAC);
    assert_eq!(reply[28..32], ADDRESS.octets());
    assert_eq!(guest.stack.next(guest.now), None);
}

#[test]
fn requests_with_and_without_arp_before() {
    for known in [true, false] {
        let mut guest = Guest::new(mmds(0), "V1", None);
        if known {
            guest.send(&arp(1, GUEST));
            guest.take_all();
        }
        let answer = guest.ask(1024, GET);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\ni-7"));
        assert_eq!(guest.stack.poll_at(guest.now), None, "nothing is left to do");
    }
}

#[test]
fn several_requests_on_a_connection() {
    let mut guest = Guest::new(mmds(0), "V1", None);
    let line = guest.open(1024);
    guest.say(line, &GET[..9]);
    assert_eq!(guest.lines[line].received, b"");
    guest.say(line, &format!("{}{GET}{}", &GET[9..], "GET /latest/id HTTP/1.1\r\nConn"));
    guest.say(line, "ection: close\r\n\r\n");
    let text = String::from_utf8(guest.lines[line].received.clone()).unwrap();
    assert_eq!(text.matches("200 OK").count(), 3, "{text}");
    assert!(guest.lines[line].ended, "closed as asked");
    guest.finish(line);
    assert!(!guest.lines[line].reset);
}

#[test]
fn the_second_version_end_to_end() {
    let mut guest = Guest::new(mmds(0), "V2", None);
    assert!(guest.ask(1, GET).starts_with("HTTP/1.1 401 Unauthorized\r\n"));
    let put = "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n";
    let answer = guest.ask(2, put);
    let (_, token) = answer.split_once("\r\n\r\n").unwrap();
    let get = format!("GET /latest/id HTTP/1.1\r\nX-metadata-token: {token}\r\n\r\n");
    assert!(guest.ask(3, &get).ends_with("\r\n\r\ni-7"));
}

#[test]
fn answers_longer_than_any_buffer() {
    // Cable, socket and window each hold less.
    for mtu in [None, Some(576), Some(68)] {
        let mut guest = Guest::new(mmds(400_000), "V1", mtu);
        let answer = guest.ask(1024, "GET /latest/long HTTP/1.0\r\n\r\n");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("Content-Length: 400000"), "{head}");
        assert!(body.len() == 400_000 && body.bytes().all(|b| b == b'x'), "{}", body.len());
    }
}

#[test]
fn a_guest_that_takes_nothing_holds_a_bounded_amount() {
    let mut guest = Guest::new(mmds(100_000), "V1", None);
    guest.send(&arp(1, GUEST));
    let line = guest.open(1024);
    for _ in 0..50 {
        guest.segment(line, guest::ACK, b"GET /latest/long HTTP/1.1\r\n\r\n");
        guest.send(&arp(1, GUEST));
    }
    let mut waiting = 0;
    while guest.stack.next(guest.now).is_some() {
        waiting += 1;
        assert!(waiting < 200, "more than a window comes without acknowledgement");
    }
    // It is given up, and another one is served.
    guest.pass(Duration::from_secs(60));
    assert!(guest.ask(1025, GET).ends_with("i-7"));
}

#[test]
fn idle_connections_make_room() {
    let mut guest = Guest::new(mmds(0), "V1", None);
    let lines: Vec<_> = (0..30).map(|n| guest.open(2000 + n)).collect();
    assert!(lines.iter().all(|&line| guest.lines[line].accepted));
    let refused = guest.open(3000);
    assert!(guest.lines[refused].reset, "one too many");
    guest.pass(Duration::from_secs(9));
    guest.say(lines[0], GET);
    guest.pass(Duration::from_secs(2));
    assert!(guest.ask(3001, GET).ends_with("i-7"), "in place of an idle one");
    guest.say(lines[0], GET);
    assert!(guest.lines[lines[0]].received.ends_with(b"i-7"), "the busy one is still there");
    guest.say(lines[1], GET);
    assert!(guest.lines[lines[1]].reset, "the longest idle one is not");
}

#[test]
fn many_requests_in_a_row() {
    let mut guest = Guest::new(mmds(0), "V1", None);
    for n in 0..200 {
        // Closed by the station, closed by the guest, and given up by it.
        let version = n % 2;
        let request = format!("GET /latest/id HTTP/1.{version}\r\n\r\n");
        assert!(guest.ask(5000 + n, &request).ends_with("i-7"), "request {n}");
        let abandoned = guest.open(10_000 + n);
        guest.segment(abandoned, RST | guest::ACK, b"");
        let half_open = 20_000 + n;
        guest.send(&tcp(half_open, 7, 0, SYN, 1000, b""));
        guest.send(&tcp(half_open, 8, 0, RST, 1000, b""));
        guest.take_all();
    }
}

#[test]
fn a_lost_answer_is_sent_again() {
    let mut guest = Guest::new(mmds(0), "V1", None);
    let line = guest.open(1024);
    guest.segment(line, guest::ACK, GET.as_bytes());
    while guest.stack.next(guest.now).is_some() {}
    let seq = &mut guest.lines[line].seq;
    *seq = seq.wrapping_add(GET.len() as u32);
    assert!(guest.stack.poll_at(guest.now).is_some(), "the timer is set");
    guest.pass(Duration::from_secs(5));
    assert!(guest.lines[line].received.ends_with(b"i-7"));
}

#[test]
fn connections_do_not_outlive_the_driver() {
    let mut guest = Guest::new(mmds(0), "V1", None);
    let line = guest.open(1024);
    guest.send(&arp(1, GUEST));
    guest.stack.reset();
    assert!(!guest.stack.waits() && guest.stack.poll_at(guest.now).is_none());
    guest.say(line, GET);
    assert!(guest.lines[line].reset);
    assert!(guest.ask(1025, GET).ends_with("i-7"));
}

#[test]
fn what_happens_is_counted() {
    let metrics = Arc::<MmdsMetrics>::default();
    let mmds = Arc::new(Mmds::new(100, metrics.clone()).unwrap());
    let mut guest = Guest::new(mmds, "V1", None);
    guest.send(&arp(1, GUEST));
    guest.send(&ipv4(17, b"12345678"));
    let mut cut = ipv4(6, b"");
    cut[16] = 0xff;
    guest.send(&cut);
    guest.take_all();
    guest.ask(1024, GET);
    guest.ask(1025, &GET.replace("\r\n\r\n", "\r\nX-metadata-token: 0\r\n\r\n"));
    let counts = [
        (&metrics.rx_accepted_err, 1),
        (&metrics.rx_accepted_unusual, 1),
        (&metrics.rx_no_token, 1),
        (&metrics.rx_invalid_token, 1),
        (&metrics.connections_created, 2),
        (&metrics.connections_destroyed, 2),
        (&metrics.tx_frames, guest.frames as u64),
        (&metrics.rx_accepted, metrics.rx_count.get() + 3),
    ];
    for (place, (count, expected)) in counts.into_iter().enumerate() {
        assert_eq!(count.get(), expected, "count {place}");
    }
    assert!(metrics.tx_bytes.get() > 54 * metrics.tx_count.get());
}

proptest! {
    #[test]
    fn bad_guests_harm_nobody(script in proptest::collection::vec(any::<u8>(), 0..1500)) {
        misbehave(&script);
    }

    #[test]
    fn noise_harms_nobody(frames in proptest::collection::vec(
        (any::<bool>(), proptest::collection::vec(any::<u8>(), 0..120)), 0..20,
    )) {
        let mut guest = Guest::new(mmds(0), "V1", None);
        for (raw, bytes) in frames {
            // Straight into the stack too: what `wants` lets through is not all that it can take.
            match raw {
                true => guest.stack.receive(&bytes, guest.now),
                false => guest.send(&ipv4(6, &bytes)),
            }
            guest.take_all();
        }
        prop_assert!(guest.ask(60_000, GET).ends_with("i-7"));
    }
}
