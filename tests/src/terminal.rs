//! A terminal for the monitor: the test holds the other end, types, and looks at its mode.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, tcgetattr};

use crate::vm::PATIENCE;

/// A pseudoterminal.
pub struct Terminal {
    master: OwnedFd,
    slave: OwnedFd,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Opens one and collects what is printed on it.
    pub fn open() -> Terminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, sink) = (File::from(master.try_clone().unwrap()), shown.clone());
        // Ends with the last holder of the slave's side, which is the terminal itself.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                sink.lock().unwrap().extend(&buffer[..count]);
            }
        });
        Terminal { master, slave, shown }
    }

    /// The monitor's end, once for each of its standard streams.
    pub fn stdio(&self) -> Stdio {
        self.slave.try_clone().unwrap().into()
    }

    /// The mode that the terminal is in.
    pub fn mode(&self) -> Termios {
        tcgetattr(&self.slave).unwrap()
    }

    /// Types `bytes`.
    pub fn type_in(&self, bytes: &[u8]) {
        File::from(self.master.try_clone().unwrap()).write_all(bytes).unwrap();
    }

    /// Waits until `text` is on the screen.
    ///
    /// # Panics
    ///
    /// If [`PATIENCE`] ends first.
    pub fn wait_for(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.shown().contains(text) {
            assert!(Instant::now() < deadline, "no {text:?} on the terminal:\n{}", self.shown());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What is on the screen.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }
}
