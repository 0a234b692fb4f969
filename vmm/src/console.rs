//! Where the serial port's bytes go and come from.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};

use crate::config::Console;
use crate::error::VmmError;
use crate::stdio::{self, Stream};
use crate::terminal::in_foreground;

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
