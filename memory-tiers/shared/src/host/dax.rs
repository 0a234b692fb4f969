//! Memory that is mapped from its device: devices by themselves, and file systems on them.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{names, number, text};

/// A device-DAX device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DaxDevice {
    /// Its character device, which is there if its driver is `device_dax`.
    pub path: PathBuf,
    /// Its driver: `device_dax`, or `kmem` if it is a NUMA node's memory.
    pub driver: Option<String>,
    /// Its size.
    pub bytes: u64,
    /// What it is mapped by.
    pub align: Option<u64>,
    /// The NUMA node that it is, or would be.
    pub target_node: Option<u32>,
}

/// A file system whose files can be mapped from its device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DaxMount {
    /// Where it is mounted.
    pub dir: PathBuf,
    /// Its device.
    pub device: String,
    /// Its kind.
    pub kind: String,
    /// The option that says so.
    pub option: String,
}

pub(super) fn devices(dir: &Path) -> Vec<DaxDevice> {
    let device = |(name, path): (String, PathBuf)| {
        let driver = fs::read_link(path.join("driver")).ok();
        let driver = driver.and_then(|d| Some(d.file_name()?.to_string_lossy().into_owned()));
        DaxDevice {
            path: Path::new("/dev").join(name),
            driver,
            bytes: number(&path.join("size")).unwrap_or(0),
            align: number(&path.join("align")),
            target_node: text(&path.join("target_node")).and_then(|n| n.parse().ok()),
        }
    };
    names(dir).into_iter().map(device).collect()
}

pub(super) fn mounts(file: &Path) -> Vec<DaxMount> {
    let mount = |line: &str| {
        let mut words = line.split(' ');
        let (device, dir, kind) = (words.next()?, words.next()?, words.next()?);
        let options = words.next()?.split(',');
        // `dax=inode` leaves it to each file.
        let option = options.into_iter().find(|o| *o == "dax" || o.starts_with("dax="))?;
        (option != "dax=never").then(|| DaxMount {
            dir: unescape(dir).into(),
            device: unescape(device),
            kind: kind.into(),
            option: option.into(),
        })
    };
    text(file).unwrap_or_default().lines().filter_map(mount).collect()
}

/// Blanks in mount tables are written as octal numbers.
fn unescape(text: &str) -> String {
    let codes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    codes.into_iter().fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}
