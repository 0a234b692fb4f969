//! Compares the classes of a layout with the accesses of a later recording. No system calls.

use varve_snapshot::{Access, NEVER, PAGE_SIZE, PageClass, RegionMap, Trace};

/// Pages that were used otherwise than their class says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Mispredicted {
    /// Read-only pages that were written.
    pub read_only_written: u64,
    /// Zero pages that were written.
    pub zero_written: u64,
    /// Cold pages that were touched.
    pub cold_touched: u64,
    /// Read-only and read-write pages that were not touched.
    pub hot_untouched: u64,
    /// Read-write pages that were touched and not written.
    pub written_only_read: u64,
    /// Pages that were used as predicted.
    pub right: u64,
}

/// Compares what `layout` predicts with what `trace` saw.
pub fn mispredicted(layout: &RegionMap, trace: &Trace) -> Mispredicted {
    let mut found = Mispredicted::default();
    let mut touched_hot = 0;
    for page in trace.pages() {
        let region = layout.find(page.gfn * PAGE_SIZE);
        let written = page.access.has(Access::WRITTEN);
        let class = region.map_or(PageClass::Zero, |r| r.class);
        let hot = matches!(class, PageClass::ReadOnly | PageClass::ReadWrite);
        touched_hot += u64::from(hot);
        let count = match (class, written) {
            (PageClass::ReadOnly, true) => &mut found.read_only_written,
            (PageClass::Zero, true) => &mut found.zero_written,
            (PageClass::ReadWrite, false) => &mut found.written_only_read,
            // Cold and yet ranked: known to be touched, by too few to count as hot.
            (PageClass::Cold, _) if region.is_some_and(|r| r.rank == NEVER) => {
                &mut found.cold_touched
            }
            _ => &mut found.right,
        };
        *count += 1;
    }
    let hot = layout
        .regions()
        .iter()
        .filter(|r| matches!(r.class, PageClass::ReadOnly | PageClass::ReadWrite));
    found.hot_untouched = hot.map(|r| r.pages.pages()).sum::<u64>() - touched_hot;
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::{layout, range};
    use varve_snapshot::{Mechanism, PageAccess};

    #[test]
    fn each_kind_is_told() {
        // Zero (not named), read-only, read-write, cold; four pages each, and so on.
        let (layout, _) = layout(&[(4, 0, 0), (4, 1, 5), (4, 2, 5), (4, 3, 0), (400, 0, 0)]);
        let access = |gfn, written| PageAccess {
            gfn,
            order: 0,
            access: if written { Access::READ.with(Access::WRITTEN) } else { Access::READ },
            invocation: 0,
            runs: 1,
            runs_written: u32::from(written),
        };
        let pages = vec![
            access(0, false),
            access(1, true),
            access(4, false),
            access(5, true),
            access(8, true),
            access(9, false),
            access(12, false),
            access(13, true),
        ];
        let trace = Trace::new(Mechanism::UffdWp, 1, vec!["a".into()], pages).unwrap();
        assert_eq!(layout.find(range(12, 1).start()).unwrap().class, PageClass::Cold);
        let hot: u64 = layout
            .regions()
            .iter()
            .filter(|r| matches!(r.class, PageClass::ReadOnly | PageClass::ReadWrite))
            .map(|r| r.pages.pages())
            .sum();
        let want = Mispredicted {
            read_only_written: 1,
            zero_written: 1,
            cold_touched: 2,
            hot_untouched: hot - 4,
            written_only_read: 1,
            right: 3,
        };
        assert_eq!(mispredicted(&layout, &trace), want);
    }
}
