//! The sections of a manifest, to and from bytes. What they mean is `manifest`'s.

use crate::chunk::ChunkTable;
use crate::chunk_digest::ChunkDigests;
use crate::class::PageClass;
use crate::codec::{Decoder, Encoder};
use crate::container::{Container, ReadError, SectionId};
use crate::digest::Digest;
use crate::error::FormatError;
use crate::image::{Image, ImageEntry, decode_digest, encode_digest};
use crate::manifest::{FileRef, Head, Manifest, Recorded};
use crate::page::{PAGE_SIZE, PageRange};
use crate::region::{ImageId, Region, RegionMap, Stored};
use crate::trace::Mechanism;

pub(crate) const INFO: SectionId = SectionId::new(1, 0);
pub(crate) const MEMORY: SectionId = SectionId::new(2, 0);
pub(crate) const IMAGES: SectionId = SectionId::new(3, 0);
pub(crate) const LAYOUTS: SectionId = SectionId::new(4, 0);
pub(crate) const RECORDED: SectionId = SectionId::new(5, 0);
pub(crate) const KNOWN: [u16; 9] = [1, 2, 3, 4, 5, 6, 7, 8, 9];
pub(crate) const REGION_LEN: usize = 28;
/// In place of an image: nothing is stored, all zero.
pub(crate) const NO_IMAGE: u16 = u16::MAX;

/// Chunk table of an image.
pub(crate) const fn chunks(image: u16) -> SectionId {
    SectionId::new(6, image)
}

/// Regions of a layout.
pub(crate) const fn regions(layout: u16) -> SectionId {
    SectionId::new(7, layout)
}

/// The hot ones of them, for restores that need no others.
pub(crate) const fn hot_regions(layout: u16) -> SectionId {
    SectionId::new(8, layout)
}

/// Digests of the chunks of an image.
pub(crate) const fn digests(image: u16) -> SectionId {
    SectionId::new(9, image)
}

pub(crate) fn encode_info(manifest: &Manifest) -> Encoder {
    let mut out = Encoder::default();
    out.string(&manifest.vmm_version);
    let state = manifest.state.as_ref();
    out.string(state.map_or("", |s| &s.file));
    out.u64(state.map_or(0, |s| s.bytes));
    encode_digest(state.map(|s| s.digest), &mut out);
    encode_digest(manifest.parent, &mut out);
    out
}

type Info = (String, Option<FileRef>, Option<Digest>);

pub(crate) fn decode_info(file: &Container) -> Result<Info, ReadError> {
    let body = file.required(INFO, "info")?;
    let mut d = Decoder::new("info", &body);
    let version = d.string("vmm version")?;
    let (name, bytes) = (d.string("state file")?, d.u64("state bytes")?);
    let state = decode_digest(&mut d)?.map(|digest| FileRef { file: name, bytes, digest });
    let parent = decode_digest(&mut d)?;
    d.end()?;
    Ok((version, state, parent))
}

pub(crate) fn decode_memory(file: &Container) -> Result<Vec<PageRange>, ReadError> {
    let body = file.required(MEMORY, "memory")?;
    let mut d = Decoder::new("memory", &body);
    let ranges = d.memory()?;
    d.end()?;
    Ok(ranges)
}

pub(crate) fn encode_images(images: &[Image]) -> Encoder {
    let mut out = Encoder::default();
    out.count(images.len());
    images.iter().for_each(|i| i.entry.encode(&mut out));
    out
}

pub(crate) fn decode_images(file: &Container) -> Result<Vec<ImageEntry>, ReadError> {
    let body = file.required(IMAGES, "images")?;
    let mut d = Decoder::new("images", &body);
    let mut images: Vec<ImageEntry> = Vec::new();
    for _ in 0..d.count("images", 71)? {
        let image = ImageEntry::decode(&mut d)?;
        if images.iter().any(|i| i.name == image.name) || images.len() == usize::from(NO_IMAGE) {
            return Err(d.value("name", image.name, "there twice, or one too many").into());
        }
        images.push(image);
    }
    d.end()?;
    Ok(images)
}

pub(crate) fn decode_chunks(
    file: &Container,
    image: &ImageEntry,
    at: u16,
) -> Result<ChunkTable, ReadError> {
    let body = file.required(chunks(at), "chunks")?;
    Ok(ChunkTable::decode(&body, image.compression, image.pages, image.chunk_pages, image.bytes)?)
}

pub(crate) fn decode_digests(
    file: &Container,
    image: &ImageEntry,
    at: u16,
) -> Result<Option<ChunkDigests>, ReadError> {
    let Some(body) = file.optional(digests(at))? else { return Ok(None) };
    let chunks = image.pages.div_ceil(image.chunk_pages.into());
    Ok(Some(ChunkDigests::decode(&body, usize::try_from(chunks).unwrap_or(usize::MAX))?))
}

pub(crate) fn encode_layouts(layouts: &[(String, RegionMap)]) -> Encoder {
    let mut out = Encoder::default();
    out.count(layouts.len());
    layouts.iter().for_each(|l| out.string(&l.0));
    out
}

pub(crate) fn decode_layouts(file: &Container) -> Result<Vec<String>, ReadError> {
    let body = file.required(LAYOUTS, "layouts")?;
    let mut d = Decoder::new("layouts", &body);
    let mut names: Vec<String> = Vec::new();
    for _ in 0..d.count("layouts", 8)? {
        let name = d.string("name")?;
        if names.contains(&name) || names.len() == usize::from(u16::MAX) {
            return Err(d.value("name", name, "there twice, or one too many").into());
        }
        names.push(name);
    }
    d.end()?;
    Ok(names)
}

pub(crate) fn encode_regions(name: &str, map: &RegionMap) -> Result<Encoder, FormatError> {
    let mut out = Encoder(Vec::with_capacity(8 + REGION_LEN * map.regions().len()));
    out.count(map.regions().len());
    for region in map.regions() {
        let Ok(pages) = u32::try_from(region.pages.pages()) else {
            let (section, value) = ("regions", format!("{name}: {:?}", region.pages));
            let wanted = "longer than 2^32 pages";
            return Err(FormatError::Value { section, field: "pages", value, wanted });
        };
        let stored = region.stored.unwrap_or(Stored { image: ImageId(NO_IMAGE), page: 0 });
        out.u64(region.pages.start() / PAGE_SIZE);
        out.u64(stored.page);
        out.u32(pages);
        out.u32(region.rank);
        out.u16(stored.image.0);
        out.u8(region.class as u8);
        out.u8(0);
    }
    Ok(out)
}

pub(crate) fn decode_regions(
    file: &Container,
    name: &str,
    at: u16,
    head: &Head,
) -> Result<RegionMap, ReadError> {
    Ok(decode_map(&file.required(regions(at), "regions")?, name, head)?)
}

pub(crate) fn decode_hot_regions(
    file: &Container,
    name: &str,
    at: u16,
    head: &Head,
) -> Result<Option<RegionMap>, ReadError> {
    let Some(body) = file.optional(hot_regions(at))? else { return Ok(None) };
    Ok(Some(decode_map(&body, name, head)?))
}

fn decode_map(body: &[u8], name: &str, head: &Head) -> Result<RegionMap, FormatError> {
    let mut d = Decoder::new("regions", body);
    let records = d.records::<REGION_LEN>("regions")?;
    d.end()?;
    let mut list = Vec::with_capacity(records.len());
    for record in records {
        list.push(decode_region(record, &head.images)?);
    }
    RegionMap::new(list, &head.memory)
        .map_err(|source| FormatError::Layout { layout: name.to_owned(), source })
}

fn decode_region(record: &[u8; REGION_LEN], images: &[ImageEntry]) -> Result<Region, FormatError> {
    let mut d = Decoder::new("regions", record);
    let (gfn, page) = (d.u64("gfn")?, d.u64("stored page")?);
    let (count, rank) = (d.u32("pages")?, d.u32("rank")?);
    let (image, class, reserved) = (d.u16("image")?, d.u8("class")?, d.u8("reserved")?);
    let wrong = |field, value: u64, wanted| {
        Err(Decoder::new("regions", &[]).value(field, format!("{value:#x}"), wanted))
    };
    let Some(start) = gfn.checked_mul(PAGE_SIZE) else {
        return wrong("gfn", gfn, "beyond the address space");
    };
    let pages = PageRange::new(start, u64::from(count) * PAGE_SIZE)
        .map_err(|source| FormatError::Range { section: "regions", source })?;
    let Some(class) = PageClass::from_number(class) else {
        return wrong("class", class.into(), "not one that is known");
    };
    if reserved != 0 {
        return wrong("reserved", reserved.into(), "0 was expected");
    }
    let stored = match (image, page) {
        (NO_IMAGE, 0) => None,
        (NO_IMAGE, _) => return wrong("stored page", page, "though nothing is stored"),
        (id, first) => {
            let Some(image) = images.get(usize::from(id)) else {
                return wrong("image", id.into(), "not one of the manifest's");
            };
            if first.checked_add(count.into()).is_none_or(|end| end > image.pages) {
                return wrong("stored page", first, "outside its image");
            }
            Some(Stored { image: ImageId(id), page: first })
        }
    };
    Ok(Region { pages, class, stored, rank })
}

pub(crate) fn encode_recorded(r: &Recorded) -> Encoder {
    let mut out = Encoder::default();
    out.u8(r.mechanism as u8);
    out.u32(r.runs);
    out.u32(r.invocations);
    out.u64(r.touched);
    out.u64(r.written);
    out.u64(r.outside);
    out.u32(r.hot_runs);
    out.u32(r.bridge_pages);
    out.u32(r.min_extent_pages);
    out
}

pub(crate) fn decode_recorded(file: &Container) -> Result<Option<Recorded>, ReadError> {
    let Some(body) = file.optional(RECORDED)? else { return Ok(None) };
    let mut d = Decoder::new("recorded", &body);
    let number = d.u8("mechanism")?;
    let mechanism = Mechanism::from_number(number)
        .ok_or_else(|| d.value("mechanism", number.to_string(), "not one that is known"))?;
    let recorded = Recorded {
        mechanism,
        runs: d.u32("runs")?,
        invocations: d.u32("invocations")?,
        touched: d.u64("touched")?,
        written: d.u64("written")?,
        outside: d.u64("outside")?,
        hot_runs: d.u32("hot runs")?,
        bridge_pages: d.u32("bridge")?,
        min_extent_pages: d.u32("minimum extent")?,
    };
    d.end()?;
    Ok(Some(recorded))
}
