//! What is recorded of each measurement: names, units, sums and means over machines.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::Conditions;
use super::machine::Taken;
use crate::recorder::{Recorder, Series};
use crate::report::Unit;

/// The part that machines belong to; replays have their own.
pub const PART: &str = "machine";
/// What restoring adds to the call; see [`overheads`].
pub const OVERHEAD: Name = Name("overhead", Unit::Millis);
/// The same as a multiple of the first column's in the same round.
pub const OVERHEAD_COMPARED: Name = Name("overhead, compared", Unit::Times);
/// From before the process's start until the vCPUs run.
pub const RESUMED: Name = Name("to resumed", Unit::Millis);
/// From before the process's start until the first answer.
pub const ANSWERED: Name = Name("to first answer", Unit::Millis);
/// The same call again.
pub const WARM: Name = Name("warm answer", Unit::Millis);
/// All faults, host and stage-2.
pub const FAULTS: Name = Name("faults in all", Unit::Count);
/// Metadata and plan.
pub const PLANNED: Name = Name("metadata and plan", Unit::Millis);
/// Laying mappings.
pub const LAID: Name = Name("mapping", Unit::Millis);
/// Copying content in, huge blocks made for it included.
pub const COPIED: Name = Name("copying", Unit::Millis);
/// Memory.
pub const PSS: Name = Name("memory of a machine (Pss)", Unit::Kib);
/// Memory of all machines that could be shared.
pub const SHAREABLE: Name = Name("memory of what is not written, all machines", Unit::Kib);
/// Machines that were lost and started again.
pub const REPEATED: Name = Name("machines lost", Unit::Count);
/// How long the monitor took to answer faults.
pub const FAULT_LATENCY: Name = Name("fault answered", Unit::Nanos);

/// What is measured, and what it counts.
#[derive(Clone, Copy, Debug)]
pub struct Name(pub &'static str, pub Unit);

/// Series of the same conditions and column.
#[derive(Clone, Debug)]
pub struct Of(BTreeMap<&'static str, String>);

/// Those of a column.
pub fn series(at: &Conditions, column: &str) -> Of {
    let labels = [
        ("function", at.function.to_owned()),
        ("strategy", column.to_owned()),
        ("page cache", at.cache.name().to_owned()),
        ("input", at.input.name().to_owned()),
        ("machines", at.machines.to_string()),
    ];
    Of(labels.into_iter().chain(at.settings.labels()).collect())
}

/// Records what restoring cost by each method of a round, and how that compares with the first.
///
/// It is the first answer less the warm one. Where some method's machine, once it runs, answers the first call
/// sooner than machines answer the same again, the first has less to do by any method, as of a function that clears
/// up in every third call; the difference is added for all. What precedes a guest's first step is overhead
/// in any case.
///
/// # Errors
///
/// If something is no number.
pub fn overheads(columns: &[Of], round: usize, recorder: &mut Recorder) -> Result<()> {
    let times = |of: &Of| {
        let value = |name: Name| recorder.value(&of.series(name), round);
        Some((value(RESUMED)?, value(ANSWERED)?, value(WARM)?))
    };
    let times: Option<Vec<_>> = columns.iter().map(times).collect();
    // A round that is not whole is gone on with another time.
    let (Some(times), Some(first)) = (times, columns.first()) else { return Ok(()) };
    let mut warm: Vec<f64> = times.iter().map(|(_, _, warm)| *warm).collect();
    warm.sort_by(f64::total_cmp);
    // One machine of them may have been disturbed.
    let usual = warm.get((warm.len() - 1) / 2).copied().unwrap_or_default();
    let soonest = times.iter().map(|(resumed, answered, _)| answered - resumed);
    let head_start = (usual - soonest.fold(f64::MAX, f64::min)).max(0.0);
    for (of, (resumed, answered, warm)) in columns.iter().zip(times) {
        let own = of.series(OVERHEAD);
        if recorder.value(&own, round).is_none() {
            recorder.add(&own, (answered - warm + head_start).max(resumed))?;
        }
        recorder.compare(&of.series(OVERHEAD_COMPARED), &own, &first.series(OVERHEAD), round)?;
    }
    Ok(())
}

fn mean(taken: &[Taken], what: impl Fn(&Taken) -> f64) -> f64 {
    taken.iter().map(what).sum::<f64>() / taken.len().max(1) as f64
}

impl Of {
    /// One of them.
    pub fn series(&self, name: Name) -> Series {
        self.named(name.0, name.1)
    }

    fn named(&self, name: &str, unit: Unit) -> Series {
        let labels: Vec<_> = self.0.iter().map(|(key, value)| (*key, value.as_str())).collect();
        Series::new(PART, name, unit).with(&labels)
    }

    /// Records a measurement.
    ///
    /// # Errors
    ///
    /// If something was measured that is no number.
    pub fn record(&self, taken: &[Taken], recorder: &mut Recorder) -> Result<()> {
        let one = taken.first().context("no machine was measured")?;
        let mut add = |name: Name, value: f64| recorder.add(&self.series(name), value);
        add(RESUMED, mean(taken, |t| t.resumed_ms))?;
        add(Name("resumed to first answer", Unit::Millis), {
            mean(taken, |t| t.answered_ms - t.resumed_ms)
        })?;
        add(ANSWERED, mean(taken, |t| t.answered_ms))?;
        add(WARM, mean(taken, |t| t.warm_ms))?;
        if let Some(us) = optional(taken, |t| t.laying.map(|times| times.plan)) {
            add(PLANNED, us / 1e3)?;
        }
        if let Some(us) = optional(taken, |t| t.laying.map(|times| times.lay)) {
            add(LAID, us / 1e3)?;
        }
        if let Some(us) = optional(taken, |t| t.laying.map(|times| times.copy)) {
            add(COPIED, us / 1e3)?;
        }
        let answered = |t: &Taken| {
            let sums = t.answered_faults.values().map(|by| by.read + by.write);
            sums.sum::<u64>() as f64
        };
        let host = optional(taken, |t| t.host_faults.map(|(a, b)| (a + b) as f64));
        let stage2 = optional(taken, |t| t.stage2_faults.map(|n| n as f64));
        if let (Some(host), Some(stage2)) = (host, stage2) {
            add(FAULTS, host + stage2)?;
            add(Name("faults: host", Unit::Count), host)?;
            add(Name("faults: stage-2", Unit::Count), stage2)?;
        }
        if let Some(major) = optional(taken, |t| t.host_faults.map(|(major, _)| major as f64)) {
            add(Name("faults: host, major", Unit::Count), major)?;
        }
        if one.strategy.is_some() {
            add(Name("faults: answered by the monitor", Unit::Count), mean(taken, answered))?;
        }
        let by_class = taken.iter().flat_map(|t| &t.answered_faults).flat_map(|(class, by)| {
            [("read", by.read), ("write", by.write)]
                .map(|(access, n)| (format!("faults: {class} {access}"), n))
        });
        for (name, count) in sums(by_class) {
            let each = count as f64 / taken.len() as f64;
            recorder.add(&self.named(&name, Unit::Count), each)?;
        }
        let mut add = |name: Name, value: f64| recorder.add(&self.series(name), value);
        if let Some(exits) = optional(taken, |t| t.exits.map(|n| n as f64)) {
            add(Name("exits", Unit::Count), exits)?;
        }
        if let Some(guest) = optional(taken, |t| t.cpu_ms.map(|(guest, _)| guest)) {
            add(Name("processor time: vCPUs", Unit::Millis), guest)?;
        }
        if let Some(other) = optional(taken, |t| t.cpu_ms.map(|(_, other)| other)) {
            add(Name("processor time: monitor", Unit::Millis), other)?;
        }
        add(PSS, mean(taken, |t| t.outside.pss as f64))?;
        if let Some(unwritten) = optional(taken, |t| t.private_unwritten.map(|n| n as f64)) {
            let shared = mean(taken, |t| t.outside.pss_shared as f64);
            add(SHAREABLE, (shared + unwritten * 4.0) * taken.len() as f64)?;
        }
        add(Name("read from disk", Unit::Kib), {
            mean(taken, |t| t.outside.disk as f64) * taken.len() as f64
        })?;
        if let Some(mappings) = optional(taken, |t| t.mappings.map(|n| n as f64)) {
            add(Name("mappings", Unit::Count), mappings)?;
        }
        let by_tier = taken.iter().flat_map(|t| &t.read);
        let by_tier = by_tier.map(|(tier, n)| (format!("read by the monitor: {tier}"), *n));
        for (name, bytes) in sums(by_tier) {
            let each = bytes as f64 / 1024.0 / taken.len() as f64;
            recorder.add(&self.named(&name, Unit::Kib), each)?;
        }
        for machine in taken {
            recorder.add_all(&self.series(FAULT_LATENCY), &machine.fault_latency);
        }
        Ok(())
    }
}

/// Sums by name; what is nothing everywhere is left out.
fn sums(all: impl Iterator<Item = (String, u64)>) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for (name, n) in all.filter(|(_, n)| *n > 0) {
        *sums.entry(name).or_default() += n;
    }
    sums
}

/// The mean, if all machines have it.
fn optional(taken: &[Taken], what: impl Fn(&Taken) -> Option<f64>) -> Option<f64> {
    let values = taken.iter().map(what).collect::<Option<Vec<f64>>>()?;
    Some(values.iter().sum::<f64>() / values.len().max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::Input;
    use crate::compare::settings::Settings;
    use crate::demo::said::ByAccess;
    use crate::outside::Outside;
    use crate::replay::PageCache;

    fn taken(by: u64) -> Taken {
        let ms = by as f64;
        Taken {
            strategy: Some("reap".into()),
            resumed_ms: ms,
            answered_ms: 10.0 * ms,
            warm_ms: 2.0 * ms,
            host_faults: Some((by, 9 * by)),
            stage2_faults: Some(5 * by),
            answered_faults: [("cold".into(), ByAccess { read: 0, write: 4 * by })].into(),
            read: [("local".into(), 2048 * by)].into(),
            private_unwritten: Some(by),
            outside: Outside { pss: 100, pss_shared: 40, disk: 7 },
            ..Taken::default()
        }
    }

    #[test]
    fn a_first_call_that_has_less_to_do_is_no_gain() {
        let (cache, input) = (PageCache::Warm, Input::New);
        let settings = &Settings::default();
        let at = Conditions { function: "f", cache, input, machines: 1, settings };
        let columns = ["lazy", "template"].map(|column| series(&at, column));
        let mut recorder = Recorder::default();
        let mut round = |nth, times: [(f64, f64, f64); 2]| {
            for (of, (resumed_ms, answered_ms, warm_ms)) in columns.iter().zip(times) {
                let taken = Taken { resumed_ms, answered_ms, warm_ms, ..taken(1) };
                overheads(&columns, nth, &mut recorder).unwrap();
                of.record(&[taken], &mut recorder).unwrap();
            }
            overheads(&columns, nth, &mut recorder).unwrap();
            overheads(&columns, nth, &mut recorder).unwrap();
            columns.each_ref().map(|of| recorder.value(&of.series(OVERHEAD), nth).unwrap())
        };
        assert_eq!(round(0, [(2.0, 110.0, 100.0), (5.0, 107.0, 100.0)]), [10.0, 7.0]);
        // Of the method that has all ready it takes 90, and then 100 whatever the method.
        assert_eq!(round(1, [(2.0, 102.0, 100.0), (5.0, 95.0, 100.0)]), [12.0, 5.0]);
        // That a machine was disturbed later is no head start.
        assert_eq!(round(2, [(2.0, 110.0, 100.0), (5.0, 107.0, 150.0)]), [10.0, 5.0]);
    }

    #[test]
    fn machines_are_averaged_and_what_nobody_tells_is_left_out() {
        let (cache, input) = (PageCache::Cold, Input::New);
        let settings = &Settings::default();
        let at = Conditions { function: "f", cache, input, machines: 2, settings };
        let mut recorder = Recorder::default();
        let of = series(&at, "reap");
        of.record(&[taken(1), taken(3)], &mut recorder).unwrap();
        let first = series(&at, "lazy");
        first.record(&[taken(4)], &mut recorder).unwrap();
        overheads(&[first, of.clone()], 0, &mut recorder).unwrap();
        let value = |name: Name| recorder.value(&of.series(name), 0);
        assert_eq!(value(OVERHEAD), Some(16.0));
        assert_eq!(value(OVERHEAD_COMPARED), Some(0.5));
        assert_eq!(
            (value(RESUMED), value(ANSWERED), value(WARM)),
            (Some(2.0), Some(20.0), Some(4.0))
        );
        assert_eq!(value(FAULTS), Some(30.0));
        assert_eq!(value(Name("faults: cold write", Unit::Count)), Some(8.0));
        assert_eq!(value(Name("faults: cold read", Unit::Count)), None);
        assert_eq!(value(Name("read by the monitor: local", Unit::Kib)), Some(4.0));
        // 40 KiB shared and two private pages, of two machines.
        assert_eq!(value(SHAREABLE), Some(96.0));
        assert_eq!(value(Name("exits", Unit::Count)), None);
        assert!(of.record(&[], &mut recorder).is_err());
    }
}
