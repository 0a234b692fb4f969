//! What a process's memory consists of, by `/proc/PID/smaps` (proc(5)); tells guest memory from the
//! monitor's own.

use std::fs;

use anyhow::{Context, Result, bail};

/// Memory of one process, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Resident, of guest memory.
    pub guest: u64,
    /// Resident, of everything else: code, libraries, heap, stacks.
    pub own: u64,
    /// The part of `own` that no other process has: what one more monitor costs.
    pub own_private: u64,
}

/// One mapping.
#[derive(Clone, Copy, Debug, Default)]
struct Mapping {
    start: u64,
    end: u64,
    rss: u64,
    private: u64,
    anonymous: bool,
}

/// Reads it for `pid`, whose guest has `guest_bytes` bytes in one region.
pub fn read(pid: u32, guest_bytes: u64) -> Result<Memory> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    split(&text, guest_bytes).context(path)
}

/// All that no other process has of `pid`'s memory, its guest's and its own, in KiB.
pub fn private(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(parse(&text).context(path)?.iter().map(|mapping| mapping.private).sum())
}

/// Guest memory is the anonymous mapping of just its size; the kernel may keep it as several that
/// follow each other without a gap.
fn split(smaps: &str, guest_bytes: u64) -> Result<Memory> {
    let mappings = parse(smaps)?;
    let guest = mappings.iter().enumerate().find_map(|(first, mapping)| {
        let mut end = mapping.start;
        for (index, next) in mappings.iter().enumerate().skip(first) {
            if next.start != end || !next.anonymous {
                return None;
            }
            end = next.end;
            if end - mapping.start >= guest_bytes {
                return (end - mapping.start == guest_bytes).then_some(first..index + 1);
            }
        }
        None
    });
    let Some(guest) = guest else {
        bail!(
            "no anonymous mapping of {guest_bytes} bytes, so guest memory is not to be told apart"
        )
    };
    let mut memory = Memory::default();
    for (index, mapping) in mappings.iter().enumerate() {
        if guest.contains(&index) {
            memory.guest += mapping.rss;
        } else {
            memory.own += mapping.rss;
            memory.own_private += mapping.private;
        }
    }
    Ok(memory)
}

fn parse(smaps: &str) -> Result<Vec<Mapping>> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        let Some(field) = first.strip_suffix(':') else {
            mappings.push(header(first, words).with_context(|| format!("the line {line:?}"))?);
            continue;
        };
        let Some(mapping) = mappings.last_mut() else { bail!("{line:?} before any mapping") };
        let into = match field {
            "Rss" => &mut mapping.rss,
            "Private_Clean" | "Private_Dirty" => &mut mapping.private,
            _ => continue,
        };
        let kib: Option<u64> = words.next().and_then(|number| number.parse().ok());
        *into += kib.with_context(|| format!("no number in {line:?}"))?;
    }
    Ok(mappings)
}

/// `start-end perms offset dev inode [name]`
fn header<'a>(range: &str, mut rest: impl Iterator<Item = &'a str>) -> Result<Mapping> {
    let (start, end) = range.split_once('-').context("no range")?;
    let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
    let inode = rest.nth(3).context("no inode")?;
    // Heap and stack have no inode either, but a name.
    let anonymous = inode == "0" && rest.next().is_none_or(|name| name.starts_with("[anon"));
    Ok(Mapping { start, end, anonymous, ..Mapping::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
55e0a0000000-55e0a0002000 r-xp 00000000 08:01 131 /usr/bin/varve
Size:                  8 kB
Rss:                   8 kB
Pss:                   4 kB
Private_Clean:         0 kB
Private_Dirty:         0 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0000003000 rw-p 00000000 00:00 0
Rss:                  12 kB
Private_Dirty:        12 kB
7f0000003000-7f0000004000 rw-p 00000000 00:00 0 [anon:guest]
Rss:                   0 kB
Private_Dirty:         0 kB
7f0000005000-7f0000006000 rw-p 00000000 00:00 0
Rss:                   4 kB
Private_Clean:         1 kB
Private_Dirty:         3 kB
7ffd00000000-7ffd00004000 rw-p 00000000 00:00 0 [stack]
Rss:                  16 kB
Private_Dirty:        16 kB
";

    #[test]
    fn guest_memory_is_told_apart_by_its_size() {
        // Two mappings that follow each other.
        let memory = split(TEXT, 0x4000).unwrap();
        assert_eq!(memory, Memory { guest: 12, own: 28, own_private: 20 });
        // One alone.
        assert_eq!(split(TEXT, 0x1000).unwrap().guest, 0);
        assert_eq!(split(TEXT, 0x3000).unwrap().guest, 12);
    }

    #[test]
    fn other_sizes_and_named_mappings_are_not_guest_memory() {
        for size in [0x2000, 0x5000, 1 << 30] {
            let error = split(TEXT, size).unwrap_err().to_string();
            assert!(error.contains(&format!("{size} bytes")), "{error}");
        }
    }

    #[test]
    fn what_is_no_smaps_is_an_error() {
        assert!(split("Rss: 1 kB\n", 4096).is_err());
        assert!(split("zz-1 rw-p 0 0 0\n", 4096).is_err());
        assert!(split("1000-2000 rw-p\n", 4096).is_err());
        assert!(split("1000-2000 rw-p 0 00:00 0\nRss: many kB\n", 4096).is_err());
    }

    #[test]
    fn this_process_can_be_read() {
        let memory = read(std::process::id(), u64::MAX);
        assert!(format!("{:#}", memory.unwrap_err()).contains("no anonymous mapping"));
    }
}
