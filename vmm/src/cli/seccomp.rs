//! The options that say which seccomp filters are used, in every way to run a machine.

use std::path::PathBuf;

use clap::Args;

use crate::seccomp::{Choice, SeccompError, Tasks, enter};
use crate::signal_handlers;

/// `--no-seccomp`, `--seccomp-filter` and `--allow-pool`.
#[derive(Clone, Debug, Default, Args)]
pub struct SeccompArgs {
    /// Seccomp filters compiled by seccompiler-bin (Firecracker up to 1.13)
    #[arg(long, value_name = "FILE", conflicts_with = "no_seccomp")]
    pub seccomp_filter: Option<PathBuf>,

    /// No seccomp filters
    #[arg(long)]
    pub no_seccomp: bool,

    /// Allow internet sockets and RDMA, for API requests that use a pool
    #[arg(long)]
    pub allow_pool: bool,
}

impl SeccompArgs {
    /// Takes signals over and filters this process, which is to do `tasks`. To be called before anything
    /// from outside is read.
    pub fn enter(&self, tasks: Tasks) -> Result<(), SeccompError> {
        signal_handlers::install().map_err(SeccompError::Signals)?;
        enter(&match &self.seccomp_filter {
            Some(path) => Choice::File(path.clone()),
            None if self.no_seccomp => Choice::Off,
            None => Choice::Own(Tasks { pool: tasks.pool || self.allow_pool, ..tasks }),
        })
    }
}
