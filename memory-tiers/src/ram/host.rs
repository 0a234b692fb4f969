//! What the host gives a process: processors, mappings, transparent huge pages.

use std::fs;

use rustix::thread::sched_getaffinity;

/// Number of processors that this process may use.
pub(crate) fn processors() -> u32 {
    sched_getaffinity(None).map_or(1, |processors| processors.count())
}

/// Three quarters of what the system allows a process: the rest is for giving pages back, and for
/// the process itself.
pub(crate) fn mapping_budget() -> usize {
    let text = fs::read_to_string("/proc/sys/vm/max_map_count");
    let limit = text.ok().and_then(|t| t.trim().parse::<usize>().ok()).unwrap_or(65_530);
    limit / 4 * 3
}

/// The setting of transparent huge pages (Documentation/admin-guide/mm/transhuge.rst), empty where it
/// cannot be read, as in a jail.
pub(crate) fn transparent_huge_pages() -> String {
    fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default()
}
