//! `drives`: one drive.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use varve_devices::limiter::LimiterConfig;
use varve_devices::virtio::block::{Block, BlockConfig, BlockError};

use crate::config::{ConfigError, RootDrive};

/// A drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// Its name.
    pub drive_id: String,
    /// The partition that is the root file system; only counts on the root device.
    pub partuuid: Option<String>,
    /// The root file system is on this drive.
    pub is_root_device: bool,
    /// Whether flushes of the guest are heeded.
    #[serde(default)]
    pub cache_type: CacheType,
    /// The guest may not write.
    pub is_read_only: Option<bool>,
    /// The image.
    pub path_on_host: Option<PathBuf>,
    /// Limits of reads and writes together.
    pub rate_limiter: Option<LimiterConfig>,
    /// How requests are carried out.
    pub io_engine: Option<IoEngine>,
    /// A vhost-user backend: not supported.
    pub socket: Option<PathBuf>,
}

/// Changes of a drive while the machine runs; what is left out stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveUpdate {
    /// Its name.
    pub drive_id: String,
    /// Another image; the same one opens it anew, with the size that it has by now.
    pub path_on_host: Option<PathBuf>,
    /// Other limits.
    pub rate_limiter: Option<LimiterConfig>,
}

/// Whether flushes of the guest are heeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheType {
    /// They are not offered.
    #[default]
    Unsafe,
    /// They reach the disk.
    Writeback,
}

/// How requests are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoEngine {
    /// By the thread that serves all devices.
    Sync,
    /// By a thread of the drive's own, so that nothing else waits for the disk.
    Async,
}

/// Why there is no such drive.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The image does not open.
    #[error(
        "Unable to create the virtio block device: Virtio backend error: Error manipulating the \
         backing file: {error} {}", path.display()
    )]
    BackingFile {
        /// The image.
        path: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
    /// The image cannot be a drive.
    #[error("Unable to create the virtio block device")]
    Create(#[source] BlockError),
    /// There is no such drive.
    #[error("Unable to patch the block device: there is no drive {0:?}")]
    Missing(String),
    /// It cannot be changed like this.
    #[error("Unable to patch the block device")]
    Update(#[source] BlockError),
    /// There is another root device.
    #[error("A root block device already exists!")]
    SecondRoot,
    /// A field cannot be what it is.
    #[error(transparent)]
    Field(#[from] ConfigError),
}

impl Drive {
    /// Checks the fields.
    pub fn check(&self) -> Result<(), DriveError> {
        let refuse = |field: &str, problem: &str| {
            let field = format!("drives[{:?}].{field}", self.drive_id);
            Err(DriveError::Field(ConfigError::field(field, problem)))
        };
        if self.socket.is_some() {
            return refuse("socket", "vhost-user drives are not supported; use path_on_host");
        }
        if self.path_on_host.is_none() {
            return refuse("path_on_host", "missing");
        }
        Ok(())
    }

    /// Opens the image, to see that it can be.
    pub fn probe(&self) -> Result<(), DriveError> {
        match Block::new(self.to_config()) {
            Ok(_) => Ok(()),
            Err(BlockError::Open { path, source: error }) => {
                Err(DriveError::BackingFile { path, error })
            }
            Err(e) => Err(DriveError::Create(e)),
        }
    }

    /// As the device knows it.
    pub fn to_config(&self) -> BlockConfig {
        BlockConfig {
            id: self.drive_id.clone(),
            path: self.path_on_host.clone().unwrap_or_default(),
            read_only: self.is_read_only.unwrap_or(false),
            flush: self.cache_type == CacheType::Writeback,
            limiter: self.rate_limiter.unwrap_or_default(),
            apart: self.io_engine == Some(IoEngine::Async),
        }
    }

    /// The root file system, if it is on this drive.
    pub fn root(&self) -> Option<RootDrive> {
        let Drive { drive_id, partuuid, .. } = self;
        let root = RootDrive { drive: drive_id.clone(), partuuid: partuuid.clone() };
        self.is_root_device.then_some(root)
    }

    /// A drive of a machine whose root file system is on `root`.
    pub fn of(drive: &BlockConfig, root: Option<&RootDrive>) -> Drive {
        let root = root.filter(|root| root.drive == drive.id);
        Drive {
            drive_id: drive.id.clone(),
            partuuid: root.and_then(|root| root.partuuid.clone()),
            is_root_device: root.is_some(),
            cache_type: if drive.flush { CacheType::Writeback } else { CacheType::Unsafe },
            is_read_only: Some(drive.read_only),
            path_on_host: Some(drive.path.clone()),
            rate_limiter: drive.limiter.given(),
            io_engine: Some(if drive.apart { IoEngine::Async } else { IoEngine::Sync }),
            socket: None,
        }
    }
}
