//! A station past the tap: what it takes, what it sends, and that the tap's traffic is none of it.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;

/// Type of the frames that the station takes (IEEE 802: for local experiments).
const KIND: u16 = 0x88b5;

/// Sends back what it gets, the payload twice, and a frame of its own at each tick.
struct Echo {
    log: Arc<Mutex<Vec<Vec<u8>>>>,
    waiting: Vec<Vec<u8>>,
    timer: EventFd,
}

impl Detour for Echo {
    fn head(&self) -> usize {
        14
    }

    fn wants(&self, head: &[u8]) -> bool {
        assert_eq!(head.len(), 14, "frames without a whole header are the tap's");
        head[12..] == KIND.to_be_bytes()
    }

    fn receive(&mut self, frame: &[u8]) {
        self.log.lock().unwrap().push(frame.to_vec());
        self.waiting.push([frame, &frame[14..]].concat());
    }

    fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        self.waits().then(|| self.waiting.remove(0))
    }

    fn timer(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    fn tick(&mut self) {
        self.timer.read().unwrap();
        self.waiting.push(ethernet(MAC, KIND, b"tick"));
    }

    fn reset(&mut self) {
        self.waiting.clear();
    }
}

/// A guest on a tap that is up, with an echo; what that gets, and its timer.
fn guest_with_echo(without: u64) -> (Rig, Arc<Mutex<Vec<Vec<u8>>>>, EventFd) {
    let log = Arc::<Mutex<Vec<_>>>::default();
    let timer = EventFd::new(EFD_NONBLOCK).unwrap();
    let echo = Echo { log: log.clone(), waiting: Vec::new(), timer: timer.try_clone().unwrap() };
    let net = Net::new(config("tap0")).unwrap().with_detour(Box::new(echo));
    let rig = Rig::with_features(Box::new(net), |f| f & !without);
    bring_up("tap0", 1500);
    (rig, log, timer)
}

/// Frames of the station in what came, whatever the host sends by itself.
fn echoed(rig: &mut Rig, size: u32) -> Vec<Frame> {
    received(rig, size).into_iter().filter(|f| f.kind() == KIND).collect()
}

#[test]
fn frames_go_one_way_or_the_other() {
    in_namespace(|| {
        for without in [0, EVENT_IDX, MERGE | SEGMENTS] {
            let (mut rig, log, timer) = guest_with_echo(without);
            offer(&mut rig, 100, 2048);
            let sent_by_tap = || {
                let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
                let line = text.lines().find(|line| line.contains("tap0")).unwrap().to_owned();
                line.split_whitespace().nth(2).unwrap().parse::<u32>().unwrap()
            };
            let before = sent_by_tap();
            rig.interrupts();
            let payload = pattern(600, 1);
            send(&mut rig, [0; HEADER], &ethernet([7; 6], KIND, &payload));
            let frame = echoed(&mut rig, 2048).remove(0);
            assert!(frame.bytes[14..] == [&payload[..], &payload].concat());
            assert_eq!(frame.header, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            assert!(rig.interrupts() > 0);
            assert_eq!(*log.lock().unwrap(), [ethernet([7; 6], KIND, &payload)]);
            assert_eq!(sent_by_tap(), before, "the host saw it");

            send(&mut rig, [0; HEADER], &arp_request());
            wait_for(&mut rig, 2048, 0x0806, 1);
            assert_eq!((log.lock().unwrap().len(), sent_by_tap()), (1, before + 1));

            timer.write(1).unwrap();
            rig.run();
            assert_eq!(echoed(&mut rig, 2048)[0].bytes, ethernet(MAC, KIND, b"tick"));
        }
    });
}

#[test]
fn frames_wait_for_buffers_and_are_cut_never() {
    in_namespace(|| {
        let (mut rig, _, _) = guest_with_echo(MERGE | SEGMENTS);
        let long = ethernet(MAC, KIND, &pattern(900, 2));
        send(&mut rig, [0; HEADER], &ethernet(MAC, KIND, b"first"));
        send(&mut rig, [0; HEADER], &long);
        send(&mut rig, [0; HEADER], &ethernet(MAC, KIND, b"third"));
        assert_eq!(rig.used(RX), []);
        // Echoed, the second does not fit into 1024 bytes.
        offer(&mut rig, 20, 1024);
        let texts: Vec<_> = echoed(&mut rig, 1024).iter().map(|f| f.bytes[14..].to_vec()).collect();
        assert_eq!(texts, [b"firstfirst", b"thirdthird"]);
    });
    in_namespace(|| {
        let (mut rig, _, _) = guest_with_echo(0);
        offer(&mut rig, 200, 512);
        let payload = pattern(3000, 3);
        send(&mut rig, [0; HEADER], &ethernet(MAC, KIND, &payload));
        let frame = echoed(&mut rig, 512).remove(0);
        assert_eq!(frame.buffers, (HEADER + 14 + 6000usize).div_ceil(512));
        assert!(frame.bytes[14..] == [&payload[..], &payload].concat());
    });
}

#[test]
fn a_driver_that_starts_over_gets_nothing_old() {
    in_namespace(|| {
        let (mut rig, _, _) = guest_with_echo(0);
        send(&mut rig, [0; HEADER], &ethernet(MAC, KIND, b"old"));
        rig.configure(|offered| offered);
        offer(&mut rig, 100, 2048);
        send(&mut rig, [0; HEADER], &ethernet(MAC, KIND, b"new"));
        let texts: Vec<_> = echoed(&mut rig, 2048).iter().map(|f| f.bytes[14..].to_vec()).collect();
        assert_eq!(texts, [b"newnew"]);
    });
}
