//! What is in memory now, by class and mechanism: the faults that the kernel answers by itself are
//! counted by what they leave in the page tables.

use varve_snapshot::{PAGE_SIZE, PageClass};

use crate::error::TierError;
use crate::plan::ops::Plan;
use crate::ram::guest_ram::GuestRam;

/// Pages of one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ClassCensus {
    /// All of them.
    pub pages: u64,
    /// Present in this process, for whatever reason; the kernel maps up to 15 neighbours of a page
    /// that is touched.
    pub present: u64,
    /// This process's own: written, populated for writing, or copied.
    pub private: u64,
    /// In an image that is mapped in place.
    pub mapped: u64,
    /// Of those, this process's own. Each took one copy-on-write fault, or was populated for writing.
    /// Of [`PageClass::ReadOnly`]: pages predicted read-only that were written, if they were not copied.
    pub mapped_private: u64,
}

/// All classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Census {
    /// Zero pages; where the plan knows but what is hot, they count as cold.
    pub zero: ClassCensus,
    /// Read-only pages.
    pub ro: ClassCensus,
    /// Read-write pages.
    pub rw: ClassCensus,
    /// Cold pages.
    pub cold: ClassCensus,
}

impl Census {
    /// Counts now. Threads that use the memory meanwhile are counted or not.
    pub fn take(ram: &GuestRam, plan: &Plan) -> Result<Census, TierError> {
        let mut census = Census::default();
        let mapped = plan.mapped();
        let unnamed = if plan.base_image.is_some() { PageClass::Cold } else { PageClass::Zero };
        for region in ram.regions() {
            let mut regions = plan.layout.regions().iter().peekable();
            let states = ram.page_states(region.pages)?;
            for (page, state) in (region.pages.start()..).step_by(PAGE_SIZE as usize).zip(states) {
                while regions.next_if(|r| r.pages.end() <= page).is_some() {}
                let class = regions.peek().filter(|r| r.pages.start() <= page).map(|r| r.class);
                let count = census.of(class.unwrap_or(unnamed));
                let (private, mapped) = (state.private(), mapped.has(page));
                count.pages += 1;
                count.present += u64::from(state.present());
                count.private += u64::from(private);
                count.mapped += u64::from(mapped);
                count.mapped_private += u64::from(mapped && private);
            }
        }
        Ok(census)
    }

    fn of(&mut self, class: PageClass) -> &mut ClassCensus {
        match class {
            PageClass::Zero => &mut self.zero,
            PageClass::ReadOnly => &mut self.ro,
            PageClass::ReadWrite => &mut self.rw,
            PageClass::Cold => &mut self.cold,
        }
    }
}
