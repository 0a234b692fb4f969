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

/// The versions of the guest kernels that there are images of, such as `6.1` and `6.12`: each is
/// `vmlinux-6.1`, `bzImage-6.1`, `initramfs-6.1.cpio` and `initramfs-tools-6.1.cpio`. In order.
///
/// # Panics
///
/// If images have not been made.
pub fn kernel_versions() -> Vec<String> {
    let text = std::fs::read_to_string(image("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
    let kernels = manifest["kernel"]["facts"]["kernels"].as_object();
    let kernels = kernels.expect("images of an older checkout: run 'make images'");
    let mut versions: Vec<String> = kernels.keys().cloned().collect();
    versions.sort_by_key(|version| {
        version.split('.').map(|part| part.parse().unwrap_or(0)).collect::<Vec<u32>>()
    });
    versions
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
