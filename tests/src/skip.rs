//! Tests that this host cannot run. Each says so where nothing captures it, and `tests/all` counts them.

use std::io::Write;

/// Says on the test program's standard error that `test` did not run, since the host lacks `need`.
///
/// # Panics
///
/// If the variable VARVE_REQUIRE, a comma-separated list, names `need`: net, uffd, kvm, rdma, disk, memory
/// or clock.
pub fn skipped(need: &str, test: &str, reason: &str) {
    assert!(!is_required(need), "{test}: VARVE_REQUIRE names {need}: {reason}");
    let _ = writeln!(std::io::stderr(), "\nSKIPPED ({need}): {test}: {reason}");
}

/// Whether VARVE_REQUIRE names `need`.
pub fn is_required(need: &str) -> bool {
    let list = std::env::var("VARVE_REQUIRE").unwrap_or_default();
    list.split(',').any(|name| name.trim() == need)
}
