//! Guest kernels and root file systems, made from Debian's packages without installing any.
//!
//! Folders are made aside and renamed into place, so what exists is whole.

pub mod agent;
pub mod aside;
pub mod bzimage;
pub mod cpio;
pub mod deb;
pub mod error;
pub mod functions;
pub mod images;
pub mod initramfs;
pub mod kernel;
pub mod modules;
pub mod part;
pub mod tool;
pub mod tools;
pub mod unpack;
