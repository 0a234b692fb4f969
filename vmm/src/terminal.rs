//! The mode of the terminal while the guest has it.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::termios::{self, LocalModes, OptionalActions, Termios};

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

fn saved() -> MutexGuard<'static, Option<Termios>> {
    SAVED.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Whether this process may read the terminal `fd`.
pub fn in_foreground(fd: BorrowedFd) -> bool {
    termios::tcgetpgrp(fd).is_ok_and(|group| group == rustix::process::getpgrp())
}
