//! Printing to standard output, whose reader may have seen enough (`varve … | head`).

use std::fmt::Arguments;
use std::io::{ErrorKind, IsTerminal, Write};

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

/// `print!` by [`write`].
macro_rules! out {
    ($($text:tt)*) => { $crate::cli::out::write(format_args!($($text)*)) };
}
pub(crate) use out;

/// `println!` by [`write`].
macro_rules! outln {
    ($($text:tt)*) => { $crate::cli::out::write(format_args!("{}\n", format_args!($($text)*))) };
}
pub(crate) use outln;

/// Bytes as people read them.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// What publishing reports to: a line that is written over and over, if somebody looks.
pub fn progress(total: u64) -> impl FnMut(u64) {
    let shown = std::io::stderr().is_terminal();
    move |bytes| {
        if shown {
            let end = if bytes == total { "\n" } else { "" };
            eprint!("\rpublishing: {} of {}{end}", human(bytes), human(total));
        }
    }
}
