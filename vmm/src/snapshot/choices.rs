//! How guest memory is to come back, as users choose it: the options of `varve restore` and the
//! `restore` object of `PUT /snapshot/load`, which have the same names, words and defaults.

use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;
use serde::de::Error;
use serde_json::{Map, Value};
use varve_memory_tiers::{
    ColdPages, HugeBlocks, HugePages, ImageResolver, Policy, PrefaultBarrier, Strategy,
};
use varve_pool::{Keys, Places, Pool, PoolError};
use varve_shared::Published;
use varve_snapshot::ManifestReader;

use super::tuning::Tuning;
use crate::error::VmmError;
use crate::seccomp;
use crate::words::word;

/// The choices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args, Deserialize)]
#[serde(try_from = "Object")]
pub struct Choices {
    /// auto, template or tiered; baselines: lazy, eager, reap, faasnap [default: auto]
    #[arg(long, value_name = "NAME", value_parser = word::<Strategy>)]
    pub strategy: Option<Strategy>,

    /// Cold pages: mapped from a file, or paged in by userfaultfd
    #[arg(long, value_name = "HOW", value_parser = word::<ColdPages>,
          default_value = "mapped")]
    pub cold: ColdPages,

    /// Pages ready before the guest runs: nothing, written, first or all [default: first]
    #[arg(long, value_name = "WHICH", value_parser = word::<PrefaultBarrier>)]
    pub wait: Option<PrefaultBarrier>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take them for the command's")]
    pub tune: Tuning,

    /// Keys of a pool, to fetch published images (varve pool --help)
    #[arg(long, value_name = "FILE")]
    pub pool_keys: Option<PathBuf>,

    /// Socket of a pager that brings cold pages (varve pager --help)
    #[arg(long, value_name = "SOCKET")]
    pub pager: Option<PathBuf>,
}

/// The `restore` object of a request.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Object {
    strategy: Option<Strategy>,
    cold: ColdPages,
    wait: Option<PrefaultBarrier>,
    tune: Map<String, Value>,
    pool_keys: Option<PathBuf>,
    pager: Option<PathBuf>,
    /// Settings of `tune` may stand beside it, where they stood before there was `tune`.
    #[serde(flatten)]
    beside: Map<String, Value>,
}

impl TryFrom<Object> for Choices {
    type Error = serde_json::Error;

    fn try_from(object: Object) -> Result<Choices, serde_json::Error> {
        let Object { strategy, cold, wait, mut tune, pool_keys, pager, beside } = object;
        for (key, value) in beside {
            if tune.insert(key.clone(), value).is_some() {
                return Err(Error::custom(format!(
                    "{key}: in restore and in restore.tune: leave one"
                )));
            }
        }
        let tune = serde_json::from_value(Value::Object(tune))?;
        Ok(Choices { strategy, cold, wait, tune, pool_keys, pager })
    }
}

impl Choices {
    /// What the memory crate is told; `otherwise` is the strategy if none was chosen.
    pub fn policy(&self, otherwise: Strategy, huge_pages: HugePages) -> Policy {
        let strategy = self.strategy.unwrap_or(otherwise);
        let wait = self.wait.unwrap_or_else(|| PrefaultBarrier::suited(strategy));
        Policy {
            read_only: self.tune.read_only,
            cold: self.cold,
            wait,
            huge_blocks: if self.tune.huge_blocks {
                HugeBlocks::suited(wait)
            } else {
                HugeBlocks::Off
            },
            threads: self.tune.threads.into(),
            stage2: self.tune.prefault,
            huge_pages,
            pager: self.pager.clone(),
            ..Policy::new(strategy)
        }
    }

    /// Where images of a tiered snapshot are that are not to come from its own files: the nearest first.
    pub fn resolver(
        &self,
        snapshot: &ManifestReader,
    ) -> Result<Vec<Box<dyn ImageResolver>>, VmmError> {
        let mut places: Vec<Box<dyn ImageResolver>> = Vec::new();
        if !self.tune.local_files {
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
                places.push(Box::new(Pool::new(there, keys, self.tune.pool_transport)));
            }
            None => {}
        }
        Ok(places)
    }
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
    fn both(line: &str, json: Value) -> Choices {
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
        assert_eq!(policy.wait, PrefaultBarrier::Nothing);
        let tiered = Choices { strategy: Some(Strategy::Tiered), ..none };
        let wait = tiered.policy(Strategy::Lazy, HugePages::Off).wait;
        assert_eq!(wait, PrefaultBarrier::suited(Strategy::Tiered));
        let all = both(
            "--strategy tiered --cold paged --wait all --pool-keys k --pager p --tune threads=3 --tune \
             read_only=copied --tune prefault=false --tune huge_blocks=false --tune local_files=true \
             --tune pool_transport=tcp",
            serde_json::json!({
                "strategy": "tiered", "cold": "paged", "wait": "all", "pool_keys": "k", "pager": "p",
                "tune": {"threads": 3, "read_only": "copied", "prefault": false, "huge_blocks": false,
                         "local_files": true, "pool_transport": "tcp"},
            }),
        );
        // As it was before there was `tune`.
        let before = serde_json::json!({
            "strategy": "tiered", "read_only": "copied", "cold": "paged", "wait": "all",
            "threads": 3, "prefault": false, "dense": false, "local_files": true, "pool_keys": "k",
            "pool_transport": "tcp", "pager": "p",
        });
        assert_eq!(serde_json::from_value::<Choices>(before).unwrap(), all);
        let policy = all.policy(Strategy::Lazy, HugePages::Transparent);
        assert_eq!((policy.strategy, policy.stage2), (Strategy::Tiered, false));
        assert_eq!((policy.threads, policy.huge_pages), (3, HugePages::Transparent));
        assert_eq!((policy.wait, policy.huge_blocks), (PrefaultBarrier::All, HugeBlocks::Off));
        let waits = Choices { wait: Some(PrefaultBarrier::All), ..Choices::default() };
        assert_eq!(
            waits.policy(Strategy::Tiered, HugePages::Off).huge_blocks,
            HugeBlocks::suited(PrefaultBarrier::All)
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
            r#"{"tune": {"huge": true}}"#,
            r#"{"tune": {"threads": 2}, "threads": 2}"#,
        ] {
            assert!(serde_json::from_str::<Choices>(json).is_err(), "{json}");
        }
        assert!(Line::try_parse_from(["x", "--strategy", "fast"]).is_err());
    }
}
