//! `serial`: where the console's output goes, and how much of it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use varve_devices::limiter::BucketConfig;

/// The serial console.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serial {
    /// A file or named pipe for its output; it then has no input.
    pub serial_out_path: Option<PathBuf>,
    /// Limit of its output in bytes. What is more is dropped: a console cannot wait.
    pub rate_limiter: Option<BucketConfig>,
}
