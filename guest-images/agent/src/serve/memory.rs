//! `memory`: regions whose pages hold what their place says they must, for tests that save and
//! restore a machine between the writing and the checking.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use varve_agent::pattern::word;
use varve_agent::protocol::{Action, Memory, MemoryReply};

use super::info::meminfo;

const WORDS_PER_PAGE: usize = 512;
const WORDS_PER_MIB: usize = 1 << 17;
const MAX_THREADS: usize = 64;

/// All regions, by name.
#[derive(Debug, Default)]
pub struct Regions(Mutex<HashMap<String, Arc<Mutex<Region>>>>);

#[derive(Debug)]
struct Region {
    words: Vec<u64>,
    /// The seed of what the words hold; `None` while they are still zero.
    seed: Option<u64>,
}

impl Regions {
    /// Carries out one operation.
    pub fn carry_out(&self, request: &Memory) -> Result<MemoryReply> {
        let start = Instant::now();
        let threads = request.threads.unwrap_or(1);
        if !(1..=MAX_THREADS).contains(&threads) {
            bail!("threads must be from 1 to {MAX_THREADS}, not {threads}");
        }
        let words = match request.action {
            Action::Allocate => self.allocate(request)?,
            Action::Free => {
                let region = self.map().remove(&request.name);
                let region = region.with_context(|| unknown(&request.name))?;
                let region = region.lock().unwrap_or_else(PoisonError::into_inner);
                region.words.len()
            }
            Action::Fill | Action::Verify | Action::Rewrite => {
                let region = self.map().get(&request.name).cloned();
                let region = region.with_context(|| unknown(&request.name))?;
                let mut region = region.lock().unwrap_or_else(PoisonError::into_inner);
                region.work(request.action, request.seed, threads)?;
                region.words.len()
            }
        };
        let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        Ok(MemoryReply { mib: (words / WORDS_PER_MIB) as u64, micros })
    }

    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Mutex<Region>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn allocate(&self, request: &Memory) -> Result<usize> {
        let mib = request.mib.context("allocate needs mib")?;
        let available = meminfo("MemAvailable")? / 1024;
        if mib == 0 || mib > available {
            bail!("mib must be from 1 to {available}, what the guest has free, not {mib}");
        }
        let mut map = self.map();
        if map.contains_key(&request.name) {
            bail!("there is a region {:?} already: free it first", request.name);
        }
        let words = usize::try_from(mib)? * WORDS_PER_MIB;
        // Zeroed memory of this size comes fresh from the kernel, untouched.
        let region = Region { words: vec![0; words], seed: None };
        map.insert(request.name.clone(), Arc::new(Mutex::new(region)));
        Ok(words)
    }
}

fn unknown(name: &str) -> String {
    format!("there is no region {name:?}: allocate it first")
}

impl Region {
    /// Does `action` on all words, which the threads share out in runs of whole pages.
    fn work(&mut self, action: Action, seed: u64, threads: usize) -> Result<()> {
        let old = self.seed;
        let pages = self.words.len() / WORDS_PER_PAGE;
        let share = pages.div_ceil(threads) * WORDS_PER_PAGE;
        let bad = std::thread::scope(|scope| {
            let parts: Vec<_> = self
                .words
                .chunks_mut(share)
                .enumerate()
                .map(|(number, part)| {
                    scope.spawn(move || work_on(part, number * share, action, old, seed))
                })
                .collect();
            let bad: Result<Vec<Bad>> = parts
                .into_iter()
                .map(|part| part.join().map_err(|_| anyhow!("a thread failed")))
                .collect();
            bad
        })?;
        if action != Action::Verify {
            self.seed = Some(seed);
        }
        let count: usize = bad.iter().map(|bad| bad.count).sum();
        match bad.iter().find_map(|bad| bad.first) {
            None => Ok(()),
            Some((index, found)) => bail!(
                "{count} of {} words are wrong; the first is word {index} (page {}): {found:#018x}, not {:#018x}",
                self.words.len(),
                index / WORDS_PER_PAGE,
                expected(old, index),
            ),
        }
    }
}

/// Wrong words in a part: how many, and the first.
#[derive(Default)]
struct Bad {
    count: usize,
    first: Option<(usize, u64)>,
}

fn expected(seed: Option<u64>, index: usize) -> u64 {
    seed.map_or(0, |seed| word(seed, index as u64))
}

/// Works on one part, page by page, so that a page that is read and written is visited once.
fn work_on(part: &mut [u64], start: usize, action: Action, old: Option<u64>, new: u64) -> Bad {
    let mut bad = Bad::default();
    for (number, page) in part.chunks_mut(WORDS_PER_PAGE).enumerate() {
        let first = start + number * WORDS_PER_PAGE;
        if action != Action::Fill {
            for (index, &found) in (first..).zip(page.iter()) {
                if found != expected(old, index) {
                    bad.count += 1;
                    bad.first.get_or_insert((index, found));
                }
            }
        }
        if action != Action::Verify {
            for (index, place) in (first..).zip(page.iter_mut()) {
                *place = word(new, index as u64);
            }
        }
    }
    bad
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region() -> Region {
        Region { words: vec![0; 5 * WORDS_PER_PAGE], seed: None }
    }

    #[test]
    fn what_was_written_is_found_by_any_number_of_threads() {
        let mut region = region();
        for (threads, seed) in [(1, 1), (2, 2), (5, 3), (64, 4)] {
            region.work(Action::Verify, 0, threads).unwrap();
            region.work(Action::Fill, seed, threads).unwrap();
            region.work(Action::Verify, 0, 3).unwrap();
            region.work(Action::Rewrite, seed + 100, threads).unwrap();
            assert_eq!(region.words[700], word(seed + 100, 700));
        }
    }

    #[test]
    fn a_wrong_word_is_named_and_counted() {
        let mut region = region();
        region.work(Action::Fill, 9, 2).unwrap();
        region.words[WORDS_PER_PAGE + 3] ^= 1;
        region.words[2 * WORDS_PER_PAGE] = 0;
        let error = region.work(Action::Verify, 0, 2).unwrap_err().to_string();
        assert!(
            error.starts_with("2 of 2560 words are wrong; the first is word 515 (page 1)"),
            "{error}"
        );
        assert!(region.work(Action::Rewrite, 10, 2).is_err());
        region.work(Action::Verify, 0, 1).unwrap();
    }
}
