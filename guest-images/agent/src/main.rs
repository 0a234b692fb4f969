//! The guest's init (as process 1) and its agent (otherwise): picks the one and reads the options.

mod init;
mod physical;
mod random;
mod serve;
mod uptime;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use serve::Options;
use serve::listen::Transport;

const HELP: &str = "\
The agent of a varve guest: answers requests, one line of JSON each, on vsock port 1024,
and raw streams on port 1025. As process 1 it is the guest's init and takes no options.

usage: varve-agent [--listen vsock|unix:PATH] [--functions FOLDER] [--boot-timer ADDRESS]

  --listen vsock       listen on vsock (the default)
  --listen unix:PATH   listen on unix sockets: PATH for requests, PATH.stream for streams;
                       `connect` requests go to PATH_<port>
  --functions FOLDER   where the sample functions are (default: /opt/varve)
  --boot-timer ADDRESS physical address to which 124 is written when the agent listens
";

fn main() -> ExitCode {
    let (name, outcome) = if std::process::id() == 1 {
        // When process 1 ends, the kernel panics, and its command line says what follows.
        ("varve-init", init::run())
    } else {
        ("varve-agent", agent())
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("{name}: {error:#}\n"));
            ExitCode::FAILURE
        }
    }
}

fn agent() -> Result<()> {
    match options(std::env::args().skip(1))? {
        Some(options) => serve::run(options)?,
        None => say(HELP),
    }
    Ok(())
}

/// Writes to standard output; a console that is gone is no reason to stop.
fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn options(mut words: impl Iterator<Item = String>) -> Result<Option<Options>> {
    let mut options = Options::default();
    while let Some(word) = words.next() {
        if word == "--help" || word == "-h" {
            return Ok(None);
        }
        let mut value =
            || words.next().with_context(|| format!("{word} needs a value; see --help"));
        match word.as_str() {
            "--listen" => options.transport = Transport::parse(&value()?)?,
            "--functions" => options.functions = PathBuf::from(value()?),
            "--boot-timer" => options.boot_timer = Some(init::boot_timer::parse(&value()?)?),
            _ => bail!("unknown option {word:?}; see --help"),
        }
    }
    Ok(Some(options))
}
