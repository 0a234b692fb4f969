//! Where the guest images and the monitor are.

use std::path::{Path, PathBuf};

/// The checkout.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// A guest image by name (`vmlinux`, `bzImage`, `initramfs.cpio`, `initramfs-tools.cpio`,
/// `functions.ext4`), made by `make images`.
///
/// # Panics
///
/// If it has not been made.
pub fn image(name: &str) -> PathBuf {
    let path = root().join("target/guest").join(name);
    assert!(path.exists(), "{} is missing: run 'make images'", path.display());
    path
}

/// The `varve` binary: `VARVE_BIN`, or the one that was built with this test.
///
/// # Panics
///
/// If it has not been built.
pub fn varve() -> PathBuf {
    let path = std::env::var_os("VARVE_BIN").map_or_else(
        || {
            let exe = std::env::current_exe().unwrap();
            // target/<profile>/deps/<test>, or target/<profile>/<tool>
            let dir = exe.parent().unwrap();
            let dir = if dir.ends_with("deps") { dir.parent().unwrap() } else { dir };
            dir.join("varve")
        },
        PathBuf::from,
    );
    assert!(path.exists(), "{} is missing: run 'cargo build -p varve-vmm'", path.display());
    path
}
