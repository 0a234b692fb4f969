//! `boot`: from process start to the guest's kernel, to its init, and to its agent.

use anyhow::{Context, Result};
use varve_tests::Vm;
use varve_tests::images::image;

use super::{Effort, wait_until_ready};
use crate::progress::Progress;
use crate::recorder::{Recorder, Series};
use crate::report::Unit;

/// A way to boot.
struct Case {
    kernel: &'static str,
    protocol: &'static str,
    guest: &'static str,
    memory: &'static str,
}

const CASES: [Case; 4] = [
    Case { kernel: "vmlinux", protocol: "pvh", guest: "initramfs", memory: "128M" },
    Case { kernel: "vmlinux", protocol: "linux", guest: "initramfs", memory: "128M" },
    Case { kernel: "bzImage", protocol: "linux", guest: "initramfs", memory: "128M" },
    Case { kernel: "vmlinux", protocol: "pvh", guest: "functions", memory: "512M" },
];

/// Milliseconds from the start of the monitor's process.
#[derive(Debug, PartialEq)]
struct Times {
    kernel: f64,
    init: f64,
    agent: f64,
}

pub fn run(effort: Effort, recorder: &mut Recorder) -> Result<()> {
    let mut progress = Progress::new("boot", CASES.len() * (effort.runs + 1));
    // Round by round, so that whatever slows the host down meets every case. The first round only
    // brings files into the page cache.
    for round in 0..=effort.runs {
        for case in &CASES {
            progress.step(&format!("{} by {}, {}", case.kernel, case.protocol, case.guest));
            let times = case.boot().with_context(|| {
                format!("booting {} by {}, {}", case.kernel, case.protocol, case.guest)
            })?;
            if round > 0 {
                case.record(&times, recorder)?;
            }
        }
    }
    Ok(())
}

impl Case {
    fn boot(&self) -> Result<Times> {
        let mut builder = Vm::builder()
            .kernel(image(self.kernel))
            .initrd(Some(image("initramfs.cpio")))
            .option("--boot-protocol", self.protocol)
            .option("--memory", self.memory)
            .arg("--boot-timer");
        if self.guest == "functions" {
            builder =
                builder.option("--rootfs", format!("{}:ro", image("functions.ext4").display()));
        }
        let mut vm = builder.start();
        wait_until_ready(&mut vm)?;
        times(&vm.stderr(), &vm.console())
    }

    fn record(&self, times: &Times, recorder: &mut Recorder) -> Result<()> {
        let labels = [
            ("kernel", self.kernel),
            ("protocol", self.protocol),
            ("guest", self.guest),
            ("memory", self.memory),
        ];
        let series = |name| Series::new("boot", name, Unit::Millis).with(&labels);
        recorder.add(&series("to kernel"), times.kernel)?;
        recorder.add(&series("to init"), times.init)?;
        recorder.add(&series("to agent"), times.agent)
    }
}

/// Reads the monitor's boot timer, and on the console how old the kernel was when init ran.
fn times(messages: &str, console: &str) -> Result<Times> {
    let after = |text: &str, start: &str| -> Result<f64> {
        let line = text.lines().find_map(|line| line.trim_end().strip_prefix(start));
        let line = line.with_context(|| format!("no line {start:?} in {text:?}"))?;
        line.trim_end_matches(" ms").parse().with_context(|| format!("no number: {line:?}"))
    };
    let init = after(messages, "varve: boot timer: init reached after ")?;
    let agent = after(messages, "varve: boot timer: agent ready after ")?;
    let age = after(console, "varve-init: up ")? * 1e3;
    Ok(Times { kernel: init - age, init, agent })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGES: &str = "varve: warn: x\nvarve: boot timer: init reached after 250.500 ms\n\
                            varve: boot timer: agent ready after 300.000 ms\n";

    #[test]
    fn the_kernels_start_is_init_less_its_age() {
        let found =
            times(MESSAGES, "noise\r\nvarve-init: up 0.200500\r\nvarve-agent: ready 0.3\r\n");
        assert_eq!(found.unwrap(), Times { kernel: 50.0, init: 250.5, agent: 300.0 });
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = |messages, console| format!("{:#}", times(messages, console).unwrap_err());
        assert!(error("", "").contains("init reached"));
        assert!(error(MESSAGES, "").contains("varve-init: up"));
        assert!(error(MESSAGES, "varve-init: up soon\n").contains("soon"));
    }
}
