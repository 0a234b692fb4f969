//! What the tests of this crate share: images in real files, and sources that misbehave.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use varve_snapshot::{PAGE_SIZE, PageRange, RegionMap};
use vm_memory::{Bytes, GuestAddress};

use crate::plan::stored::stored_at;
use crate::*;

/// Whether userfaultfd is to be had; says so if not.
pub(crate) fn has_uffd() -> bool {
    match sys::uffd::Uffd::open(sys::uffd::Watch::MissingAndWrites) {
        Ok(_) => true,
        Err(e) => {
            varve_skip::skip!("uffd", e);
            false
        }
    }
}

/// What a stored page holds: nothing that another page holds, and no zero.
pub(crate) fn content(page: u64, salt: u64) -> Vec<u8> {
    let word = (page / PAGE_SIZE + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt << 1 | 1;
    word.to_le_bytes().repeat(PAGE_SIZE as usize / 8)
}

/// What guest memory holds at a page after a restore.
pub(crate) fn expected(layout: &RegionMap, page: u64) -> Vec<u8> {
    match stored_at(layout, page) {
        Some(_) => content(page, 0),
        None => vec![0; PAGE_SIZE as usize],
    }
}

pub(crate) fn page_numbers(memory: &[PageRange]) -> impl Iterator<Item = u64> + '_ {
    memory.iter().flat_map(|m| (m.start()..m.end()).step_by(PAGE_SIZE as usize))
}

pub(crate) fn read_page(ram: &GuestRam, page: u64) -> Vec<u8> {
    let mut data = vec![0; PAGE_SIZE as usize];
    ram.memory().read_slice(&mut data, GuestAddress(page)).unwrap();
    data
}

pub(crate) fn write_page(ram: &GuestRam, page: u64, data: &[u8]) {
    ram.memory().write_slice(data, GuestAddress(page)).unwrap();
}

/// Where a source tells what it is asked for, and where it waits.
pub(crate) type Gate = (Mutex<Sender<u64>>, Mutex<Receiver<()>>);

/// A source over a file that does what a test wants.
pub(crate) struct TestSource {
    pub info: ImageInfo,
    pub file: File,
    /// Reads that succeed before all fail.
    pub countdown: AtomicI64,
    /// Each read reports here and then waits for a word, if there is one.
    pub gate: Option<Gate>,
}

impl PageSource for TestSource {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn read(&self, first: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        if let Some((tell, wait)) = &self.gate {
            tell.lock().unwrap().send(first)?;
            wait.lock().unwrap().recv()?;
        }
        if self.countdown.fetch_sub(1, Ordering::Relaxed) <= 0 {
            return Err("the countdown has ended".into());
        }
        self.file.read_exact_at(buffer, first * PAGE_SIZE)?;
        Ok(())
    }

    fn file(&self) -> Option<(&File, u64)> {
        self.info.mappable.then_some((&self.file, 0))
    }
}

/// The files of the images that `layout` names. What the layout does not name is wrong in them,
/// except where an image stands for all of guest memory and that is zero.
pub(crate) fn files(
    layout: &RegionMap,
    images: &[ImageInfo],
    memory: &[PageRange],
) -> Vec<TestSource> {
    images
        .iter()
        .enumerate()
        .map(|(id, info)| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(info.pages * PAGE_SIZE).unwrap();
            for (index, page) in page_numbers(memory).enumerate() {
                match stored_at(layout, page) {
                    Some(at) if usize::from(at.image.0) == id => {
                        file.write_all_at(&content(page, 0), at.page * PAGE_SIZE).unwrap();
                    }
                    Some(_) if info.guest_layout => {
                        let at = index as u64 * PAGE_SIZE;
                        file.write_all_at(&content(page, 77), at).unwrap();
                    }
                    _ => {}
                }
            }
            let countdown = AtomicI64::new(i64::MAX);
            TestSource { info: info.clone(), file, countdown, gate: None }
        })
        .collect()
}

/// Hooks that hand what is fatal to the test.
pub(crate) fn hooks() -> (Hooks, Receiver<TierError>) {
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let on_fatal = Box::new(move |error| {
        let _ = tell.lock().unwrap().send(error);
    });
    (Hooks { stage2: None, on_fatal }, told)
}

/// Guest memory restored by `policy` from `sources`.
pub(crate) fn restore(
    memory: &[PageRange],
    layout: &RegionMap,
    sources: Vec<TestSource>,
    policy: &Policy,
    hooks: Hooks,
) -> (Arc<GuestRam>, Restore) {
    let images: Vec<ImageInfo> = sources.iter().map(|s| s.info.clone()).collect();
    let input = PlanInput { memory, layout, base_image: None, images: &images, policy };
    let plan = Plan::new(&input).unwrap();
    let ram = Arc::new(GuestRam::with_pages(memory, true, policy.huge_pages).unwrap());
    let sources = sources.into_iter().map(|s| Some(Arc::new(s) as Arc<dyn PageSource>)).collect();
    let restore = Restore::start(ram.clone(), plan, sources, hooks).unwrap();
    (ram, restore)
}
