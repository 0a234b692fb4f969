//! What client and node say to each other, over any stream. Who may say what is `node`'s.
//!
//! ```text
//!  connection   magic (8 bytes) each way, a frame each way, and then what follows sealed (`sealed`)
//!  frame        length u32 LE (at most 1 MiB), then that many bytes: one message in postcard's format
//!  bulk         after `Request::Put` or `Request::Hold` that was answered by `Answer::Send`, and
//!               after `Answer::Data`: the bytes themselves, as many as were announced
//! ```
//!
//! A client waits for the answer before it asks again; several questions at a time take several
//! connections.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use varve_rdma::Endpoint;

use crate::auth::Tenant;

/// First bytes of each direction: protocol and version.
pub const MAGIC: [u8; 8] = *b"vrvpool\x03";
/// Longest frame.
pub const MAX_FRAME: usize = 1 << 20;
/// Longest frame before the two sides know each other: strangers are not given memory.
pub const MAX_INTRODUCTION: usize = 512;
/// Most bytes that one `Read` asks for.
pub const MAX_READ: u32 = 4 << 20;
/// Longest object.
pub const MAX_OBJECT: u64 = 64 << 20;

/// Name of an object: the SHA-256 of its bytes.
pub type ObjectId = [u8; 32];
/// Name of a publication, which the client chooses.
pub type PublicationId = [u8; 32];

/// The client's first frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Introduction {
    /// Whose objects are meant.
    pub tenant: Tenant,
    /// The client's part of the handshake ([`crate::sealed`]).
    pub opening: Vec<u8>,
}

/// The node's first frame. All that follows is sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reception {
    /// The tenant is known and the client seems to have its key.
    Welcome {
        /// The node's part of the handshake.
        reply: Vec<u8>,
    },
    /// The connection ends here.
    Refused {
        /// Why.
        reason: String,
    },
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Take an object; it stays for as long as this connection, or a publication, holds it.
    Put {
        /// Its name, which its bytes must have.
        object: ObjectId,
        /// Its length in bytes.
        len: u64,
    },
    /// Take an object into memory, never to disk; it stays for as long as this connection holds it.
    /// What is held is gone when the connection is, so nothing stays of a client that ends anyhow.
    Hold {
        /// Its name, which its bytes must have.
        object: ObjectId,
        /// Its length in bytes.
        len: u64,
    },
    /// Objects that this connection need not hold or reach any more; those that it does not are
    /// released already.
    Release {
        /// Their names.
        objects: Vec<ObjectId>,
    },
    /// Keep objects, all put over this connection or in a publication of this tenant, until the
    /// publication is forgotten. Replaces a publication of that name.
    Publish {
        /// The publication's name.
        publication: PublicationId,
        /// Its objects.
        objects: Vec<ObjectId>,
    },
    /// Free what only this publication keeps. One that is not there is forgotten already.
    Forget {
        /// The publication's name.
        publication: PublicationId,
    },
    /// Bytes of an object.
    Read {
        /// Its name.
        object: ObjectId,
        /// First byte.
        offset: u64,
        /// Number of bytes, at most [`MAX_READ`].
        len: u32,
    },
    /// What the node keeps for this tenant.
    Status,
    /// Join an RDMA link to this one; it ends with the connection.
    Link {
        /// The client's side of it.
        endpoint: Endpoint,
    },
    /// Where an object is in the node's memory, for reads over the connection's link. It stays there
    /// for as long as the connection lives.
    Locate {
        /// Its name.
        object: ObjectId,
    },
}

/// What a node answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It was done, or was so already.
    Done,
    /// The bytes are wanted now.
    Send,
    /// The bytes follow.
    Data {
        /// How many.
        len: u32,
    },
    /// What the node keeps for the tenant.
    Status(Status),
    /// The link stands.
    Linked {
        /// The node's side of it.
        endpoint: Endpoint,
    },
    /// Where the object is.
    Located {
        /// Its address.
        address: u64,
        /// The key to it, good for this tenant's links only.
        key: u32,
        /// Its length.
        len: u64,
    },
    /// It will not be done; the connection goes on.
    Refused {
        /// Why.
        reason: String,
    },
}

/// What a node keeps for a tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Publications.
    pub publications: u64,
    /// Objects in them, being published, or held by a connection.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that the node may keep for the tenant.
    pub limit: u64,
    /// Bytes of memory that the tenant's objects take.
    pub used: u64,
    /// Reads that were answered for the tenant since the node began; of reads over RDMA the node
    /// knows nothing.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
}

fn invalid(problem: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

/// Sends one message.
pub fn send(stream: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    // In one write: the answer must not wait for a delayed acknowledgement.
    stream.write_all(&frame(message)?)
}

/// The bytes of one message.
pub(crate) fn frame(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let body = postcard::to_stdvec(message).map_err(invalid)?;
    let len = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_FRAME);
    let len = len.ok_or_else(|| invalid(format!("a message of {} bytes", body.len())))?;
    let mut frame = len.to_le_bytes().to_vec();
    frame.extend(body);
    Ok(frame)
}

/// Receives one message, all of whose bytes must belong to it.
pub fn receive<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<T> {
    receive_short(stream, MAX_FRAME)
}

/// The same, of a frame of at most `most` bytes.
pub fn receive_short<T: DeserializeOwned>(stream: &mut impl Read, most: usize) -> io::Result<T> {
    let mut len = [0; 4];
    stream.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > most {
        return Err(invalid(format!("a frame of {len} bytes")));
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body)?;
    match postcard::take_from_bytes(&body) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(invalid(format!("{} bytes too many in a frame", rest.len()))),
        Err(e) => Err(invalid(e)),
    }
}

/// Sends the magic number.
pub fn send_magic(stream: &mut impl Write) -> io::Result<()> {
    stream.write_all(&MAGIC)
}

/// Receives the magic number.
pub fn receive_magic(stream: &mut impl Read) -> io::Result<()> {
    let mut magic = [0; 8];
    stream.read_exact(&mut magic)?;
    if magic == MAGIC {
        Ok(())
    } else {
        Err(invalid(
            "it is no pool, or one of another version of varve: use the same on both sides",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_come_back() {
        let requests = [
            Request::Put { object: [1; 32], len: 5 },
            Request::Hold { object: [1; 32], len: 6 },
            Request::Release { objects: vec![[1; 32]; 2] },
            Request::Publish { publication: [2; 32], objects: vec![[1; 32]; 3] },
            Request::Read { object: [1; 32], offset: u64::MAX, len: 9 },
        ];
        let mut bytes = Vec::new();
        requests.iter().for_each(|r| send(&mut bytes, r).unwrap());
        let mut from = bytes.as_slice();
        for request in &requests {
            assert_eq!(&receive::<Request>(&mut from).unwrap(), request);
        }
        assert!(from.is_empty());
    }

    #[test]
    fn long_frames_and_left_over_bytes_are_refused() {
        let mut long = u32::MAX.to_le_bytes().to_vec();
        long.extend([0; 64]);
        assert!(receive::<Request>(&mut long.as_slice()).is_err());
        let mut bytes = Vec::new();
        send(&mut bytes, &Request::Publish { publication: [0; 32], objects: vec![[0; 32]; 99] })
            .unwrap();
        assert!(receive::<Request>(&mut bytes.as_slice()).is_ok());
        let short = receive_short::<Request>(&mut bytes.as_slice(), MAX_INTRODUCTION);
        assert!(short.unwrap_err().to_string().contains("a frame of"));
        let mut bytes = Vec::new();
        send(&mut bytes, &Request::Status).unwrap();
        bytes[0] += 1;
        bytes.push(0);
        assert!(receive::<Request>(&mut bytes.as_slice()).unwrap_err().to_string().contains("1 b"));
    }

    proptest! {
        #[test]
        fn noise_is_an_error_or_a_message(noise in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut frame = (noise.len() as u32).to_le_bytes().to_vec();
            frame.extend(&noise);
            // Never a panic, never more memory than the frame is long.
            let _ = receive::<Request>(&mut frame.as_slice());
            let _ = receive::<Answer>(&mut frame.as_slice());
            let _ = receive::<Introduction>(&mut frame.as_slice());
        }
    }
}
