//! Streams of raw data, in both directions, for tests of what carries them.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::net::Shutdown;
use varve_agent::frame::read_line;
use varve_agent::pattern;
use varve_agent::protocol::{Connect, ConnectReply, Stream, Transfer};

use super::connection::{fail, succeed};
use super::listen::Transport;

/// The longest first line, in bytes.
const MAX_HEADER: u64 = 4096;
const CHUNK: usize = 64 << 10;

/// Serves one connection to the stream port.
pub fn serve(connection: &File) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(CHUNK, connection);
    match follow_header(&mut reader, connection) {
        Ok(()) => Ok(()),
        Err(error) => fail(connection, &error),
    }
}

fn follow_header(reader: &mut BufReader<&File>, mut connection: &File) -> Result<()> {
    let Some(line) = read_line(reader, MAX_HEADER)? else { return Ok(()) };
    match serde_json::from_slice(&line).context("the header is malformed")? {
        Stream::Echo { bytes } => {
            io::copy(&mut reader.take(bytes.unwrap_or(u64::MAX)), &mut connection)?;
            Ok(())
        }
        Stream::Sink { bytes } => {
            let start = Instant::now();
            let crc32 = receive(reader, bytes)?;
            succeed(connection, &transfer(bytes, crc32, start))
        }
        Stream::Source { bytes, seed } => Ok(send(&mut connection, bytes, seed).map(drop)?),
    }
}

/// `connect`: opens a stream to the host, sends the pattern and takes back what the host returns.
pub fn connect(transport: &Transport, request: &Connect) -> Result<ConnectReply> {
    let connection = transport
        .connect(request.port)
        .with_context(|| format!("cannot connect to port {}", request.port))?;
    let bytes = request.bytes;
    // Both at once: the host returns data while more are still on their way.
    let (sent, received) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| send(&mut &connection, bytes, request.seed));
        let received = receive(&mut &connection, bytes);
        if received.is_err() {
            // The sender would wait for a host that reads no more.
            let _ = rustix::net::shutdown(&connection, Shutdown::Both);
        }
        (sender.join(), received)
    });
    let Ok(sent) = sent else { bail!("the sending thread failed") };
    Ok(ConnectReply { bytes, sent_crc32: sent?, received_crc32: received? })
}

/// How much was moved, and how fast.
pub fn transfer(bytes: u64, crc32: u32, start: Instant) -> Transfer {
    Transfer {
        bytes,
        crc32,
        micros: u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX),
    }
}

fn send(writer: &mut impl Write, bytes: u64, seed: u64) -> io::Result<u32> {
    let mut buffer = vec![0; CHUNK];
    let mut hasher = crc32fast::Hasher::new();
    let mut offset = 0;
    while offset < bytes {
        let part = &mut buffer[..(bytes - offset).min(CHUNK as u64) as usize];
        pattern::fill(seed, offset, part);
        hasher.update(part);
        writer.write_all(part)?;
        offset += part.len() as u64;
    }
    Ok(hasher.finalize())
}

fn receive(reader: &mut impl Read, bytes: u64) -> Result<u32> {
    let mut buffer = vec![0; CHUNK];
    let mut hasher = crc32fast::Hasher::new();
    let mut left = bytes;
    while left > 0 {
        let most = left.min(CHUNK as u64) as usize;
        match reader.read(&mut buffer[..most]) {
            Ok(0) => bail!("the stream ended {left} bytes early"),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                left -= count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(hasher.finalize())
}
