//! A shared tier, such as CXL memory: it holds a function's images while the function is measured.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use varve_shared::Uri;

use crate::demo::command::{output, words};
use crate::environment;

/// A snapshot whose images are in a store; they are taken back when this is dropped.
#[derive(Debug)]
pub struct Published<'a> {
    snapshot: PathBuf,
    store: &'a str,
}

/// Refuses a store of files on a disk: nothing would drop them from the page cache, and a cold run would
/// be none.
///
/// # Errors
///
/// If it is one, or its folder cannot be made.
pub fn ensure_in_memory(store: &str) -> Result<()> {
    let Uri::File(folder) = store.parse().context("--store")? else { return Ok(()) };
    let shown = folder.display();
    std::fs::create_dir_all(&folder).with_context(|| format!("--store {shown}"))?;
    ensure!(
        environment::is_in_memory(&folder),
        "--store {shown}: it is on a disk; name a folder in memory, numa:NODE, dax:DIR or devdax:DEVICE"
    );
    Ok(())
}

/// Publishes what the methods use: read-only pages for `tiered`, the whole memory for `template`.
///
/// # Errors
///
/// If the store does not take it.
pub fn publish<'a>(snapshot: &Path, store: &'a str) -> Result<Published<'a>> {
    let images = words!["--image", "ro", "--image", "memory"];
    output(words!["tier", "publish", snapshot, "--to", store].into_iter().chain(images))?;
    Ok(Published { snapshot: snapshot.into(), store })
}

impl Drop for Published<'_> {
    fn drop(&mut self) {
        let taken = output(words!["tier", "revoke", &self.snapshot]);
        let freed = taken.and_then(|_| output(words!["tier", "gc", self.store]));
        if let Err(error) = freed {
            eprintln!("{}: its images stay in the store: {error:#}", self.snapshot.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_on_a_disk_is_refused() {
        assert!(ensure_in_memory("numa:1").is_ok());
        assert!(ensure_in_memory("numa:one").is_err());
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let found = ensure_in_memory(&format!("file:{}", dir.path().display()));
        assert_eq!(found.is_ok(), environment::is_in_memory(dir.path()), "{found:?}");
    }
}
