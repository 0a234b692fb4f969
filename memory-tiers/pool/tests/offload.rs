//! Memory that is offloaded to real nodes, which die at any moment, beside threads that use it.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use common::{Running, acme};
use varve_memory_tiers::{GuestRam, Hooks, Offload, OffloadReport, Phase, TierError};
use varve_pool::client::Transport;
use varve_pool::{BackingStoreConfig, PoolBackingStore};
use varve_snapshot::{PAGE_SIZE, PageRange};
use vm_memory::{Bytes, GuestAddress};

const PAGES: u64 = 700;

fn idle(offload: &Offload) -> OffloadReport {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let report = offload.report();
        if report.phase == Phase::Idle {
            return report;
        }
        assert!(Instant::now() < deadline, "{report:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Words that a page holds after it was written for the `count`th time.
fn write(ram: &GuestRam, page: u64, count: u64) {
    let bytes = (page << 32 | count).to_le_bytes().repeat(512);
    ram.memory().write_slice(&bytes, GuestAddress(page * PAGE_SIZE)).unwrap();
}

fn check(ram: &GuestRam, page: u64, count: u64) {
    let mut bytes = vec![0; 4096];
    ram.memory().read_slice(&mut bytes, GuestAddress(page * PAGE_SIZE)).unwrap();
    assert_eq!(bytes, (page << 32 | count).to_le_bytes().repeat(512), "page {page}");
}

#[test]
fn nothing_is_lost_while_nodes_die_one_at_a_time() {
    let memory = [PageRange::new(0, PAGES * PAGE_SIZE).unwrap()];
    let ram = Arc::new(GuestRam::new(&memory, false).unwrap());
    (0..PAGES).for_each(|page| write(&ram, page, 0));
    let mut nodes = [Some(Running::new(None)), Some(Running::new(None))];
    let addresses: Vec<String> = nodes.iter().flatten().map(|n| n.address.clone()).collect();
    let (tenant, key) = acme();
    let (nodes_of_depot, transport) = (addresses.clone(), Transport::Tcp);
    let config = BackingStoreConfig { nodes: nodes_of_depot, copies: 2, tenant, key, transport };
    let store = Arc::new(PoolBackingStore::new(config).unwrap());
    let lost: Arc<Mutex<Vec<TierError>>> = Arc::default();
    let tell = lost.clone();
    let on_fatal = Box::new(move |error| tell.lock().unwrap().push(error));
    let offload = match Offload::new(ram.clone(), None, Hooks { stage2: None, on_fatal }) {
        Ok(offload) => offload,
        Err(e) => return varve_skip::skip!("uffd", e),
    };
    // Held for writing where a machine would stand still.
    let (running, done) = (RwLock::new(()), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let (ram, running, done) = (&ram, &running, &done);
            scope.spawn(move || {
                let mut counts = vec![0u64; PAGES as usize];
                let mut dice = worker + 1u64;
                while !done.load(Relaxed) {
                    dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let page = (dice >> 33) % (PAGES / 2) * 2 + worker;
                    let _running = running.read().unwrap();
                    check(ram, page, counts[page as usize]);
                    counts[page as usize] += 1;
                    write(ram, page, counts[page as usize]);
                    if dice >> 60 == 0 {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
                for page in (worker..PAGES).step_by(2) {
                    check(ram, page, counts[page as usize]);
                }
            });
        }
        let begin = |wait| {
            offload.begin(store.clone(), Duration::from_millis(wait), u64::MAX).unwrap();
            while offload.is_taking() {
                let _still = running.write().unwrap();
                offload.take_some().unwrap();
            }
        };
        for round in 0..14 {
            begin(0);
            idle(&offload);
            // One dies before, while or after pages go to it, or come from it.
            let mut victim = nodes[round % 2].take();
            if round < 2 {
                victim = None;
            }
            let killer = scope.spawn(move || {
                std::thread::sleep(Duration::from_millis([0, 0, 1, 3, 6, 10, 20][round / 2]));
                drop(victim);
            });
            begin(round as u64 % 3);
            idle(&offload);
            killer.join().unwrap();
            offload.recall();
            let report = idle(&offload);
            assert!(report.out == 0, "{report:?}");
            nodes[round % 2] = Some(Running::at(&addresses[round % 2], None, 1 << 30));
        }
        done.store(true, Relaxed);
    });
    assert!(lost.lock().unwrap().is_empty(), "{:?}", lost.lock().unwrap());
    let report = offload.report();
    assert!(report.sent > 0 && report.refused > 0, "{report:?}");
}
