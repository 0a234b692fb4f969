//! Lets a machine forget the measurement before, so that the next one does not pay for it.
//!
//! The kernel still frees pages, tables and machines when the process that had them has ended. And in the
//! lab, memory in which a guest ran code is dear to write for whoever gets it next: QEMU looks for
//! translated code at each store, until all of the page's is gone. Whose guest ran before would decide
//! how long a copy takes.

use std::fs::{self, File};
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::environment;

/// Of the memory that was freed last and that the kernel gives out next: as much as a guest has.
const SCRUBBED: usize = 256 << 20;
/// Ten of the clock ticks that /proc/stat counts.
const LOOK: Duration = Duration::from_millis(100);
/// So often; a machine that others use may never be idle.
const LOOKS: usize = 10;
/// Of the processors' time, in percent.
const IDLE: u64 = 85;

/// Scrubs memory in the lab, and waits until the machine is idle, but not for more than a second.
///
/// # Errors
///
/// If the kernel does not tell, or memory is full.
pub fn settle() -> Result<()> {
    if environment::is_lab() {
        scrub().context("scrubbing memory")?;
    }
    let mut before = read()?;
    for _ in 0..LOOKS {
        std::thread::sleep(LOOK);
        let now = read()?;
        if now.is_idle_since(&before) {
            break;
        }
        before = now;
    }
    Ok(())
}

/// Writes memory and gives it back. A file's, as that comes in single pages, the odd ones first.
fn scrub() -> Result<()> {
    let mut file: File = tempfile::tempfile_in(environment::memory_folder()?)?;
    let block = vec![0; 1 << 20];
    for _ in 0..SCRUBBED / block.len() {
        file.write_all(&block)?;
    }
    Ok(())
}

/// Clock ticks since the kernel started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticks {
    idle: u64,
    all: u64,
}

impl Ticks {
    fn is_idle_since(&self, before: &Ticks) -> bool {
        let (idle, all) =
            (self.idle.saturating_sub(before.idle), self.all.saturating_sub(before.all));
        all > 0 && idle * 100 >= all * IDLE
    }
}

fn read() -> Result<Ticks> {
    let path = "/proc/stat";
    let text = fs::read_to_string(path).context(path)?;
    parse(&text).with_context(|| format!("{path}: no times of processors"))
}

/// The first line: `cpu user nice system idle iowait irq softirq steal …` (proc_stat(5)).
fn parse(text: &str) -> Option<Ticks> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let fields = line.split_whitespace().take(8).map(|field| field.parse().ok());
    let fields: Vec<u64> = fields.collect::<Option<_>>()?;
    let (idle, iowait) = (fields.get(3)?, fields.get(4)?);
    Some(Ticks { idle: idle + iowait, all: fields.iter().sum() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_is_told_from_busy() {
        let ticks = |text: &str| parse(text).unwrap();
        let start = ticks("cpu  100 0 50 800 40 5 5 0 0 0\ncpu0 1 2 3 4\n");
        assert_eq!(start, Ticks { idle: 840, all: 1000 });
        let idle = ticks("cpu  101 0 50 817 41 5 5 1 0 0");
        assert!(idle.is_idle_since(&start));
        let busy = ticks("cpu  104 0 50 816 40 5 5 0 0 0");
        assert!(!busy.is_idle_since(&start));
        assert!(!start.is_idle_since(&start));
        // The kernel says that iowait may go backwards.
        assert!(!ticks("cpu  300 0 50 800 30 5 5 0 0 0").is_idle_since(&start));
        for bad in ["", "intr 1 2 3", "cpu  1 2 3", "cpu  1 2 3 4 x 6 7 8"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
        read().unwrap();
    }
}
