//! Dense blocks hold what was saved, and are one page where the kernel has such pages.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use proptest::prelude::{ProptestConfig, prop_assert, prop_assert_eq, proptest};
use varve_snapshot::{ImageId, PAGE_SIZE, PageClass, PageRange, Region, RegionMap};

use crate::plan::tests::{layout_of, range};
use crate::ram::kind::{HUGE_PAGE, PrefaultMode};
use crate::ram::sys::mmap::Reservation;
use crate::testing::*;
use crate::*;

/// Two whole blocks and a part of one; and, behind a hole, two parts around a whole one.
fn memory() -> Vec<PageRange> {
    vec![range(0, 1100), range(2000, 700)]
}

fn dense(strategy: Strategy) -> Policy {
    Policy { huge_blocks: HugeBlocks::Madvise, wait: PrefaultBarrier::All, ..Policy::new(strategy) }
}

fn blocks(plan: &Plan) -> Vec<PageRange> {
    plan.ops.iter().filter(|op| op.action == Action::Block).map(|op| op.pages).collect()
}

/// Pages of `block` that recorded calls wrote.
fn written(layout: &RegionMap, block: PageRange) -> usize {
    let class = |page| layout.find(page).map(|region| region.class);
    page_numbers(&[block]).filter(|&page| class(page) == Some(PageClass::ReadWrite)).count()
}

/// Runs of which most are written: stored in one image or another, or zero.
fn runs() -> impl proptest::strategy::Strategy<Value = Vec<(u64, u8, u32)>> {
    use proptest::prelude::prop_oneof;
    let written = || prop_oneof![2u8..=2, 10u8..=10, 14u8..=14];
    let kind = prop_oneof![3 => written(), 1 => prop_oneof![0u8..4, 8u8..12]];
    proptest::collection::vec((1u64..200, kind, 0u32..20), 4..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn dense_blocks_hold_what_was_saved(runs in runs(), whole: bool, base_image: bool, few: bool) {
        let memory = memory();
        let (layout, images) = layout_of(&memory, &runs);
        let policy = dense(if whole { Strategy::Template } else { Strategy::Tiered });
        let policy = Policy { max_mappings: if few { 6 } else { 1000 }, ..policy };
        let sources = files(&layout, &images, &memory);
        // With an image beneath, what is not hot is not named, if that image has it.
        let hot = layout.clone().only(|region: &Region| {
            region.is_hot() || region.stored.is_some_and(|s| s.image != ImageId(2))
        });
        let base_image = base_image.then_some(ImageId(2));
        let layout_read = if base_image.is_some() { &hot } else { &layout };
        let images = &images;
        let input = PlanInput { memory: &memory, layout: layout_read, base_image, images, policy: &policy };
        let plan = Plan::new(&input).unwrap();
        prop_assert_eq!(plan.verify(), Ok(()), "{}", plan);
        prop_assert!(plan.mappings() <= policy.max_mappings, "{} in\n{}", plan.mappings(), plan);
        for block in blocks(&plan) {
            prop_assert!(block.start().is_multiple_of(HUGE_PAGE as u64), "{block:?}");
            prop_assert_eq!(block.len(), HUGE_PAGE as u64);
            prop_assert!(memory.iter().any(|range| range.contains(&block)));
            prop_assert!(3 * written(&layout, block) >= 2 * 512 - 2, "{block:?} of\n{}", plan);
        }
        let ram = Arc::new(GuestRam::new(&memory, false).unwrap());
        let (hooks, fatal) = hooks();
        let sources = sources.into_iter().map(|s| Some(Arc::new(s) as Arc<dyn PageSource>));
        let restore = Restore::start(ram.clone(), plan, sources.collect(), hooks).unwrap();
        for page in page_numbers(&memory) {
            let (found, wanted) = (read_page(&ram, page), expected(&layout, page));
            prop_assert!(found == wanted, "page {page:#x} of\n{}", restore.plan());
        }
        let census = restore.census().unwrap();
        let classes = [census.zero, census.ro, census.rw, census.cold];
        prop_assert_eq!(classes.iter().map(|class| class.pages).sum::<u64>(), 1800);
        // A part of a block can be given back like any other page.
        let gone = [range(100, 300), range(2100, 1)];
        gone.iter().for_each(|&pages| ram.discard(pages).unwrap());
        prop_assert!(page_numbers(&gone).all(|page| read_page(&ram, page) == [0; 4096]));
        for page in [99, 400, 2099, 2101].map(|page| page * PAGE_SIZE) {
            prop_assert!(read_page(&ram, page) == expected(&layout, page), "page {page:#x}");
        }
        prop_assert!(fatal.try_recv().is_err());
    }
}

/// All of memory written, but for a page of each block that is only read.
fn nearly_all_written() -> (RegionMap, Vec<ImageInfo>) {
    layout_of(&memory(), &[(300, 8 + 2, 5), (1, 8 + 1, 5), (211, 12 + 2, 5)])
}

fn plan(policy: &Policy, mappable: bool) -> Plan {
    let (layout, mut images) = nearly_all_written();
    images[2].mappable = mappable;
    let (memory, layout) = (&memory(), &layout);
    Plan::new(&PlanInput { memory, layout, base_image: None, images: &images, policy }).unwrap()
}

#[test]
fn blocks_are_made_where_the_guest_waits_for_them_anyway() {
    for strategy in [Strategy::Tiered, Strategy::Template] {
        let policy = dense(strategy);
        let starts: Vec<_> =
            blocks(&plan(&policy, true)).iter().map(|b| b.start() / PAGE_SIZE).collect();
        assert_eq!(starts, [0, 512, 2048]);
        let none = |policy: &Policy, mappable| blocks(&plan(policy, mappable)).is_empty();
        assert!(none(&Policy { wait: PrefaultBarrier::Written, ..policy.clone() }, true));
        assert!(none(&Policy { huge_blocks: HugeBlocks::Off, ..policy.clone() }, true));
        assert!(none(&Policy { huge_pages: HugePages::Transparent, ..policy.clone() }, true));
        assert!(none(&policy, false), "its image cannot be mapped");
    }
    for strategy in [Strategy::Lazy, Strategy::Eager, Strategy::Reap, Strategy::Faasnap] {
        assert!(blocks(&plan(&dense(strategy), true)).is_empty(), "{strategy} knows no blocks");
    }
}

/// What a file has lost is not taken for a hole, which looks alike.
#[test]
fn what_a_short_file_lacks_is_an_error() {
    // Written, then a part that is not named, and beneath; none of the whole file is a hole.
    let (memory, policy) = (vec![range(0, 512)], dense(Strategy::Template));
    let (layout, images) = layout_of(&memory, &[(400, 8 + 2, 5), (112, 8 + 3, 0)]);
    let hot = layout.clone().only(Region::is_hot);
    for (pages, whole) in [(512, true), (500, false), (400, false)] {
        let sources = files(&layout, &images, &memory);
        sources[2].file.set_len(pages * PAGE_SIZE).unwrap();
        let sources = sources.into_iter().map(|s| Some(Arc::new(s) as Arc<dyn PageSource>));
        let base_image = Some(ImageId(2));
        let (memory, images, policy) = (&memory, &images, &policy);
        let input = PlanInput { memory, layout: &hot, base_image, images, policy };
        let plan = Plan::new(&input).unwrap();
        assert_eq!(blocks(&plan).len(), 1);
        let ram = Arc::new(GuestRam::new(memory, false).unwrap());
        let restored = Restore::start(ram, plan, sources.collect(), hooks().0);
        assert_eq!(restored.is_ok(), whole, "{pages} pages");
        let said = restored.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(whole || said.contains("image2"), "{said}");
    }
}

/// What stage-2 is filled with.
struct Filled(Arc<Mutex<Vec<PageRange>>>);

impl Stage2 for Filled {
    fn prefault(&self, pages: PageRange) -> io::Result<()> {
        self.0.lock().unwrap().push(pages);
        Ok(())
    }
}

#[test]
fn a_block_is_one_page() {
    let (memory, (layout, images)) = (memory(), nearly_all_written());
    let filled = Arc::new(Mutex::new(Vec::new()));
    let hooks = Hooks { stage2: Some(Box::new(Filled(filled.clone()))), ..hooks().0 };
    let sources = files(&layout, &images, &memory);
    let (ram, restore) = restore(&memory, &layout, sources, &dense(Strategy::Template), hooks);
    let counters = restore.counters();
    assert_eq!(counters.pages.ahead_failed, 0);
    assert!(counters.pages.ahead_write >= 3 * 512, "{:?}", counters.pages);
    let filled: BTreeSet<_> = filled.lock().unwrap().iter().copied().collect();
    let blocks = blocks(restore.plan());
    assert!(blocks.iter().all(|block| filled.contains(block)), "{filled:?}");
    for page in page_numbers(&blocks) {
        assert!(read_page(&ram, page) == expected(&layout, page), "page {page:#x}");
    }
    let smaps = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let huge = smaps.lines().find_map(|line| line.strip_prefix("AnonHugePages:")).unwrap();
    let huge: usize = huge.trim().trim_end_matches(" kB").parse().unwrap();
    match HugeBlocks::suited(PrefaultBarrier::All) != HugeBlocks::Off && huge_pages_are_to_be_had()
    {
        true => assert!(huge >= 3 * HUGE_PAGE / 1024, "{huge} KiB"),
        false => varve_skip::skip!("huge-pages", "the host makes no huge pages"),
    }
}

/// Whether the kernel makes a huge page of memory that asks for one: one touch brings in its last page,
/// too.
fn huge_pages_are_to_be_had() -> bool {
    let memory = Reservation::new(HUGE_PAGE, HUGE_PAGE).unwrap();
    if memory.want_huge(0, HUGE_PAGE).is_err() {
        return false;
    }
    memory.populate(0, PAGE_SIZE as usize, PrefaultMode::Write).unwrap();
    memory.in_core(HUGE_PAGE - PAGE_SIZE as usize, PAGE_SIZE as usize).unwrap() == [true]
}
