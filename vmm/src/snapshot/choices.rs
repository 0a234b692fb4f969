//! How guest memory is to come back, as users choose it: the options of `varve restore` and the
//! `restore` object of `PUT /snapshot/load`, which have the same names, words and defaults.

use std::path::PathBuf;

use clap::{ArgAction, Args};
use serde::{Deserialize, Deserializer};
use varve_memory_tiers::{
    ColdPages, DenseBlocks, Elsewhere, HugePages, Policy, ReadOnlyPages, Strategy, Wait,
};
use varve_pool::client::Transport;
use varve_pool::{Keys, Places, Pool, PoolError};
use varve_shared::Published;
use varve_snapshot::ManifestReader;

use crate::error::VmmError;
use crate::seccomp;
use crate::words::word;

/// Most threads that populate memory.
const MAX_THREADS: i64 = 64;

/// The choices.
#[derive(Clone, Debug, PartialEq, Eq, Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Choices {
    /// How memory comes back: lazy, eager, reap, faasnap, tiered, template or auto [default: auto]
    #[arg(long, value_name = "NAME", value_parser = word::<Strategy>)]
    pub strategy: Option<Strategy>,

    /// Read-only pages: mapped in place, copied to local memory, or as the costs say (auto)
    #[arg(long, value_name = "HOW", value_parser = word::<ReadOnlyPages>, default_value = "auto")]
    pub read_only: ReadOnlyPages,

    /// Cold pages: mapped where their image is a plain file, or paged in through userfaultfd, checked
    /// and a chunk at a time
    #[arg(long, value_name = "HOW", value_parser = word::<ColdPages>, default_value = "mapped")]
    pub cold: ColdPages,

    /// What is made ready before the guest runs: nothing that need not be, written pages, the first 32 MiB
    /// of what was recorded (with template if it is in memory), or all of it [default: nothing; with tiered, template and
    /// auto first, and all on a single processor]
    #[arg(long, value_name = "nothing|written|first|all", value_parser = word::<Wait>)]
    pub wait: Option<Wait>,

    /// Threads that populate memory beside the guest
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=MAX_THREADS))]
    #[serde(deserialize_with = "threads")]
    pub threads: u16,

    /// Do not fill second-level page tables ahead of the guest
    #[arg(long = "no-prefault", action = ArgAction::SetFalse)]
    pub prefault: bool,

    /// Do not make one page of 2 MiB that will mostly be written and that the guest waits for
    #[arg(long = "no-dense", action = ArgAction::SetFalse)]
    pub dense: bool,

    /// Use the snapshot's own files, also of images that were published to a tier
    #[arg(long)]
    pub local_files: bool,

    /// Fetch images that were published to a pool from there, with the keys in this file; without
    /// it the snapshot's own files serve
    #[arg(long, value_name = "FILE")]
    pub pool_keys: Option<PathBuf>,

    /// How pages come from the pool: by RDMA where both sides have it (auto), tcp, or rdma only
    #[arg(long, value_name = "auto|tcp|rdma", value_parser = word::<Transport>,
          default_value = "auto")]
    pub pool_transport: Transport,

    /// Have a pager bring the pages that are asked for: cold ones, and with the strategy lazy all that
    /// are stored. It listens at this unix socket (varve pager --help)
    #[arg(long, value_name = "SOCKET")]
    pub pager: Option<PathBuf>,
}

impl Default for Choices {
    fn default() -> Choices {
        Choices {
            strategy: None,
            read_only: ReadOnlyPages::default(),
            cold: ColdPages::default(),
            wait: None,
            threads: 1,
            prefault: true,
            dense: true,
            local_files: false,
            pool_keys: None,
            pool_transport: Transport::default(),
            pager: None,
        }
    }
}

impl Choices {
    /// What the memory crate is told; `otherwise` is the strategy if none was chosen.
    pub fn policy(&self, otherwise: Strategy, huge_pages: HugePages) -> Policy {
        let strategy = self.strategy.unwrap_or(otherwise);
        let wait = self.wait.unwrap_or_else(|| Wait::suited(strategy));
        Policy {
            read_only: self.read_only,
            cold: self.cold,
            wait,
            dense: if self.dense { DenseBlocks::suited(wait) } else { DenseBlocks::Off },
            threads: self.threads.into(),
            stage2: self.prefault,
            huge_pages,
            pager: self.pager.clone(),
            ..Policy::new(strategy)
        }
    }

    /// Where images of a tiered snapshot are that are not to come from its own files: the nearest first.
    pub fn elsewhere(
        &self,
        snapshot: &ManifestReader,
    ) -> Result<Vec<Box<dyn Elsewhere>>, VmmError> {
        let mut places: Vec<Box<dyn Elsewhere>> = Vec::new();
        if !self.local_files {
            places.push(Box::new(Published::attach(snapshot)?));
        }
        match &self.pool_keys {
            Some(path) if !seccomp::reaches_pool() => {
                let problem = "no use in this process, whose filters keep it from a pool: start \
                               it with --allow-pool";
                return Err(PoolError::File { path: path.clone(), problem: problem.into() }.into());
            }
            Some(keys) => {
                let (there, keys) = (Places::read(snapshot.folder())?, Keys::read(keys)?);
                places.push(Box::new(Pool::new(there, keys, self.pool_transport)));
            }
            None => {}
        }
        Ok(places)
    }
}

fn threads<'de, D: Deserializer<'de>>(from: D) -> Result<u16, D::Error> {
    let threads = u16::deserialize(from)?;
    if (1..=MAX_THREADS).contains(&threads.into()) {
        return Ok(threads);
    }
    let problem = format!("threads: {threads}; from 1 to {MAX_THREADS} are possible");
    Err(serde::de::Error::custom(problem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        choices: Choices,
    }

    /// What either way of asking comes to.
    fn both(line: &str, json: serde_json::Value) -> Choices {
        let words = std::iter::once("x").chain(line.split_whitespace());
        let from_line = Line::try_parse_from(words).unwrap().choices;
        assert_eq!(serde_json::from_value::<Choices>(json).unwrap(), from_line);
        from_line
    }

    #[test]
    fn both_ways_of_asking_mean_the_same() {
        let none = both("", serde_json::json!({}));
        assert_eq!(none, Choices::default());
        let policy = none.policy(Strategy::Lazy, HugePages::Off);
        assert_eq!((policy.strategy, policy.stage2), (Strategy::Lazy, true));
        assert_eq!(policy.wait, Wait::Nothing);
        let tiered = Choices { strategy: Some(Strategy::Tiered), ..none };
        let wait = tiered.policy(Strategy::Lazy, HugePages::Off).wait;
        assert_eq!(wait, Wait::suited(Strategy::Tiered));
        let all = both(
            "--strategy tiered --read-only copied --cold paged --wait all --threads 3 --no-prefault \
             --no-dense --local-files --pool-keys k --pool-transport tcp --pager p",
            serde_json::json!({
                "strategy": "tiered", "read_only": "copied", "cold": "paged", "wait": "all",
                "threads": 3, "prefault": false, "dense": false, "local_files": true, "pool_keys": "k",
                "pool_transport": "tcp", "pager": "p",
            }),
        );
        let policy = all.policy(Strategy::Lazy, HugePages::Transparent);
        assert_eq!((policy.strategy, policy.stage2), (Strategy::Tiered, false));
        assert_eq!((policy.threads, policy.huge_pages), (3, HugePages::Transparent));
        assert_eq!((policy.wait, policy.dense), (Wait::All, DenseBlocks::Off));
        let waits = Choices { wait: Some(Wait::All), ..Choices::default() };
        assert_eq!(
            waits.policy(Strategy::Tiered, HugePages::Off).dense,
            DenseBlocks::suited(Wait::All)
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for json in [
            r#"{"threads": 0}"#,
            r#"{"threads": 65}"#,
            r#"{"strategy": "fast"}"#,
            r#"{"wait": "some"}"#,
            r#"{"huge": true}"#,
        ] {
            assert!(serde_json::from_str::<Choices>(json).is_err(), "{json}");
        }
        assert!(Line::try_parse_from(["x", "--threads", "65"]).is_err());
        assert!(Line::try_parse_from(["x", "--strategy", "fast"]).is_err());
    }
}
