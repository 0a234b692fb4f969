//! The costs that a planner uses, measured on this host.

use std::io;

use varve_memory_tiers::Costs;

use crate::mechanisms::{Mechanisms, Shape};

/// Extents as recorded functions have them: most are short.
const SHAPE: Shape = Shape { extents: 256, pages: 4 };
/// What an exit and filling stage-2 add to a fault, in nanoseconds: no process can measure it. An
/// assumption, of the order that hardware with nested paging shows.
const EXIT: f64 = 1000.0;
/// Each figure is the best of so many: other work on the host only adds.
const ROUNDS: usize = 5;

/// Measures this host in some tens of milliseconds. Three costs keep their defaults, since no process can
/// measure them: what an exit adds to a fault, remote memory, and the share of work beside the guest.
///
/// # Errors
///
/// If memory for the measurement cannot be reserved.
pub fn measure() -> io::Result<Costs> {
    let mut best = costs_of(&Mechanisms::measure(SHAPE)?);
    for _ in 1..ROUNDS {
        best = zip(&best, &costs_of(&Mechanisms::measure(SHAPE)?), f64::min);
    }
    Ok(best)
}

/// The costs that follow from one measurement, in whole nanoseconds.
fn costs_of(host: &Mechanisms) -> Costs {
    let usual = Costs::default();
    let pages = SHAPE.pages as f64;
    // The time of one extent less that of one page is the time of copying the other pages.
    let copy = ((host.read_extents * pages - host.read_call) / (pages - 1.0)).max(1.0);
    let or = |measured: f64, usual: f64| if measured > 0.0 { measured } else { usual };
    let costs = Costs {
        map: host.map_extent,
        read_call: (host.read_call - copy).max(1.0),
        copy_page: host.fresh_populate_write + copy,
        populate_read: host.map_populate_read,
        populate_write: host.map_populate_write,
        populate_fresh: host.fresh_populate_write,
        populate_huge: or(host.huge_populate_write, host.fresh_populate_write),
        install_page: or(host.install_extent, usual.install_page),
        read_fault: host.map_read_fault + EXIT,
        write_fault: host.map_write_fault + EXIT,
        paged_fault: or(host.paged_fault, usual.paged_fault),
        ..usual
    };
    zip(&costs, &costs, |a, _| a.round())
}

/// Combines each measured cost of `a` with that of `b`.
fn zip(a: &Costs, b: &Costs, f: impl Fn(f64, f64) -> f64) -> Costs {
    Costs {
        map: f(a.map, b.map),
        read_call: f(a.read_call, b.read_call),
        copy_page: f(a.copy_page, b.copy_page),
        populate_read: f(a.populate_read, b.populate_read),
        populate_write: f(a.populate_write, b.populate_write),
        populate_fresh: f(a.populate_fresh, b.populate_fresh),
        populate_huge: f(a.populate_huge, b.populate_huge),
        install_page: f(a.install_page, b.install_page),
        read_fault: f(a.read_fault, b.read_fault),
        write_fault: f(a.write_fault, b.write_fault),
        paged_fault: f(a.paged_fault, b.paged_fault),
        ..*a
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_those_of_a_host() {
        let costs = measure().unwrap();
        println!("{costs:?}");
        let text = serde_json::to_string(&costs).unwrap();
        assert_eq!(serde_json::from_str::<Costs>(&text).unwrap(), costs);
        for cost in [costs.map, costs.copy_page, costs.populate_read, costs.write_fault] {
            assert!((10.0..1e7).contains(&cost), "{costs:?}");
        }
    }
}
