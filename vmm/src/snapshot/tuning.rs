//! Settings of a restore that few users change: `--tune KEY=VALUE` of the command line and `restore.tune`
//! of `PUT /snapshot/load`, by the same names.

use std::io::{self, Write};

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use varve_memory_tiers::ReadOnlyPages;
use varve_pool::client::Transport;

/// Most threads that populate memory.
const MAX_THREADS: u16 = 64;

/// In place of a setting: prints [`TABLE`].
const HELP: &str = "help";

/// The settings.
const TABLE: &str = "\
Settings of a restore, as --tune KEY=VALUE (repeat for more):

  key             values              default  what it sets
  read_only       auto|mapped|copied  auto     where read-only pages are used from: their image, or a
                                               copy in local memory; auto compares the costs
  threads         1 to 64             1        threads that populate memory while the guest runs
  prefault        true|false          true     fill second-level page tables ahead of the guest
  huge_blocks     true|false          true     back write-hot 2 MiB blocks with huge pages
  local_files     true|false          false    read the snapshot's own files, also for images that were
                                               published to a shared tier
  pool_transport  auto|tcp|rdma       auto     how pages come from a pool: RDMA where both sides have it,
                                               TCP, or RDMA only
";

/// The settings, with their defaults.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tuning {
    /// Where read-only pages are used from.
    pub read_only: ReadOnlyPages,
    /// Threads that populate memory while the guest runs.
    #[serde(deserialize_with = "threads")]
    pub threads: u16,
    /// Fill second-level page tables ahead of the guest.
    pub prefault: bool,
    /// Back write-hot 2 MiB blocks with huge pages.
    #[serde(alias = "dense")]
    pub huge_blocks: bool,
    /// Read the snapshot's own files, also for images that were published to a shared tier.
    pub local_files: bool,
    /// How pages come from a pool.
    pub pool_transport: Transport,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            read_only: ReadOnlyPages::default(),
            threads: 1,
            prefault: true,
            huge_blocks: true,
            local_files: false,
            pool_transport: Transport::default(),
        }
    }
}

fn threads<'de, D: Deserializer<'de>>(from: D) -> Result<u16, D::Error> {
    let threads = u16::deserialize(from)?;
    if (1..=MAX_THREADS).contains(&threads) {
        return Ok(threads);
    }
    let problem = format!("threads: {threads}; from 1 to {MAX_THREADS} are possible");
    Err(serde::de::Error::custom(problem))
}

/// One `KEY=VALUE`, or `help`.
fn setting(text: &str) -> Result<(String, Value), String> {
    if text == HELP {
        return Ok((HELP.into(), Value::Null));
    }
    let (key, value) = text.split_once('=').ok_or("no '=': see --tune help")?;
    let value = match value.parse::<u64>() {
        Ok(number) => number.into(),
        Err(_) => value.parse::<bool>().map_or_else(|_| value.into(), Value::from),
    };
    let one = Map::from_iter([(key.to_owned(), value)]);
    match serde_json::from_value::<Tuning>(Value::Object(one.clone())) {
        Ok(_) => Ok(one.into_iter().next().unwrap_or_default()),
        Err(e) if e.to_string().starts_with(key) => Err(e.to_string()),
        Err(e) => Err(format!("{key}: {e}")),
    }
}

impl Args for Tuning {
    fn augment_args(cmd: Command) -> Command {
        cmd.arg(
            Arg::new("tune")
                .long("tune")
                .value_name("KEY=VALUE")
                .help("Another setting; '--tune help' lists them (repeatable)")
                .action(ArgAction::Append)
                .value_parser(setting),
        )
    }

    fn augment_args_for_update(cmd: Command) -> Command {
        Tuning::augment_args(cmd)
    }
}

impl FromArgMatches for Tuning {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Tuning, clap::Error> {
        let settings = matches.get_many::<(String, Value)>("tune").unwrap_or_default();
        let mut all = Map::new();
        for (key, value) in settings.cloned() {
            if key == HELP {
                // As clap does for --help.
                let _ = io::stdout().write_all(TABLE.as_bytes());
                std::process::exit(0);
            }
            if all.insert(key.clone(), value).is_some() {
                let message = format!("--tune {key} is given twice\n");
                return Err(clap::Error::raw(ErrorKind::ArgumentConflict, message));
            }
        }
        let tuning = serde_json::from_value(Value::Object(all));
        tuning.map_err(|e| clap::Error::raw(ErrorKind::InvalidValue, format!("--tune: {e}\n")))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Tuning::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        tuning: Tuning,
    }

    fn parse(line: &str) -> Result<Tuning, clap::Error> {
        let words = std::iter::once("x").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.tuning)
    }

    #[test]
    fn the_table_has_every_setting_and_its_default() {
        let error = serde_json::from_str::<Tuning>(r#"{"x": 1}"#).unwrap_err().to_string();
        // "unknown field `x`, expected one of `a`, `b`, …"
        for key in error.split('`').skip(3).step_by(2).filter(|key| *key != "dense") {
            let row = TABLE.lines().find(|l| l.split_whitespace().next() == Some(key)).expect(key);
            let default = row.split("  ").map(str::trim).filter(|c| !c.is_empty()).nth(2).unwrap();
            assert_eq!(parse(&format!("--tune {key}={default}")).unwrap(), Tuning::default());
        }
    }

    #[test]
    fn settings_add_up() {
        let tuning = parse("--tune threads=3 --tune prefault=false").unwrap();
        assert_eq!(tuning, Tuning { threads: 3, prefault: false, ..Tuning::default() });
    }

    #[test]
    fn wrong_settings_are_refused_by_name() {
        for (line, said) in [
            ("--tune thread=3", "thread"),
            ("--tune threads=0", "threads: 0; from 1 to 64"),
            ("--tune threads=many", "threads: invalid type"),
            ("--tune read_only=some", "read_only: unknown variant `some`"),
            ("--tune prefault", "--tune help"),
            ("--tune threads=1 --tune threads=2", "threads is given twice"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.to_string().contains(said), "{line}: {error}");
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
