//! Where the serial port's bytes go and come from, and the terminal's mode meanwhile.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;

use rustix::termios::{self, LocalModes, OptionalActions, Termios};

use crate::config::Console;
use crate::error::VmmError;
use crate::stdio::{self, Stream};

/// Output, if there is one, and input of the serial port.
pub type Ends = (Option<Stream>, Option<OwnedFd>);

/// Opens what `console` names. Neither end makes its user wait.
pub fn open(console: &Console) -> Result<Ends, VmmError> {
    match console {
        Console::Off => Ok((None, None)),
        Console::Stdio => {
            let input = stdio::own_stdin();
            let input = input.or_else(|| io::stdin().as_fd().try_clone_to_owned().ok());
            Ok((Some(Stream::stdout()), input.filter(readable)))
        }
        Console::File(path) => {
            let file = crate::output::open(path)
                .map_err(|source| VmmError::Console { path: path.clone(), source })?;
            Ok((Some(Stream::nonblocking(file)), None))
        }
    }
}

/// Input that may be read: a background process that reads its terminal would be stopped.
fn readable(input: &OwnedFd) -> bool {
    !input.is_terminal() || in_foreground(input.as_fd())
}

fn in_foreground(fd: std::os::fd::BorrowedFd) -> bool {
    termios::tcgetpgrp(fd).is_ok_and(|group| group == rustix::process::getpgrp())
}

/// The terminal's mode before the guest got it.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Gives the terminal to the guest: no echo, no line editing. Ctrl-C still interrupts the monitor.
/// Does nothing where standard input is no terminal, or not ours.
pub struct RawTerminal;

impl RawTerminal {
    /// Switches the terminal until the value is dropped; a panic gives it back as well.
    pub fn enter() -> RawTerminal {
        let stdin = io::stdin();
        if stdin.is_terminal()
            && in_foreground(stdin.as_fd())
            && let Ok(mode) = termios::tcgetattr(&stdin)
        {
            let mut raw = mode.clone();
            raw.make_raw();
            raw.local_modes |= LocalModes::ISIG;
            // Output processing stays: messages of the monitor share the terminal.
            raw.output_modes = mode.output_modes;
            if termios::tcsetattr(&stdin, OptionalActions::Now, &raw).is_ok() {
                *saved() = Some(mode);
                let previous = std::panic::take_hook();
                std::panic::set_hook(Box::new(move |info| {
                    restore();
                    previous(info);
                }));
            }
        }
        RawTerminal
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

fn saved() -> std::sync::MutexGuard<'static, Option<Termios>> {
    SAVED.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Gives the terminal back as it was.
pub fn restore() {
    if let Some(mode) = saved().take() {
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &mode);
    }
}

/// The same where no lock may be waited for: in a signal's handler.
pub fn restore_if_free() {
    if let Some(mode) = SAVED.try_lock().ok().and_then(|mut saved| saved.take()) {
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &mode);
    }
}
