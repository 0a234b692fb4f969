//! Writing an initramfs: a `newc` archive whose bytes depend on its entries alone (owner root,
//! time 0, inodes counted), over the crate `cpio`. Compressing it is left to others.

use std::collections::BTreeSet;
use std::io;

use cpio::newc::{Builder, ModeFileType, trailer};

/// An archive in memory. Entries are unpacked by the kernel in the order in which they are added.
///
/// Paths are relative to the root, without a leading slash. Missing parent folders are added
/// (mode 755), since the kernel drops an entry whose folder it has not seen.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
    folders: BTreeSet<String>,
}

/// The kind of a device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// A character device.
    Char,
    /// A block device.
    Block,
}

impl Archive {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a folder, unless it is there already.
    pub fn dir(&mut self, path: &str, mode: u32) -> io::Result<()> {
        self.parents(path)?;
        if self.folders.insert(path.to_owned()) {
            let builder = Builder::new(path).nlink(2).mode(mode);
            self.entry(builder.set_mode_file_type(ModeFileType::Directory), &[])?;
        }
        Ok(())
    }

    /// Adds a regular file of at most 4 GiB.
    pub fn file(&mut self, path: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        self.parents(path)?;
        let builder = Builder::new(path).mode(mode);
        self.entry(builder.set_mode_file_type(ModeFileType::Regular), data)
    }

    /// Adds a symbolic link at `path` that says `target`.
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.parents(path)?;
        let builder = Builder::new(path).mode(0o777);
        self.entry(builder.set_mode_file_type(ModeFileType::Symlink), target.as_bytes())
    }

    /// Adds a device node.
    pub fn device(
        &mut self,
        path: &str,
        mode: u32,
        kind: Device,
        (major, minor): (u32, u32),
    ) -> io::Result<()> {
        self.parents(path)?;
        let kind = match kind {
            Device::Char => ModeFileType::Char,
            Device::Block => ModeFileType::Block,
        };
        let builder = Builder::new(path).mode(mode).rdev_major(major).rdev_minor(minor);
        self.entry(builder.set_mode_file_type(kind), &[])
    }

    /// Ends the archive and returns its bytes.
    pub fn finish(self) -> io::Result<Vec<u8>> {
        trailer(self.bytes)
    }

    fn parents(&mut self, path: &str) -> io::Result<()> {
        if path.is_empty() || path.starts_with('/') || path.split('/').any(|part| part == "..") {
            let text = format!("`{path}` is not a path below the archive's root");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        match path.rsplit_once('/') {
            Some((parent, _)) => self.dir(parent, 0o755),
            None => Ok(()),
        }
    }

    fn entry(&mut self, builder: Builder, data: &[u8]) -> io::Result<()> {
        let size = u32::try_from(data.len())
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "newc files end at 4 GiB"))?;
        self.inode += 1;
        let mut writer = builder.ino(self.inode).write(&mut self.bytes, size);
        io::Write::write_all(&mut writer, data)?;
        writer.finish().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpio::newc::Reader;
    use std::io::Read;

    fn sample() -> Vec<u8> {
        let mut archive = Archive::new();
        archive.file("a/b/init", 0o755, b"hello").unwrap();
        archive.dir("a/b", 0o700).unwrap();
        archive.symlink("link", "a/b/init").unwrap();
        archive.device("dev/console", 0o600, Device::Char, (5, 1)).unwrap();
        archive.finish().unwrap()
    }

    #[test]
    fn entries_read_back_with_their_parents() {
        let bytes = sample();
        let mut rest = bytes.as_slice();
        let mut seen = Vec::new();
        loop {
            let mut reader = Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let entry = reader.entry().clone();
            let mut data = Vec::new();
            reader.read_to_end(&mut data).unwrap();
            seen.push((entry.name().to_owned(), entry.mode(), data, entry.mtime()));
            if entry.name() == "dev/console" {
                assert_eq!((entry.rdev_major(), entry.rdev_minor()), (5, 1));
            }
            rest = reader.finish().unwrap();
        }
        let expected: Vec<(String, u32, Vec<u8>, u32)> = [
            ("a", 0o40755, ""),
            ("a/b", 0o40755, ""),
            ("a/b/init", 0o100_755, "hello"),
            ("link", 0o120_777, "a/b/init"),
            ("dev", 0o40755, ""),
            ("dev/console", 0o20600, ""),
        ]
        .map(|(name, mode, data)| (name.to_owned(), mode, data.as_bytes().to_vec(), 0))
        .to_vec();
        assert_eq!(seen, expected);
    }

    #[test]
    fn the_same_entries_make_the_same_bytes() {
        assert_eq!(sample(), sample());
    }

    #[test]
    fn paths_outside_the_root_are_refused() {
        for path in ["", "/etc", "a/../../b"] {
            let error = Archive::new().file(path, 0o644, b"").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path}");
        }
    }
}
