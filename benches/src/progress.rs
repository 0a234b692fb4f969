//! One line that says how far it is, on a terminal; nothing elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Progress of one part.
pub struct Progress {
    part: &'static str,
    steps: usize,
    done: usize,
    start: Instant,
    shown: bool,
}

impl Progress {
    /// Of `steps` steps, none of them done.
    pub fn new(part: &'static str, steps: usize) -> Progress {
        let shown = std::io::stderr().is_terminal();
        Progress { part, steps, done: 0, start: Instant::now(), shown }
    }

    /// The next step begins.
    pub fn step(&mut self, what: &str) {
        if self.shown {
            let left = remaining(self.start.elapsed(), self.done, self.steps)
                .map(|left| format!(", about {} s left", left.as_secs()))
                .unwrap_or_default();
            let (part, steps, number) = (self.part, self.steps, self.done + 1);
            // Back to the line's beginning, and away with what stood there.
            eprint!("\r\x1b[K{part} {number}/{steps}: {what}{left}");
            let _ = std::io::stderr().flush();
        }
        self.done += 1;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}

/// The time that what is left will take, if it goes on as before; unknown before the first is done.
fn remaining(elapsed: Duration, done: usize, steps: usize) -> Option<Duration> {
    let left = u32::try_from(steps.saturating_sub(done)).ok()?;
    elapsed.checked_div(u32::try_from(done).ok()?).map(|each| each * left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_goes_on_as_before() {
        let seconds = Duration::from_secs;
        assert_eq!(remaining(seconds(6), 3, 5), Some(seconds(4)));
        assert_eq!(remaining(seconds(6), 0, 5), None);
        assert_eq!(remaining(seconds(6), 6, 5), Some(seconds(0)));
    }
}
