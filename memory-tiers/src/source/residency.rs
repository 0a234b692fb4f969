//! Which pages of a file are in the page cache, as far as the kernel tells this process.
//!
//! Since Linux 5.2, mincore(2) calls every page of a mapped file present for a process that neither owns
//! the file nor may write it, as in a jail with root's snapshots. There is no error. A page far behind the
//! end of the file is never present, so that mincore's answer on it tells whether it can be believed.
//! cachestat(2) follows the same rule, by an error (Linux 6.14). For other processes there is a read of
//! one byte that must not wait (`RWF_NOWAIT`). Since Linux 5.10 such a read of an absent page also has the
//! disk begin with it, so that it suits a sample of pages that will be used, and no recording.

use std::fs::File;
use std::io::{self, IoSliceMut};

use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use varve_snapshot::PAGE_SIZE;

use crate::ram::kind::HUGE_PAGE;
use crate::ram::sys::mmap::Reservation;

/// Bytes behind the end of a file where not even a large folio of its last page reaches.
const FAR: u64 = 1 << 30;

/// Whether mincore tells this process which pages of `file` are in memory.
///
/// # Errors
///
/// If the file cannot be mapped.
pub fn mincore_tells(file: &File) -> io::Result<bool> {
    let behind = file.metadata()?.len().next_multiple_of(FAR).checked_add(FAR);
    let behind = behind.ok_or(io::ErrorKind::FileTooLarge)?;
    let page = PAGE_SIZE as usize;
    let view = Reservation::new(page, page)?;
    view.map_file(0, page, file, behind)?;
    Ok(view.in_core(0, page)? == [false])
}

/// Tells of a file's pages whether they are in memory.
pub(crate) struct Residency<'f> {
    file: &'f File,
    /// The file's whole pages, mapped, if mincore tells.
    view: Option<Reservation>,
}

impl<'f> Residency<'f> {
    /// Of a file of at least `len` bytes, which are whole pages.
    pub(crate) fn of(file: &'f File, len: u64) -> io::Result<Residency<'f>> {
        let view = if mincore_tells(file)? {
            let len = usize::try_from(len).map_err(io::Error::other)?;
            let view = Reservation::new(len, HUGE_PAGE)?;
            view.map_file(0, len, file, 0)?;
            Some(view)
        } else {
            // Else a read would have the disk begin with more than its page. It fails on pipes only.
            let _ = fadvise(file, 0, None, Advice::Random);
            None
        };
        Ok(Residency { file, view })
    }

    /// Whether a page is in memory.
    pub(crate) fn has(&self, page: u64) -> io::Result<bool> {
        match &self.view {
            Some(view) => {
                Ok(view.in_core((page * PAGE_SIZE) as usize, PAGE_SIZE as usize)? == [true])
            }
            None => reads_at_once(self.file, page * PAGE_SIZE),
        }
    }
}

impl Drop for Residency<'_> {
    fn drop(&mut self) {
        if self.view.is_none() {
            let _ = fadvise(self.file, 0, None, Advice::Normal);
        }
    }
}

/// Whether the byte at `offset` can be read without waiting for the disk.
fn reads_at_once(file: &File, offset: u64) -> io::Result<bool> {
    loop {
        let mut byte = [0];
        let mut buffers = [IoSliceMut::new(&mut byte)];
        return match preadv2(file, &mut buffers, offset, ReadWriteFlags::NOWAIT) {
            Ok(read) => Ok(read > 0),
            Err(Errno::AGAIN) => Ok(false),
            Err(Errno::INTR) => continue,
            Err(e) => Err(e.into()),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    use std::path::Path;
    use std::process::Command;

    use super::*;
    use crate::source::page_cache::in_memory;

    const PAGES: u64 = 512;
    /// The file that the process looks at which [`as_another_user`] starts.
    const LOOKED_AT: &str = "VARVE_RESIDENCY_TEST";

    #[test]
    fn mincore_tells_the_owner_of_a_file() {
        let mut file = tempfile::tempfile_in("/var/tmp").unwrap();
        for len in [0, 1, 4096, 4097] {
            file.set_len(len).unwrap();
            assert!(mincore_tells(&file).unwrap(), "{len}");
        }
        file.write_all(&[7; 3 * PAGE_SIZE as usize]).unwrap();
        assert!(mincore_tells(&file).unwrap());
        let residency = Residency::of(&file, 3 * PAGE_SIZE).unwrap();
        assert!(residency.view.is_some());
        assert!((0..3).all(|page| residency.has(page).unwrap()));
    }

    #[test]
    fn a_read_tells_what_is_in_memory() {
        let mut file = tempfile::tempfile_in("/var/tmp").unwrap();
        file.write_all(&[7; 2 * PAGE_SIZE as usize]).unwrap();
        match reads_at_once(&file, PAGE_SIZE) {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => {
                varve_skip::skip!("nowait", "the file system has no RWF_NOWAIT");
            }
            told => assert!(told.unwrap()),
        }
        let (pipe, _keep) = io::pipe().unwrap();
        assert!(reads_at_once(&File::from(std::os::fd::OwnedFd::from(pipe)), 0).is_err());
    }

    /// The part of [`another_users_file`] that runs as another user; on its own this does nothing.
    #[test]
    fn as_another_user() {
        let Ok(path) = std::env::var(LOOKED_AT) else { return };
        let file = File::open(path).unwrap();
        assert!(!mincore_tells(&file).unwrap(), "mincore cannot be believed");
        let pages: Vec<u64> = (0..PAGES).collect();
        println!("in memory: {:?}", in_memory(&file, &pages).map_err(|e| e.kind()));
    }

    /// What a user that neither owns a file nor may write it is told of it.
    fn told(path: &Path) -> String {
        let program = tempfile::Builder::new().tempdir_in("/var/tmp").unwrap();
        // The build folder need not be open to others.
        std::fs::set_permissions(program.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let copy = program.path().join("test");
        std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
        let output = Command::new(&copy)
            .args(["source::residency::tests::as_another_user", "--exact", "--nocapture"])
            .env(LOOKED_AT, path)
            .current_dir("/")
            .uid(12_345)
            .gid(12_345)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn another_users_file() {
        if !rustix::process::geteuid().is_root() {
            return varve_skip::skip!("root", "only root can become another user");
        }
        let mut file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        file.write_all(&vec![7; (PAGES * PAGE_SIZE) as usize]).unwrap();
        file.as_file().sync_all().unwrap();
        let mode = std::fs::Permissions::from_mode(0o644);
        file.as_file().set_permissions(mode).unwrap();
        let there = told(file.path());
        if there.contains("Unsupported") {
            return varve_skip::skip!("nowait", "the file system has no RWF_NOWAIT");
        }
        assert!(there.contains("in memory: Ok(true)"), "{there}");
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        let pages: Vec<u64> = (0..PAGES).collect();
        if in_memory(file.as_file(), &pages).unwrap() {
            return varve_skip::skip!("disk", "the file system keeps its files in memory");
        }
        let gone = told(file.path());
        assert!(gone.contains("in memory: Ok(false)"), "{gone}");
    }
}
