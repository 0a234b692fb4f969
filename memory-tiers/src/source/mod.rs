//! Where stored pages come from: images on tiers, read and verified.

pub(crate) mod chunk;
pub(crate) mod images;
pub(crate) mod page_cache;
pub(crate) mod page_source;
pub(crate) mod readahead;
pub(crate) mod residency;
pub(crate) mod resolver;
pub(crate) mod verified;
