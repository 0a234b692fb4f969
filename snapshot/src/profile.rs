//! What traces say of a function: how much of memory it uses and how, whether other inputs use the
//! same, whether pages are used in the same way each time. Pure.

use serde::Serialize;

use crate::class::PageClass;
use crate::classify::{ClassifyOptions, classify};
use crate::error::SnapshotError;
use crate::page::PageRange;
use crate::trace::{Access, Mechanism, Trace};

/// A function by its traces.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Profile {
    /// Pages of guest memory.
    pub pages: u64,
    /// Runs that were recorded, of all traces together.
    pub runs: u32,
    /// Pages by class, as all traces together say, with no page counted in for its neighbours' sake.
    pub classes: Vec<ClassShare>,
    /// Pages that hold nothing and were touched, and those of them that were written.
    pub zero_touched: (u64, u64),
    /// Pages that were touched by one run, by two, and so on.
    pub touched_by: Vec<u64>,
    /// How pages that several runs touched were used.
    pub stability: Stability,
    /// Each trace.
    pub inputs: Vec<Input>,
    /// Each pair of traces.
    pub overlaps: Vec<Overlap>,
}

/// Pages of one class.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ClassShare {
    /// `zero`, `ro`, `rw` or `cold`.
    pub class: &'static str,
    /// How many.
    pub pages: u64,
    /// Of guest memory, 0 to 1.
    pub share: f64,
}

/// Pages that more than one run touched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stability {
    /// That all of them only read.
    pub always_read: u64,
    /// That all of them wrote.
    pub always_written: u64,
    /// That some wrote and others only read: read-only by one recording, and not by another.
    pub changing: u64,
}

/// One trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Input {
    /// Its name.
    pub name: String,
    /// Pages touched.
    pub touched: u64,
    /// Among them written.
    pub written: u64,
    /// Pages touched by no trace before this one.
    pub new: u64,
}

/// Two traces.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Overlap {
    /// The one.
    pub first: String,
    /// The other.
    pub second: String,
    /// Pages of both.
    pub common: u64,
    /// The same as a share of the pages of either (Jaccard), 0 to 1.
    pub jaccard: f64,
}

impl Profile {
    /// Of guest memory in which `zero` says of each page, in order, whether it is all zero.
    ///
    /// # Errors
    ///
    /// If `zero` does not fit the memory.
    pub fn of(
        memory: &[PageRange],
        zero: Vec<bool>,
        traces: &[(String, Trace)],
    ) -> Result<Profile, SnapshotError> {
        let all = Trace::merge(traces.iter().map(|(_, trace)| trace));
        let all = all.unwrap_or_else(|| Trace::empty(Mechanism::UffdWp));
        let plain = ClassifyOptions { bridge_pages: 0, ..ClassifyOptions::default() };
        let classified = classify(memory, zero, &all, &plain)?;
        let pages = classified.class.len() as u64;
        let classes = PageClass::BOTTOM_UP.into_iter().map(|class| {
            let count = classified.class.iter().filter(|&&c| c == class).count() as u64;
            ClassShare { class: class.name(), pages: count, share: share(count, pages) }
        });
        let touched = || {
            let flags = classified.zero.iter().zip(&classified.rank).zip(&classified.written);
            flags.filter(|((zero, rank), _)| **zero && **rank != crate::region::NEVER)
        };
        let mut touched_by = vec![0; all.runs as usize];
        let mut stability = Stability::default();
        for page in all.pages() {
            if let Some(count) = touched_by.get_mut(page.runs.saturating_sub(1) as usize) {
                *count += 1;
            }
            if page.runs > 1 {
                *match page.runs_written {
                    0 => &mut stability.always_read,
                    n if n == page.runs => &mut stability.always_written,
                    _ => &mut stability.changing,
                } += 1;
            }
        }
        Ok(Profile {
            pages,
            runs: if traces.is_empty() { 0 } else { all.runs },
            classes: classes.collect(),
            zero_touched: (
                touched().count() as u64,
                touched().filter(|(_, written)| **written).count() as u64,
            ),
            touched_by,
            stability,
            inputs: inputs(traces),
            overlaps: overlaps(traces),
        })
    }
}

fn share(part: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { part as f64 / all as f64 }
}

fn inputs(traces: &[(String, Trace)]) -> Vec<Input> {
    let input = |(nth, (name, trace)): (usize, &(String, Trace))| {
        let known = |gfn| traces[..nth].iter().any(|(_, earlier)| earlier.find(gfn).is_some());
        let count = |f: &dyn Fn(&crate::trace::PageAccess) -> bool| {
            trace.pages().iter().filter(|page| f(page)).count() as u64
        };
        Input {
            name: name.clone(),
            touched: trace.pages().len() as u64,
            written: count(&|page| page.access.has(Access::WRITTEN)),
            new: count(&|page| !known(page.gfn)),
        }
    };
    traces.iter().enumerate().map(input).collect()
}

fn overlaps(traces: &[(String, Trace)]) -> Vec<Overlap> {
    let mut all = Vec::new();
    for (nth, (first, one)) in traces.iter().enumerate() {
        for (second, other) in &traces[nth + 1..] {
            let common = one.pages().iter().filter(|p| other.find(p.gfn).is_some()).count() as u64;
            let either = (one.pages().len() + other.pages().len()) as u64 - common;
            let (first, second) = (first.clone(), second.clone());
            all.push(Overlap { first, second, common, jaccard: share(common, either) });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::PAGE_SIZE;
    use crate::trace::PageAccess;

    /// Pages of a run, and whether it wrote them.
    fn trace(pages: &[(u64, bool)]) -> Trace {
        let access = |(order, &(gfn, written)): (usize, &(u64, bool))| PageAccess {
            gfn,
            order: order as u32,
            access: if written { Access::WRITTEN } else { Access::READ },
            invocation: 0,
            runs: 1,
            runs_written: written.into(),
        };
        let pages = pages.iter().enumerate().map(access).collect();
        Trace::new(Mechanism::UffdWp, 1, vec!["x".into()], pages).unwrap()
    }

    fn memory(pages: u64) -> Vec<PageRange> {
        vec![PageRange::new(0, pages * PAGE_SIZE).unwrap()]
    }

    #[test]
    fn every_page_is_counted_once() {
        // Zero are 0 to 3.
        let zero = (0..10).map(|page| page < 4).collect();
        let a = trace(&[(0, true), (1, false), (5, false), (6, true), (7, false)]);
        let b = trace(&[(5, false), (6, true), (7, true), (8, false)]);
        let found = Profile::of(&memory(10), zero, &[("a".into(), a), ("b".into(), b)]).unwrap();
        let pages: Vec<_> = found.classes.iter().map(|c| (c.class, c.pages)).collect();
        assert_eq!(pages, [("zero", 3), ("cold", 2), ("ro", 2), ("rw", 3)]);
        assert_eq!(found.zero_touched, (2, 1));
        assert_eq!((found.runs, &found.touched_by[..]), (2, &[3, 3][..]));
        let stability = Stability { always_read: 1, always_written: 1, changing: 1 };
        assert_eq!(found.stability, stability);
        let input =
            |name: &str, touched, written, new| Input { name: name.into(), touched, written, new };
        assert_eq!(found.inputs, [input("a", 5, 2, 5), input("b", 4, 2, 1)]);
        let [overlap] = &found.overlaps[..] else { panic!("{found:?}") };
        assert_eq!((overlap.common, overlap.jaccard), (3, 0.5));
    }

    #[test]
    fn without_traces_nothing_is_hot() {
        let found = Profile::of(&memory(3), vec![true, false, false], &[]).unwrap();
        assert_eq!((found.runs, found.inputs.len(), found.overlaps.len()), (0, 0, 0));
        let cold = found.classes.iter().find(|c| c.class == "cold").unwrap();
        assert_eq!((cold.pages, cold.share), (2, 2.0 / 3.0));
    }

    #[test]
    fn two_traces_of_nothing_have_nothing_in_common() {
        let empty = || Trace::empty(Mechanism::UffdWp);
        let traces = [("a".into(), empty()), ("b".into(), empty())];
        let found = Profile::of(&memory(1), vec![true], &traces).unwrap();
        assert_eq!(found.overlaps[0].jaccard, 0.0);
    }
}
