//! Guest memory of a snapshot: which plan restores it, and from which images.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use varve_memory_tiers::{
    FileSource, GuestRam, Hooks, ImageInfo, PageSource, Plan, PlanInput, Policy, Restore,
    SourceError, Stage2, Strategy, Tier,
};
use varve_snapshot::{
    ImageId, ImageReader, MANIFEST_FILE, ManifestReader, NEVER, PAGE_SIZE, PageClass, PageRange,
    Region, RegionMap, SnapshotError, Stored, layout,
};

use crate::error::VmmError;

/// How guest memory will be restored: decided, not done.
pub struct MemoryPlan {
    plan: Plan,
    sources: Vec<Arc<dyn PageSource>>,
}

impl MemoryPlan {
    /// Plans the restore of the snapshot in `dir` with guest memory `ranges`, whose raw memory file
    /// is `memory_file`.
    pub fn new(
        dir: &Path,
        ranges: &[PageRange],
        memory_file: &Path,
        policy: &Policy,
    ) -> Result<MemoryPlan, VmmError> {
        let manifest = dir.join(MANIFEST_FILE);
        if manifest.exists() {
            tiered(&ManifestReader::open(&manifest)?, policy)
        } else {
            flat(ranges, memory_file, policy)
        }
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Carries out what must be done before the guest runs.
    pub fn start(
        self,
        ram: Arc<GuestRam>,
        stage2: Option<Box<dyn Stage2>>,
        fatal: Fatal,
    ) -> Result<Restore, VmmError> {
        let hooks = Hooks { stage2, on_fatal: Box::new(move |e| fatal(e)) };
        Ok(Restore::start(ram, self.plan, self.sources, hooks)?)
    }
}

/// Called when a page cannot be had.
pub type Fatal = Arc<dyn Fn(varve_memory_tiers::TierError) + Send + Sync>;

/// All pages in the raw memory file, none of them known.
fn flat(ranges: &[PageRange], path: &Path, policy: &Policy) -> Result<MemoryPlan, VmmError> {
    if !matches!(policy.strategy, Strategy::Lazy | Strategy::Eager | Strategy::Auto) {
        return Err(VmmError::NotTiered(policy.strategy.name()));
    }
    let file = File::open(path).map_err(SnapshotError::io("open memory file", path))?;
    let found = file.metadata().map_err(SnapshotError::io("look at", path))?.len();
    let wanted = ranges.iter().map(PageRange::len).sum();
    if found != wanted {
        return Err(SnapshotError::MemorySize { path: path.into(), found, wanted }.into());
    }
    let mut page = 0;
    let regions = ranges.iter().map(|&pages| {
        let stored = Some(Stored { image: ImageId(0), page });
        page += pages.pages();
        Region { pages, class: PageClass::Cold, stored, rank: NEVER }
    });
    let map = RegionMap::new(regions.collect(), ranges)
        .map_err(|e| VmmError::SavedState { name: "memory".into(), cause: e.to_string() })?;
    let source = FileSource::new("memory", Tier::Local, file, 0, true)
        .map_err(SnapshotError::io("look at", path))?;
    let mut policy = policy.clone();
    if policy.strategy == Strategy::Auto {
        // Without a trace there is nothing to do ahead.
        policy.strategy = Strategy::Lazy;
    }
    plan(ranges, &map, vec![Arc::new(source)], &policy)
}

/// By the manifest's layout for the strategy.
fn tiered(manifest: &ManifestReader, policy: &Policy) -> Result<MemoryPlan, VmmError> {
    let with = |strategy, name| {
        let sources = (0..manifest.images().len() as u16)
            .map(|id| {
                let reader = manifest.image(ImageId(id))?;
                Ok(Arc::new(ImageSource::new(reader)) as Arc<dyn PageSource>)
            })
            .collect::<Result<Vec<_>, SnapshotError>>()?;
        let policy = Policy { strategy, ..policy.clone() };
        plan(manifest.memory(), &manifest.layout(name)?, sources, &policy)
    };
    match policy.strategy {
        Strategy::Auto => {
            let tiered = with(Strategy::Tiered, layout::TIERED)?;
            let template = with(Strategy::Template, layout::TEMPLATE)?;
            let cheaper = tiered.plan.cost().total() < template.plan.cost().total();
            Ok(if cheaper { tiered } else { template })
        }
        strategy => with(strategy, layout_of(strategy)),
    }
}

/// The layout that a strategy restores from.
fn layout_of(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::Lazy | Strategy::Eager => layout::FLAT,
        Strategy::Reap => layout::REAP,
        Strategy::Faasnap => layout::FAASNAP,
        Strategy::Tiered | Strategy::Auto => layout::TIERED,
        Strategy::Template => layout::TEMPLATE,
    }
}

fn plan(
    memory: &[PageRange],
    map: &RegionMap,
    sources: Vec<Arc<dyn PageSource>>,
    policy: &Policy,
) -> Result<MemoryPlan, VmmError> {
    let images: Vec<ImageInfo> = sources.iter().map(|s| s.info().clone()).collect();
    let plan = Plan::new(&PlanInput { memory, layout: map, images: &images, policy })?;
    Ok(MemoryPlan { plan, sources })
}

/// An image of a snapshot as a page source.
struct ImageSource {
    info: ImageInfo,
    reader: ImageReader,
}

impl ImageSource {
    fn new(reader: ImageReader) -> ImageSource {
        let entry = reader.entry();
        let info = ImageInfo {
            name: entry.name.clone(),
            tier: Tier::Local,
            pages: entry.pages,
            mappable: reader.is_mappable(),
            guest_layout: entry.name == "memory",
            chunk_pages: entry.chunk_pages.into(),
        };
        ImageSource { info, reader }
    }
}

impl PageSource for ImageSource {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn read(&self, first: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        debug_assert!(buffer.len().is_multiple_of(PAGE_SIZE as usize));
        Ok(self.reader.read_pages(first, buffer)?)
    }

    fn file(&self) -> Option<(&File, u64)> {
        self.info.mappable.then(|| (self.reader.file(), 0))
    }
}
