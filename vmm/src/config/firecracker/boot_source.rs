//! `boot-source`: kernel, initrd and command line.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::arch::cmdline::{self, CmdlineError};
use crate::arch::kernel::BootProtocol;
use crate::config::BootConfig;
use crate::special_files::not_special;

/// Firecracker's default `boot_args`.
pub const DEFAULT_BOOT_ARGS: &str = "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux \
                                     i8042.nomux i8042.dumbkbd swiotlb=noforce";

/// What the guest boots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// Kernel image.
    pub kernel_image_path: PathBuf,
    /// Initial RAM disk.
    pub initrd_path: Option<PathBuf>,
    /// Command line; [`DEFAULT_BOOT_ARGS`] if there is none.
    pub boot_args: Option<String>,
}

/// Why this cannot boot.
#[derive(Debug, thiserror::Error)]
pub enum BootSourceError {
    /// The kernel does not open.
    #[error("The kernel file cannot be opened: {error} {path:?}")]
    Kernel {
        /// The kernel.
        path: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
    /// The initrd does not open.
    #[error(
        "The initrd file cannot be opened due to invalid path or invalid permissions. {error} \
         {path:?}"
    )]
    Initrd {
        /// The initrd.
        path: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
    /// No kernel takes this command line.
    #[error("The kernel command line is invalid: {0}")]
    Cmdline(#[from] CmdlineError),
}

impl BootSource {
    /// Checks what the files' existence and the command line alone can tell.
    pub fn probe(&self) -> Result<(), BootSourceError> {
        let path = &self.kernel_image_path;
        open(path).map_err(|error| BootSourceError::Kernel { path: path.clone(), error })?;
        if let Some(path) = &self.initrd_path {
            open(path).map_err(|error| BootSourceError::Initrd { path: path.clone(), error })?;
        }
        cmdline::build(self.boot_args(), &[], &[])?;
        Ok(())
    }

    fn boot_args(&self) -> &str {
        self.boot_args.as_deref().unwrap_or(DEFAULT_BOOT_ARGS)
    }

    /// As a machine knows it; the root drive is another resource.
    pub fn to_config(&self) -> BootConfig {
        BootConfig {
            kernel: self.kernel_image_path.clone(),
            initrd: self.initrd_path.clone(),
            cmdline: self.boot_args().into(),
            protocol: BootProtocol::Auto,
            root: None,
        }
    }
}

fn open(path: &Path) -> io::Result<()> {
    // A named pipe would wait for its writer.
    not_special(path)?;
    File::open(path).map(drop)
}

impl From<&BootConfig> for BootSource {
    fn from(boot: &BootConfig) -> BootSource {
        BootSource {
            kernel_image_path: boot.kernel.clone(),
            initrd_path: boot.initrd.clone(),
            boot_args: (boot.cmdline != DEFAULT_BOOT_ARGS).then(|| boot.cmdline.clone()),
        }
    }
}
