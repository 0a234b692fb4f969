//! The image behind a drive: a raw file or block device, in sectors.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::super::buffers::Run;
use super::super::iov;

/// Bytes of a sector, the unit of every address (virtio 1.2, 5.2.4).
pub const SECTOR: u64 = 512;

/// Why a drive cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The image does not open.
    #[error("cannot open {path:?}")]
    Open {
        /// The image.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Neither a file nor a block device.
    #[error("{0:?} is not a regular file or block device")]
    NotAFile(PathBuf),
    /// The host could not put the guest's writes on the disk.
    #[error("drive file {path:?}: writes of the guest failed and may be lost")]
    Flush {
        /// The image.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The system has no timer for its rate limiter.
    #[error("cannot make a timer")]
    Timer(#[source] io::Error),
}

/// An open image.
#[derive(Debug)]
pub(super) struct Disk {
    file: File,
    sectors: u64,
    /// There are writes that no flush has covered yet.
    unflushed: bool,
    /// A flush that nobody in the guest asked for failed, with this error. Linux tells it once for each
    /// open file: the guest's next flush would succeed.
    lost: Option<i32>,
}

impl Disk {
    /// Opens the image at `path`. An empty one is a disk of no sectors: a placeholder, to be replaced while
    /// the machine runs.
    pub(super) fn open(path: &Path, read_only: bool) -> Result<Disk, BlockError> {
        use std::io::{Seek, SeekFrom};
        use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

        let fail = |source| BlockError::Open { path: path.to_owned(), source };
        // Not waiting keeps a FIFO from blocking the open; for files and disks it has no effect.
        let mut file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(path)
            .map_err(fail)?;
        let kind = file.metadata().map_err(fail)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(BlockError::NotAFile(path.to_owned()));
        }
        let len = file.seek(SeekFrom::End(0)).map_err(fail)?;
        if !len.is_multiple_of(SECTOR) {
            let rest = len % SECTOR;
            log::warn!("{path:?}: the last {rest} bytes are no whole sector and not visible");
        }
        Ok(Disk { file, sectors: len / SECTOR, unflushed: false, lost: None })
    }

    /// Its size in sectors.
    pub(super) fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Fills `data` from `sector` on.
    pub(super) fn read(&self, sector: u64, data: &Run) -> io::Result<()> {
        iov::read_exact_at(self.file.as_fd(), data, sector * SECTOR)
    }

    /// Writes `data` from `sector` on.
    pub(super) fn write(&mut self, sector: u64, data: &Run) -> io::Result<()> {
        self.unflushed = true;
        iov::write_all_at(self.file.as_fd(), data, sector * SECTOR)
    }

    /// Has the host's kernel put all writes where they survive a crash of the host. The guest is told
    /// of an error, also of an earlier one: it is known then.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if let Some(lost) = self.lost.take() {
            return Err(io::Error::from_raw_os_error(lost));
        }
        if self.unflushed {
            self.file.sync_data()?;
            self.unflushed = false;
        }
        Ok(())
    }

    /// The same when the guest did not ask: an error stays until [`Disk::flush`] has told it.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        if self.lost.is_none() && self.unflushed {
            match self.file.sync_data() {
                Ok(()) => self.unflushed = false,
                Err(e) => self.lost = Some(e.raw_os_error().unwrap_or(libc::EIO)),
            }
        }
        self.lost.map_or(Ok(()), |lost| Err(io::Error::from_raw_os_error(lost)))
    }

    /// The error that the guest is still to be told, to be told by another disk in place of this one.
    pub(super) fn hand_over(&mut self, to: &mut Disk) {
        to.lost = self.lost.take();
    }

    /// Somebody who is not the guest was told of the error.
    pub(super) fn forget(&mut self) {
        self.lost = None;
    }

    /// Puts another file in, and gives the one before.
    #[cfg(test)]
    pub(super) fn swap(&mut self, file: File) -> File {
        std::mem::replace(&mut self.file, file)
    }

    /// Whether `len` bytes from `sector` on are whole sectors inside the disk.
    pub(super) fn holds(&self, sector: u64, len: usize) -> bool {
        let len = len as u64;
        let end = sector.checked_add(len / SECTOR);
        len.is_multiple_of(SECTOR) && end.is_some_and(|end| end <= self.sectors)
    }
}
