//! Options for log and metrics, with Firecracker's names.

use std::path::PathBuf;

use clap::Args;

use crate::logger::{Level, LoggerConfig};
use crate::metrics::MetricsConfig;
use crate::observe::Observe;

/// Where log and metrics go.
#[derive(Clone, Debug, Args)]
pub struct ObserveArgs {
    /// File or pipe for log messages
    #[arg(long, value_name = "PATH")]
    pub log_path: Option<PathBuf>,

    /// Least severe log level: Off, Error, Warning, Info, Debug or Trace
    #[arg(long, value_name = "LEVEL")]
    pub level: Option<String>,

    /// Put the level into each log message
    #[arg(long)]
    pub show_level: bool,

    /// Put the source file and line into each log message
    #[arg(long)]
    pub show_log_origin: bool,

    /// Log only modules whose path begins so
    #[arg(long, value_name = "PATH")]
    pub module: Option<String>,

    /// File or pipe for metrics
    #[arg(long, value_name = "PATH")]
    pub metrics_path: Option<PathBuf>,
}

impl ObserveArgs {
    /// What they mean. Without any of them, messages go to standard error.
    pub fn observe(&self) -> Result<Observe, crate::logger::UnknownLevel> {
        let logger = LoggerConfig {
            log_path: self.log_path.clone(),
            level: self.level.as_deref().map(str::parse::<Level>).transpose()?,
            show_level: self.show_level.then_some(true),
            show_log_origin: self.show_log_origin.then_some(true),
            module: self.module.clone(),
        };
        let metrics = |metrics_path: &PathBuf| MetricsConfig {
            metrics_path: metrics_path.clone(),
            emit_id: false,
            properties: None,
        };
        Ok(Observe {
            logger: (logger != LoggerConfig::default()).then_some(logger),
            metrics: self.metrics_path.as_ref().map(metrics),
        })
    }
}
