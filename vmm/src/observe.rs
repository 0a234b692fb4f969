//! What is wanted to be seen of a process: its log and its metrics.

use crate::logger::{self, LoggerConfig, LoggerError};
use crate::metrics::{MetricsConfig, MetricsError};
use crate::monitor::Monitor;

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
    /// Opens the files.
    pub fn begin(self, monitor: &Monitor) -> Result<(), ObserveError> {
        let id = monitor.id().to_string();
        if let Some(config) = self.logger {
            logger::configure(&config, &id)?;
        }
        if let Some(config) = self.metrics {
            monitor.metrics().configure(&config, &id)?;
        }
        Ok(())
    }
}
