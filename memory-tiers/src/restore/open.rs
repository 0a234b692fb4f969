//! From a snapshot to a plan and the sources that it needs: only the layouts and the images that the
//! method uses are read.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use varve_snapshot::{
    FlatFile, MEMORY_FILE, ManifestReader, PageRange, READ_ONLY_IMAGE, RegionMap, SnapshotError,
    Stored, layout,
};

use crate::error::TierError;
use crate::plan::huge_blocks::HugeBlocks;
use crate::plan::image::{ImageInfo, Tier};
use crate::plan::layouts::{has, layout_for, regions};
use crate::plan::ops::{Plan, PlanInput};
use crate::plan::policy::{Policy, PrefaultBarrier};
use crate::plan::strategy::Strategy;
use crate::ram::kind::HugePages;
use crate::source::images::{file_of, infos, open_image};
use crate::source::page_cache;
use crate::source::page_source::{FileSource, Sources};
use crate::source::readahead::fetch_packed;
use crate::source::resolver::ImageResolver;

/// The plan for a tiered snapshot, with its images open. `auto` compares the methods that the
/// snapshot was prepared for.
pub fn open(
    snapshot: &ManifestReader,
    policy: &Policy,
    resolver: &dyn ImageResolver,
) -> Result<(Plan, Sources), TierError> {
    let start = Instant::now();
    let images = infos(snapshot, resolver);
    let plan = |strategy: Strategy, name: &str| {
        let (layout, base_image) = regions(snapshot, strategy, name, policy, &images)?;
        if strategy.traits().packed {
            fetch_packed(snapshot, &layout, &images, resolver);
        }
        let mut policy = Policy { strategy, ..policy.clone() };
        // Packed images are read from end to end as fast as a disk gives them.
        let packed = strategy.traits().packed;
        if policy.wait == PrefaultBarrier::First
            && !packed
            && !is_near(snapshot, &images, resolver, &layout)
        {
            (policy.wait, policy.huge_blocks) = (PrefaultBarrier::Nothing, HugeBlocks::Off);
        }
        let (memory, images) = (snapshot.memory(), images.as_slice());
        Ok(Plan::new(&PlanInput { memory, layout: &layout, base_image, images, policy: &policy })?)
    };
    let mut plan = match (policy.strategy, policy.huge_pages) {
        (Strategy::Auto, HugePages::Pool) => plan(Strategy::Tiered, layout::TIERED)?,
        (Strategy::Auto, _) => cheapest(snapshot, &images, resolver, plan)?,
        (strategy, _) => plan(strategy, layout_for(snapshot, strategy))?,
    };
    let mut sources: Sources = vec![None; images.len()];
    for image in plan.used_images() {
        let at = usize::from(image.0);
        if let (Some(slot @ None), Some(info)) = (sources.get_mut(at), images.get(at)) {
            *slot = Some(open_image(snapshot, image, info, plan.installs(), resolver)?);
        }
    }
    plan.took = start.elapsed();
    Ok((plan, sources))
}

/// The best of the methods that `auto` knows. What `lazy` costs follows from the classes, which the
/// layout that is made for it does not tell, but the one for `template`, of the same file, does.
///
/// What `template` maps at once `tiered` maps piece by piece, which is worth it only if the pieces
/// are nearer, or if all has to come from a disk: packed images are read from end to end, and not in
/// as many pieces as there are extents. To plan it just to see that takes longer than all the rest.
fn cheapest(
    snapshot: &ManifestReader,
    images: &[ImageInfo],
    resolver: &dyn ImageResolver,
    plan: impl Fn(Strategy, &str) -> Result<Plan, TierError>,
) -> Result<Plan, TierError> {
    let tiered = has(snapshot, layout::TIERED);
    let mut plans = Vec::new();
    if has(snapshot, layout::TEMPLATE) {
        let template = plan(Strategy::Template, layout::TEMPLATE)?;
        let policy = Policy { strategy: Strategy::Lazy, ..template.policy.clone() };
        let (memory, layout, base_image) =
            (snapshot.memory(), &template.layout, template.base_image);
        let lazy = Plan::new(&PlanInput { memory, layout, base_image, images, policy: &policy })?;
        plans.extend([template, lazy]);
    }
    let alike = are_alike(images);
    let near = |plan: &Plan| is_near(snapshot, images, resolver, &plan.layout);
    if tiered && alike && plans.first().is_some_and(|template| !near(template)) {
        return plan(Strategy::Tiered, layout::TIERED);
    }
    if tiered && (plans.is_empty() || !alike) {
        plans.push(plan(Strategy::Tiered, layout::TIERED)?);
    }
    let best = plans.into_iter().min_by(|a, b| a.cost().total().total_cmp(&b.cost().total()));
    best.ok_or_else(|| TierError::Plan("the snapshot is prepared for no method".into()))
}

/// Whether read-only pages are in the same place alone and in the raw memory file.
fn are_alike(images: &[ImageInfo]) -> bool {
    let whole = images.iter().find(|image| image.guest_layout && image.mappable);
    let alone = images.iter().find(|image| image.name == READ_ONLY_IMAGE);
    whole.is_some_and(|whole| alone.is_none_or(|alone| alone.tier == whole.tier))
}

/// Whether what will be needed of a layout's first image, which stands for the others, is in memory. What
/// cannot be told is taken to be.
fn is_near(
    snapshot: &ManifestReader,
    images: &[ImageInfo],
    resolver: &dyn ImageResolver,
    layout: &RegionMap,
) -> bool {
    let hot = layout.regions().iter().filter(|region| region.is_hot());
    let stored: Vec<Stored> = hot.filter_map(|region| region.stored).collect();
    let Some(image) = stored.first().map(|s| s.image) else { return true };
    if images.get(usize::from(image.0)).is_some_and(|info| info.tier != Tier::Local) {
        return true;
    }
    let pages: Vec<u64> = stored.iter().filter(|s| s.image == image).map(|s| s.page).collect();
    let looked =
        file_of(snapshot, image, resolver).map(|file| page_cache::in_memory(&file, &pages));
    looked.and_then(Result::ok).unwrap_or(true)
}

/// The plan for a flat snapshot: its raw memory file, of whose pages nothing is known but which of
/// them are holes.
pub fn open_flat(
    file: &Path,
    memory: &[PageRange],
    policy: &Policy,
) -> Result<(Plan, Sources), TierError> {
    let start = Instant::now();
    let (layout, sources) = flat(file, memory)?;
    let images: Vec<_> = sources.iter().flatten().map(|s| s.info().clone()).collect();
    // Nothing else can be told apart in it.
    let strategy = match (policy.strategy, policy.huge_pages) {
        (Strategy::Auto, HugePages::Pool) => Strategy::Eager,
        (Strategy::Auto, _) => Strategy::Lazy,
        (other, _) => other,
    };
    let policy = Policy { strategy, ..policy.clone() };
    let (layout, images) = (&layout, &images);
    let input = PlanInput { memory, layout, base_image: None, images, policy: &policy };
    let mut plan = Plan::new(&input)?;
    plan.took = start.elapsed();
    Ok((plan, sources))
}

/// What a raw memory file's holes tell, and the file as a source.
pub fn flat(file: &Path, memory: &[PageRange]) -> Result<(RegionMap, Sources), TierError> {
    let layout = FlatFile::open(file, memory)?.map(memory)?;
    let opened = File::open(file).map_err(SnapshotError::io("open memory file", file))?;
    let source = FileSource::new(MEMORY_FILE, Tier::Local, opened, 0, true)
        .map_err(SnapshotError::io("look at", file))?;
    Ok((layout, vec![Some(Arc::new(source))]))
}
