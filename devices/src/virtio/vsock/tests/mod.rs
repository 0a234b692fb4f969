//! virtio-vsock against a driver in guest memory and real unix sockets.

mod guest;
mod hostile;
mod shared;
mod snapshot;
mod streams;
