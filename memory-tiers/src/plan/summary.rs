//! What a plan comes to: operations, mappings, bytes by source, and what it should cost.

use std::collections::BTreeMap;
use std::fmt;

use varve_snapshot::{PAGE_SIZE, PageClass, PageRange, Region};

use crate::plan::image::Tier;
use crate::plan::ops::{Action, Plan};
use crate::plan::placement::Mechanism;
use crate::plan::strategy::Strategy;
use crate::ram::kind::PrefaultMode;

/// What a restore should take, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Cost {
    /// Before the guest runs.
    pub before: f64,
    /// The part of the work beside the guest that it waits for.
    pub beside: f64,
    /// Faults of the guest on pages that recorded invocations touched.
    pub faults: f64,
    /// What using read-only pages in place costs more than in local memory.
    pub in_place: f64,
}

impl Cost {
    /// All that an invocation waits for.
    pub fn total(&self) -> f64 {
        self.before + self.beside + self.faults + self.in_place
    }
}

/// What comes from an image.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct SourceSummary {
    /// The image.
    pub image: String,
    /// Where it is.
    pub tier: Tier,
    /// Bytes laid in place.
    pub mapped: u64,
    /// Bytes copied before the guest runs.
    pub copied: u64,
}

/// A plan in figures.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Summary {
    /// The method.
    pub strategy: Strategy,
    /// Number of operations by what they do.
    pub ops: BTreeMap<&'static str, usize>,
    /// Mappings that guest memory will consist of.
    pub mappings: usize,
    /// Pages allocated or mapped ahead, before the guest runs and beside it.
    pub pages_ahead: u64,
    /// Images that are used.
    pub sources: Vec<SourceSummary>,
    /// What it should take.
    pub cost: Cost,
}

impl Plan {
    /// The plan in figures.
    pub fn summary(&self) -> Summary {
        let mut ops = BTreeMap::new();
        let mut sources: Vec<SourceSummary> = Vec::new();
        for image in &self.images {
            let (image, tier) = (image.name.clone(), image.tier);
            sources.push(SourceSummary { image, tier, mapped: 0, copied: 0 });
        }
        for op in &self.ops {
            *ops.entry(name(op.action)).or_default() += 1;
            let source = op.from.and_then(|f| sources.get_mut(usize::from(f.image.0)));
            match (op.action, source) {
                (Action::Map, Some(source)) => source.mapped += op.pages.len(),
                (Action::Copy | Action::Fill | Action::Install, Some(source)) => {
                    source.copied += op.pages.len();
                }
                _ => {}
            }
        }
        sources.retain(|s| s.mapped + s.copied > 0);
        let steps = self.before.iter().chain(self.beside()).filter(|s| s.how.is_some());
        Summary {
            strategy: self.strategy,
            ops,
            mappings: self.mappings(),
            pages_ahead: steps.map(|s| s.pages.pages()).sum(),
            sources,
            cost: self.cost(),
        }
    }

    /// What a page of `region` costs more if it is used where it is.
    fn in_place_use(&self, region: &Region) -> f64 {
        let image = region.stored.and_then(|s| self.images.get(usize::from(s.image.0)));
        image.map_or(0.0, |i| self.policy.costs.in_place(i))
    }

    /// What it should take.
    pub fn cost(&self) -> Cost {
        let costs = &self.policy.costs;
        let placed = || self.layout.regions().iter().zip(&self.placements);
        let mut cost = Cost::default();
        for op in &self.ops {
            let pages = op.pages.pages() as f64;
            cost.before += match op.action {
                Action::Map | Action::Clear | Action::Watch => costs.map,
                Action::Block => costs.map + pages * costs.populate_huge,
                Action::Fill => {
                    let copy = (costs.copy_page - costs.populate_fresh).max(0.0);
                    costs.read_call + pages * copy
                }
                Action::Copy => costs.read_call + pages * costs.copy_page,
                Action::Install => costs.read_call + pages * costs.install_page,
            };
        }
        let ahead = |how: Option<PrefaultMode>, pages: PageRange| {
            pages.pages() as f64
                * match how {
                    None => 0.0,
                    Some(PrefaultMode::Write) => costs.populate_write,
                    Some(PrefaultMode::Read | PrefaultMode::Cache) => costs.populate_read,
                }
        };
        cost.before += self.before.iter().map(|s| ahead(s.how, s.pages)).sum::<f64>();
        let beside: f64 = match self.beside.get() {
            Some(steps) => steps.iter().map(|s| ahead(s.how, s.pages)).sum(),
            // All of it, and it need not be in order to be summed up.
            None => placed().map(|(region, placed)| ahead(placed.ahead, region.pages)).sum(),
        };
        cost.beside = beside * costs.beside_share;
        for (region, placement) in placed() {
            let copied = matches!(placement.how, Mechanism::Copy | Mechanism::Block);
            let local = copied || placement.ahead == Some(PrefaultMode::Write);
            if region.class == PageClass::ReadOnly && !local {
                cost.in_place += self.in_place_use(region) * region.pages.pages() as f64;
            }
            let fault = match (placement.how, placement.ahead) {
                _ if !region.is_hot() => continue,
                (Mechanism::Copy | Mechanism::Block, _)
                | (_, Some(PrefaultMode::Read | PrefaultMode::Write)) => continue,
                (Mechanism::Fault, _) => costs.paged_fault,
                _ if region.class == PageClass::ReadWrite => costs.write_fault,
                (Mechanism::Base, _) => continue,
                _ => costs.read_fault,
            };
            cost.faults += fault * region.pages.pages() as f64;
        }
        cost
    }
}

fn name(action: Action) -> &'static str {
    match action {
        Action::Map => "map",
        Action::Clear => "clear",
        Action::Block => "block",
        Action::Fill => "fill",
        Action::Copy => "copy",
        Action::Install => "install",
        Action::Watch => "watch",
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "strategy {}", self.strategy)?;
        for op in &self.ops {
            let (action, layer) = (name(op.action), op.layer.name());
            write!(f, "{action:<8} {layer:<5} {:#014x} {:>8}", op.pages.start(), op.pages.pages())?;
            match op.from {
                Some(from) => {
                    let image = self.images.get(usize::from(from.image.0));
                    let image = image.map_or("?", |i| i.name.as_str());
                    writeln!(f, " {image} {:#x}", from.page * PAGE_SIZE)?;
                }
                None => writeln!(f)?,
            }
        }
        for (when, steps) in [("before", &self.before[..]), ("beside", self.beside())] {
            for step in steps {
                let how = match step.how {
                    None => "stage2",
                    Some(PrefaultMode::Read) => "read",
                    Some(PrefaultMode::Write) => "write",
                    Some(PrefaultMode::Cache) => "cache",
                };
                let (class, pages) = (step.class.name(), step.pages);
                writeln!(
                    f,
                    "{when} {how:<8} {class:<5} {:#014x} {:>8}",
                    pages.start(),
                    pages.pages()
                )?;
            }
        }
        Ok(())
    }
}
