//! From a snapshot to a plan and the sources that it needs: only the layouts and the images that the
//! method uses are read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use varve_snapshot::{
    FlatFile, Image, ImageEntry, ImageId, ImageReader, MEMORY_FILE, ManifestReader, PAGE_SIZE,
    PageClass, PageRange, Region, RegionMap, SnapshotError, Stored, chain, layout,
};

use crate::disk;
use crate::error::TierError;
use crate::guest_ram::HugePages;
use crate::plan::{Plan, PlanInput};
use crate::policy::Policy;
use crate::source::{FileSource, ImageInfo, ImageSource, PageSource, SourceError, Sources, Tier};
use crate::strategy::{Strategy, is_hot};
use crate::threads;

/// Where images are that are not used from the snapshot's own files.
pub trait Elsewhere {
    /// What a plan has to know of an image, given what it would be as a local file; none if it is not
    /// there.
    fn info(&self, entry: &ImageEntry, local: &ImageInfo) -> Option<ImageInfo>;

    /// Another file with the image's bytes, if that is what it is in.
    fn file(&self, _entry: &ImageEntry) -> Option<io::Result<File>> {
        None
    }

    /// Opens the image, if it is there and in no file.
    fn open(
        &self,
        image: &Image,
        info: &ImageInfo,
    ) -> Result<Option<Arc<dyn PageSource>>, SourceError>;
}

/// All images are local files.
impl Elsewhere for () {
    fn info(&self, _entry: &ImageEntry, _local: &ImageInfo) -> Option<ImageInfo> {
        None
    }

    fn open(
        &self,
        _image: &Image,
        _info: &ImageInfo,
    ) -> Result<Option<Arc<dyn PageSource>>, SourceError> {
        Ok(None)
    }
}

/// Several places side by side: each image comes from the first that has it, or from its local file.
impl Elsewhere for Vec<Box<dyn Elsewhere>> {
    fn info(&self, entry: &ImageEntry, local: &ImageInfo) -> Option<ImageInfo> {
        self.iter().find_map(|place| place.info(entry, local))
    }

    fn file(&self, entry: &ImageEntry) -> Option<io::Result<File>> {
        let local = image_info(entry);
        self.iter().find(|place| place.info(entry, &local).is_some())?.file(entry)
    }

    fn open(
        &self,
        image: &Image,
        info: &ImageInfo,
    ) -> Result<Option<Arc<dyn PageSource>>, SourceError> {
        let local = image_info(&image.entry);
        let place = self.iter().find(|place| place.info(&image.entry, &local).is_some());
        place.map_or(Ok(None), |place| place.open(image, info))
    }
}

/// The plan for a tiered snapshot, with its images open. `auto` compares the methods that the
/// snapshot was prepared for.
pub fn open(
    snapshot: &ManifestReader,
    policy: &Policy,
    elsewhere: &dyn Elsewhere,
) -> Result<(Plan, Sources), TierError> {
    let start = Instant::now();
    let images = infos(snapshot, elsewhere);
    let plan = |strategy: Strategy, name: &str| {
        let mut layout = snapshot.layout(name)?;
        if strategy == Strategy::Tiered {
            fetch_packed(snapshot, &layout, &images, elsewhere);
        }
        let mapped = name == layout::TIERED && !policy.asks_for_cold();
        if mapped && has(snapshot, layout::TEMPLATE) {
            layout = cold_in_guest_layout(layout, &snapshot.layout(layout::TEMPLATE)?, &images);
        }
        let policy = Policy { strategy, ..policy.clone() };
        let (memory, images) = (snapshot.memory(), images.as_slice());
        Ok(Plan::new(&PlanInput { memory, layout: &layout, images, policy: &policy })?)
    };
    let mut plan = match (policy.strategy, policy.huge_pages) {
        (Strategy::Auto, HugePages::Pool) => plan(Strategy::Tiered, layout::TIERED)?,
        (Strategy::Auto, _) => cheapest(snapshot, &images, plan)?,
        (strategy, _) => plan(strategy, layout_for(snapshot, strategy))?,
    };
    let mut sources: Sources = vec![None; images.len()];
    for image in plan.used_images() {
        let at = usize::from(image.0);
        if let (Some(slot @ None), Some(info)) = (sources.get_mut(at), images.get(at)) {
            *slot = Some(open_image(snapshot, image, info, plan.installs(), elsewhere)?);
        }
    }
    plan.took = start.elapsed();
    Ok((plan, sources))
}

/// What is to be known of each image, wherever it is.
pub(crate) fn infos(snapshot: &ManifestReader, elsewhere: &dyn Elsewhere) -> Vec<ImageInfo> {
    let info = |entry| {
        let local = image_info(entry);
        elsewhere.info(entry, &local).unwrap_or(local)
    };
    snapshot.images().iter().map(info).collect()
}

/// Opens an image; `verified` if it is not only mapped, or read by the kernel straight to its place.
pub(crate) fn open_image(
    snapshot: &ManifestReader,
    id: ImageId,
    info: &ImageInfo,
    verified: bool,
    elsewhere: &dyn Elsewhere,
) -> Result<Arc<dyn PageSource>, TierError> {
    let lost = |source| TierError::Image { image: info.name.clone(), tier: info.tier, source };
    let entry = snapshot.entry(id)?;
    let file = elsewhere.file(entry).transpose().map_err(|e| lost(e.into()))?;
    let verified = verified || !info.mappable;
    Ok(match file {
        Some(file) if verified => {
            let reader = ImageReader::over(snapshot.image_table(id)?, &info.name, file);
            Arc::new(ImageSource::new(reader, info.clone()))
        }
        Some(file) => Arc::new(FileSource::with_info(info.clone(), file)),
        None => {
            if info.tier != Tier::Local
                && let Some(source) =
                    elsewhere.open(&snapshot.image_table(id)?, info).map_err(lost)?
            {
                return Ok(source);
            }
            match verified {
                true => Arc::new(ImageSource::new(snapshot.image(id)?, info.clone())),
                false => Arc::new(FileSource::with_info(info.clone(), snapshot.image_file(id)?)),
            }
        }
    })
}

/// Has the disk begin with the images that hold nothing but what will be used, while the plan is made
/// and carried out: piece by piece, in the order in which it will be used. A thread does that: to ask
/// for ten megabytes takes milliseconds. Images that are in memory need none.
fn fetch_packed(
    snapshot: &ManifestReader,
    layout: &RegionMap,
    images: &[ImageInfo],
    elsewhere: &dyn Elsewhere,
) {
    let mut used_pages: BTreeMap<ImageId, Vec<u64>> = BTreeMap::new();
    for (_, stored) in used(layout) {
        used_pages.entry(stored.image).or_default().push(stored.page);
    }
    let absent = |(id, pages): (ImageId, Vec<u64>)| {
        let image = images.get(usize::from(id.0))?;
        let here = image.tier == Tier::Local && image.mappable && !image.guest_layout;
        let entry = snapshot.entry(id).ok().filter(|_| here)?;
        let other = elsewhere.file(entry).and_then(Result::ok);
        let file = other.or_else(|| snapshot.image_file(id).ok())?;
        let absent = disk::in_memory(&file, &pages).is_ok_and(|there| !there);
        absent.then_some((id, file))
    };
    let files: BTreeMap<ImageId, File> = used_pages.into_iter().filter_map(absent).collect();
    if files.is_empty() {
        return;
    }
    let layout = layout.clone();
    let run = move || {
        let pieces = pieces(&layout);
        disk::fetch(pieces.iter().filter_map(|(image, piece)| Some((files.get(image)?, *piece))));
    };
    if let Err(e) = threads::spawn("fetch", run) {
        // Then pages are fetched as they are needed.
        log::debug!("nothing is fetched ahead: {}", chain(&e));
    }
}

/// What will be used, and where it is stored.
fn used(layout: &RegionMap) -> impl Iterator<Item = (&Region, Stored)> {
    let hot = |r: &&Region| matches!(r.class, PageClass::ReadOnly | PageClass::ReadWrite);
    layout.regions().iter().filter(hot).filter_map(|region| Some((region, region.stored?)))
}

/// The pieces of images that hold such pages, in the order of their first use.
fn pieces(layout: &RegionMap) -> Vec<(ImageId, u64)> {
    let mut first_use: BTreeMap<(ImageId, u64), u32> = BTreeMap::new();
    for (region, stored) in used(layout) {
        let from = stored.page * PAGE_SIZE;
        let to = from + region.pages.len();
        for piece in from / disk::PIECE..to.div_ceil(disk::PIECE) {
            let rank = first_use.entry((stored.image, piece)).or_insert(u32::MAX);
            *rank = region.rank.min(*rank);
        }
    }
    let mut pieces: Vec<_> = first_use.into_iter().map(|(piece, rank)| (rank, piece)).collect();
    pieces.sort();
    pieces.into_iter().map(|(_, piece)| piece).collect()
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
    plan: impl Fn(Strategy, &str) -> Result<Plan, TierError>,
) -> Result<Plan, TierError> {
    let tiered = has(snapshot, layout::TIERED);
    let mut plans = Vec::new();
    if has(snapshot, layout::TEMPLATE) {
        plans.push(plan(Strategy::Template, layout::TEMPLATE)?);
        plans.push(plan(Strategy::Lazy, layout::TEMPLATE)?);
    }
    let alike = images.iter().all(|i| i.tier == Tier::Local);
    if tiered && alike && plans.first().is_some_and(|template| !is_near(snapshot, template)) {
        return plan(Strategy::Tiered, layout::TIERED);
    }
    if tiered && (plans.is_empty() || !alike) {
        plans.push(plan(Strategy::Tiered, layout::TIERED)?);
    }
    let best = plans.into_iter().min_by(|a, b| a.cost().total().total_cmp(&b.cost().total()));
    best.ok_or_else(|| TierError::Plan("the snapshot is prepared for no method".into()))
}

/// Whether what a plan will need of the raw memory file is in memory. What cannot be told is taken to
/// be.
fn is_near(snapshot: &ManifestReader, template: &Plan) -> bool {
    let hot = template.layout.regions().iter().filter(|region| is_hot(region));
    let stored: Vec<Stored> = hot.filter_map(|region| region.stored).collect();
    let Some(image) = stored.first().map(|s| s.image) else { return true };
    let pages: Vec<u64> = stored.iter().filter(|s| s.image == image).map(|s| s.page).collect();
    let looked = snapshot.image_file(image).map(|file| disk::in_memory(&file, &pages));
    looked.is_ok_and(|found| found.unwrap_or(true))
}

/// The layout `tiered` with cold pages in the raw memory file, whose order is that of guest memory,
/// where that is as near as their own image and both can be mapped: extents with others between them,
/// which are laid over it, become one mapping.
fn cold_in_guest_layout(tiered: RegionMap, whole: &RegionMap, images: &[ImageInfo]) -> RegionMap {
    let info = |region: &Region| images.get(usize::from(region.stored?.image.0));
    let mut others = whole.regions().iter().peekable();
    tiered.restored(|region| {
        let own = info(region).filter(|_| region.class == PageClass::Cold)?;
        while others.next_if(|o| o.pages.end() <= region.pages.start()).is_some() {}
        let other = others.peek().filter(|o| o.pages.contains(&region.pages))?;
        let near = info(other)?;
        if !(own.mappable && near.mappable && near.guest_layout && near.tier <= own.tier) {
            return None;
        }
        let skip = (region.pages.start() - other.pages.start()) / PAGE_SIZE;
        other.stored.map(|s| Stored { page: s.page + skip, ..s })
    })
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
    let input = PlanInput { memory, layout: &layout, images: &images, policy: &policy };
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

/// What a plan has to know of an image of a snapshot.
fn image_info(entry: &ImageEntry) -> ImageInfo {
    ImageInfo {
        name: entry.name.clone(),
        tier: Tier::Local,
        pages: entry.pages,
        mappable: entry.compression == varve_snapshot::Compression::None,
        // The raw memory file is the one that is in guest layout.
        guest_layout: entry.name == MEMORY_FILE,
        chunk_pages: entry.chunk_pages.into(),
    }
}

/// The layout that a method restores this snapshot from. One in which all is in the raw memory file,
/// too, but whose pages are known, tells more to the methods that use but that file.
fn layout_for(snapshot: &ManifestReader, strategy: Strategy) -> &'static str {
    match layout_of(strategy) {
        layout::FLAT if has(snapshot, layout::TEMPLATE) => layout::TEMPLATE,
        own => own,
    }
}

fn has(snapshot: &ManifestReader, name: &str) -> bool {
    snapshot.layouts().iter().any(|l| l == name)
}

/// The layout that is made for a method.
fn layout_of(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::Lazy | Strategy::Eager => layout::FLAT,
        Strategy::Reap => layout::REAP,
        Strategy::Faasnap => layout::FAASNAP,
        Strategy::Tiered | Strategy::Auto => layout::TIERED,
        Strategy::Template => layout::TEMPLATE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_in_the_order_of_their_first_use() {
        let per_piece = disk::PIECE / PAGE_SIZE;
        let memory = [PageRange::new(0, 64 * disk::PIECE).unwrap()];
        let region = |first: u64, pages: u64, image, page, rank| Region {
            pages: PageRange::new(first * PAGE_SIZE, pages * PAGE_SIZE).unwrap(),
            class: if rank == varve_snapshot::NEVER {
                PageClass::Cold
            } else {
                PageClass::ReadOnly
            },
            stored: Some(Stored { image: ImageId(image), page }),
            rank,
        };
        let regions = vec![
            region(0, 1, 1, 0, 9),
            region(1, 2, 1, 1, 4),
            region(9, 2, 2, per_piece - 1, 5),
            region(20, 1, 3, 7, varve_snapshot::NEVER),
            region(30, 1, 2, per_piece, 2),
        ];
        let layout = RegionMap::new(regions, &memory).unwrap();
        let expected = [(2, 1), (1, 0), (2, 0)].map(|(image, piece)| (ImageId(image), piece));
        assert_eq!(pieces(&layout), expected);
    }
}
