//! Snapshots of functions: booted, warmed up, saved, recorded, tiered. What is prepared stays in its
//! folder and is found there again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use varve_snapshot::{ManifestReader, PAGE_SIZE, PageClass, RegionMap, layout};
use varve_tests::images::{image, root};

use crate::demo::command::{json, output, words};
use crate::demo::said::{Restored, Tiered};
use crate::report::{Profile, save};

/// Guest parameters: README's, and a quiet console. `init_on_free=1` has the guest zero freed memory, which
/// snapshots then leave out.
pub const CMDLINE: &str = "console=ttyS0 reboot=k panic=-1 quiet init_on_free=1";
/// What is written last into a folder.
const DONE: &str = "prepared.json";
/// Cells of a memory map.
const MAP_CELLS: u64 = 4096;

/// A snapshot to be made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// The function.
    pub function: String,
    /// Guest memory, such as `256M`.
    pub memory: String,
    /// Inputs that warm it up.
    pub warm: Vec<u64>,
    /// Inputs that it is tiered by.
    pub tiered_by: Vec<u64>,
    /// Inputs that are recorded too, and that it is not tiered by.
    pub recorded: Vec<u64>,
}

/// A snapshot that has been made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Prepared {
    recipe: Recipe,
    /// Checksums of the answers, by input.
    answers: BTreeMap<u64, String>,
    #[serde(skip)]
    folder: PathBuf,
}

impl Recipe {
    /// The least: one input to warm up, one to tier by.
    pub fn least(function: &str, memory: &str) -> Recipe {
        Recipe {
            function: function.into(),
            memory: memory.into(),
            warm: vec![1],
            tiered_by: vec![2],
            recorded: Vec::new(),
        }
    }

    /// Makes it in `folder`, or finds it there. `step` is told what begins.
    ///
    /// # Errors
    ///
    /// If a step fails, or the folder holds what another recipe made.
    pub fn make(&self, folder: &Path, mut step: impl FnMut(&str)) -> Result<Prepared> {
        if folder.join(DONE).exists() {
            let found = Prepared::open(folder)?;
            ensure!(
                found.recipe == *self,
                "{} holds another snapshot ({:?}); remove it, or name another folder",
                folder.display(),
                found.recipe
            );
            return Ok(found);
        }
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut made =
            Prepared { recipe: self.clone(), answers: BTreeMap::new(), folder: folder.into() };
        let snapshot = made.snapshot();
        step("boot");
        self.boot(&snapshot).with_context(|| format!("a guest of {}", self.memory))?;
        for &seed in self.tiered_by.iter().chain(&self.recorded) {
            step(&format!("record input {seed}"));
            let (run, _) = record(&snapshot, &made.trace(seed), &self.function, seed)?;
            let answer = run.invocations.first().context("a recording without an answer")?;
            made.answers.insert(seed, answer.checksum.clone());
        }
        step("tier");
        let traces: Vec<_> = self.tiered_by.iter().map(|&seed| made.trace(seed)).collect();
        tier(&snapshot, &traces)?;
        save(&folder.join(DONE), &serde_json::to_string_pretty(&made)?)?;
        Ok(made)
    }

    /// Boots, warms up, saves.
    fn boot(&self, snapshot: &Path) -> Result<()> {
        let sockets = tempfile::Builder::new().prefix("varve-bench").tempdir()?;
        let rootfs = format!("{}:ro", image("functions.ext4").display());
        let vsock = format!("cid=3,uds={}", sockets.path().join("v.sock").display());
        let (kernel, initrd) = (image("vmlinux"), image("initramfs.cpio"));
        let calls: Vec<_> = self.warm.iter().map(|n| format!("{} {n}", self.function)).collect();
        let mut words = words![
            "run",
            "--kernel",
            &kernel,
            "--initrd",
            &initrd,
            "--rootfs",
            &rootfs,
            "--memory",
            &self.memory,
            "--vsock",
            &vsock,
            "--console",
            "off",
            "--cmdline",
            CMDLINE,
            "--snapshot-on-ready",
            snapshot
        ]
        .to_vec();
        for call in &calls {
            words.extend(words!["--invoke", call]);
        }
        output(words).map(|_| ())
    }
}

impl Prepared {
    /// What was prepared in `folder`.
    ///
    /// # Errors
    ///
    /// If nothing was, or not to the end.
    pub fn open(folder: &Path) -> Result<Prepared> {
        let path = folder.join(DONE);
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let found: Prepared = serde_json::from_slice(&text)
            .with_context(|| format!("{} is not what this program writes", path.display()))?;
        Ok(Prepared { folder: folder.into(), ..found })
    }

    /// Folder of the tiered snapshot.
    pub fn snapshot(&self) -> PathBuf {
        self.folder.join("snapshot")
    }

    /// What was recorded of an input.
    pub fn trace(&self, seed: u64) -> PathBuf {
        self.folder.join(format!("trace-{seed}"))
    }

    /// The checksum of the answer to an input.
    ///
    /// # Errors
    ///
    /// If it was not recorded.
    pub fn answer(&self, seed: u64) -> Result<&str> {
        let found = self.answers.get(&seed).map(String::as_str);
        found.with_context(|| format!("input {seed} was not recorded"))
    }

    /// Its memory by class.
    ///
    /// # Errors
    ///
    /// If the snapshot cannot be read.
    pub fn profile(&self) -> Result<Profile> {
        let manifest = ManifestReader::open(&self.snapshot())?;
        let map = manifest.layout(layout::TIERED)?;
        let reports = varve_snapshot::class_reports(manifest.memory(), &map);
        let pages = reports.iter().map(|class| class.pages).sum::<u64>();
        let mut drawn = String::new();
        let cell = pages.div_ceil(MAP_CELLS).max(1) * PAGE_SIZE;
        for range in manifest.memory() {
            let starts = (range.start()..range.end()).step_by(cell as usize);
            drawn.extend(starts.map(|at| letter(&map, at, (at + cell).min(range.end()))));
        }
        Ok(Profile {
            function: self.recipe.function.clone(),
            pages,
            classes: reports.into_iter().map(|class| (class.class, class.pages)).collect(),
            map: drawn,
        })
    }
}

/// What a cell of the map shows: the class that matters most to a restore.
fn letter(map: &RegionMap, start: u64, end: u64) -> char {
    let regions = map.regions();
    let first = regions.partition_point(|region| region.pages.end() <= start);
    let inside = regions[first..].iter().take_while(|region| region.pages.start() < end);
    let weight = |class| match class {
        PageClass::Zero => (0, '.'),
        PageClass::Cold => (1, 'c'),
        PageClass::ReadOnly => (2, 'r'),
        PageClass::ReadWrite => (3, 'w'),
    };
    inside.map(|region| weight(region.class)).max().map_or('.', |(_, letter)| letter)
}

/// Records one input in a machine of its own; what that machine said, and milliseconds.
///
/// # Errors
///
/// If it cannot be recorded.
pub fn record(snapshot: &Path, trace: &Path, function: &str, seed: u64) -> Result<(Restored, f64)> {
    let sockets = tempfile::Builder::new().prefix("varve-bench").tempdir()?;
    let vsock = sockets.path().join("v.sock");
    let call = format!("{function} {seed}");
    json(words![
        "snapshot", "record", snapshot, "--trace", trace, "--vsock", &vsock, "--invoke", &call,
        "--json"
    ])
}

/// Tiers a snapshot by traces; what came of it, and milliseconds.
///
/// # Errors
///
/// If it cannot be tiered.
pub fn tier(snapshot: &Path, traces: &[PathBuf]) -> Result<(Tiered, f64)> {
    let mut words = words!["snapshot", "tier", snapshot, "--json"].to_vec();
    for trace in traces {
        words.extend(words!["--trace", trace]);
    }
    json(words)
}

/// The functions of the function image.
///
/// # Errors
///
/// If images have not been made.
pub fn functions() -> Result<Vec<String>> {
    let path = root().join("target/guest/manifest.json");
    let read = || -> Result<Vec<String>> {
        let manifest: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
        let checksums = manifest["functions"]["facts"]["checksums"].as_object();
        Ok(checksums.context("it names no functions")?.keys().cloned().collect())
    };
    read().with_context(|| format!("{}: run 'make images'", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::synthetic::{Shape, make};

    #[test]
    fn what_is_prepared_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let recipe = Recipe::least("hello", "128M");
        let error = format!("{:#}", Prepared::open(dir.path()).unwrap_err());
        assert!(error.contains("prepared.json"), "{error}");
        let made = Prepared {
            recipe: recipe.clone(),
            answers: [(2, "abc".into())].into(),
            folder: dir.path().into(),
        };
        fs::write(dir.path().join(DONE), serde_json::to_string(&made).unwrap()).unwrap();
        let found = recipe.make(dir.path(), |step| panic!("{step}")).unwrap();
        assert_eq!(found.answer(2).unwrap(), "abc");
        assert!(found.answer(3).is_err());
        assert_eq!(found.trace(2), dir.path().join("trace-2"));
        let other = Recipe::least("json", "128M").make(dir.path(), |_| ()).unwrap_err();
        assert!(other.to_string().contains("another snapshot"), "{other}");
    }

    #[test]
    fn a_profile_shows_all_pages() {
        let dir = tempfile::tempdir().unwrap();
        let shape =
            Shape { size: 32, zero: 0.5, read: 0.1, written: 0.1, zero_written: 0.1, run: 4 };
        make(&shape, dir.path()).unwrap();
        let (recipe, answers) = (Recipe::least("f", "8M"), BTreeMap::new());
        let made = Prepared { recipe, answers, folder: dir.path().into() };
        let profile = made.profile().unwrap();
        assert_eq!((profile.pages, profile.map.len()), (8192, 4096));
        assert_eq!(profile.classes.values().sum::<u64>(), 8192);
        // Two pages a cell: at least half as many cells as pages.
        for (letter, class) in [('r', "ro"), ('w', "rw"), ('c', "cold"), ('.', "zero")] {
            let cells = profile.map.matches(letter).count() as u64;
            assert!(cells > profile.classes[class] / 4, "{letter} {cells} {:?}", profile.classes);
        }
    }
}
