//! What the comparison is to show, what was found, and whether that is enough. Reported, never
//! asserted.

use super::data::{Condition, Part, geometric, middle};
use crate::compare::{record, shapes};
use crate::replay;
use crate::report::{Clock, Host, Report};
use crate::table::digits;

/// Which of them is better stands for both.
const OURS: [&str; 2] = ["tiered", "template"];
const LAZY: &str = "lazy";

/// One of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Goal {
    /// Machines or replay, and where.
    pub from: String,
    /// What is to be shown.
    pub what: String,
    /// How much of it.
    pub target: String,
    /// What was found.
    pub found: String,
    /// Whether that is enough; none if there is no target.
    pub met: Option<bool>,
}

/// What medians of the same thing differ by.
const NOISE: f64 = 0.1;

/// Collects goals of one part.
struct Goals<'a> {
    part: Part<'a>,
    from: String,
    all: Vec<Goal>,
}

/// Heading and rows.
pub fn table(goals: &[Goal]) -> Vec<Vec<String>> {
    let heading = ["what", "from", "target", "found", "met"].map(String::from).to_vec();
    let row = |goal: &Goal| {
        let met = match goal.met {
            Some(true) => "met",
            Some(false) => "missed",
            None => "",
        };
        vec![
            goal.what.clone(),
            goal.from.clone(),
            goal.target.clone(),
            goal.found.clone(),
            met.into(),
        ]
    };
    [heading].into_iter().chain(goals.iter().map(row)).collect()
}

/// All that the reports can tell of.
pub fn goals(reports: &[Report]) -> Vec<Goal> {
    let mut all = Vec::new();
    for report in reports {
        for (name, shown) in
            [(record::PART, "machines"), ("replay", "replay"), (shapes::BY_SIZE, "replay")]
        {
            let part = Part { report, name };
            let mut goals = Goals { part, from: from(part, shown), all: Vec::new() };
            match name {
                shapes::BY_SIZE => goals.by_size(),
                _ => goals.overheads(),
            }
            if name == record::PART {
                goals.machines();
            }
            if name == "replay" {
                goals.part.name = shapes::BY_LATENCY;
                goals.latency();
            }
            all.append(&mut goals.all);
        }
    }
    all
}

/// `machines, lab`.
fn from(part: Part, shown: &str) -> String {
    let machine = &part.report.machine;
    let host = match machine.host {
        Host::Native => "native",
        Host::Lab => "lab",
    };
    let clock = if machine.clock == Clock::Virtual { ", virtual time" } else { "" };
    let value = |label| part.values(label).into_iter().next();
    let store = value("store").map_or_else(String::new, |store| format!(", images in {store}"));
    let wait = value("wait").map_or_else(String::new, |wait| format!(", waits for {wait}"));
    format!("{shown}, {host}{clock}{store}{wait}")
}

impl Goals<'_> {
    fn add(&mut self, what: String, target: &str, found: String, met: Option<bool>) {
        let from = self.from.clone();
        self.all.push(Goal { from, what, target: target.into(), found, met });
    }

    fn at_most(&mut self, what: String, target: f64, unit: &str, who: &str, found: Option<f64>) {
        if let Some(found) = found {
            let text = format!("{}{unit} ({who})", digits(found));
            let target_text = format!("at most {target}{unit}");
            self.add(what, &target_text, text, Some(found <= target));
        }
    }

    /// The condition that goals are about.
    fn condition(&self, cache: &str, input: &str, machines: &str) -> Option<Condition> {
        let mut labels = vec![("page cache", cache), ("input", input)];
        if self.part.name == record::PART {
            labels.push(("machines", machines));
        }
        self.part.conditions_with(&labels).into_iter().next()
    }

    /// Ours with the least of `name` as a multiple of `base`'s.
    fn best(&self, name: &str, base: &str, at: &Condition) -> Option<(&'static str, f64)> {
        let ratio = |who| Some((who, self.part.ratio(name, who, base, at)?));
        OURS.into_iter().filter_map(ratio).min_by(|a, b| a.1.total_cmp(&b.1))
    }

    fn overheads(&mut self) {
        let name = replay::OVERHEAD;
        for (cache, target) in [("cold", 0.25), ("warm", 0.5)] {
            let Some(at) = self.condition(cache, "new", "1") else { continue };
            let what =
                |base: &str| format!("overhead, {cache} page cache, as a multiple of {base}");
            for (base, target) in [(LAZY, target), ("reap", 0.6)] {
                if let Some((who, found)) = self.best(name, base, &at) {
                    self.at_most(what(base), target, "x", who, Some(found));
                }
            }
            self.every_function(cache, &at);
        }
    }

    /// Better than the literature's methods, function by function.
    fn every_function(&mut self, cache: &str, at: &Condition) {
        let Some((who, _)) = self.best(replay::OVERHEAD, LAZY, at) else { return };
        let (mut all, mut worse) = (0, Vec::new());
        for function in self.part.values("function") {
            let of = |s: &str| self.part.median(replay::OVERHEAD, &function, s, at);
            let Some(own) = of(who) else { continue };
            let others = ["reap", "faasnap"].into_iter().filter_map(of);
            let Some(least) = others.min_by(f64::total_cmp) else { continue };
            all += 1;
            if own >= least {
                worse.push(function);
            }
        }
        if all > 0 {
            let mut found = format!("{} of {all} ({who})", all - worse.len());
            if !worse.is_empty() {
                found.push_str(&format!(", not: {}", worse.join(" ")));
            }
            let what = format!("less overhead than reap and faasnap, {cache} page cache");
            self.add(what, "every function", found, Some(worse.is_empty()));
        }
    }

    fn machines(&mut self) {
        let functions = self.part.values("function");
        for cache in ["cold", "warm"] {
            let Some(at) = self.condition(cache, "new", "1") else { continue };
            let ratio = |function: &String, who: &str| {
                let of = |name: record::Name| self.part.median(name.0, function, who, &at);
                Some(of(record::ANSWERED)? / (of(record::WARM)? + of(record::RESUMED)?))
            };
            let of = |who| Some((who, middle(functions.iter().filter_map(|f| ratio(f, who)))?));
            let best = OURS.into_iter().filter_map(of).min_by(|a, b| a.1.total_cmp(&b.1));
            let sooner = self.best(record::ANSWERED.0, LAZY, &at).filter(|_| cache == "cold");
            if let (Some((who, sooner)), Some((_, most))) = (sooner, of(LAZY)) {
                let (mut found, what) = (
                    format!("{}x ({who})", digits(1.0 / sooner)),
                    "first answer sooner than lazy's, cold page cache on this disk",
                );
                let enough = 1.0 / sooner >= 3.0;
                // Nobody can be sooner than a function that computes on a machine that is there at once.
                let possible = enough || most >= 3.0;
                if !possible {
                    found.push_str("; no method could: the disk is not slow");
                }
                let met = possible.then_some(enough);
                self.add(what.into(), "at least 3x", found, met);
            }
            if let Some((who, found)) = best {
                let what =
                    format!("first answer to warm answer plus bare restore, {cache} page cache");
                self.at_most(what, 1.15, "x", who, Some(found));
            }
        }
        for cache in ["warm", "cold"] {
            let Some(at) = self.condition(cache, "recorded", "1") else { continue };
            let found = self.best(record::FAULTS.0, LAZY, &at);
            if let Some((who, found)) = found {
                let what = format!("faults of a recorded call, {cache} page cache, of lazy's");
                self.at_most(what, 3.0, " %", who, Some(found * 100.0));
            }
        }
        self.laying();
        self.shared();
        self.others();
    }

    /// What of the overhead grows with the number of extents.
    fn laying(&mut self) {
        let Some(at) = self.condition("warm", "new", "1") else { return };
        for who in OURS {
            let share = |function: String| {
                let of = |name: record::Name| self.part.median(name.0, &function, who, &at);
                Some((of(record::PLANNED)? + of(record::LAID)?) / of(record::OVERHEAD)? * 100.0)
            };
            let shares = self.part.values("function").into_iter().filter_map(share);
            let what = "metadata, plan and mappings, of the overhead, warm page cache".into();
            self.at_most(what, 10.0, " %", who, middle(shares));
        }
    }

    /// Memory that is not written, of eight machines and of one.
    fn shared(&mut self) {
        let Some(one) = self.condition("warm", "new", "1") else { return };
        let Some(eight) = self.condition("warm", "new", "8") else { return };
        for who in OURS {
            let ratio = |function: String| {
                let of = |at| self.part.median(record::SHAREABLE.0, &function, who, at);
                Some(of(&eight)? / of(&one)?)
            };
            let ratios = self.part.values("function").into_iter().filter_map(ratio);
            let found = ratios.max_by(f64::total_cmp);
            let what = "memory not written, eight machines to one, most of any function".into();
            self.at_most(what, 2.0, "x", who, found);
        }
    }

    /// Another monitor beside `lazy`, which does the same.
    fn others(&mut self) {
        for at in self.part.conditions_with(&[("machines", "1")]) {
            for who in self.part.values("strategy") {
                if who.parse::<varve_memory_tiers::Strategy>().is_ok() {
                    continue;
                }
                if let Some(found) = self.part.ratio(record::OVERHEAD.0, LAZY, &who, &at) {
                    let condition = super::data::words(&at);
                    let what = format!("overhead of lazy as a multiple of {who}'s, {condition}");
                    self.add(what, "", format!("{}x", digits(found)), None);
                }
            }
        }
    }

    /// What grows with the guest, and what does not.
    fn by_size(&mut self) {
        const LABEL: &str = "guest size (MiB)";
        let mapped = |part: Part, size: &str, who: &str| {
            let at = part.conditions_with(&[(LABEL, size)]).into_iter().next()?;
            let of = |name| part.median(name, "", who, &at);
            Some((of("to mapped")?, of(replay::OVERHEAD)?))
        };
        let sizes = self.part.values(LABEL);
        for who in OURS {
            let share = mapped(self.part, "512", who).map(|(mapped, all)| mapped / all * 100.0);
            let what = "metadata, plan and mappings, of the overhead, guest of 512 MiB".into();
            self.at_most(what, 10.0, " %", who, share);
            if let [first, .., last] = &sizes[..] {
                let of = |size: &str| mapped(self.part, size, who).map(|(mapped, _)| mapped);
                if let (Some(small), Some(large)) = (of(first), of(last)) {
                    let what = format!("the same, {last} MiB to {first} MiB, as many hot pages");
                    let found = format!("{}x ({who})", digits(large / small));
                    self.add(what, "", found, None);
                }
            }
        }
    }

    /// Where copying becomes better than mapping, and whether the planner knows.
    fn latency(&mut self) {
        let latencies = self.part.values("latency (ns)");
        let (mut right, mut all) = (0, 0);
        let mut crossings = Vec::new();
        for function in self.part.values("function") {
            let of = |latency: &str, how: &str| {
                let labels = [("latency (ns)", latency), ("read-only pages", how)];
                let at = self.part.conditions_with(&labels).into_iter().next()?;
                self.part.median(replay::OVERHEAD, &function, "tiered", &at)
            };
            let mut crossing = None;
            for latency in &latencies {
                let (Some(mapped), Some(copied)) = (of(latency, "mapped"), of(latency, "copied"))
                else {
                    continue;
                };
                if copied < mapped && crossing.is_none() {
                    crossing = Some(latency.clone());
                }
                if let Some(auto) = of(latency, "auto") {
                    all += 1;
                    // Nearer to the better one than to the other; or no worse than the same again would be.
                    let (best, other) = (mapped.min(copied), mapped.max(copied));
                    let middle = geometric([best, other].into_iter()).unwrap_or(best);
                    right += usize::from(auto <= middle.max(best * (1.0 + NOISE)));
                }
            }
            if !latencies.is_empty() {
                let at = crossing.map_or_else(|| "none".into(), |ns| format!("{ns} ns"));
                crossings.push(format!("{function} {at}"));
            }
        }
        if all > 0 {
            let found = format!("{right} of {all}");
            self.add(
                "auto is nearer to the better of mapped and copied".into(),
                "every latency",
                found,
                Some(right == all),
            );
            let what = "least latency at which copying is better".into();
            self.add(what, "", crossings.join(", "), None);
        }
    }
}
