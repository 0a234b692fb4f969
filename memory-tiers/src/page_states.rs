//! What the page tables say of guest memory.

use varve_snapshot::PageRange;

use crate::guest_ram::GuestRam;
use crate::ram_error::RamError;
use crate::sys::pagemap;
use crate::sys::pagemap::PageState;

impl GuestRam {
    /// The state of each page of `range`, in order.
    pub(crate) fn page_states(&self, range: PageRange) -> Result<Vec<PageState>, RamError> {
        let offset = self.offset(range)?;
        pagemap::read(self.reservation(), offset, range.len() as usize)
            .map_err(RamError::PageTables)
    }
}
