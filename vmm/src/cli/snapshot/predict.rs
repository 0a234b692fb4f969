//! What the cost model says of a tiered snapshot.

use std::error::Error;
use std::path::Path;

use serde::Serialize;
use varve_memory_tiers::{Policy, Strategy, open};
use varve_snapshot::ManifestReader;

/// Of one strategy.
#[derive(Debug, Serialize)]
pub struct Prediction {
    /// Its name.
    pub strategy: &'static str,
    /// What memory costs in a restore and one invocation, in milliseconds.
    pub cost_ms: f64,
    /// Mappings that guest memory will consist of.
    pub mappings: usize,
}

/// Of all strategies.
pub fn predict(manifest: &Path) -> Result<Vec<Prediction>, Box<dyn Error>> {
    let snapshot = ManifestReader::open(manifest)?;
    let mut predictions = Vec::new();
    for strategy in Strategy::ALL.into_iter().filter(|&s| s != Strategy::Auto) {
        let (plan, _) = open(&snapshot, &Policy::new(strategy), &())?;
        predictions.push(Prediction {
            strategy: strategy.name(),
            cost_ms: plan.cost().total() / 1e6,
            mappings: plan.mappings(),
        });
    }
    Ok(predictions)
}
