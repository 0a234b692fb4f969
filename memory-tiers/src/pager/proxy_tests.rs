//! Somebody between a machine and its pager who changes what passes: the machine is told, and a machine
//! that comes directly is served.

use std::io::{IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::tests::{Machine, Serving, machine, memory, source, stored};
use super::*;
use crate::HugePages;
use crate::fault::external::HandlerMapping;
use crate::testing::*;

type Message = (Vec<u8>, Option<OwnedFd>);

fn take(stream: &UnixStream) -> Message {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = vec![0; 4096];
    let mut into = [IoSliceMut::new(&mut text)];
    let got = recvmsg(stream, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    text.truncate(got.bytes);
    (text, fd)
}

fn pass(mut stream: &UnixStream, (text, fd): Message) {
    let Some(fd) = fd else { return stream.write_all(&text).unwrap() };
    let descriptors = [fd.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let sent = sendmsg(stream, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL);
    assert_eq!(sent.unwrap(), text.len());
}

/// Stands between one machine and the pager at `pager`, changing the machine's message.
fn between(listener: &UnixListener, pager: &Path, change: fn(Message) -> Message) {
    let (machine, _) = listener.accept().unwrap();
    let beyond = UnixStream::connect(pager).unwrap();
    pass(&beyond, change(take(&machine)));
    beyond.shutdown(Shutdown::Write).unwrap();
    let _ = std::io::copy(&mut &beyond, &mut &machine);
}

fn json(text: &[u8], change: impl Fn(&mut Vec<HandlerMapping>)) -> Vec<u8> {
    let mut mappings = serde_json::from_slice(text).unwrap();
    change(&mut mappings);
    serde_json::to_vec(&mappings).unwrap()
}

#[test]
fn what_is_changed_on_the_way_is_refused_by_name() {
    if !has_uffd() {
        return;
    }
    type Change = fn(Message) -> Message;
    let cases: [(&str, Change); 7] = [
        ("incomplete", |(text, fd)| (text[..text.len() / 2].to_vec(), fd)),
        ("not a JSON array", |(text, fd)| (text.repeat(2), fd)),
        ("passes no descriptor", |(text, _)| (text, None)),
        ("not an initialised userfaultfd", |(text, _)| {
            (text, Some(tempfile::tempfile().unwrap().into()))
        }),
        ("shares memory", |(text, fd)| (json(&text, |m| m[1].offset = 0x1000), fd)),
        ("mapping 0: offset", |(text, fd)| (json(&text, |m| m[0].offset = 1 << 40), fd)),
        // The machine asks for pages where it said that it has none.
        (MOVED, |(text, fd)| {
            (json(&text, |m| m.iter_mut().for_each(|m| m.base_host_virt_addr ^= 1 << 32)), fd)
        }),
    ];
    let serving = Serving::new(source());
    serves(&serving.machine_behind(|message| message));
    for (problem, change) in cases {
        if problem == MOVED {
            // Before it, as a machine that is told must end soon, and this process is one.
            serves(&serving.machine(HugePages::Off));
        }
        let (ram, _handler, told) = serving.machine_behind(change);
        if problem == MOVED {
            let ram = ram.clone();
            let _waits_for_ever = std::thread::spawn(move || read_page(&ram, 3 << 12));
        }
        let error = told.recv_timeout(Duration::from_secs(30)).unwrap().to_string();
        assert!(error.contains(problem), "{error:?} is not {problem:?}");
    }
}

/// What a machine is told that asks for a page which it did not name.
const MOVED: &str = "page fault at";

impl Serving {
    /// A machine whose message somebody changes.
    fn machine_behind(&self, change: fn(Message) -> Message) -> Machine {
        let dir = tempfile::tempdir().unwrap();
        let (socket, pager) = (dir.path().join("s"), self.socket());
        let listener = UnixListener::bind(&socket).unwrap();
        // It ends when the pager closes the connection.
        std::thread::spawn(move || between(&listener, &pager, change));
        machine(&socket, &memory(), HugePages::Off).unwrap()
    }
}

fn serves((ram, ..): &Machine) {
    for page in page_numbers(&memory()) {
        assert!(read_page(ram, page) == stored(page), "{page:#x}");
    }
}
