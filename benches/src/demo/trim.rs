//! What a snapshot gains when free pages are taken back before it: the same machine saved with and
//! without `--trim`, and both restored as a whole.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::columns::Row;
use super::text::{mib, millis};

/// What both are restored with: it brings every page that is stored.
pub const STRATEGY: &str = "eager";

/// One of the two snapshots.
#[derive(Debug)]
pub struct Saved {
    /// How it was made.
    pub how: &'static str,
    /// Milliseconds that making it took.
    pub took_ms: f64,
    /// Bytes that it takes where it is stored.
    pub stored: u64,
    /// Its restore.
    pub row: Row,
}

/// Bytes that the files of a folder take; holes take none.
pub fn stored(folder: &Path) -> Result<u64> {
    let sizes = folder.read_dir().and_then(|entries| {
        entries.map(|entry| Ok(entry?.metadata()?.blocks() * 512)).collect::<Result<Vec<_>, _>>()
    });
    let sizes = sizes.with_context(|| format!("cannot look at {}", folder.display()))?;
    Ok(sizes.iter().sum())
}

/// Heading and rows.
pub fn table(both: &[Saved]) -> Vec<Vec<String>> {
    let heading = ["snapshot", "made in", "stored", "pages restored", "resumed", "first answer"];
    let cells = |saved: &Saved| {
        let copied = saved.row.run.counters.as_ref().map_or(0, |counters| counters.pages.copied);
        vec![
            saved.how.into(),
            millis(saved.took_ms),
            mib(saved.stored),
            copied.to_string(),
            millis(saved.row.run.resumed_ms),
            millis(saved.row.run.first_answer_ms),
        ]
    };
    [heading.map(String::from).to_vec()].into_iter().chain(both.iter().map(cells)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_not_stored() {
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(dir.path().join("memory")).unwrap();
        file.set_len(64 << 20).unwrap();
        std::fs::write(dir.path().join("state"), [1; 8192]).unwrap();
        assert!((8192..1 << 20).contains(&stored(dir.path()).unwrap()));
        assert!(stored(&dir.path().join("none")).is_err());
    }
}
