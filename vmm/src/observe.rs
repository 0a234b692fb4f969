//! What is wanted to be seen of a process: its log and its metrics.

use std::sync::Arc;

use crate::instance::InstanceId;
use crate::logger::{self, LoggerConfig, LoggerError};
use crate::metrics::{Metrics, MetricsConfig, MetricsError};

/// Where log and metrics go. What is missing stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Observe {
    /// The log.
    pub logger: Option<LoggerConfig>,
    /// The metrics.
    pub metrics: Option<MetricsConfig>,
}

/// A file that does not open, or one too many.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each has its own documented error")]
pub enum ObserveError {
    #[error(transparent)]
    Logger(#[from] LoggerError),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
}

impl Observe {
    /// Opens the files for machine `id`.
    ///
    /// # Errors
    ///
    /// If a file cannot be opened, or was configured before.
    pub fn begin(self, id: &InstanceId, metrics: &Arc<Metrics>) -> Result<(), ObserveError> {
        let id = id.to_string();
        if let Some(config) = self.logger {
            logger::configure(&config, &id)?;
        }
        if let Some(config) = self.metrics {
            metrics.configure(&config, &id)?;
        }
        Ok(())
    }
}
