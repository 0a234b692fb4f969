//! What can go wrong between images and the memory that keeps them.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use varve_snapshot::SnapshotError;

/// Why a store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    /// A URI that names no store.
    #[error(
        "{text:?}: {problem}; file:DIR, numa:NODE[:DIR], dax:DIR and devdax:/dev/daxX.Y[,host=N][,state=DIR] are possible"
    )]
    Uri {
        /// The URI.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A store that cannot be used, or not like that.
    #[error("{place}: {problem}")]
    Place {
        /// The store, or a file.
        place: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A file cannot be read or written.
    #[error("cannot {what} {path:?}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A snapshot cannot be read or written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

impl SharedError {
    /// An error of the file system, for `map_err`.
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SharedError {
        let path = path.to_owned();
        move |source| SharedError::Io { what, path, source }
    }

    pub(crate) fn place(place: impl Display, problem: impl Display) -> SharedError {
        SharedError::Place { place: place.to_string(), problem: problem.to_string() }
    }
}
