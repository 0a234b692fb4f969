//! Files that a client names and that are no files: opening a named pipe waits for its other end, a
//! device may do anything.

use std::io::{self, ErrorKind};
use std::path::Path;

/// An error if there is something at `path` that is neither a regular file nor a folder.
pub fn not_special(path: &Path) -> io::Result<()> {
    match path.metadata() {
        Ok(meta) if meta.is_file() || meta.is_dir() => Ok(()),
        Ok(_) => Err(io::Error::new(ErrorKind::InvalidInput, "not a regular file")),
        // Whoever opens it says why it cannot be.
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_devices_and_sockets_are_special() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).unwrap();
        for special in [&pipe, Path::new("/dev/zero")] {
            assert!(not_special(special).is_err(), "{special:?}");
        }
        let file = dir.path().join("file");
        assert!(not_special(&file).is_ok(), "nothing there yet");
        std::fs::write(&file, "").unwrap();
        assert!(not_special(&file).is_ok() && not_special(dir.path()).is_ok());
    }
}
