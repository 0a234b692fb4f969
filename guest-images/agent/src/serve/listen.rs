//! Sockets: vsock in a guest, unix sockets in tests. Both come out as plain files.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use varve_agent::STREAM_PORT;
use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockListener, VsockStream};

/// How guest and host are joined.
#[derive(Clone, Debug, PartialEq)]
pub enum Transport {
    /// The guest's vsock device.
    Vsock,
    /// Unix sockets, named after this path.
    Unix(PathBuf),
}

/// A socket that takes connections.
#[derive(Debug)]
pub enum Listener {
    Vsock(VsockListener),
    Unix(UnixListener),
}

impl Transport {
    /// Reads the value of `--listen`.
    pub fn parse(text: &str) -> Result<Self> {
        match text.split_once(':') {
            None if text == "vsock" => Ok(Self::Vsock),
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            _ => bail!("--listen {text}: write vsock or unix:PATH"),
        }
    }

    /// Listens on a port.
    pub fn listen(&self, port: u32) -> Result<Listener> {
        match self {
            Self::Vsock => {
                let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, port);
                listener
                    .map(Listener::Vsock)
                    .with_context(|| format!("cannot listen on vsock port {port}"))
            }
            Self::Unix(path) => {
                let path =
                    if port == STREAM_PORT { suffixed(path, ".stream") } else { path.clone() };
                // A socket that an earlier agent left would be in the way.
                let _ = fs::remove_file(&path);
                let listener = UnixListener::bind(&path);
                listener
                    .map(Listener::Unix)
                    .with_context(|| format!("cannot listen on {}", path.display()))
            }
        }
    }

    /// Opens a stream to a port of the host.
    pub fn connect(&self, port: u32) -> io::Result<File> {
        match self {
            Self::Vsock => VsockStream::connect_with_cid_port(VMADDR_CID_HOST, port).map(file),
            Self::Unix(path) => UnixStream::connect(suffixed(path, &format!("_{port}"))).map(file),
        }
    }
}

impl Listener {
    /// Waits for the next connection.
    pub fn accept(&self) -> io::Result<File> {
        match self {
            Self::Vsock(listener) => listener.accept().map(|(stream, _)| file(stream)),
            Self::Unix(listener) => listener.accept().map(|(stream, _)| file(stream)),
        }
    }
}

fn file(stream: impl Into<OwnedFd>) -> File {
    File::from(stream.into())
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
