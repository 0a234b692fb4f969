//! Tests that this host cannot run. Each says so where nothing captures it; a list counts them.
//!
//! | variable | meaning |
//! | --- | --- |
//! | `VARVE_REQUIRE` | needs, separated by commas, whose lack fails a test instead of skipping it |
//! | `VARVE_SKIPPED` | file to which a line for each skipped test is added |
//!
//! Needs: `uffd`, `kvm`, `net` (network namespaces and taps), `rdma`, `root`, `disk` (disks that fail, file
//! systems that drop their cache), `memory` (memory that fails), `hugetlb` (2 MiB pages), `clock`, and the
//! name of a program.

use std::fs::OpenOptions;
use std::io::Write;

/// Notes that `test` did not run, since the host lacks `need`.
///
/// # Panics
///
/// If `VARVE_REQUIRE` names `need`.
pub fn skipped(need: &str, test: &str, reason: &str) {
    let required = std::env::var("VARVE_REQUIRE").unwrap_or_default();
    let required = required.split(',').any(|name| name.trim() == need);
    assert!(!required, "{test}: VARVE_REQUIRE names {need}: {reason}");
    let line = format!("SKIPPED ({need}): {test}: {reason}\n");
    // Standard error itself: the test harness captures the print macros only.
    let _ = write!(std::io::stderr(), "\n{line}");
    if let Some(list) = std::env::var_os("VARVE_SKIPPED") {
        let list = OpenOptions::new().append(true).create(true).open(list);
        let _ = list.and_then(|mut list| list.write_all(line.as_bytes()));
    }
}

/// [`skipped`] for the test in this module.
#[macro_export]
macro_rules! skip {
    ($need:expr, $reason:expr) => {
        $crate::skipped($need, module_path!(), &($reason).to_string())
    };
}
