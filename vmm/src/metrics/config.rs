//! Where metrics go, as Firecracker's API and configuration file say it.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What the user asked for: the body of `PUT /metrics`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsConfig {
    /// File or named pipe. A file is made if there is none, and appended to.
    pub metrics_path: PathBuf,
    /// Each line says the machine's id.
    #[serde(default)]
    pub emit_id: bool,
    /// Each line says these as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub properties: Option<BTreeMap<String, String>>,
}

/// Why metrics are not written.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// They have a file already.
    #[error("Reinitialization of metrics not allowed: they are configured once.")]
    Configured,
    /// The file does not open.
    #[error("metrics file {path:?}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// This line is lost; its counts are in the next one.
    #[error("Failed to write metrics")]
    Write(#[source] io::Error),
    /// No JSON came out.
    #[error("Failed to format metrics")]
    Format(#[from] serde_json::Error),
}
