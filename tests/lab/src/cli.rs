//! The command line.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::machine::Machine;

/// Options of `run` that `exec` uses, as one string of words.
pub const OPTIONS_VARIABLE: &str = "VARVE_LAB_OPTS";

/// Begins the name of a variable with more options, for one program: its file's name follows, without the
/// hash that cargo gives to a test.
pub const OPTIONS_PREFIX: &str = "VARVE_LAB_OPTS_";

/// Run commands in an emulated host that has real KVM
#[derive(Debug, Parser)]
#[command(name = "varve-lab", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Prepare the lab: missing tools, the emulated host's kernel, its first file system
    Setup,
    /// Run a command in the lab, with this folder, environment and file system
    Run(RunOptions),
    /// Run a command here if KVM works here, and in the lab if not (options: VARVE_LAB_OPTS)
    Exec(ExecOptions),
    /// Say whether KVM can be used here (`native`) or the lab is needed (`lab`), and why
    Detect {
        /// Answer as JSON
        #[arg(long)]
        json: bool,
    },
}

/// Options of `run`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
The exit code is that of the command; 124: the time limit passed; 125: the lab failed.
Files written in the lab vanish with it, except below a folder of --rw.
In the command's environment, LAB=1, and LAB_DAX=/mnt/dax, LAB_DEVDAX=/dev/dax0.0, LAB_CXL_NODE=1
or LAB_ICOUNT=1 with these options.")]
pub struct RunOptions {
    /// The emulated host.
    #[command(flatten)]
    pub machine: Machine,

    /// End the run after so many seconds, with exit code 124
    #[arg(long, value_name = "SECONDS", default_value_t = 600.0, value_parser = parse_seconds)]
    pub timeout: f64,

    /// Take the lab for hung after so many seconds without a sign of life
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0, value_parser = parse_seconds)]
    pub hang_after: f64,

    /// Pass standard input on to the command
    #[arg(long)]
    pub stdin: bool,

    /// Boot the lab anew, and not from a saved one
    #[arg(long)]
    pub no_snapshot: bool,

    /// Show the emulated host's console on standard error
    #[arg(short, long)]
    pub verbose: bool,

    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Options of `exec`.
#[derive(Args, Clone, Debug)]
pub struct ExecOptions {
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

impl ExecOptions {
    /// The variable that has more options for this command.
    pub fn own_variable(&self) -> Option<String> {
        let stem = Path::new(self.command.first()?).file_name()?.to_str()?;
        let name = match stem.rsplit_once('-') {
            Some((name, hash))
                if hash.len() == 16 && hash.chars().all(|c| c.is_ascii_hexdigit()) =>
            {
                name
            }
            _ => stem,
        };
        Some(format!("{OPTIONS_PREFIX}{}", name.to_uppercase().replace('-', "_")))
    }

    /// The options with which `run` is to run it: `words` is the value of [`OPTIONS_VARIABLE`].
    pub fn in_lab(self, words: &str) -> Result<RunOptions> {
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            options: RunOptions,
        }
        let line = ["varve-lab"].into_iter().chain(words.split_whitespace()).map(OsString::from);
        let line = line.chain(["--".into()]).chain(self.command);
        let line = Line::try_parse_from(line).context(OPTIONS_VARIABLE)?;
        Ok(line.options)
    }
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 1e6 => Ok(seconds),
        _ => Err("give seconds, more than 0 and at most 1000000".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &[&str]) -> RunOptions {
        let line = ["varve-lab", "run"].iter().chain(words);
        match Cli::parse_from(line).action {
            Action::Run(options) => options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_keeps_its_own_options() {
        let options = run(&["--mem", "512", "ls", "-l", "--rdma"]);
        assert_eq!((options.machine.mem, options.machine.rdma), (512, false));
        assert_eq!(options.command, ["ls", "-l", "--rdma"]);
        assert_eq!(run(&["--", "-x", "--", "y"]).command, ["-x", "--", "y"]);
    }

    #[test]
    fn exec_takes_its_options_from_the_variable() {
        let exec = |words| ExecOptions { command: vec!["ls".into(), "-l".into()] }.in_lab(words);
        let options = exec(" --mem 4096  --dax 512").unwrap();
        assert_eq!((options.machine.mem, options.machine.dax), (4096, Some(512)));
        assert_eq!(options.command, ["ls", "-l"]);
        assert!(format!("{:#}", exec("--nonsense").unwrap_err()).contains(OPTIONS_VARIABLE));
    }

    #[test]
    fn a_test_can_have_options_of_its_own() {
        for (program, variable) in [
            ("/x/target/debug/deps/tiers-83637e87e049e296", "VARVE_LAB_OPTS_TIERS"),
            ("target/debug/varve", "VARVE_LAB_OPTS_VARVE"),
            ("varve-bench", "VARVE_LAB_OPTS_VARVE_BENCH"),
        ] {
            let exec = ExecOptions { command: vec![program.into()] };
            assert_eq!(exec.own_variable().unwrap(), variable);
        }
    }

    #[test]
    fn silly_limits_are_refused() {
        for text in ["0", "-1", "x", "1e9", "nan"] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
