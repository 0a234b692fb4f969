//! Any monitor with Firecracker's API, as a column beside varve's strategies: it boots a machine and
//! snapshots it by its own API, as no monitor reads another's snapshots, and loads that with the
//! `File` backend.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use varve_agent::CONTROL_PORT;
use varve_agent::client::{Client, connect_vsock};
use varve_agent::protocol::{Invoke, InvokeReply, Request};
use varve_tests::api::ask;
use varve_tests::images::image;

use super::process::{PATIENCE, Process};
use crate::prepare::{CMDLINE, Recipe};

const STATE: &str = "state";
const MEMORY: &str = "memory";
/// Written last.
const DONE: &str = "done";
/// Seen from the folder that the monitor runs in, so that several machines of one snapshot run at once.
pub const UDS: &str = "v.sock";
/// Beside it.
pub const API: &str = "api.sock";

/// A monitor and what its column is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// In tables.
    pub name: String,
    /// Its binary.
    pub binary: PathBuf,
}

impl FromStr for Other {
    type Err = String;

    fn from_str(text: &str) -> Result<Other, String> {
        let (name, path) = text.split_once('=').ok_or("write NAME=PATH")?;
        let letters = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || !name.chars().all(letters) {
            return Err(format!("{name:?} is no name: letters, digits, '-', '_' and '.'"));
        }
        let binary = fs::canonicalize(path).map_err(|e| format!("{path}: {e}"))?;
        Ok(Other { name: name.into(), binary })
    }
}

/// A snapshot that the monitor made.
#[derive(Clone, Debug)]
pub struct Loaded {
    binary: PathBuf,
    folder: PathBuf,
}

impl Other {
    /// Boots the function, warms it up, and snapshots it into `folder`; or finds that there.
    ///
    /// # Errors
    ///
    /// If the monitor refuses a request, or ends.
    pub fn prepare(&self, recipe: &Recipe, folder: &Path) -> Result<Loaded> {
        let loaded = Loaded { binary: self.binary.clone(), folder: folder.into() };
        if !folder.join(DONE).exists() {
            let made = loaded.make(recipe);
            made.with_context(|| format!("{}: a snapshot of {}", self.name, recipe.function))?;
            fs::write(folder.join(DONE), "")?;
        }
        Ok(loaded)
    }
}

impl Loaded {
    /// The snapshot's files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Loads the snapshot into the monitor at `api`, and lets the guest run.
    ///
    /// # Errors
    ///
    /// If it refuses.
    pub fn load(&self, api: &Path) -> Result<()> {
        let body = json!({
            "snapshot_path": self.folder.join(STATE),
            "mem_backend": { "backend_type": "File", "backend_path": self.folder.join(MEMORY) },
            "resume_vm": true,
        });
        request(api, "PUT", "/snapshot/load", &body)
    }

    fn make(&self, recipe: &Recipe) -> Result<()> {
        fs::create_dir_all(&self.folder)?;
        let command = |folder: &Path| self.command(folder);
        let mut monitor = Process::start(command, || ())?;
        let done = self.boot(&mut monitor, recipe);
        done.with_context(|| monitor.story())
    }

    /// The monitor, to be run in `folder` with its sockets there.
    pub fn command(&self, folder: &Path) -> Command {
        let mut command = Command::new(&self.binary);
        // The snapshot names its vsock's socket as seen from the folder that it runs in.
        command.arg("--api-sock").arg(folder.join(API)).current_dir(folder);
        command
    }

    fn boot(&self, monitor: &mut Process, recipe: &Recipe) -> Result<()> {
        let (api, uds) = (&monitor.folder().join(API), &monitor.folder().join(UDS));
        let put = |path: &str, body: &Value| request(api, "PUT", path, body);
        monitor.until(api, || Ok(UnixStream::connect(api)?))?;
        let mib = recipe.memory.strip_suffix('M').and_then(|mib| mib.parse::<u64>().ok());
        let mib = mib.with_context(|| format!("memory {:?}: write it in M", recipe.memory))?;
        put("/machine-config", &json!({ "vcpu_count": 1, "mem_size_mib": mib }))?;
        let boot = json!({
            "kernel_image_path": image("vmlinux"),
            "initrd_path": image("initramfs.cpio"),
            "boot_args": CMDLINE,
        });
        put("/boot-source", &boot)?;
        let rootfs = json!({
            "drive_id": "rootfs",
            "path_on_host": image("functions.ext4"),
            "is_root_device": true,
            "is_read_only": true,
        });
        put("/drives/rootfs", &rootfs)?;
        put("/vsock", &json!({ "guest_cid": 3, "uds_path": UDS }))?;
        put("/actions", &json!({ "action_type": "InstanceStart" }))?;
        let stream = monitor.until(uds, || Ok(connect_vsock(uds, CONTROL_PORT)?))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut client = Client::new(stream);
        for &seed in &recipe.warm {
            let call = Invoke { function: recipe.function.clone(), seed, ..Invoke::default() };
            let _: InvokeReply = client.call(&Request::Invoke(call))?;
        }
        drop(client);
        request(api, "PATCH", "/vm", &json!({ "state": "Paused" }))?;
        let files = json!({
            "snapshot_type": "Full",
            "snapshot_path": self.folder.join(STATE),
            "mem_file_path": self.folder.join(MEMORY),
        });
        put("/snapshot/create", &files)
    }
}

fn request(api: &Path, method: &str, path: &str, body: &Value) -> Result<()> {
    let (status, answer) = ask(api, method, path, body)?;
    ensure!((200..300).contains(&status), "{method} {path} {body}: {status} {answer}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_monitor_has_a_name_and_a_path() {
        let other: Other = "fc=/bin/sh".parse().unwrap();
        assert_eq!(other.name, "fc");
        assert!(other.binary.is_absolute());
        for bad in ["/bin/sh", "=/bin/sh", "a b=/bin/sh", "fc=/no/such/file"] {
            bad.parse::<Other>().unwrap_err();
        }
    }
}
