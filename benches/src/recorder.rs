//! Collects values by series while benchmarks run, and makes figures of them.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use varve_memory_tiers::Bucket;

use crate::report::{Distribution, Figure, Report, Target, Unit};
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
    distributions: Vec<Distribution>,
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

    /// As if all that `report` holds had been measured just now.
    pub fn resume(report: Report) -> Recorder {
        let series = |figure: Figure| {
            let Figure { part, name, labels, unit, values, target, .. } = figure;
            let at_most = target.map(|target| target.at_most);
            (Series { part, name, labels, unit, at_most }, values)
        };
        Recorder {
            series: report.figures.into_iter().map(series).collect(),
            distributions: report.distributions,
        }
    }

    /// The value of `series` in a round, if it was measured.
    pub fn value(&self, series: &Series, round: usize) -> Option<f64> {
        let (_, values) = self.series.iter().find(|(known, _)| known == series)?;
        values.get(round).copied()
    }

    /// Adds to `ratio` what `of` is as a multiple of `base`, of a round in which both were measured, unless
    /// it is there.
    ///
    /// # Errors
    ///
    /// If that is no number.
    pub fn compare(
        &mut self,
        ratio: &Series,
        of: &Series,
        base: &Series,
        round: usize,
    ) -> Result<()> {
        if self.value(ratio, round).is_some() {
            return Ok(());
        }
        match (self.value(of, round), self.value(base, round)) {
            (Some(of), Some(base)) => self.add(ratio, of / base),
            _ => Ok(()),
        }
    }

    /// More values of the distribution that `series` names.
    pub fn add_all(&mut self, series: &Series, buckets: &[Bucket]) {
        let Series { part, name, labels, .. } = series.clone();
        let of = |d: &Distribution| (&d.part, &d.name, &d.labels) == (&part, &name, &labels);
        match self.distributions.iter_mut().find(|d| of(d)) {
            Some(known) => {
                for bucket in buckets {
                    match known.buckets.binary_search_by_key(&bucket.below_ns, |b| b.below_ns) {
                        Ok(at) => known.buckets[at].count += bucket.count,
                        Err(at) => known.buckets.insert(at, *bucket),
                    }
                }
            }
            None => {
                let buckets = buckets.to_vec();
                self.distributions.push(Distribution { part, name, labels, buckets });
            }
        }
    }

    /// What was counted by size.
    pub fn distributions(&self) -> &[Distribution] {
        &self.distributions
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
    fn a_report_goes_on_where_it_ended() {
        let series = Series::new("boot", "agent ready", Unit::Millis).with(&[("kernel", "a")]);
        let buckets = |all: &[(u64, u64)]| -> Vec<Bucket> {
            all.iter().map(|&(below_ns, count)| Bucket { below_ns, count }).collect()
        };
        let mut recorder = Recorder::default();
        recorder.add(&series, 4.0).unwrap();
        recorder.add_all(&series, &buckets(&[(8, 1), (32, 2)]));
        let mut report = crate::report::tests::example();
        (report.figures, report.distributions) =
            (recorder.figures(), recorder.distributions().to_vec());
        let mut resumed = Recorder::resume(report);
        assert_eq!((resumed.value(&series, 0), resumed.value(&series, 1)), (Some(4.0), None));
        assert_eq!(resumed.value(&Series::new("boot", "init", Unit::Millis), 0), None);
        resumed.add(&series, 2.0).unwrap();
        resumed.add_all(&series, &buckets(&[(16, 5), (32, 1)]));
        assert_eq!(resumed.figures()[0].values, [4.0, 2.0]);
        let all = buckets(&[(8, 1), (16, 5), (32, 3)]);
        assert_eq!(resumed.distributions()[0].buckets, all);
    }

    #[test]
    fn ratios_are_of_the_same_round_and_there_once() {
        let [of, base, ratio] = ["a", "b", "a to b"].map(|n| Series::new("p", n, Unit::Millis));
        let mut recorder = Recorder::default();
        for (series, value) in [(&of, 3.0), (&base, 2.0), (&of, 8.0)] {
            recorder.add(series, value).unwrap();
        }
        for round in [0, 0, 1] {
            recorder.compare(&ratio, &of, &base, round).unwrap();
        }
        assert_eq!((recorder.value(&ratio, 0), recorder.value(&ratio, 1)), (Some(1.5), None));
        recorder.add(&base, 0.0).unwrap();
        assert!(recorder.compare(&ratio, &of, &base, 1).is_err());
    }

    #[test]
    fn what_is_no_number_is_refused() {
        let series = Series::new("block", "read", Unit::MibPerSecond);
        let mut recorder = Recorder::default();
        assert!(recorder.add(&series, f64::INFINITY).unwrap_err().to_string().contains("read"));
        assert!(recorder.figures().is_empty());
    }
}
