//! Chunks that were fetched, kept for all machines, and fetched once where several want them at once.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::fmt;
use std::fs::File;
use std::sync::{Arc, Condvar, Mutex};

use varve_snapshot::PAGE_SIZE;

use crate::fault::stats::Count;
use crate::fault::watchdog::lock;
use crate::plan::image::ImageInfo;
use crate::source::page_source::{PageSource, SourceError};

/// An image's number in the cache, and the first page of a chunk.
type Key = (u32, u64);

/// Chunks in memory; beyond the limit those go first that were not used for longest.
#[derive(Debug)]
pub struct ChunkCache {
    limit: u64,
    state: Mutex<State>,
    hits: Count,
    fetched: Count,
    joined: Count,
    evicted: Count,
}

#[derive(Debug, Default)]
struct State {
    images: u32,
    chunks: HashMap<Key, Slot>,
    /// Chunks that are here, by when they were used last.
    by_use: BTreeMap<u64, Key>,
    clock: u64,
    bytes: u64,
}

#[derive(Debug)]
enum Slot {
    Here { data: Arc<Vec<u8>>, used: u64 },
    Coming(Arc<Flight>),
}

/// A fetch under way, and how it ended.
#[derive(Debug, Default)]
struct Flight {
    landed: Mutex<Option<Result<Arc<Vec<u8>>, SharedError>>>,
    over: Condvar,
}

/// One failure, told to all who waited.
#[derive(Clone, Debug)]
struct SharedError(Arc<dyn Error + Send + Sync>);

impl fmt::Display for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for SharedError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// What a cache did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CacheCounters {
    /// Most bytes that are kept.
    pub limit: u64,
    /// Bytes that are kept now.
    pub bytes: u64,
    /// Chunks that were asked for and there.
    pub hits: u64,
    /// Chunks that were fetched.
    pub fetched: u64,
    /// Chunks that were asked for while they were on their way, and so came once.
    pub joined: u64,
    /// Chunks that had to go.
    pub evicted: u64,
}

impl ChunkCache {
    /// An empty cache for so many bytes.
    pub fn new(limit: u64) -> ChunkCache {
        ChunkCache {
            limit,
            state: Mutex::default(),
            hits: Count::default(),
            fetched: Count::default(),
            joined: Count::default(),
            evicted: Count::default(),
        }
    }

    /// What it did up to now.
    pub fn counters(&self) -> CacheCounters {
        CacheCounters {
            limit: self.limit,
            bytes: lock(&self.state).bytes,
            hits: self.hits.get(),
            fetched: self.fetched.get(),
            joined: self.joined.get(),
            evicted: self.evicted.get(),
        }
    }

    fn has(&self, key: Key) -> bool {
        matches!(lock(&self.state).chunks.get(&key), Some(Slot::Here { .. }))
    }

    /// The chunk: as it is kept, as somebody else is fetching it, or by `fetch`.
    fn get(
        &self,
        key: Key,
        fetch: impl FnOnce() -> Result<Arc<Vec<u8>>, SourceError>,
    ) -> Result<Arc<Vec<u8>>, SourceError> {
        let flight = {
            let mut state = lock(&self.state);
            if let Some(data) = state.used(key) {
                self.hits.add(1);
                return Ok(data);
            }
            if let Some(Slot::Coming(flight)) = state.chunks.get(&key) {
                let flight = flight.clone();
                drop(state);
                self.joined.add(1);
                return Ok(flight.wait()?);
            }
            let flight = Arc::new(Flight::default());
            state.chunks.insert(key, Slot::Coming(flight.clone()));
            flight
        };
        self.fetched.add(1);
        let landed = fetch().map_err(|e| SharedError(e.into()));
        let mut state = lock(&self.state);
        state.chunks.remove(&key);
        if let Ok(data) = &landed {
            state.keep(key, data.clone());
            while state.bytes > self.limit && state.evict() {
                self.evicted.add(1);
            }
        }
        drop(state);
        *lock(&flight.landed) = Some(landed.clone());
        flight.over.notify_all();
        Ok(landed?)
    }
}

impl State {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// The chunk if it is here, which is now the one used last.
    fn used(&mut self, key: Key) -> Option<Arc<Vec<u8>>> {
        let now = self.tick();
        let Some(Slot::Here { data, used }) = self.chunks.get_mut(&key) else { return None };
        self.by_use.remove(used);
        *used = now;
        self.by_use.insert(now, key);
        Some(data.clone())
    }

    fn keep(&mut self, key: Key, data: Arc<Vec<u8>>) {
        let used = self.tick();
        self.bytes += data.len() as u64;
        self.by_use.insert(used, key);
        self.chunks.insert(key, Slot::Here { data, used });
    }

    fn evict(&mut self) -> bool {
        let Some((_, key)) = self.by_use.pop_first() else { return false };
        if let Some(Slot::Here { data, .. }) = self.chunks.remove(&key) {
            self.bytes -= data.len() as u64;
        }
        true
    }
}

impl Flight {
    fn wait(&self) -> Result<Arc<Vec<u8>>, SharedError> {
        let mut landed = lock(&self.landed);
        loop {
            match &*landed {
                Some(landed) => return landed.clone(),
                None => {
                    landed =
                        self.over.wait(landed).unwrap_or_else(std::sync::PoisonError::into_inner);
                }
            }
        }
    }
}

/// An image whose chunks are kept once they were read.
pub(super) struct Cached {
    image: u32,
    inner: Arc<dyn PageSource>,
    cache: Arc<ChunkCache>,
}

impl Cached {
    pub fn new(inner: Arc<dyn PageSource>, cache: Arc<ChunkCache>) -> Cached {
        let image = {
            let mut state = lock(&cache.state);
            state.images += 1;
            state.images
        };
        Cached { image, inner, cache }
    }

    fn chunk(&self, first: u64, pages: u64) -> Result<Arc<Vec<u8>>, SourceError> {
        self.cache.get((self.image, first), || {
            let mut data = vec![0; (pages * PAGE_SIZE) as usize];
            self.inner.read(first, &mut data)?;
            Ok(Arc::new(data))
        })
    }
}

impl PageSource for Cached {
    fn info(&self) -> &ImageInfo {
        self.inner.info()
    }

    fn read(&self, first: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        let info = self.inner.info();
        let unit = info.chunk_pages.max(1);
        let (mut page, mut rest) = (first, buffer);
        while !rest.is_empty() {
            let begin = page / unit * unit;
            let pages = unit.min(info.pages.saturating_sub(begin));
            let chunk = self.chunk(begin, pages)?;
            let inside = chunk.get(((page - begin) * PAGE_SIZE) as usize..).unwrap_or_default();
            let len = inside.len().min(rest.len());
            if len == 0 {
                return Err(format!("image {} has no page {page}", info.name).into());
            }
            let (now, later) = rest.split_at_mut(len);
            now.copy_from_slice(inside.get(..len).unwrap_or_default());
            page += len as u64 / PAGE_SIZE;
            rest = later;
        }
        Ok(())
    }

    fn file(&self) -> Option<(&File, u64)> {
        self.inner.file()
    }

    fn is_far(&self, first: u64) -> bool {
        self.inner.is_far(first) && !self.cache.has((self.image, first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::thread;

    fn chunk(byte: u8) -> Arc<Vec<u8>> {
        Arc::new(vec![byte; 100])
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let cache = ChunkCache::new(250);
        let get = |n: u64, fetched: bool| {
            let mut asked = false;
            let data = cache.get((1, n), || {
                asked = true;
                Ok(chunk(n as u8))
            });
            assert_eq!((data.unwrap()[0], asked), (n as u8, fetched), "{n}");
        };
        get(1, true);
        get(2, true);
        get(1, false);
        get(3, true);
        get(1, false);
        get(2, true);
        let counters = cache.counters();
        assert_eq!((counters.hits, counters.fetched, counters.evicted), (2, 4, 2));
        assert_eq!(counters.bytes, 200);
    }

    #[test]
    fn several_that_want_a_chunk_fetch_it_once_and_fail_together() {
        let cache = Arc::new(ChunkCache::new(1 << 20));
        for fails in [false, true] {
            let (tell, told) = channel();
            let (go, wait) = channel::<()>();
            let key = (u32::from(fails), 0);
            let of_first = cache.clone();
            let first = thread::spawn(move || {
                of_first.get(key, || {
                    tell.send(()).unwrap();
                    wait.recv().unwrap();
                    if fails { Err("it is gone".into()) } else { Ok(chunk(7)) }
                })
            });
            told.recv().unwrap();
            let joined = cache.counters().joined;
            let others: Vec<_> = (0..3)
                .map(|_| {
                    let cache = cache.clone();
                    thread::spawn(move || cache.get(key, || panic!("it is on its way")))
                })
                .collect();
            while cache.counters().joined < joined + 3 {
                thread::yield_now();
            }
            go.send(()).unwrap();
            for thread in others.into_iter().chain([first]) {
                match thread.join().unwrap() {
                    Ok(data) => assert!(!fails && data[0] == 7),
                    Err(e) => assert!(fails && e.to_string() == "it is gone", "{e}"),
                }
            }
            // What failed is fetched again when it is asked for again.
            let again = cache.get(key, || Ok(chunk(8))).unwrap()[0];
            assert_eq!(again, if fails { 8 } else { 7 });
        }
    }
}
