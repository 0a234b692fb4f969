//! The first and only message of a machine: its userfaultfd and, as JSON, where its memory is. Nothing
//! in it is trusted.

use std::io::{self, ErrorKind, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use varve_snapshot::{FlatOrder, PAGE_SIZE};

use crate::fault::external::HandlerMapping;
use crate::ram::kind::HUGE_PAGE;
use crate::ram::regions::{RamRegion, Regions};

/// Limit of the time from a machine's connection to the end of its message.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest message: some hundred thousand runs of memory.
const MAX_BYTES: usize = 32 << 20;

/// What a machine sent.
#[derive(Debug)]
pub(super) struct Handshake {
    pub mappings: Vec<HandlerMapping>,
    pub uffd: OwnedFd,
}

/// Why a machine is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error("the message is incomplete")]
    Io(#[from] io::Error),
    #[error("the message is not a JSON array of mappings")]
    Json(#[from] serde_json::Error),
    #[error("the message passes no descriptor with its first bytes")]
    NoUffd,
    #[error("the passed descriptor is not an initialised userfaultfd")]
    NotUffd(#[source] io::Error),
    #[error("mapping {index}: {problem}")]
    Mapping { index: usize, problem: String },
    #[error("the message lists no memory")]
    Empty,
}

/// Receives the message, which ends with its JSON text. Its descriptor comes with the first bytes:
/// nobody is given memory without one.
pub(super) fn receive(stream: &UnixStream) -> Result<Handshake, HandshakeError> {
    receive_until(stream, Instant::now() + PATIENCE)
}

fn receive_until(stream: &UnixStream, end: Instant) -> Result<Handshake, HandshakeError> {
    let mut uffd = None;
    let mut text = Vec::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut piece)];
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::from(ErrorKind::TimedOut).into());
        }
        stream.set_read_timeout(Some(left))?;
        let got = recvmsg(stream, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC);
        let bytes = match got {
            Ok(got) => got.bytes,
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(io::Error::from(e).into()),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                fds.for_each(|fd| uffd = uffd.take().or(Some(fd)));
            }
        }
        if bytes > 0 && uffd.is_none() {
            return Err(HandshakeError::NoUffd);
        }
        text.extend_from_slice(piece.get(..bytes).unwrap_or_default());
        // To parse all that has come with each piece would take long for a long message.
        if bytes > 0 && text.len() <= MAX_BYTES && !text.trim_ascii_end().ends_with(b"]") {
            continue;
        }
        match serde_json::from_slice(&text) {
            Ok(mappings) => {
                let uffd = uffd.ok_or(HandshakeError::NoUffd)?;
                return Ok(Handshake { mappings, uffd });
            }
            Err(e) if !e.is_eof() => return Err(e.into()),
            Err(_) if bytes == 0 => return Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
            Err(_) if text.len() > MAX_BYTES => {
                return Err(io::Error::from(ErrorKind::FileTooLarge).into());
            }
            Err(_) => {}
        }
    }
}

/// Where guest pages are in the machine's process, and the bytes of its pages. `order` is that of the
/// snapshot's raw memory file.
pub(super) fn regions(
    mappings: &[HandlerMapping],
    order: &FlatOrder,
) -> Result<(Regions, u64), HandshakeError> {
    let page_size = mappings.first().ok_or(HandshakeError::Empty)?.bytes_of_page();
    let mut all = Vec::with_capacity(mappings.len());
    let mut raw = Vec::with_capacity(mappings.len());
    for (index, mapping) in mappings.iter().enumerate() {
        let wrong = |problem: String| HandshakeError::Mapping { index, problem };
        split(mapping, page_size, order, &mut all).map_err(wrong)?;
        raw.push((mapping.offset, mapping.offset + mapping.size, index));
    }
    let mut host: Vec<_> = all.iter().map(|r| (r.host, r.host_end(), 0)).collect();
    for ranges in [&mut raw, &mut host] {
        ranges.sort_unstable();
        if let Some(pair) = ranges.windows(2).find(|pair| pair[0].1 > pair[1].0) {
            let problem = "shares memory with another one".into();
            return Err(HandshakeError::Mapping { index: pair[1].2, problem });
        }
    }
    Ok((Regions::new(all), page_size))
}

/// A mapping as regions, of which each is in one range of guest memory.
fn split(
    mapping: &HandlerMapping,
    page_size: u64,
    order: &FlatOrder,
    into: &mut Vec<RamRegion>,
) -> Result<(), String> {
    let &HandlerMapping { base_host_virt_addr: base, size, offset, .. } = mapping;
    let own = mapping.bytes_of_page();
    if ![PAGE_SIZE, HUGE_PAGE as u64].contains(&own) || own != page_size {
        return Err(format!("page_size {own}: all have 4096, or all 2097152"));
    }
    if !(base.is_multiple_of(own) && size.is_multiple_of(own) && size > 0) {
        return Err(format!("{size:#x} bytes at {base:#x} are no whole pages of {own} bytes"));
    }
    let end = offset.checked_add(size).filter(|_| base.checked_add(size).is_some());
    let whole = order.pages() * PAGE_SIZE;
    if !offset.is_multiple_of(PAGE_SIZE) || end.is_none_or(|end| end > whole) {
        return Err(format!(
            "offset {offset:#x}, size {size:#x}: the snapshot's memory has {whole:#x} bytes"
        ));
    }
    let (mut first, end) = (offset / PAGE_SIZE, (offset + size) / PAGE_SIZE);
    while first < end {
        let border = order.starts().find(|&start| start > first).unwrap_or(end).min(end);
        let pages = order.guest_pages(first, border - first);
        let pages = pages.filter(|pages| pages.len().is_multiple_of(own));
        let pages = pages.ok_or("a page of it is in two ranges of guest memory")?;
        into.push(RamRegion { pages, host: base + (first * PAGE_SIZE - offset) });
        first = border;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use varve_snapshot::PageRange;

    fn mapping(base: u64, size: u64, offset: u64) -> HandlerMapping {
        HandlerMapping {
            base_host_virt_addr: base,
            size,
            offset,
            page_size: 4096,
            page_size_kib: 4096,
        }
    }

    fn order() -> FlatOrder {
        FlatOrder::new(
            &[(0, 0x8000), (1 << 32, 0x4000)].map(|(at, n)| PageRange::new(at, n).unwrap()),
        )
    }

    #[test]
    fn one_mapping_may_hold_several_ranges_of_guest_memory() {
        let (regions, page_size) = regions(&[mapping(0x10_0000, 0xc000, 0)], &order()).unwrap();
        assert_eq!(page_size, 4096);
        assert_eq!(regions.guest_address(0x10_7000), Some(0x7000));
        assert_eq!(regions.guest_address(0x10_8000), Some(1 << 32));
        assert_eq!(regions.guest_address(0x10_c000), None);
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let large = |m: HandlerMapping| HandlerMapping { page_size: 2 << 20, ..m };
        for (mappings, problem) in [
            (vec![], "no memory"),
            (vec![mapping(0x1000, 0xd000, 0)], "the snapshot's memory has 0xc000 bytes"),
            (vec![mapping(0x1000, 0x1000, 0xc000)], "mapping 0: offset 0xc000"),
            (vec![mapping(0x1000, 0x1000, 12)], "offset 0xc,"),
            (vec![mapping(0x1001, 0x1000, 0)], "no whole pages"),
            (vec![mapping(0x1000, 0, 0)], "no whole pages"),
            (vec![mapping(u64::MAX - 0xfff, 0x1000, 0)], "offset 0x0"),
            (vec![mapping(0x1000, 0x1000, u64::MAX - 0xfff)], "offset 0xf"),
            (vec![large(mapping(2 << 20, 2 << 20, 0))], "offset 0x0, size 0x200000"),
            (vec![mapping(0x1000, 0x1000, 0), large(mapping(2 << 20, 2 << 20, 0))], "mapping 1"),
            (
                vec![mapping(0x1000, 0x2000, 0), mapping(0x9000, 0x1000, 0x1000)],
                "mapping 1: shares",
            ),
            (vec![mapping(0x1000, 0x2000, 0), mapping(0x2000, 0x1000, 0x4000)], "shares memory"),
        ] {
            let error = regions(&mappings, &order()).unwrap_err().to_string();
            assert!(error.contains(problem), "{error:?} is not {problem:?}");
        }
    }

    /// Sends a descriptor (of no userfaultfd, which is looked at later) with the first bytes.
    fn send(stream: &UnixStream, text: &[u8]) {
        use std::io::{IoSlice, Write};
        use std::os::fd::AsFd;
        let file = tempfile::tempfile().unwrap();
        let descriptors = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&descriptors)));
        let flags = rustix::net::SendFlags::empty();
        let sent = rustix::net::sendmsg(stream, &[IoSlice::new(text)], &mut control, flags);
        let mut stream = stream;
        stream.write_all(&text[sent.unwrap()..]).unwrap();
    }

    #[test]
    fn a_long_message_is_read_to_its_end() {
        let mappings: Vec<_> = (1..5000).map(|n| mapping(n << 12, 4096, n << 12)).collect();
        let text = serde_json::to_vec(&mappings).unwrap();
        let (here, there) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || send(&there, &text));
        assert_eq!(receive(&here).unwrap().mappings, mappings);
        writer.join().unwrap();
    }

    #[test]
    fn a_message_without_its_descriptor_or_its_end_is_refused() {
        for (text, problem) in
            [("{}", "not a JSON array"), ("[{\"base_host_virt_addr\":1", "incomplete")]
        {
            let (here, there) = UnixStream::pair().unwrap();
            send(&there, text.as_bytes());
            drop(there);
            let error = receive(&here).unwrap_err().to_string();
            assert!(error.contains(problem), "{error:?} is not {problem:?}");
        }
        // What comes without one is not read any further.
        use std::io::Write;
        let (here, mut there) = UnixStream::pair().unwrap();
        there.write_all(b"[").unwrap();
        assert!(matches!(receive(&here), Err(HandshakeError::NoUffd)));
    }

    /// What is made of a text that arrives with a descriptor, and then the end.
    fn answer(text: &[u8]) -> Result<(Vec<HandlerMapping>, Regions), HandshakeError> {
        let (here, there) = UnixStream::pair().unwrap();
        send(&there, text);
        drop(there);
        let mappings = receive_until(&here, Instant::now() + Duration::from_secs(60))?.mappings;
        let regions = regions(&mappings, &order())?.0;
        Ok((mappings, regions))
    }

    /// Whether an error names the message, or the mapping in it.
    fn is_named(error: &HandshakeError) -> bool {
        let said = error.to_string();
        let names = ["incomplete", "not a JSON array", "with its first bytes", "mapping "];
        names.iter().any(|name| said.contains(name)) || said == HandshakeError::Empty.to_string()
    }

    /// Each bit of a message changed, each cut and what follows it: refused by name, or taken for what it
    /// says, which is then inside the snapshot's memory, each byte of it once.
    #[test]
    fn changed_cut_and_repeated_messages_are_refused_by_name() {
        let mappings = [mapping(0x10_0000, 0x8000, 0), mapping(0x20_0000, 0x4000, 0x8000)];
        let text = serde_json::to_vec(&mappings).unwrap();
        assert_eq!(answer(&text).unwrap().0, mappings);
        let mut refused = 0;
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut changed = text.clone();
                changed[at] ^= 1 << bit;
                match answer(&changed) {
                    Err(error) => {
                        assert!(is_named(&error), "{error}");
                        refused += 1;
                    }
                    Ok((mappings, regions)) => {
                        let said: u64 = mappings.iter().map(|mapping| mapping.size).sum();
                        let all: u64 = regions.all().iter().map(|region| region.pages.len()).sum();
                        assert!(said == all && all <= 0xc000, "{mappings:?}");
                    }
                }
            }
            let cut = answer(&text[..at]).unwrap_err();
            assert!(is_named(&cut) || at == 0, "cut at {at}: {cut}");
            let twice = answer(&[&text[..], &text[..=at]].concat()).unwrap_err();
            assert!(is_named(&twice), "once more to {at}: {twice}");
        }
        assert!(refused > text.len() * 4, "{refused} of {} changes", text.len() * 8);
    }

    /// A byte now and then starts no patience anew.
    #[test]
    fn a_slow_message_has_one_deadline() {
        use std::io::Write;
        let (here, there) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || {
            send(&there, b"[");
            while (&there).write_all(b" ").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let error = receive_until(&here, Instant::now() + Duration::from_millis(300)).unwrap_err();
        assert!(matches!(error, HandshakeError::Io(_)), "{error}");
        drop(here);
        writer.join().unwrap();
    }
}
