//! What holds for all machines of a comparison, and is a label of all its figures.

use clap::Args;
use varve_memory_tiers::{PrefaultBarrier, Strategy};

use crate::replay::once::named;

/// Such options of the command line.
#[derive(Clone, Debug, Default, Args)]
pub struct Settings {
    /// Shared tier, such as numa:1, that read-only pages and memory images are in while machines run, for
    /// the methods that use one (tiered, template, auto); the others read the snapshot's own files
    #[arg(long, value_name = "URI")]
    pub store: Option<String>,
    /// What tiered, template and auto wait for before the guest runs [default: as varve restore does]
    #[arg(long, value_name = "nothing|written|first|all", value_parser = named::<PrefaultBarrier>)]
    pub wait: Option<PrefaultBarrier>,
}

impl Settings {
    /// Labels of what was chosen.
    pub fn labels(&self) -> impl Iterator<Item = (&'static str, String)> {
        let wait = self.wait.map(|wait| ("wait", name(wait)));
        let store = self.store.as_ref().map(|store| ("store", store.clone()));
        store.into_iter().chain(wait)
    }

    /// Options of `varve restore` for a method.
    pub fn options(&self, strategy: Strategy) -> Vec<String> {
        let ours = !strategy.is_baseline();
        let mut options = Vec::new();
        if self.store.is_none() || !ours {
            options.extend(["--tune".into(), "local_files=true".into()]);
        }
        if let Some(wait) = self.wait.filter(|_| ours) {
            options.extend(["--wait".into(), name(wait)]);
        }
        options
    }
}

/// As the command line has it.
fn name(wait: PrefaultBarrier) -> String {
    serde_json::to_value(wait)
        .ok()
        .and_then(|name| Some(name.as_str()?.to_owned()))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_is_used_by_methods_that_know_tiers() {
        let none = Settings::default();
        assert_eq!(none.options(Strategy::Tiered), ["--tune", "local_files=true"]);
        assert_eq!(none.labels().count(), 0);
        let all = Settings { store: Some("numa:1".into()), wait: Some(PrefaultBarrier::All) };
        assert_eq!(all.options(Strategy::Template), ["--wait", "all"]);
        assert_eq!(all.options(Strategy::Reap), ["--tune", "local_files=true"]);
        let labels: Vec<_> = all.labels().collect();
        assert_eq!(labels, [("store", "numa:1".into()), ("wait", "all".into())]);
    }
}
