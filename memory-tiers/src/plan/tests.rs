//! Plans over random maps show what the layout says, within their budget.

use crate::plan::bridge;
use proptest::prelude::{
    Just, ProptestConfig, prop_assert, prop_assert_eq, prop_compose, prop_oneof, proptest,
};
use varve_snapshot::{ImageId, NEVER, PAGE_SIZE, PageClass, PageRange, Region, RegionMap, Stored};

use crate::ram::kind::PrefaultMode;
use crate::*;

/// Two ranges with a hole between, as the PCI hole of a large guest.
pub(crate) const MEMORY_PAGES: [(u64, u64); 2] = [(0, 96), (160, 64)];

pub(crate) fn range(first: u64, pages: u64) -> PageRange {
    PageRange::new(first * PAGE_SIZE, pages * PAGE_SIZE).unwrap()
}

pub(crate) fn memory() -> Vec<PageRange> {
    MEMORY_PAGES.iter().map(|&(f, n)| range(f, n)).collect()
}

fn guest_index(page: u64) -> u64 {
    bridge::guest_index(&memory(), page * PAGE_SIZE).unwrap()
}

/// A layout from a list of (run length, kind), laid one after another through memory. Kinds name
/// class and image: 0 and 1 are compact images of which 1 does not map, 2 is in guest layout.
pub(crate) fn layout(runs: &[(u64, u8, u32)]) -> (RegionMap, Vec<ImageInfo>) {
    layout_of(&memory(), runs)
}

/// The same for any memory.
pub(crate) fn layout_of(
    memory: &[PageRange],
    runs: &[(u64, u8, u32)],
) -> (RegionMap, Vec<ImageInfo>) {
    let guest_index = |page: u64| bridge::guest_index(memory, page * PAGE_SIZE).unwrap();
    let mut regions = Vec::new();
    let mut next = [0u64; 2];
    let mut runs = runs.iter().cycle();
    for (first, pages) in memory.iter().map(|m| (m.start() / PAGE_SIZE, m.pages())) {
        let mut at = first;
        while at < first + pages {
            let &(len, kind, rank) = runs.next().unwrap();
            let len = len.min(first + pages - at);
            let class = PageClass::from_number(kind % 4).unwrap();
            let image = u16::from(kind / 4 % 3);
            let mut stored = match image {
                2 => Some(Stored { image: ImageId(2), page: guest_index(at) }),
                _ => {
                    let page = next[usize::from(image)];
                    next[usize::from(image)] += len;
                    Some(Stored { image: ImageId(image), page })
                }
            };
            if class == PageClass::Zero || (class == PageClass::ReadWrite && kind >= 12) {
                stored = None;
            }
            let rank = if rank < 3 { NEVER } else { rank };
            // Zero regions are often not named at all.
            if !(class == PageClass::Zero && kind < 8) {
                regions.push(Region { pages: range(at, len), class, stored, rank });
            }
            at += len;
        }
    }
    let image = |id: usize, pages| ImageInfo {
        name: format!("image{id}"),
        tier: Tier::Local,
        pages,
        mappable: id != 1,
        guest_layout: id == 2,
        chunk_pages: if id == 1 { 4 } else { 1 },
    };
    let all = memory.iter().map(|m| m.pages()).sum();
    let images = vec![image(0, next[0]), image(1, next[1]), image(2, all)];
    (RegionMap::new(regions, memory).unwrap(), images)
}

/// A layout with nothing beneath it.
fn whole<'a>(
    memory: &'a [PageRange],
    layout: &'a RegionMap,
    images: &'a [ImageInfo],
    policy: &'a Policy,
) -> PlanInput<'a> {
    PlanInput { memory, layout, base_image: None, images, policy }
}

prop_compose! {
    pub(crate) fn policies()(
        strategy in 0..Strategy::ALL.len(),
        read_only in 0..3,
        paged: bool,
        wait in 0..4,
        bridge in 0u64..40,
        max_mappings in prop_oneof![Just(6usize), 8usize..40, Just(1000)],
        stage2: bool,
    ) -> Policy {
        Policy {
            read_only: [ReadOnlyPages::Auto, ReadOnlyPages::Mapped, ReadOnlyPages::Copied]
                [read_only as usize],
            cold: if paged { ColdPages::Paged } else { ColdPages::Mapped },
            wait: [PrefaultBarrier::Nothing, PrefaultBarrier::Written, PrefaultBarrier::First, PrefaultBarrier::All][wait as usize],
            bridge,
            max_mappings,
            stage2,
            ..Policy::new(Strategy::ALL[strategy])
        }
    }
}

pub(crate) fn runs() -> impl proptest::strategy::Strategy<Value = Vec<(u64, u8, u32)>> {
    proptest::collection::vec((1u64..9, 0u8..16, 0u32..20), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_page_shows_what_the_layout_says(
        runs in runs(),
        policy in policies(),
        base_image: bool,
    ) {
        let (mut layout, images) = layout(&runs);
        let memory = memory();
        // Only some methods have an image beneath all else; it holds what is not named then.
        let may = matches!(policy.strategy, Strategy::Lazy | Strategy::Tiered | Strategy::Template);
        let base_image = (base_image && may && policy.cold == ColdPages::Mapped).then_some(ImageId(2));
        if base_image.is_some() {
            let cold = |r: &Region| r.class == PageClass::Cold && r.rank == NEVER;
            layout = layout.only(|r| !cold(r) && r.stored.is_none_or(|s| s.image != ImageId(1)));
        }
        let input = PlanInput { base_image, ..whole(&memory, &layout, &images, &policy) };
        let plan = Plan::new(&input).unwrap();
        prop_assert_eq!(plan.verify(), Ok(()), "{}", plan);
        prop_assert!(plan.mappings() <= policy.max_mappings, "{} in\n{}", plan.mappings(), plan);
        prop_assert!(plan.ops.is_sorted_by_key(|o| PageClass::BOTTOM_UP.iter().position(|&c| c == o.layer)));
        let turn = |s: &Step| (s.class != PageClass::ReadWrite, s.rank);
        let cost = plan.cost();
        prop_assert!(plan.beside().is_sorted_by_key(turn));
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a.abs().max(1.0);
        prop_assert!(close(cost.total(), plan.cost().total()), "it costs the same in order");
        // Against a model that knows no ranges: page by page, the last operation wins.
        for page in memory.iter().flat_map(|m| (m.start()..m.end()).step_by(4096)) {
            let mut watched = false;
            let mut shown = None;
            for op in plan.ops.iter().filter(|o| o.pages.contains(&range(page / 4096, 1))) {
                let skip = (page - op.pages.start()) / 4096;
                prop_assert!(op.action != Action::Install || watched, "nothing to install into");
                watched = op.action == Action::Watch;
                shown = op.from.map(|f| (f.image, f.page + skip));
            }
            let in_place = |image| (image, guest_index(page / 4096));
            let want = match layout.find(page) {
                Some(region) => {
                    let skip = (page - region.pages.start()) / 4096;
                    region.stored.map(|s| (s.image, s.page + skip))
                }
                None => base_image.map(in_place),
            };
            let hole = want.is_none() && shown == Some(in_place(ImageId(2)));
            prop_assert!(watched || shown == want || hole, "page {page:#x}: {shown:?} for {want:?}");
        }
    }
}

#[test]
fn a_template_is_one_mapping_per_range() {
    let runs = [(4, 8 + 3, 0), (2, 8 + 2, 5), (3, 8, 0), (1, 8 + 1, 4)];
    let (layout, images) = layout(&runs);
    let memory = memory();
    for strategy in [Strategy::Lazy, Strategy::Template] {
        let policy = Policy::new(strategy);
        let input = whole(&memory, &layout, &images, &policy);
        let plan = Plan::new(&input).unwrap();
        plan.verify().unwrap();
        assert!(plan.mappings() <= 4, "{plan}");
    }
}

/// What is not hot costs as many mappings as there are ranges, however large the guest is.
#[test]
fn cold_pages_in_guest_layout_are_one_mapping_per_range() {
    // Cold, zero for longer than what `bridge` allows, read-only.
    let (layout, images) = layout(&[(8, 8 + 3, 0), (20, 0, 0), (1, PageClass::ReadOnly as u8, 3)]);
    let memory = memory();
    let of = |strategy, huge_pages| {
        let policy = Policy { bridge: 16, huge_pages, ..Policy::new(strategy) };
        let input = whole(&memory, &layout, &images, &policy);
        let plan = Plan::new(&input).unwrap();
        plan.verify().unwrap();
        plan.ops.iter().filter(|op| op.layer == PageClass::Cold).count()
    };
    assert_eq!(of(Strategy::Tiered, HugePages::Off), 2);
    // FaaSnap shows zero pages by holes only where the gap is short, and no hole is a huge page.
    assert!(of(Strategy::Faasnap, HugePages::Off) > 4);
    assert!(of(Strategy::Tiered, HugePages::Transparent) > 4);
}

/// What lies beneath is mapped once, and what it shows anyway not again.
#[test]
fn an_image_beneath_is_one_mapping_per_range() {
    let (layout, images) =
        layout(&[(4, 8 + 1, 4), (3, 8 + 3, 0), (2, PageClass::ReadOnly as u8, 5)]);
    let layout = layout.only(Region::is_hot);
    let memory = memory();
    let base_image = Some(ImageId(2));
    let plan = |policy: &Policy, base_image| {
        Plan::new(&PlanInput { base_image, ..whole(&memory, &layout, &images, policy) })
    };
    let tiered = Policy::new(Strategy::Tiered);
    let of = |strategy| plan(&Policy::new(strategy), base_image).unwrap();
    for strategy in [Strategy::Lazy, Strategy::Tiered] {
        let plan = of(strategy);
        plan.verify().unwrap();
        let low = plan.ops.iter().filter(|op| op.from.is_some_and(|f| f.image == ImageId(2)));
        assert!(low.map(|op| op.pages).eq(memory.iter().copied()), "{plan}");
        assert_eq!(plan.image_at(4 * PAGE_SIZE).unwrap().name, "image2", "nothing names it");
    }
    let mut short = images.clone();
    short[2].pages -= 1;
    let input = PlanInput { base_image, ..whole(&memory, &layout, &short, &tiered) };
    let found = Plan::new(&input).unwrap_err();
    let last = PlanError::Short { pages: memory[1], page: 96, image: "image2".into(), has: 159 };
    assert_eq!(found, last);
    let wrong = |policy: &Policy, base_image| {
        matches!(plan(policy, base_image), Err(PlanError::Beneath(..)))
    };
    assert!(wrong(&tiered, Some(ImageId(0))), "it is packed");
    assert!(wrong(&tiered, Some(ImageId(9))), "it is not there");
    assert!(wrong(&Policy::new(Strategy::Reap), base_image));
    assert!(wrong(&Policy { cold: ColdPages::Paged, ..tiered.clone() }, base_image));
    assert!(wrong(&Policy { huge_pages: HugePages::Transparent, ..tiered }, base_image));
}

#[test]
fn layouts_that_name_what_is_not_there_are_refused() {
    let memory = memory();
    let policy = Policy::new(Strategy::Tiered);
    let region = |first, pages, image, page| {
        let stored = Some(Stored { image: ImageId(image), page });
        let class = PageClass::ReadOnly;
        let region = Region { pages: range(first, pages), class, stored, rank: 0 };
        RegionMap::new(vec![region], &[range(0, 1000)]).unwrap()
    };
    let (_, images) = layout(&[(4, 1, 0)]);
    let try_plan = |layout: &RegionMap| Plan::new(&whole(&memory, layout, &images, &policy));
    assert!(matches!(try_plan(&region(90, 10, 2, 0)), Err(PlanError::Outside(_))));
    assert!(matches!(try_plan(&region(0, 4, 3, 0)), Err(PlanError::NoImage(_, 3))));
    assert!(matches!(try_plan(&region(0, 4, 2, 157)), Err(PlanError::Short { has: 160, .. })));
    assert!(matches!(try_plan(&region(0, 4, 2, u64::MAX)), Err(PlanError::Short { .. })));
    assert!(try_plan(&region(0, 4, 2, 156)).is_ok());
    let policy = Policy { huge_pages: HugePages::Pool, ..Policy::new(Strategy::Reap) };
    let layout = region(0, 4, 2, 0);
    let input = whole(&memory, &layout, &images, &policy);
    assert!(matches!(Plan::new(&input), Err(PlanError::HugePages(Strategy::Reap))));
}

/// Operations of a plan, of layouts with an image 0 on shared memory.
fn counted(runs: &[(u64, u8, u32)], policy: &Policy, action: Action) -> usize {
    let (layout, mut images) = layout(runs);
    images[0].tier = Tier::Cxl;
    let memory = memory();
    let plan = Plan::new(&whole(&memory, &layout, &images, policy));
    let plan = plan.unwrap();
    plan.verify().unwrap();
    plan.ops.iter().filter(|op| op.action == action).count()
}

/// What is populated beside the guest is worth less than what the guest waits for.
#[test]
fn fresh_memory_is_laid_where_the_guest_gains_by_it() {
    let clear = |pages, wait| {
        // Cold in guest layout, zero but written.
        let runs = [(3, 8 + 3, 0), (pages, 12 + 2, 5)];
        let policy = Policy { wait, ..Policy::new(Strategy::Template) };
        counted(&runs, &policy, Action::Clear)
    };
    assert_eq!(clear(10, PrefaultBarrier::Nothing), 0);
    assert!(clear(10, PrefaultBarrier::All) > 4);
    assert_eq!(clear(4, PrefaultBarrier::All), 0);
    assert!(clear(30, PrefaultBarrier::Nothing) > 0);
}

/// 32 MiB are waited for, in the order in which they will be needed, and the rest is left for later.
#[test]
fn what_comes_first_is_waited_for() {
    let memory = [range(0, 1 << 15)];
    let hot = |first, pages, class, rank| Region {
        pages: range(first, pages),
        class,
        stored: Some(Stored { image: ImageId(0), page: first }),
        rank,
    };
    let regions = vec![
        hot(0, 5000, PageClass::ReadOnly, 7),
        hot(6000, 4000, PageClass::ReadOnly, 3),
        hot(12000, 3000, PageClass::ReadWrite, 9),
    ];
    let layout = RegionMap::new(regions, &memory).unwrap();
    let tier = Tier::Local;
    let images = [ImageInfo {
        name: "memory".into(),
        tier,
        pages: 1 << 15,
        mappable: true,
        guest_layout: true,
        chunk_pages: 1,
    }];
    let steps = |wait| {
        let policy = Policy { wait, ..Policy::new(Strategy::Template) };
        let plan = Plan::new(&whole(&memory, &layout, &images, &policy)).unwrap();
        let starts = |steps: &[Step]| steps.iter().map(|s| s.pages.start() >> 12).collect();
        let both: [Vec<u64>; 2] = [starts(&plan.before), starts(plan.beside())];
        both
    };
    assert_eq!(steps(PrefaultBarrier::First), [vec![12000, 6000], vec![0]]);
    assert_eq!(steps(PrefaultBarrier::All), [vec![12000, 6000, 0], vec![]]);
    assert_eq!(steps(PrefaultBarrier::Nothing), [vec![], vec![12000, 6000, 0]]);
}

/// Read-only pages are copied where that costs less than what their use in place costs more, a part of
/// the work beside the guest, or all that it waits for.
#[test]
fn read_only_pages_are_copied_where_that_is_cheaper() {
    let copied = |strategy, wait, remote_use| {
        let (layout, mut images) = layout(&[(3, 8 + 1, 5), (4, 8 + 3, 0)]);
        images[2].tier = Tier::Cxl;
        let policy = Policy { wait, ..Policy::new(strategy) };
        let policy = Policy { costs: Costs { remote_use, ..policy.costs }, ..policy };
        let memory = memory();
        let plan = Plan::new(&whole(&memory, &layout, &images, &policy)).unwrap();
        let ways = plan.before.iter().chain(plan.beside()).filter_map(|step| step.how);
        let ways: Vec<PrefaultMode> = ways.collect();
        assert!(ways.len() > 10 && ways.iter().all(|how| *how == ways[0]), "{plan}");
        ways[0] == PrefaultMode::Write
    };
    for strategy in [Strategy::Tiered, Strategy::Template] {
        assert!(!copied(strategy, PrefaultBarrier::Nothing, 0.0));
        assert!(!copied(strategy, PrefaultBarrier::Nothing, 300.0));
        assert!(copied(strategy, PrefaultBarrier::Nothing, 500.0));
        assert!(!copied(strategy, PrefaultBarrier::All, 1200.0));
        assert!(copied(strategy, PrefaultBarrier::All, 1800.0));
    }
}
