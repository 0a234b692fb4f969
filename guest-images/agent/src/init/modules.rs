//! Loading the kernel modules that the initramfs carries, in the order that its list gives.

use std::fs::{self, File};
use std::io;

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::system::finit_module;

use crate::say;

/// The folder of the modules, and in it the list: file names, one a line, in loading order.
const FOLDER: &str = "/modules";
const LIST: &str = "/modules/order";

/// Loads each module and removes its file, whose memory the guest has better use for.
///
/// A module that the kernel refuses (its hardware may be absent) is reported and passed over.
pub fn load_all() -> Result<()> {
    let list = match fs::read_to_string(LIST) {
        Ok(list) => list,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context(LIST),
    };
    for name in list.lines() {
        let path = format!("{FOLDER}/{name}");
        let file = File::open(&path).with_context(|| path.clone())?;
        match finit_module(&file, c"", 0) {
            // Absent hardware, and what is there already, are no news.
            Ok(()) | Err(Errno::NODEV | Errno::EXIST) => {}
            Err(error) => say(&format!("varve-init: module {name}: {error}\n")),
        }
        fs::remove_file(&path).with_context(|| path.clone())?;
    }
    Ok(fs::remove_file(LIST)?)
}
