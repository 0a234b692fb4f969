//! Where messages go: to standard error in plain words until the logger is configured, then to the
//! file or pipe that was named, in Firecracker's format:
//!
//! ```text
//! 2026-01-31T12:00:00.123456789 [id:thread:LEVEL:file:line] message
//! ```
//!
//! Time is UTC. Messages that others cause are limited (`limit.rs`), and none ever waits for who
//! reads them: what cannot be written is counted.

mod config;
mod limit;

pub use config::{Level, LoggerConfig, UnknownLevel};

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use log::{LevelFilter, Log, Metadata, Record};
use serde::Serialize;
use varve_devices::metrics::Count;

use crate::sink::Sink;
use crate::stdio::Stream;
use limit::{Limits, Verdict};

/// Messages that are nowhere to be read.
#[derive(Debug, Default, Serialize)]
pub struct Counts {
    /// Those that a full pipe or another error lost.
    pub missed_log_count: Count,
    /// Those that others caused too often.
    pub rate_limited_log_count: Count,
}

/// The logger does not open its file.
#[derive(Debug, thiserror::Error)]
#[error("Failed to open target file: {path:?}")]
pub struct LoggerError {
    path: PathBuf,
    source: io::Error,
}

/// Where messages go.
#[derive(Debug)]
enum Target {
    /// To people, in plain words.
    Terminal(Sink),
    /// To a file or standard output, in Firecracker's format.
    File(Sink),
}

#[derive(Debug)]
struct State {
    target: Target,
    id: String,
    show_level: bool,
    show_log_origin: bool,
    module: Option<String>,
    limits: Limits,
}

#[derive(Debug)]
struct Logger {
    state: Mutex<State>,
    counts: Counts,
}

/// The `log` crate's one logger.
static LOGGER: LazyLock<Logger> = LazyLock::new(Logger::new);

/// Starts logging at `level`, to standard error. Only the first call counts.
pub fn init(level: LevelFilter) {
    let logger: &'static Logger = &LOGGER;
    if log::set_logger(logger).is_ok() {
        log::set_max_level(level);
    }
}

/// Writes messages as `config` says from now on; `id` is the machine's.
pub fn configure(config: &LoggerConfig, id: &str) -> Result<(), LoggerError> {
    LOGGER.configure(config, id)?;
    log::set_max_level(config.level.map_or(LevelFilter::Info, |level| level.0));
    log::info!("Running varve v{}", env!("CARGO_PKG_VERSION"));
    Ok(())
}

/// Whether messages go where [`configure`] said.
pub fn is_configured() -> bool {
    matches!(LOGGER.state().target, Target::File(_))
}

/// Whether messages go where [`configure`] said, and no thread holds the logger.
pub fn is_free() -> bool {
    LOGGER.state.try_lock().is_ok_and(|state| matches!(state.target, Target::File(_)))
}

/// Messages that are nowhere to be read.
pub fn counts() -> &'static Counts {
    &LOGGER.counts
}

impl Logger {
    fn new() -> Logger {
        let state = State {
            target: Target::Terminal(Sink::to(Stream::stderr())),
            id: String::new(),
            show_level: false,
            show_log_origin: false,
            module: None,
            limits: Limits::default(),
        };
        Logger { state: Mutex::new(state), counts: Counts::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn configure(&self, config: &LoggerConfig, id: &str) -> Result<(), LoggerError> {
        let LoggerConfig { log_path, level: _, show_level, show_log_origin, module } = config;
        let open = |path: &PathBuf| {
            Sink::open(path).map_err(|source| LoggerError { path: path.clone(), source })
        };
        let sink = log_path.as_ref().map(open).transpose()?;
        let state = &mut *self.state();
        match (sink, &state.target) {
            (Some(sink), _) => state.target = Target::File(sink),
            (None, Target::Terminal(_)) => {
                state.target = Target::File(Sink::to(Stream::stdout()));
            }
            (None, _) => {}
        }
        state.id = id.into();
        state.show_level = show_level.unwrap_or(state.show_level);
        state.show_log_origin = show_log_origin.unwrap_or(state.show_log_origin);
        if module.is_some() {
            state.module = module.clone();
        }
        Ok(())
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record) {
        let state = &mut *self.state();
        let module = record.module_path().unwrap_or_default();
        if state.module.as_ref().is_some_and(|wanted| !module.starts_with(wanted.as_str())) {
            return;
        }
        let mut left_out = 0;
        if let Some(limit) = limit::of(module) {
            let (file, line) = (record.file_static().unwrap_or_default(), record.line());
            match state.limits.judge(limit, file, line.unwrap_or_default(), Instant::now()) {
                Verdict::Write(before) => left_out = before,
                Verdict::LeaveOut => return self.counts.rate_limited_log_count.inc(),
            }
        }
        let mut line = state.line(record);
        if left_out > 0 {
            // Writing to a string does not fail.
            let _ = write!(line, " ({left_out} more like this before it were left out)");
        }
        line.push('\n');
        let written = match &mut state.target {
            Target::Terminal(sink) | Target::File(sink) => sink.write_line(line.as_bytes()),
        };
        if written.is_err() {
            self.counts.missed_log_count.inc();
        }
    }

    fn flush(&self) {}
}

impl State {
    fn line(&self, record: &Record) -> String {
        let State { target, id, show_level, show_log_origin, .. } = self;
        let level = record.level().as_str();
        if matches!(target, Target::Terminal(_)) {
            return format!("varve: {}: {}", level.to_ascii_lowercase(), record.args());
        }
        let time = humantime::format_rfc3339_nanos(SystemTime::now()).to_string();
        let thread = std::thread::current();
        let mut line =
            format!("{} [{id}:{}", time.trim_end_matches('Z'), thread.name().unwrap_or("-"));
        // Writing to a string does not fail.
        if *show_level {
            let _ = write!(line, ":{level}");
        }
        if *show_log_origin {
            let (file, at) = (record.file().unwrap_or("?"), record.line().unwrap_or_default());
            let _ = write!(line, ":{file}:{at}");
        }
        // A message is one line, whatever names it quotes.
        let _ = write!(line, "] {}", record.args().to_string().replace('\n', "\\n"));
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::Level::{Error, Info};

    fn say(logger: &Logger, module: &'static str, level: log::Level, text: &str) {
        logger.log(
            &Record::builder()
                .level(level)
                .module_path_static(Some(module))
                .file_static(Some("src/x.rs"))
                .line(Some(12))
                .args(format_args!("{text}"))
                .build(),
        );
    }

    #[test]
    fn lines_have_firecrackers_format() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let logger = Logger::new();
        let mut config = LoggerConfig { log_path: Some(path.clone()), ..LoggerConfig::default() };
        logger.configure(&config, "vm-7").unwrap();
        say(&logger, "varve_vmm::api", Info, "one\ntwo");
        config.show_level = Some(true);
        config.log_path = None;
        logger.configure(&config, "vm-7").unwrap();
        say(&logger, "varve_vmm::api", Error, "three");
        config.show_log_origin = Some(true);
        config.module = Some("varve_vmm::api".into());
        logger.configure(&config, "vm-7").unwrap();
        say(&logger, "varve_vmm::api::server", Error, "four");
        say(&logger, "varve_vmm::monitor", Error, "five");

        let text = std::fs::read_to_string(&path).unwrap();
        let thread = std::thread::current().name().unwrap().to_owned();
        let lines: Vec<_> = text.lines().map(|line| line.split_once(' ').unwrap()).collect();
        for (time, _) in &lines {
            // 2026-01-31T12:00:00.123456789
            let shape: String =
                time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
            assert_eq!(shape, "0000-00-00T00:00:00.000000000");
        }
        let rest: Vec<_> = lines.iter().map(|(_, rest)| *rest).collect();
        assert_eq!(
            rest,
            [
                format!("[vm-7:{thread}] one\\ntwo"),
                format!("[vm-7:{thread}:ERROR] three"),
                format!("[vm-7:{thread}:ERROR:src/x.rs:12] four"),
            ]
        );
    }

    #[test]
    fn guests_cannot_fill_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let logger = Logger::new();
        let config = LoggerConfig { log_path: Some(path.clone()), ..LoggerConfig::default() };
        logger.configure(&config, "x").unwrap();
        for _ in 0..1000 {
            // A crate of others: its messages are caused by guests, too.
            say(&logger, "virtio_queue::queue", Error, "malformed");
        }
        (0..30).for_each(|_| say(&logger, "varve_vmm::cli", Error, "own"));
        let text = std::fs::read_to_string(&path).unwrap();
        let count = |what| text.lines().filter(|line| line.contains(what)).count() as u64;
        // A slow test run may see the limit refill.
        assert!((10..20).contains(&count("malformed")), "{}", count("malformed"));
        assert_eq!(count("own"), 30);
        assert_eq!(logger.counts.rate_limited_log_count.get() + count("malformed"), 1000);
    }

    #[test]
    fn a_file_that_does_not_open_changes_nothing() {
        let logger = Logger::new();
        let config = LoggerConfig { log_path: Some("/".into()), ..LoggerConfig::default() };
        assert!(logger.configure(&config, "x").unwrap_err().to_string().contains("\"/\""));
        assert!(matches!(logger.state().target, Target::Terminal(_)));
    }
}
