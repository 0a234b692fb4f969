//! Output files that users name, whatever they have prepared there.
//!
//! A new file, or one that can be replaced, appears whole or not at all. A file that cannot be replaced is
//! written where it is: one that is mounted into a jail, that lies in a folder which this process may not
//! change, or that belongs to another user. So are devices, such as /dev/null.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::error::SnapshotError;
use crate::store::{LocalFiles, Staging};

/// Checks that [`write_output`] can write to `path`, as far as can be told ahead.
///
/// # Errors
///
/// If something is there that is neither a file nor a character device, or that this process may not
/// write.
pub fn check_output(path: &Path) -> Result<(), SnapshotError> {
    user();
    let Some((target, found)) = existing(path)? else { return Ok(()) };
    if replaceable(&found) {
        // Its folder may be writable where the file is not.
        return Ok(());
    }
    open(&target).map(drop).map_err(SnapshotError::io("open", path))
}

/// Writes `bytes` to the file that `path` names.
///
/// # Errors
///
/// If the file can neither be made or replaced, nor be written where it is. A file that was to be replaced
/// is then as before.
pub fn write_output(path: &Path, bytes: &[u8]) -> Result<(), SnapshotError> {
    let Some((target, found)) = existing(path)? else {
        return Staging::write_file(&LocalFiles, path, bytes);
    };
    if replaceable(&found) {
        match Staging::write_file(&LocalFiles, &target, bytes) {
            Err(SnapshotError::Io { source, .. }) if stays(&source) => {}
            done => return done,
        }
    }
    write_in_place(&target, bytes).map_err(SnapshotError::io("write", path))
}

/// What is at `path`, behind all links.
fn existing(path: &Path) -> Result<Option<(PathBuf, Metadata)>, SnapshotError> {
    let look = SnapshotError::io("look at", path);
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            // Replacing a link that leads nowhere would leave what it names unwritten.
            return match fs::symlink_metadata(path) {
                Ok(_) => Err(look(io::Error::new(e.kind(), "it is a link that leads nowhere"))),
                Err(_) => Ok(None),
            };
        }
        Err(e) => return Err(look(e)),
    };
    let kind = found.file_type();
    let wrong = match () {
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a named pipe",
        () if kind.is_socket() => "a socket",
        () if kind.is_block_device() => "a disk",
        () => {
            let target = fs::canonicalize(path).map_err(look)?;
            return Ok(Some((target, found)));
        }
    };
    let text = format!("it is {wrong}; name a file, which is made if there is none");
    Err(look(io::Error::new(ErrorKind::InvalidInput, text)))
}

/// Whether another file may take the place of one: its owner and its other names would be lost.
fn replaceable(found: &Metadata) -> bool {
    found.is_file() && found.nlink() == 1 && found.uid() == user()
}

/// The user of this process. It is asked for once, by [`check_output`]: a filtered monitor cannot ask again.
fn user() -> u32 {
    static USER: OnceLock<u32> = OnceLock::new();
    *USER.get_or_init(|| rustix::process::geteuid().as_raw())
}

/// Whether an error says that a file cannot be replaced, which perhaps can be written.
fn stays(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ResourceBusy
            | ErrorKind::PermissionDenied
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::InvalidFilename
    )
}

fn open(target: &Path) -> io::Result<File> {
    File::options().write(true).open(target)
}

fn write_in_place(target: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = open(target)?;
    if !file.metadata()?.is_file() {
        return file.write_all(bytes);
    }
    file.write_all_at(bytes, 0)?;
    file.set_len(bytes.len() as u64)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    fn inode(path: &Path) -> u64 {
        fs::metadata(path).unwrap().ino()
    }

    #[test]
    fn files_are_made_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("below/output");
        check_output(&path).unwrap();
        write_output(&path, b"first").unwrap();
        let before = inode(&path);
        let kept = File::open(&path).unwrap();
        check_output(&path).unwrap();
        write_output(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_ne!(inode(&path), before);
        drop(kept);
    }

    #[test]
    fn links_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "old").unwrap();
        symlink("file", &link).unwrap();
        write_output(&link, b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());

        fs::remove_file(&file).unwrap();
        let error = write_output(&link, b"new").unwrap_err();
        assert!(crate::chain(&error).contains("leads nowhere"), "{error}");
    }

    #[test]
    fn what_has_other_names_is_written_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (file, other) = (dir.path().join("file"), dir.path().join("other"));
        fs::write(&file, "a long text").unwrap();
        fs::hard_link(&file, &other).unwrap();
        check_output(&file).unwrap();
        write_output(&file, b"short").unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"short");
    }

    /// The file that the process writes which [`a_file_in_a_folder_of_another_user_is_written`] starts.
    const WRITTEN: &str = "VARVE_OUTPUT_TEST";

    /// The part of the next test that runs as another user; on its own this does nothing.
    #[test]
    fn as_another_user() {
        let Ok(path) = std::env::var(WRITTEN) else { return };
        let path = Path::new(&path);
        check_output(path).unwrap();
        write_output(path, b"short").unwrap();
        let beside = write_output(&path.with_file_name("none"), b"x").unwrap_err();
        assert!(crate::chain(&beside).contains("denied"), "{beside}");
    }

    #[test]
    fn a_file_in_a_folder_of_another_user_is_written() {
        if !rustix::process::geteuid().is_root() {
            return varve_skip::skip!("root", "only root can become another user");
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let (program, path) = (dir.path().join("test"), dir.path().join("output"));
        // The build folder need not be open to others.
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        for owner in [0, 12_345] {
            fs::write(&path, "a long text").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
            std::os::unix::fs::chown(&path, Some(owner), Some(owner)).unwrap();
            let output = Command::new(&program)
                .args(["output::tests::as_another_user", "--exact"])
                .env(WRITTEN, &path)
                .current_dir("/")
                .uid(12_345)
                .gid(12_345)
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            assert_eq!(fs::read(&path).unwrap(), b"short");
            assert_eq!(fs::metadata(&path).unwrap().uid(), owner);
        }
    }

    #[test]
    fn devices_stay_devices() {
        check_output(Path::new("/dev/null")).unwrap();
        write_output(Path::new("/dev/null"), b"anything").unwrap();
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    }

    #[test]
    fn what_cannot_hold_an_output_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, socket) = (dir.path().join("pipe"), dir.path().join("socket"));
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).unwrap();
        let _listener = UnixListener::bind(&socket).unwrap();
        for (path, what) in
            [(dir.path(), "a folder"), (&*pipe, "a named pipe"), (&*socket, "a socket")]
        {
            for refused in [check_output(path), write_output(path, b"x")] {
                let text = crate::chain(&refused.unwrap_err());
                assert!(text.contains(what) && text.contains(path.to_str().unwrap()), "{text}");
            }
        }
    }

    #[test]
    fn a_read_only_file_is_replaced_by_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        check_output(&path).unwrap();
        write_output(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }
}
