//! Log messages to standard error.

use std::io::Write;

use log::{LevelFilter, Log, Metadata, Record};

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str().to_ascii_lowercase();
            // A message that cannot be written has nowhere else to go.
            let _ = writeln!(std::io::stderr().lock(), "varve: {level}: {}", record.args());
        }
    }

    fn flush(&self) {}
}

/// Starts logging at `level`. Only the first call counts.
pub fn init(level: LevelFilter) {
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(level);
    }
}
