//! One run of `varve-bench`: what is measured goes into a report that is saved again and again, so that
//! what is done stays, whatever becomes of the rest.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::recorder::Recorder;
use crate::report::{Profile, Report, SCHEMA};
use crate::{environment, table};
use varve_tests::images::root;

/// The run.
#[derive(Debug)]
pub struct Session {
    /// Where values go.
    pub recorder: Recorder,
    report: Report,
    path: PathBuf,
}

impl Session {
    /// A new one; its report is saved at `path`, or by date and `name` in target/bench.
    ///
    /// # Errors
    ///
    /// If it cannot be told where this runs.
    pub fn begin(name: &str, path: Option<PathBuf>) -> Result<Session> {
        let report = Report {
            schema: SCHEMA,
            date: environment::date(),
            command: std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect(),
            revision: environment::revision(),
            monitor: environment::monitor()?,
            machine: environment::machine()?,
            notes: Vec::new(),
            figures: Vec::new(),
            distributions: Vec::new(),
            profiles: Vec::new(),
        };
        let path = path.unwrap_or_else(|| {
            let date = report.date.replace([':', '-'], "");
            root().join(format!("target/bench/{date}-{name}.json"))
        });
        Ok(Session { recorder: Recorder::default(), report, path })
    }

    /// Goes on with the report at `path`, which must have been made in the same place; begins it if it
    /// is not there yet, so that a command that is repeated until it is through can be the same each time.
    ///
    /// # Errors
    ///
    /// If it cannot be read, or was made elsewhere or with another monitor.
    pub fn resume(path: &Path) -> Result<Session> {
        let now = Session::begin("", Some(path.into()))?;
        if !path.exists() {
            return Ok(now);
        }
        Session::go_on(now, Report::load(path)?)
    }

    fn go_on(now: Session, old: Report) -> Result<Session> {
        let path = now.path.display();
        let (here, there) = (&now.report.machine, &old.machine);
        ensure!(here == there, "{path} was made on another machine: {there:?}, not {here:?}");
        let (here, there) = (&now.report.monitor, &old.monitor);
        ensure!(
            (&here.version, here.bytes) == (&there.version, there.bytes),
            "{path} was made with another monitor: {there:?}, not {here:?}"
        );
        let (mut report, path) = (old, now.path);
        let command = now.report.command.join(" ");
        report.notes.push(format!("went on {} by: {command}", now.report.date));
        Ok(Session { recorder: Recorder::resume(report.clone()), report, path })
    }

    /// Notes what a reader has to know, once.
    pub fn note(&mut self, note: &str) {
        if !self.report.notes.iter().any(|known| known == note) {
            self.report.notes.push(note.into());
        }
    }

    /// Adds what a function's memory looks like, once.
    pub fn add_profile(&mut self, profile: Profile) {
        self.report.profiles.retain(|known| known.function != profile.function);
        self.report.profiles.push(profile);
    }

    /// Saves what is measured so far.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn save(&mut self) -> Result<()> {
        self.report.figures = self.recorder.figures();
        self.report.distributions = self.recorder.distributions().to_vec();
        self.report.save(&self.path)
    }

    /// Saves it, and gives the report and where it is.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn end(mut self) -> Result<(Report, PathBuf)> {
        self.save()?;
        Ok((self.report, self.path))
    }

    /// Saves it, and shows a table.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn show(self) -> Result<()> {
        let (report, path) = self.end()?;
        print!("{}", table::render(&report));
        println!("\nsaved as {}", path.display());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::example;

    #[test]
    fn only_what_was_made_here_goes_on() {
        let now = || Session {
            recorder: Recorder::default(),
            report: Report { figures: Vec::new(), ..example() },
            path: "x.json".into(),
        };
        let session = Session::go_on(now(), example()).unwrap();
        assert_eq!(session.recorder.figures(), example().figures);
        assert!(session.report.notes[0].starts_with("went on"), "{:?}", session.report.notes);
        let mut other = example();
        other.machine.kernel = "5.0".into();
        let error = Session::go_on(now(), other).unwrap_err().to_string();
        assert!(error.contains("x.json") && error.contains("another machine"), "{error}");
        let mut other = example();
        other.monitor.bytes += 1;
        let error = Session::go_on(now(), other).unwrap_err().to_string();
        assert!(error.contains("another monitor"), "{error}");
    }
}
