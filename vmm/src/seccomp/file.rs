//! Filters from a file that `seccompiler-bin` made: compiled BPF programs by kind of thread.
//!
//! The form is that of Firecracker up to 1.13, all numbers little-endian, counts of 8 bytes: a count
//! of programs; for each the length of its name, the name, a count of instructions, and these, 8
//! bytes each (`struct sock_filter`, linux/filter.h). Later versions write another form, which is
//! refused.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use seccompiler::{BpfProgram, sock_filter};

use super::Thread;

/// Longest file that is read, as in Firecracker: some programs of at most 4096 instructions.
const MAX_BYTES: usize = 100_000;
/// Longest program (BPF_MAXINSNS).
const MAX_INSTRUCTIONS: usize = 4096;
/// Firecracker's filter for a thread that varve does not have: the main thread serves the API.
const UNUSED: &str = "api";

/// Why a file of filters is no good.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It does not open, or cannot be read.
    #[error("--seccomp-filter {path:?}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It is something else.
    #[error(
        "--seccomp-filter {path:?}: {cause}; what is read is a file that seccompiler-bin of \
         Firecracker 0.25 to 1.13 compiled, with a filter 'vmm' for varve's main thread, 'vcpu', \
         and, if they are to be narrower than 'vmm', 'saver', 'drive', 'memory' and 'client' \
         (docs/isolation.md)"
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
}

/// The programs in a file, by [`Thread`]; none where threads get no filter of their own.
pub fn read(path: &Path) -> Result<[Option<BpfProgram>; Thread::ALL.len()], FileError> {
    let io = |source| FileError::Io { path: path.into(), source };
    let mut bytes = Vec::new();
    let limit = MAX_BYTES as u64 + 1;
    File::open(path).map_err(io)?.take(limit).read_to_end(&mut bytes).map_err(io)?;
    decode(&bytes).map_err(|cause| FileError::Malformed { path: path.into(), cause })
}

fn decode(bytes: &[u8]) -> Result<[Option<BpfProgram>; Thread::ALL.len()], String> {
    if bytes.len() > MAX_BYTES {
        return Err(format!("it is longer than {MAX_BYTES} bytes"));
    }
    let mut rest = bytes;
    let mut programs = [const { None }; Thread::ALL.len()];
    for _ in 0..count(&mut rest)? {
        let length = count(&mut rest)?;
        let name = std::str::from_utf8(take(&mut rest, length)?);
        let name = name.map_err(|_| "the name of a filter is not UTF-8")?.to_lowercase();
        let program = program(&mut rest, &name)?;
        if name == UNUSED {
            continue;
        }
        let named = |thread: &Thread| !matches!(thread, Thread::Start | Thread::Pager);
        let monitors = Thread::ALL.into_iter().filter(named);
        let thread = monitors.into_iter().find(|thread| thread.name() == name);
        let thread = thread.ok_or_else(|| format!("there are no threads {name:?}"))?;
        if programs[thread as usize].replace(program).is_some() {
            return Err(format!("it has two filters {name:?}"));
        }
    }
    if !rest.is_empty() {
        return Err(format!("{} bytes follow the filters", rest.len()));
    }
    for thread in [Thread::Main, Thread::Vcpu] {
        if programs[thread as usize].is_none() {
            return Err(format!("it has no filter {:?}", thread.name()));
        }
    }
    Ok(programs)
}

fn program(rest: &mut &[u8], name: &str) -> Result<BpfProgram, String> {
    let instructions = count(rest)?;
    if !(1..=MAX_INSTRUCTIONS).contains(&instructions) {
        return Err(format!("filter {name:?} has {instructions} instructions, not 1 to 4096"));
    }
    let bytes = take(rest, instructions * 8)?;
    let instruction = |&[a, b, jt, jf, k @ ..]: &[u8; 8]| sock_filter {
        code: u16::from_le_bytes([a, b]),
        jt,
        jf,
        k: u32::from_le_bytes(k),
    };
    Ok(bytes.as_chunks::<8>().0.iter().map(instruction).collect())
}

fn count(rest: &mut &[u8]) -> Result<usize, String> {
    let bytes = rest.split_off(..8).and_then(|bytes| bytes.try_into().ok());
    let count = u64::from_le_bytes(bytes.ok_or("it ends early")?);
    // Nothing that is counted can be more than the bytes of the file.
    usize::try_from(count)
        .ok()
        .filter(|&n| n <= MAX_BYTES)
        .ok_or("it has an impossible count".into())
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], String> {
    rest.split_off(..length).ok_or_else(|| "it ends early".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(filters: &[(&str, u64)]) -> Vec<u8> {
        let mut bytes = (filters.len() as u64).to_le_bytes().to_vec();
        for (name, instructions) in filters {
            bytes.extend((name.len() as u64).to_le_bytes());
            bytes.extend(name.bytes());
            bytes.extend(instructions.to_le_bytes());
            // BPF_RET | BPF_K, SECCOMP_RET_ALLOW
            (0..*instructions).for_each(|_| bytes.extend([6, 0, 1, 2, 0, 0, 0xff, 0x7f]));
        }
        bytes
    }

    #[test]
    fn a_file_of_firecrackers_kinds_is_read() {
        let programs = decode(&encoded(&[("api", 3), ("Vmm", 2), ("vcpu", 1)])).unwrap();
        let allow = sock_filter { code: 6, jt: 1, jf: 2, k: 0x7fff_0000 };
        assert_eq!(programs[Thread::Main as usize], Some(vec![allow.clone(), allow.clone()]));
        assert_eq!(programs[Thread::Vcpu as usize], Some(vec![allow]));
        assert_eq!(programs[Thread::Memory as usize], None);
    }

    #[test]
    fn wrong_files_are_refused() {
        let good = encoded(&[("vmm", 2), ("vcpu", 1)]);
        let cases: [(Vec<u8>, &str); 8] = [
            (Vec::new(), "ends early"),
            (good[..good.len() - 1].into(), "ends early"),
            ([&good[..], b"x"].concat(), "1 bytes follow"),
            (encoded(&[("vmm", 1)]), "no filter \"vcpu\""),
            (encoded(&[("vmm", 1), ("vcpu", 1), ("gpu", 1)]), "no threads \"gpu\""),
            (encoded(&[("vmm", 1), ("vcpu", 1), ("vmm", 1)]), "two filters"),
            (encoded(&[("vmm", 1), ("vcpu", 0)]), "0 instructions"),
            (vec![0xff; 64], "impossible count"),
        ];
        for (bytes, cause) in cases {
            let error = decode(&bytes).unwrap_err();
            assert!(error.contains(cause), "{error:?} is not {cause:?}");
        }
        for cut in 0..good.len() {
            assert!(decode(&good[..cut]).is_err());
        }
        assert!(decode(&vec![0; MAX_BYTES + 1]).unwrap_err().contains("longer"));
    }
}
