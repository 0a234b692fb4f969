//! Taking pages out of guest memory while the machine stands still: which, and from under what.
//!
//! Of anonymous memory whatever is present. Where a file is laid, pages that were written are private
//! copies, for which fresh memory is laid and watched in their place; the others are given back to the
//! page cache, where they are found again.

use std::sync::Arc;

use varve_snapshot::{PAGE_SIZE, PageRange};

use crate::error::TierError;
use crate::fault::watched::Watched;
use crate::ram::error::RamError;
use crate::ram::guest_ram::GuestRam;
use crate::ram::sys::mmap::Reservation;

/// Bytes that are looked at while the machine stands still once.
pub(crate) const WINDOW: u64 = 16 << 20;

/// What became of pages of one window.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Taken {
    /// Pages taken out, zero ones among them.
    pub out: u64,
    /// Pages of files that were given back to the page cache.
    pub clean: u64,
    /// Private copies that stay, because there is no room for more mappings, or because the kernel does
    /// not say which they are.
    pub left: u64,
}

/// Watches what is anonymous, so that pages of it can be taken out.
pub(crate) fn watch(ram: &GuestRam, watched: &Watched) -> Result<(), RamError> {
    for region in ram.regions() {
        let plain = ram.layers().files.outside(region.pages);
        for part in plain {
            for part in watched.not_yet(part) {
                watched.register_lazily(ram, part)?;
            }
        }
    }
    Ok(())
}

/// Takes at most `limit` pages out of `window`.
pub(crate) fn take(
    ram: &GuestRam,
    watched: &Watched,
    window: PageRange,
    limit: u64,
) -> Result<Taken, TierError> {
    let (on_file, plain) = {
        let layers = ram.layers();
        (layers.files.within(window), layers.files.outside(window))
    };
    let mut taken = Taken::default();
    let mut out = Vec::new();
    for part in plain {
        let present = ram.call("look at", part, |r, o, len| r.in_core(o, len))?;
        out.extend(runs(part, &present, |&present| present).map(|run| (run, false)));
    }
    for part in on_file {
        let Ok(states) = ram.page_states(part) else {
            // Without /proc, as in a jail. Most may be the file's own.
            taken.left += part.pages();
            continue;
        };
        for clean in runs(part, &states, |s| s.of_file()) {
            ram.call("give back", clean, |r, o, len| r.discard(o, len))?;
            taken.clean += clean.pages();
        }
        let private = runs(part, &states, |s| s.present() && s.private());
        out.extend(private.map(|run| (run, true)));
    }
    // Room for mappings goes to the longest.
    out.sort_by_key(|(run, on_file)| (*on_file, std::cmp::Reverse(run.len())));

    let wanted = out.iter().map(|(run, _)| run.pages()).sum::<u64>().min(limit);
    if wanted == 0 {
        return Ok(taken);
    }
    let len = usize::try_from(wanted * PAGE_SIZE).unwrap_or(usize::MAX);
    let call = |source| RamError::Call { what: "set aside", range: window, source };
    let stage = Arc::new(Reservation::new(len, PAGE_SIZE as usize).map_err(call)?);
    let mut used = 0;
    for (run, on_file) in out {
        let Some(run) = first_of(run, limit - taken.out) else { break };
        if on_file && !ram.has_room(run) {
            taken.left += run.pages();
            continue;
        }
        used += watched.take(ram, run, &stage, used, || match on_file {
            true => ram.lay_over_file(run).and_then(|()| watched.register_lazily(ram, run)),
            false => ram.call("give back", run, |r, o, len| r.discard(o, len)),
        })?;
        taken.out += run.pages();
    }
    Ok(taken)
}

/// At most `pages` of a run; none if that is none.
fn first_of(run: PageRange, pages: u64) -> Option<PageRange> {
    PageRange::new(run.start(), run.len().min(pages.saturating_mul(PAGE_SIZE))).ok()
}

/// The runs of pages of `range` whose state is `wanted`.
fn runs<'s, S>(
    range: PageRange,
    states: &'s [S],
    wanted: impl Fn(&S) -> bool + 's,
) -> impl Iterator<Item = PageRange> + 's {
    let mut page = range.start();
    let mut rest = states;
    std::iter::from_fn(move || {
        let skip = rest.iter().position(&wanted)?;
        let (_, from) = rest.split_at(skip);
        let count = from.iter().position(|s| !wanted(s)).unwrap_or(from.len());
        let start = page + skip as u64 * PAGE_SIZE;
        page = start + count as u64 * PAGE_SIZE;
        rest = from.get(count..).unwrap_or_default();
        PageRange::new(start, count as u64 * PAGE_SIZE).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_are_maximal_and_complete(states in prop::collection::vec(any::<bool>(), 1..60)) {
            let range = PageRange::new(7 << 12, (states.len() as u64) << 12).unwrap();
            let found: Vec<_> = runs(range, &states, |&s| s).collect();
            prop_assert!(found.windows(2).all(|w| w[0].end() < w[1].start()));
            let has = |n: usize| found.iter().any(|r| r.start() <= (n as u64 + 7) << 12
                && (n as u64 + 7) << 12 < r.end());
            for (n, &state) in states.iter().enumerate() {
                prop_assert_eq!(has(n), state);
            }
        }
    }
}
