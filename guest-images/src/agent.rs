//! Building the guest's agent from this checkout: one static program, since an initramfs has no
//! libraries. What it does is in `guest-images/agent`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, Result};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the agent of the checkout at `root` in `root/target/agent` and returns its file.
///
/// Cargo decides whether there is anything to do. Its messages go to standard error.
pub fn build(root: &Path) -> Result<PathBuf> {
    let folder = root.join("target/agent");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--quiet", "--release", "--package", "varve-agent", "--bin", "varve-agent"])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&folder)
        .current_dir(root)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // Flags and folders that are meant for the caller's own build are not for this one.
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET");
    let status = cargo.status().map_err(|source| Error::Spawn {
        program: "cargo".into(),
        package: "cargo",
        source,
    })?;
    if status.success() {
        return Ok(folder.join(TARGET).join("release/varve-agent"));
    }
    Err(Error::Build { what: "the guest's agent", command: format!("{cargo:?}"), status })
}
