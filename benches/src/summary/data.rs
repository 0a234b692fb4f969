//! Questions to a report of a comparison: figures by function, strategy and condition.

use std::collections::BTreeMap;

use crate::report::{Figure, Report};

/// Labels that are not conditions, but what is compared.
const COMPARED: [&str; 2] = ["function", "strategy"];

/// The figures of one part.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The report.
    pub report: &'a Report,
    /// The part.
    pub name: &'a str,
}

/// Labels that figures of all functions and strategies share.
pub type Condition = BTreeMap<String, String>;

impl<'a> Part<'a> {
    fn figures(self) -> impl Iterator<Item = &'a Figure> {
        self.report.figures.iter().filter(move |figure| figure.part == self.name)
    }

    /// Whether it was measured.
    pub fn is_there(self) -> bool {
        self.figures().next().is_some()
    }

    /// All values of a label, in the order in which they were measured.
    pub fn values(self, label: &str) -> Vec<String> {
        let mut values = Vec::new();
        for value in self.figures().filter_map(|figure| figure.labels.get(label)) {
            if !values.contains(value) {
                values.push(value.clone());
            }
        }
        values
    }

    /// All conditions, in the same order.
    pub fn conditions(self) -> Vec<Condition> {
        let mut all: Vec<Condition> = Vec::new();
        for figure in self.figures() {
            let mut labels = figure.labels.clone();
            labels.retain(|key, _| !COMPARED.contains(&key.as_str()));
            if !all.contains(&labels) {
                all.push(labels);
            }
        }
        all
    }

    /// The conditions that have these labels.
    pub fn conditions_with(self, labels: &[(&str, &str)]) -> Vec<Condition> {
        let fits = |found: &Condition| {
            labels.iter().all(|(key, value)| found.get(*key).is_some_and(|v| v == value))
        };
        self.conditions().into_iter().filter(fits).collect()
    }

    /// One figure.
    pub fn figure(
        self,
        name: &str,
        function: &str,
        strategy: &str,
        at: &Condition,
    ) -> Option<&'a Figure> {
        let mut labels = at.clone();
        for (key, value) in COMPARED.into_iter().zip([function, strategy]) {
            if !value.is_empty() {
                labels.insert(key.into(), value.into());
            }
        }
        self.figures().find(|figure| figure.name == name && figure.labels == labels)
    }

    /// Its median.
    pub fn median(self, name: &str, function: &str, strategy: &str, at: &Condition) -> Option<f64> {
        self.figure(name, function, strategy, at).map(|figure| figure.summary.median)
    }

    /// Medians of one strategy as multiples of another's, by function; functions that lack one are left
    /// out.
    pub fn ratios(
        self,
        name: &str,
        strategy: &str,
        base: &str,
        at: &Condition,
    ) -> Vec<(String, f64)> {
        let ratio = |function: String| {
            let own = self.median(name, &function, strategy, at)?;
            let base = self.median(name, &function, base, at).filter(|base| *base > 0.0)?;
            Some((function, own / base))
        };
        self.values("function").into_iter().filter_map(ratio).collect()
    }

    /// The geometric mean of these.
    pub fn ratio(self, name: &str, strategy: &str, base: &str, at: &Condition) -> Option<f64> {
        geometric(self.ratios(name, strategy, base, at).into_iter().map(|(_, ratio)| ratio))
    }
}

/// The geometric mean; none of nothing, or of what is not above zero.
pub fn geometric(values: impl Iterator<Item = f64>) -> Option<f64> {
    let logs: Vec<f64> = values.map(f64::ln).collect();
    let mean = logs.iter().sum::<f64>() / logs.len() as f64;
    mean.is_finite().then(|| mean.exp())
}

/// The middle value.
pub fn middle(values: impl Iterator<Item = f64>) -> Option<f64> {
    crate::stats::Summary::of(&values.collect::<Vec<_>>()).map(|summary| summary.median)
}

/// A condition in words: `cold, new, 1 machines`.
pub fn words(at: &Condition) -> String {
    let word = |(key, value): (&String, &String)| match key.as_str() {
        "page cache" | "read-only pages" => value.clone(),
        "input" => format!("{value} input"),
        "machines" if value == "1" => "1 machine".into(),
        "machines" => format!("{value} machines at once"),
        key => format!("{key} {value}"),
    };
    at.iter().map(word).rev().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means() {
        assert_eq!(geometric([0.25, 4.0].into_iter()), Some(1.0));
        assert_eq!(geometric([].into_iter()), None);
        assert_eq!(geometric([0.0, 1.0].into_iter()), None);
        assert_eq!(middle([3.0, 1.0, 2.0].into_iter()), Some(2.0));
    }

    #[test]
    fn conditions_in_words() {
        let at = [("page cache", "cold"), ("input", "new"), ("machines", "1")];
        let at = at.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        assert_eq!(words(&at), "cold, 1 machine, new input");
    }
}
