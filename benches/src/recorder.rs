//! Collects values by series while benchmarks run, and makes figures of them.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use crate::report::{Figure, Target, Unit};
use crate::stats::Summary;

/// What a value belongs to.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    part: String,
    name: String,
    labels: BTreeMap<String, String>,
    unit: Unit,
    at_most: Option<f64>,
}

impl Series {
    /// A series without labels or target.
    pub fn new(part: &str, name: &str, unit: Unit) -> Series {
        let labels = BTreeMap::new();
        Series { part: part.into(), name: name.into(), labels, unit, at_most: None }
    }

    /// Under these conditions as well.
    pub fn with(mut self, labels: &[(&str, &str)]) -> Series {
        self.labels.extend(labels.iter().map(|&(key, value)| (key.into(), value.into())));
        self
    }

    /// With a median that should not exceed `value`.
    pub fn at_most(mut self, value: f64) -> Series {
        self.at_most = Some(value);
        self
    }
}

/// All values so far.
#[derive(Debug, Default)]
pub struct Recorder {
    series: Vec<(Series, Vec<f64>)>,
}

impl Recorder {
    /// One more value of `series`.
    ///
    /// # Errors
    ///
    /// If it is not a number that can be saved.
    pub fn add(&mut self, series: &Series, value: f64) -> Result<()> {
        ensure!(value.is_finite(), "{} / {}: measured {value}", series.part, series.name);
        match self.series.iter_mut().find(|(known, _)| known == series) {
            Some((_, values)) => values.push(value),
            None => self.series.push((series.clone(), vec![value])),
        }
        Ok(())
    }

    /// The figures, in the order in which their first values came.
    pub fn figures(&self) -> Vec<Figure> {
        let figure = |(series, values): &(Series, Vec<f64>)| {
            let summary = Summary::of(values)?;
            let target =
                series.at_most.map(|at_most| Target { at_most, met: summary.median <= at_most });
            Some(Figure {
                part: series.part.clone(),
                name: series.name.clone(),
                labels: series.labels.clone(),
                unit: series.unit,
                less_is_better: series.unit.less_is_better(),
                summary,
                target,
                values: values.clone(),
            })
        };
        self.series.iter().filter_map(figure).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_by_series_in_order() {
        let one = Series::new("boot", "agent ready", Unit::Millis).with(&[("kernel", "a")]);
        let two = one.clone().with(&[("kernel", "b")]).at_most(5.0);
        let mut recorder = Recorder::default();
        for (series, value) in [(&two, 4.0), (&one, 1.0), (&two, 2.0), (&two, 9.0)] {
            recorder.add(series, value).unwrap();
        }
        let figures = recorder.figures();
        assert_eq!(figures.len(), 2);
        assert_eq!(figures[0].labels["kernel"], "b");
        assert_eq!(figures[0].values, [4.0, 2.0, 9.0]);
        assert_eq!(figures[0].target, Some(Target { at_most: 5.0, met: true }));
        assert_eq!(figures[1].summary.median, 1.0);
        assert_eq!(figures[1].target, None);
        assert!(figures[1].less_is_better);
    }

    #[test]
    fn what_is_no_number_is_refused() {
        let series = Series::new("block", "read", Unit::MibPerSecond);
        let mut recorder = Recorder::default();
        assert!(recorder.add(&series, f64::INFINITY).unwrap_err().to_string().contains("read"));
        assert!(recorder.figures().is_empty());
    }
}
