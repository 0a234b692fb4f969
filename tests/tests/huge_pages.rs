//! Memory that is restored to 2 MiB pages, from files: by every strategy that can, with the right
//! content; those that cannot say so.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;

use varve_agent::protocol::Action;
use varve_skip::skipped;
use varve_tests::snapshots::tier;
use varve_tests::{Restoring, Vm};

const MIB: u64 = 96;
const POOL: &str = "/proc/sys/vm/nr_hugepages";

/// The system's pool of 2 MiB pages, as large as a test wants it.
struct Pool(u64);

impl Pool {
    /// Adds pages. Tells why if that cannot be.
    fn with(pages: u64) -> Result<Pool, String> {
        let had = || fs::read_to_string(POOL).unwrap().trim().parse::<u64>().unwrap();
        let before = had();
        fs::write(POOL, (before + pages).to_string()).map_err(|e| format!("{POOL}: {e}"))?;
        let pool = Pool(before);
        match had() - before {
            got if got == pages => Ok(pool),
            got => Err(format!("the system has {got} of {pages} huge pages")),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = fs::write(POOL, self.0.to_string());
    }
}

#[test]
fn memory_comes_back_in_huge_pages() {
    let dir = tempfile::Builder::new().prefix("varve-snapshot").tempdir().unwrap();
    let (flat, trace) = (dir.path().join("snapshot"), dir.path().join("trace"));
    let mut vm = Vm::builder().option("--memory", format!("{MIB}M")).controlled().start();
    for name in ["read", "written"] {
        vm.memory(name, Action::Allocate, 2, 0);
        vm.memory_by(1, name, Action::Fill, 5);
    }
    vm.snapshot("", &flat);
    drop(vm);
    let mut vm = Restoring::recording(&flat, &trace).options("--json").start();
    works(&mut vm, 6);
    vm.end_with_report();
    tier(&flat, &[&trace], "");

    for strategy in ["lazy", "eager", "reap", "faasnap", "tiered", "template"] {
        let mut vm = restoring(&flat, strategy, "transparent").start();
        works(&mut vm, 7);
        // Memory that was zero.
        vm.memory("new", Action::Allocate, 12, 0);
        vm.memory_by(1, "new", Action::Fill, 4);
        let huge = vm.mappings_kib("AnonHugePages");
        println!("{strategy}, transparent: {huge} KiB");
        // Where memory is not watched or mapped from end to end, there is room for huge pages.
        assert!(huge >= 2048 || !matches!(strategy, "eager" | "tiered"), "{strategy}: {huge} KiB");
        works(&mut vm, 8);
        vm.memory_by(1, "new", Action::Verify, 0);
    }
    let refused = restoring(&flat, "lazy", "2M").end();
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("lazy") && refused.stderr.contains("2 MiB"), "{refused:?}");
    let pool = match Pool::with(MIB / 2) {
        Ok(pool) => pool,
        Err(reason) => return skipped("memory", "memory_comes_back_in_huge_pages, 2M", &reason),
    };
    for strategy in ["eager", "tiered"] {
        let mut vm = restoring(&flat, strategy, "2M").start();
        works(&mut vm, 7);
        let used = vm.mappings_kib("Private_Hugetlb");
        println!("{strategy}, 2M: {used} KiB");
        assert!(used >= 24 << 10, "{strategy}: {used} KiB");
        // What is saved from them is what the guest wrote.
        let again = dir.path().join("again");
        vm.snapshot("", &again);
        works(&mut vm, 8);
        // The pool has no room for a second one.
        let refused = restoring(&flat, strategy, "2M").end();
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stderr.contains("vm.nr_hugepages"), "{refused:?}");
        drop(vm);
        works(&mut restoring(&again, "lazy", "off").start(), 9);
    }
    drop(pool);
}

fn restoring(dir: &std::path::Path, strategy: &str, pages: &str) -> Restoring {
    Restoring::from(dir).options(&format!("--strategy {strategy} --huge-pages {pages}"))
}

/// Checks all that was written before, and writes it anew.
fn works(vm: &mut Vm, seed: u64) {
    vm.memory_by(2, "read", Action::Verify, 0);
    vm.memory_by(2, "written", Action::Rewrite, seed);
}
