//! Values that stand in files, pinned: changing one breaks every snapshot already written, and must
//! come with a new major version.

use crate::chunk::{Compression, MAX_CHUNK_PAGES, PACKED_LEN, PLAIN_LEN};
use crate::chunk_digest::DIGEST_LEN;
use crate::class::PageClass;
use crate::container::{ENTRY_LEN, HEADER_CRC_AT, HEADER_LEN, MAJOR, REQUIRED};
use crate::manifest_codec::{NO_IMAGE, REGION_LEN};
use crate::page::PAGE_SIZE;
use crate::region::NEVER;
use crate::trace::{ACCESS_LEN, Mechanism};

const _: () = {
    assert!(PAGE_SIZE == 4096);
    assert!(MAJOR == 1 && REQUIRED == 1);
    assert!(HEADER_LEN == 32 && ENTRY_LEN == 32 && HEADER_CRC_AT == 24);
    assert!(PageClass::Zero as u8 == 0 && PageClass::ReadOnly as u8 == 1);
    assert!(PageClass::ReadWrite as u8 == 2 && PageClass::Cold as u8 == 3);
    assert!(REGION_LEN == 8 + 8 + 4 + 4 + 2 + 1 + 1 && NO_IMAGE == 0xffff);
    assert!(NEVER == 0xffff_ffff);
    assert!(PLAIN_LEN == 4 && PACKED_LEN == 8 + 4 + 4 && MAX_CHUNK_PAGES == 512);
    assert!(DIGEST_LEN == 32);
    assert!(Compression::None as u8 == 0 && Compression::Lz4 as u8 == 1);
    assert!(ACCESS_LEN == 8 + 4 * 5);
    assert!(Mechanism::UffdWp as u8 == 0 && Mechanism::Mincore as u8 == 1);
    assert!(Mechanism::Pagemap as u8 == 2 && Mechanism::Mixed as u8 == 3);
};
