//! What can go wrong between a pool and those who use it.

use std::io;
use std::path::{Path, PathBuf};

use varve_snapshot::SnapshotError;

/// Why a pool did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The node does not answer, or not in time.
    #[error("node {node}: cannot {what}")]
    Link {
        /// Address of the node.
        node: String,
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The node answered that it will not.
    #[error("node {node} refuses: {reason}")]
    Refused {
        /// Address of the node.
        node: String,
        /// Its words.
        reason: String,
    },
    /// The other side does not speak the protocol.
    #[error("node {node}: {problem}")]
    Protocol {
        /// Address of the node.
        node: String,
        /// What was wrong.
        problem: String,
    },
    /// A file is not what it should be.
    #[error("{path:?}: {problem}")]
    File {
        /// The file.
        path: PathBuf,
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
    /// Fewer nodes than copies.
    #[error("--copies {copies} needs {copies} nodes, but --to names {nodes}")]
    TooFewNodes {
        /// Copies wanted.
        copies: usize,
        /// Nodes named.
        nodes: usize,
    },
    /// A snapshot cannot be read or written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

impl PoolError {
    /// An error of the file system, for `map_err`.
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PoolError {
        let path = path.to_owned();
        move |source| PoolError::Io { what, path, source }
    }
}
