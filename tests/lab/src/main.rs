//! `varve-lab`: see the library for what it does.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Parser;

use varve_lab::cli::{Action, Cli, ExecOptions, OPTIONS_VARIABLE, RunOptions};
use varve_lab::detect::{Mode, detect};
use varve_lab::place::Place;
use varve_lab::run::{LAB_FAILED, run, say};
use varve_lab::setup::setup;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // An error of the options must not look like an exit code of the command.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { LAB_FAILED } else { 0 });
        }
    };
    let code = match cli.action {
        Action::Setup => Place::find().and_then(|place| setup(&place, &say)).map(|_| 0),
        Action::Run(options) => run(options),
        Action::Exec(options) => exec(options),
        Action::Detect { json } => tell(json),
    };
    match code {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::from(LAB_FAILED)
        }
    }
}

/// Becomes the command, or runs it in the lab: where KVM works, too, if it has options of its own, as they
/// name devices that this machine need not have.
fn exec(options: ExecOptions) -> Result<u8> {
    let words_of = |name: String| std::env::var(name).ok();
    let own = options.own_variable().and_then(words_of);
    if own.is_some() || detect().mode == Mode::Lab {
        let common = words_of(OPTIONS_VARIABLE.to_owned());
        let words: Vec<_> = common.into_iter().chain(own).collect();
        return run_again_if_hung(options.in_lab(&words.join(" "))?);
    }
    let [program, arguments @ ..] = options.command.as_slice() else {
        anyhow::bail!("there is no command to run");
    };
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run `{}`", program.display()))
}

/// Times that `exec` starts over when the emulated host itself fails.
const REPEATS: u32 = 2;

/// Emulation loses an interrupt now and then, and with it the emulated host (docs/lab.md). What was
/// to be shown is then neither shown nor refuted: it is done again, and that is said.
fn run_again_if_hung(options: RunOptions) -> Result<u8> {
    for repeat in 1..=REPEATS {
        let code = run(options.clone())?;
        if code != LAB_FAILED {
            return Ok(code);
        }
        say(&format!("the lab failed, not the command: doing it again ({repeat} of {REPEATS})"));
    }
    run(options)
}

fn tell(json: bool) -> Result<u8> {
    let verdict = detect();
    if json {
        println!("{}", serde_json::to_string(&verdict)?);
    } else {
        println!("{}", verdict.mode);
        say(&verdict.reason);
    }
    Ok(0)
}
