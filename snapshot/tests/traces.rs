//! Merging of traces, and the trace file.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use varve_snapshot::{Access, LocalFiles, Mechanism, PageAccess, Trace};

fn trace() -> impl Strategy<Value = Trace> {
    let page = (0u64..30, any::<bool>(), 0u32..50, any::<bool>());
    proptest::collection::vec(page, 0..20).prop_map(|pages| {
        let mut seen: Vec<PageAccess> = Vec::new();
        for (gfn, write, order, monitor) in pages {
            let mut access = if write { Access::WRITTEN } else { Access::READ };
            if monitor {
                access = access.with(Access::MONITOR);
            }
            if seen.iter().all(|p| p.gfn != gfn) {
                let runs_written = write.into();
                seen.push(PageAccess { gfn, order, access, invocation: 1, runs: 1, runs_written });
            }
        }
        Trace::new(Mechanism::UffdWp, 1, vec!["resume".into(), "hello 1".into()], seen).unwrap()
    })
}

type Essence = (u32, Vec<(u64, u32, Access, u32, u32)>);

/// What must not depend on the order of merging.
fn essence(trace: &Trace) -> Essence {
    let pages = trace.pages().iter();
    (trace.runs, pages.map(|p| (p.gfn, p.order, p.access, p.runs, p.runs_written)).collect())
}

proptest! {
    #[test]
    fn merging_is_commutative_and_associative(a in trace(), b in trace(), c in trace()) {
        let merge = |traces: &[&Trace]| {
            let owned: Vec<Trace> = traces.iter().map(|&t| t.clone()).collect();
            Trace::merge(&owned).unwrap()
        };
        let all = merge(&[&a, &b, &c]);
        prop_assert_eq!(essence(&all), essence(&merge(&[&c, &a, &b])));
        prop_assert_eq!(&all, &merge(&[&merge(&[&a, &b]), &c]));
        prop_assert_eq!(&all, &merge(&[&a, &merge(&[&b, &c])]));
        prop_assert_eq!(all.runs, 3);
        prop_assert_eq!(all.labels.len(), 6);
        for page in all.pages() {
            let of = |t: &Trace| t.find(page.gfn).copied();
            let touched: Vec<PageAccess> = [&a, &b, &c].into_iter().filter_map(of).collect();
            prop_assert_eq!(page.runs as usize, touched.len());
            let written = touched.iter().filter(|p| p.access.has(Access::WRITTEN)).count();
            prop_assert_eq!(page.runs_written as usize, written);
            // First read here and written there is written.
            prop_assert_eq!(page.access.has(Access::WRITTEN), written > 0);
            prop_assert_eq!(page.order, touched.iter().map(|p| p.order).min().unwrap());
        }
        prop_assert_eq!(Trace::from_bytes(&all.to_bytes()), Ok(all));
    }
}

#[test]
fn traces_of_different_mechanisms_are_mixed() {
    let traces = [Trace::empty(Mechanism::UffdWp), Trace::empty(Mechanism::Mincore)];
    assert_eq!(Trace::merge(&traces).unwrap().mechanism, Mechanism::Mixed);
    assert_eq!(Trace::merge([]), None);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace");
    traces[1].write(&LocalFiles, &path).unwrap();
    assert_eq!(Trace::read(&path).unwrap(), traces[1]);
}

#[test]
fn contradictions_are_refused() {
    let good = PageAccess {
        gfn: 1,
        order: 0,
        access: Access::READ,
        invocation: 0,
        runs: 1,
        runs_written: 0,
    };
    let make = |pages| Trace::new(Mechanism::Pagemap, 1, vec!["resume".into()], pages);
    make(vec![good]).unwrap();
    for bad in [
        PageAccess { runs: 0, ..good },
        PageAccess { runs: 2, ..good },
        PageAccess { runs_written: 1, ..good },
        PageAccess { access: Access::WRITTEN, ..good },
        PageAccess { invocation: 1, ..good },
        PageAccess { gfn: u64::MAX, ..good },
    ] {
        assert!(make(vec![bad]).is_err(), "{bad:?}");
    }
    assert!(make(vec![good, good]).is_err());
}
