//! What the page tables say of guest memory.

use varve_snapshot::PageRange;

use crate::ram::error::RamError;
use crate::ram::guest_ram::GuestRam;
use crate::ram::sys::pagemap;
use crate::ram::sys::pagemap::PageState;

impl GuestRam {
    /// The state of each page of `range`, in order.
    pub(crate) fn page_states(&self, range: PageRange) -> Result<Vec<PageState>, RamError> {
        let offset = self.offset(range)?;
        pagemap::read(self.reservation(), offset, range.len() as usize)
            .map_err(RamError::PageTables)
    }
}
