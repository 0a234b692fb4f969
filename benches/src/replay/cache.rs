//! Takes a snapshot's files out of the page cache, or brings them in.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{Advice, fadvise};

/// Takes every file of a snapshot's folder out. Pages that a process has mapped stay.
///
/// # Errors
///
/// If a file cannot be opened or synced: what was written lately has to reach the disk first.
pub fn drop(snapshot: &Path) -> Result<()> {
    each(snapshot, |path, file| {
        file.sync_all().with_context(|| format!("syncing {}", path.display()))?;
        let done = fadvise(file, 0, None, Advice::DontNeed);
        done.with_context(|| format!("dropping {}", path.display()))
    })
}

/// Reads every file of a snapshot's folder, holes too.
///
/// # Errors
///
/// If a file cannot be read.
pub fn fill(snapshot: &Path) -> Result<()> {
    each(snapshot, |path, file| {
        let read = io::copy(&mut &*file, &mut io::sink());
        read.map(|_| ()).with_context(|| format!("reading {}", path.display()))
    })
}

fn each(snapshot: &Path, what: impl Fn(&PathBuf, &File) -> Result<()>) -> Result<()> {
    for entry in fs::read_dir(snapshot).with_context(|| snapshot.display().to_string())? {
        let path = entry?.path();
        if path.is_file() {
            what(&path, &File::open(&path).with_context(|| path.display().to_string())?)?;
        }
    }
    Ok(())
}
