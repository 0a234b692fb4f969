//! Printing to standard output, whose reader may have seen enough (`varve … | head`).

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};

/// Writes to standard output. A reader that has gone away ends the process as it asked to; any other
/// failure is said and ends it with an error.
pub fn write(text: Arguments) {
    match std::io::stdout().lock().write_fmt(text) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => {
            eprintln!("varve: error: standard output: {e}");
            std::process::exit(1);
        }
    }
}

/// `println!` by [`write`].
macro_rules! outln {
    ($($text:tt)*) => { $crate::cli::out::write(format_args!("{}\n", format_args!($($text)*))) };
}
pub(crate) use outln;
