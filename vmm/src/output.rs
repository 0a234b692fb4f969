//! Opening files that clients name for output: logs, metrics, the console. Clients prepare them in many
//! ways, and nothing that they prepare keeps the monitor waiting.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Opens `path` to append to it; a file is made if there is none.
///
/// A file that is there is opened without `O_CREAT`: in a folder such as /tmp, where everyone may make
/// files, the kernel otherwise refuses files and pipes of other users (fs.protected_regular and
/// fs.protected_fifos), though they may be written. A pipe is opened for reading, too, because it
/// has perhaps no reader yet; what may only be written is opened for that.
///
/// # Errors
///
/// If the file cannot be opened, or is a disk or a socket.
pub fn open(path: &Path) -> io::Result<File> {
    let mut how = OpenOptions::new();
    how.append(true).mode(0o600).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY);
    let opened = match how.read(true).open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => how.create(true).open(path),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => how.read(false).open(path),
        opened => opened,
    };
    let file = opened.map_err(|e| match e.raw_os_error() {
        // What open(2) says of sockets, and of a pipe that is opened for writing alone.
        Some(libc::ENXIO) => io::Error::new(
            ErrorKind::InvalidInput,
            "it is a socket, or a pipe that nobody reads and that this user may not read",
        ),
        _ => e,
    })?;
    if file.metadata()?.file_type().is_block_device() {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            "a block device; name a regular file, a named pipe or a terminal",
        ));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::io::{Read, Write};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, Mode, mkfifoat};

    use super::*;

    fn pipe(path: &Path) {
        mkfifoat(CWD, path, Mode::from_raw_mode(0o600)).unwrap();
    }

    #[test]
    fn a_file_is_appended_to_and_stays_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        open(&path).unwrap().write_all(b"a").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let inode = fs::metadata(&path).unwrap().ino();
        let link = dir.path().join("link");
        symlink("file", &link).unwrap();
        open(&link).unwrap().write_all(b"b").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"ab");
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        assert!(open(dir.path()).is_err());
        assert!(open(&path.join("below")).is_err());
    }

    #[test]
    fn a_link_that_leads_nowhere_makes_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        symlink("made", &link).unwrap();
        open(&link).unwrap().write_all(b"a").unwrap();
        assert_eq!(fs::read(dir.path().join("made")).unwrap(), b"a");
    }

    #[test]
    fn a_pipe_without_a_reader_is_opened_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        pipe(&path);
        let mut file = open(&path).unwrap();
        file.write_all(b"a").unwrap();
        // All that fits, and then an error: no wait.
        let full = (0..100).try_for_each(|_| file.write_all(&[0; 4096])).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
        let mut byte = [0];
        File::open(&path).unwrap().read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"a");
    }

    #[test]
    fn devices_are_written_and_disks_and_sockets_refused() {
        open(Path::new("/dev/null")).unwrap().write_all(b"a").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        let error = open(&path).unwrap_err().to_string();
        assert!(error.contains("it is a socket"), "{error}");
    }

    #[test]
    fn a_file_of_another_user_in_a_folder_for_all_is_opened() {
        if !rustix::process::geteuid().is_root() {
            return println!("skipped: only root can give files to others");
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o1777)).unwrap();
        std::os::unix::fs::chown(dir.path(), Some(1), Some(1)).unwrap();
        for name in ["file", "pipe"] {
            let path = dir.path().join(name);
            match name {
                "file" => fs::write(&path, "").unwrap(),
                _ => pipe(&path),
            }
            fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
            std::os::unix::fs::chown(&path, Some(12_345), Some(12_345)).unwrap();
            open(&path).unwrap().write_all(b"a").unwrap();
        }
    }
}
