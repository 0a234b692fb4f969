//! The balloon against a driver in guest memory; what it gives back is recorded.

use std::io;
use std::sync::{Arc, Mutex};

use super::*;
use crate::bus::BusDevice;
use crate::interrupt::STATUS_CONFIG;
use crate::virtio::testing::{BUFFERS, MEM, Rig, memory_of};
use crate::virtio::transport::status;
use crate::virtio::turn::{DISCARDED, DISCARDS};

/// Ranges given back since the last look.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<(u64, u64)>>>);

impl Recorder {
    fn taken(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Reclaim for Recorder {
    fn discard(&self, gpa: u64, len: u64) -> io::Result<()> {
        assert!(gpa.is_multiple_of(4096) && len.is_multiple_of(4096) && len > 0);
        assert!(gpa + len <= MEM, "outside of memory: {gpa:#x}+{len:#x}");
        self.0.lock().unwrap().push((gpa, len));
        Ok(())
    }
}

fn config() -> BalloonConfig {
    BalloonConfig {
        amount_mib: 3,
        deflate_on_oom: true,
        stats_polling_interval_s: 60,
        free_page_reporting: true,
        free_page_hinting: true,
    }
}

fn new(config: BalloonConfig) -> (Balloon, Recorder, BalloonHandle) {
    let recorder = Recorder::default();
    let balloon = Balloon::new(config, Box::new(recorder.clone())).unwrap();
    let handle = balloon.handle();
    (balloon, recorder, handle)
}

fn rig() -> (Rig, Recorder, BalloonHandle) {
    let (balloon, recorder, handle) = new(config());
    (Rig::new(Box::new(balloon)), recorder, handle)
}

fn device() -> Option<Box<dyn VirtioDevice>> {
    Some(Box::new(new(config()).0))
}

crate::virtio::conformance::device_conformance!(device);

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATS: usize = 2;
const HINT: usize = 3;
const REPORT: usize = 4;

fn put_pfns(rig: &Rig, pfns: &[u32]) -> u32 {
    let bytes: Vec<u8> = pfns.iter().flat_map(|p| p.to_le_bytes()).collect();
    rig.put(BUFFERS, &bytes);
    bytes.len() as u32
}

#[test]
fn inflated_pages_are_joined_and_checked() {
    let (mut rig, recorder, _) = rig();
    let end = (MEM / 4096) as u32;
    let len = put_pfns(&rig, &[0x203, 0x201, 0x202, 0x201, 0x300, end - 1, end, u32::MAX, 0x305]);
    // Cut in the middle of a number, and three bytes that are none at its end.
    let bufs = [(BUFFERS, 5, false), (BUFFERS + 5, len - 5 + 3, false)];
    rig.push(INFLATE, &bufs);
    rig.notify(INFLATE);
    assert_eq!(rig.used(INFLATE), [(0, 0)]);
    let expected = [(0x20_1000, 0x3000), (0x30_0000, 0x1000), (0x30_5000, 0x1000)];
    assert_eq!(recorder.taken(), [&expected[..], &[(MEM - 4096, 4096)]].concat());

    for bufs in [&[(BUFFERS, 3, false)][..], &[(BUFFERS, 4, true)], &[(MEM - 2, 8, false)]] {
        rig.push(INFLATE, bufs);
        rig.notify(INFLATE);
        assert_eq!(rig.used(INFLATE).len(), 1, "{bufs:?}");
        assert_eq!(recorder.taken(), []);
    }
    assert_eq!(rig.status() & status::DEVICE_NEEDS_RESET, 0);
}

#[test]
fn a_request_takes_a_bounded_number_of_pages() {
    let (mut rig, recorder, _) = rig();
    // The same 2 MiB twice: all zeroes but the very last number.
    rig.put(BUFFERS + (2 << 20) - 4, &0x210u32.to_le_bytes());
    let buf = (BUFFERS, 2 << 20, false);
    rig.push(INFLATE, &[buf, buf]);
    rig.notify(INFLATE);
    assert_eq!(rig.used(INFLATE).len(), 1);
    let taken = recorder.taken();
    // Each slice of 1,024 numbers once, or a part of it where a turn ended.
    assert!((64..=70).contains(&taken.len()) && taken.iter().all(|&t| t == (0, 4096)), "{taken:?}");
}

#[test]
fn deflate_gives_nothing_back() {
    let (mut rig, recorder, _) = rig();
    let len = put_pfns(&rig, &[0x201]);
    rig.push(DEFLATE, &[(BUFFERS, len, false)]);
    rig.notify(DEFLATE);
    assert_eq!((rig.used(DEFLATE), recorder.taken()), (vec![(0, 0)], vec![]));
}

#[test]
fn reported_ranges_lose_their_whole_pages() {
    let (mut rig, recorder, _) = rig();
    rig.push(
        REPORT,
        &[
            (0x30_0000, 0x1_0000, true),
            (0x31_0000, 0x1000, true),
            (0x30_8000, 0x2000, true),
            (0x32_0001, 0x2fff, true),
            (0x33_0001, 0x1ffe, true),
            (0x34_0000, 0, true),
            (MEM - 0x1000, 0x2000, true),
            (u64::MAX - 0xfff, 0x1000, true),
            (u64::MAX - 4, 0x1000, true),
        ],
    );
    rig.push(REPORT, &[(0x35_0000, 0x1000, false)]);
    rig.notify(REPORT);
    assert_eq!(rig.used(REPORT), [(0, 0), (9, 0)]);
    assert_eq!(recorder.taken(), [(0x30_0000, 0x1_1000), (0x32_1000, 0x2000)]);

    // A loop says nothing reliable about any of its ranges.
    rig.descriptor(REPORT, 20, 0x30_0000, 0x1000, 3, 21);
    rig.descriptor(REPORT, 21, 0x31_0000, 0x1000, 3, 20);
    rig.publish(REPORT, 20);
    rig.notify(REPORT);
    assert_eq!((rig.used(REPORT), recorder.taken()), (vec![(20, 0)], vec![]));
}

/// The driver sends `command`, or a free MiB at 2 MiB when `None`.
fn hint(rig: &mut Rig, command: Option<u32>) {
    match command {
        Some(command) => {
            rig.put(BUFFERS, &command.to_le_bytes());
            rig.push(HINT, &[(BUFFERS, 4, false)]);
        }
        None => {
            rig.push(HINT, &[(0x20_0000, 0x10_0000, true)]);
        }
    }
    rig.notify(HINT);
    assert_eq!(rig.used(HINT).len(), 1);
}

fn command(rig: &Rig) -> u32 {
    rig.read(0x108)
}

#[test]
fn hints_count_in_their_own_run_only() {
    let (mut rig, recorder, handle) = rig();
    let range = vec![(0x20_0000, 0x10_0000)];
    hint(&mut rig, None);
    assert_eq!(recorder.taken(), [], "no run was asked for");

    rig.interrupts();
    handle.start_hinting(true).unwrap();
    rig.run();
    assert_eq!(rig.read(0x60) & STATUS_CONFIG, STATUS_CONFIG);
    assert_eq!((command(&rig), rig.interrupts()), (2, 1));
    hint(&mut rig, None);
    assert_eq!(recorder.taken(), [], "the guest has not taken the run up");
    hint(&mut rig, Some(2));
    hint(&mut rig, None);
    assert_eq!(recorder.taken(), range);
    let status = HintingStatus { host_cmd: 2, guest_cmd: Some(2) };
    assert_eq!(handle.hinting_status().unwrap(), status);

    // Another run: hints of the first come too late.
    handle.start_hinting(false).unwrap();
    rig.run();
    hint(&mut rig, None);
    assert_eq!((command(&rig), recorder.taken()), (3, vec![]));
    hint(&mut rig, Some(3));
    hint(&mut rig, None);
    hint(&mut rig, Some(0));
    assert_eq!((command(&rig), recorder.taken()), (3, range.clone()), "not acknowledged");
    hint(&mut rig, None);
    assert_eq!(recorder.taken(), [], "after the guest's end");
    handle.stop_hinting().unwrap();
    rig.run();
    assert_eq!(command(&rig), 1);

    handle.start_hinting(true).unwrap();
    rig.run();
    hint(&mut rig, Some(4));
    hint(&mut rig, None);
    rig.interrupts();
    let generation = rig.read(0xfc);
    hint(&mut rig, Some(0));
    assert_eq!((command(&rig), recorder.taken()), (1, range), "acknowledged");
    assert_eq!(rig.read(0xfc), generation + 1);
    assert!(rig.interrupts() > 0);

    rig.put(BUFFERS, &[9; 8]);
    rig.push(HINT, &[(BUFFERS, 8, false)]);
    rig.notify(HINT);
    let status = HintingStatus { host_cmd: 1, guest_cmd: Some(0) };
    assert_eq!(handle.hinting_status().unwrap(), status, "a command has 4 bytes");
}

fn put_stats(rig: &Rig, at: u64, entries: &[(u16, u64)]) -> u32 {
    let mut bytes = Vec::new();
    for (tag, value) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    rig.put(at, &bytes);
    bytes.len() as u32
}

#[test]
fn statistics_go_round() {
    for event_idx in [false, true] {
        let (balloon, _, handle) = new(config());
        let timer = balloon.timer.try_clone().unwrap();
        let mut rig = Rig::with_features(Box::new(balloon), |offered| {
            if event_idx { offered } else { offered & !(1 << 29) }
        });
        let expire = |rig: &mut Rig| {
            let now = Timespec { tv_sec: 0, tv_nsec: 1 };
            let spec = Itimerspec { it_interval: Timespec::default(), it_value: now };
            timerfd_settime(&timer, TimerfdTimerFlags::empty(), &spec).unwrap();
            assert!(rig.wait(1000) > 0);
            rig.run();
        };
        assert_eq!(handle.stats().unwrap().free_memory, None);
        expire(&mut rig);
        assert_eq!(rig.used(STATS), [], "there is nothing to hand back yet");

        let len = put_stats(&rig, BUFFERS, &[(4, 77), (16, 5), (0xffff, 6), (15, 9), (0, 1)]);
        rig.push(STATS, &[(BUFFERS, len + 3, false)]);
        rig.notify(STATS);
        assert_eq!(rig.used(STATS), [], "kept until the next request");
        let stats = handle.stats().unwrap();
        assert_eq!(
            (stats.free_memory, stats.direct_reclaim, stats.swap_in, stats.total_memory),
            (Some(77), Some(9), Some(1), None)
        );
        // Restored somewhere else, the kept buffer is found again.
        let (other, _, restored) = new(config());
        let line = crate::interrupt::IrqLine::new().unwrap();
        let other: Box<dyn VirtioDevice> = Box::new(other);
        let mem = rig.mem.clone();
        let transport = crate::virtio::mmio::Transport::new("other".into(), other, mem, line);
        let transport = transport.unwrap();
        transport.restore(1, &rig.transport.save()).unwrap();
        assert_eq!(restored.stats().unwrap(), stats);

        rig.interrupts();
        expire(&mut rig);
        assert_eq!(rig.used(STATS), [(0, 0)]);
        assert_eq!(rig.interrupts(), 1);
        expire(&mut rig);
        assert_eq!(rig.used(STATS), [], "the guest has not answered");

        // Two at once: the older one goes back, the newer one counts.
        let older = put_stats(&rig, BUFFERS, &[(4, 1)]);
        let newer = put_stats(&rig, BUFFERS + 0x100, &[(5, 2)]);
        rig.push(STATS, &[(BUFFERS, older, false)]);
        rig.push(STATS, &[(BUFFERS + 0x100, newer, false)]);
        rig.notify(STATS);
        assert_eq!(rig.used(STATS), [(1, 0)]);
        let stats = handle.stats().unwrap();
        assert_eq!((stats.free_memory, stats.total_memory), (None, Some(2)));
        expire(&mut rig);
        assert_eq!(rig.used(STATS), [(2, 0)]);
    }
}

#[test]
fn every_set_of_features_numbers_its_queues() {
    for offered in 0..8 {
        for taken in (0..8).filter(|taken| taken & !offered == 0) {
            let bit = |set: u32, n: u32| set >> n & 1 != 0;
            let (balloon, recorder, handle) = new(BalloonConfig {
                stats_polling_interval_s: bit(offered, 0).into(),
                free_page_hinting: bit(offered, 1),
                free_page_reporting: bit(offered, 2),
                ..BalloonConfig::default()
            });
            assert_eq!(balloon.queue_sizes().len(), 2 + offered.count_ones() as usize);
            let optional = features::STATS | features::FREE_PAGE_HINT | features::PAGE_REPORTING;
            let mut keep = !optional & !(1 << 29);
            for (n, feature) in
                [features::STATS, features::FREE_PAGE_HINT, features::PAGE_REPORTING]
                    .into_iter()
                    .enumerate()
            {
                keep |= if bit(taken, n as u32) { feature } else { 0 };
            }
            let mut rig = Rig::with_features(Box::new(balloon), |offered| offered & keep);
            let mut next = 2;
            if bit(taken, 0) {
                let len = put_stats(&rig, BUFFERS, &[(6, 42)]);
                rig.push(next, &[(BUFFERS, len, false)]);
                rig.notify(next);
                assert_eq!(handle.stats().unwrap().available_memory, Some(42));
                next += 1;
            }
            if bit(taken, 1) {
                handle.start_hinting(true).unwrap();
                rig.put(BUFFERS, &2u32.to_le_bytes());
                rig.push(next, &[(BUFFERS, 4, false)]);
                rig.push(next, &[(0x30_0000, 0x1000, true)]);
                rig.notify(next);
                assert_eq!(recorder.taken(), [(0x30_0000, 0x1000)]);
                next += 1;
            } else {
                assert!(handle.start_hinting(true).is_err());
            }
            if bit(taken, 2) {
                rig.push(next, &[(0x31_0000, 0x1000, true)]);
                rig.notify(next);
                assert_eq!(recorder.taken(), [(0x31_0000, 0x1000)]);
                next += 1;
            }
            for unused in next..rig.queues() {
                rig.push(unused, &[(0x31_0000, 0x1000, true)]);
                rig.notify(unused);
                assert_eq!((rig.used(unused), recorder.taken()), (vec![], vec![]));
            }
        }
    }
}

#[test]
fn the_handle_sets_the_size() {
    let (balloon, _, handle) = new(config());
    let mut rig = Rig::unconfigured(Box::new(balloon), crate::virtio::testing::memory());
    // Asked for before there is a driver: it is told once there is.
    handle.set_target(5).unwrap();
    rig.run();
    assert_eq!(rig.interrupts(), 0);
    rig.configure(|offered| offered);
    assert!(rig.interrupts() > 0);
    assert_eq!((rig.read(0x100), rig.read(0x104), handle.target()), (5 * 256, 0, 5));

    let generation = rig.read(0xfc);
    handle.set_target(7).unwrap();
    rig.run();
    assert_eq!((rig.read(0x100), rig.read(0xfc), rig.interrupts()), (7 * 256, generation + 1, 1));
    rig.write(0x104, 700);
    rig.write(0x100, 1);
    rig.bus.write(0x104, &[1, 1]);
    assert_eq!((rig.read(0x100), rig.read(0x104)), (7 * 256, 700));
    let stats = handle.stats().unwrap();
    assert_eq!((stats.target_pages, stats.actual_pages), (7 * 256, 700));
    assert_eq!((stats.target_mib, stats.actual_mib, handle.actual_pages()), (7, 2, 700));

    handle.set_stats_interval(9).unwrap();
    rig.run();
    assert_eq!((handle.stats_interval(), rig.interrupts()), (9, 0));
    assert!(matches!(handle.set_stats_interval(0), Err(BalloonError::StatsSwitch)));
    assert!(matches!(handle.set_target(1 << 24), Err(BalloonError::TooLarge(_))));
    assert_eq!(handle.target(), 7);
}

#[test]
fn what_is_off_says_so() {
    let (mut device, _, handle) = new(BalloonConfig::default());
    assert!(matches!(handle.stats(), Err(BalloonError::StatsDisabled)));
    assert!(matches!(handle.set_stats_interval(1), Err(BalloonError::StatsSwitch)));
    assert!(matches!(handle.hinting_status(), Err(BalloonError::HintingDisabled)));
    assert!(matches!(handle.start_hinting(true), Err(BalloonError::HintingDisabled)));
    assert!(matches!(handle.stop_hinting(), Err(BalloonError::HintingDisabled)));
    let (saved, _, handle) = new(config());
    assert!(matches!(handle.start_hinting(true), Err(BalloonError::HintingUnused)));
    let refused = device.restore(1, &saved.save()).unwrap_err();
    assert!(refused.to_string().contains("every 60 s, here every 0 s"), "{refused}");
    let too_large = BalloonConfig { amount_mib: 1 << 24, ..config() };
    assert!(Balloon::new(too_large, Box::new(Recorder::default())).is_err());
}

type Taken = Arc<Mutex<Vec<(u64, u64)>>>;

/// Memory far larger than a test needs, and what is given back of it.
fn large() -> (Rig, Taken) {
    struct All(Taken);
    impl Reclaim for All {
        fn discard(&self, gpa: u64, len: u64) -> io::Result<()> {
            self.0.lock().unwrap().push((gpa, len));
            Ok(())
        }
    }
    let taken = Taken::default();
    let balloon = Balloon::new(config(), Box::new(All(taken.clone()))).unwrap();
    let mut rig = Rig::unconfigured(Box::new(balloon), memory_of(1 << 30));
    rig.configure(|offered| offered & !(1 << 29));
    (rig, taken)
}

/// A guest that names every second page, so that no two can be given back together.
#[test]
fn many_pages_take_many_turns_and_none_is_left_out() {
    let (mut rig, taken) = large();
    let pfns: Vec<u32> = (0..1 << 16).map(|n| 0x1_0000 + 2 * n).collect();
    let len = put_pfns(&rig, &pfns);
    rig.push(INFLATE, &[(BUFFERS, len, false)]);
    rig.push(INFLATE, &[(BUFFERS, 4, false)]);
    rig.notify(INFLATE);
    assert_eq!(rig.used(INFLATE), [(0, 0), (1, 0)]);
    let taken = taken.lock().unwrap();
    let (whole, again) = taken.split_at(pfns.len());
    let named: Vec<_> = pfns.iter().map(|&pfn| (u64::from(pfn) << 12, 4096)).collect();
    assert!(whole == named);
    assert_eq!(again, [named[0]]);
    let work = rig.transport.longest_turn();
    assert_eq!(work.discards, DISCARDS);
    work.assert_bounded(0);
}

#[test]
fn large_reports_take_many_turns() {
    let (mut rig, taken) = large();
    // 96 MiB and 160 MiB, which join another one of 32 MiB.
    let free =
        [(256 << 20, 96 << 20, true), (512 << 20, 160 << 20, true), (640 << 20, 64 << 20, true)];
    rig.push(REPORT, &free);
    rig.push(INFLATE, &[(BUFFERS, 0, false)]);
    rig.notify(REPORT);
    assert_eq!(rig.used(REPORT), [(0, 0)]);
    let mut ends = (256 << 20, 0);
    for &(start, len) in &*taken.lock().unwrap() {
        let expected = if start == 512 << 20 { 352 << 20 } else { ends.0 };
        assert_eq!(ends.0, expected);
        ends = (start + len, ends.1 + len);
    }
    assert_eq!(ends, (704 << 20, (96 + 192) << 20));
    let work = rig.transport.longest_turn();
    assert_eq!(work.discarded, DISCARDED);
    work.assert_bounded(0);
}
