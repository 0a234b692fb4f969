//! One run of a command in the lab, from the options to the exit code.

use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cli::RunOptions;
use crate::job::Job;
use crate::machine::Net;
use crate::place::Place;
use crate::ports::{self, inherit};
use crate::qemu::{self, Wiring};
use crate::session::{End, Limits, Session};
use crate::setup::prepared;
use crate::snapshot::Snapshot;

/// The exit code when the time limit passed, as of timeout(1).
pub const TIME_LIMIT: u8 = 124;
/// The exit code when the lab itself failed.
pub const LAB_FAILED: u8 = 125;

/// With counted instructions everything takes longer by about this factor.
const ICOUNT_FACTOR: u32 = 4;
/// How long a lab waits for the one that it is to be joined with.
const PEER: Duration = Duration::from_secs(120);

/// Runs the command of `options` in the lab and returns the exit code to end with.
pub fn run(options: RunOptions) -> Result<u8> {
    let RunOptions { mut machine, timeout, hang_after, stdin, no_snapshot, verbose, command } =
        options;
    machine.check()?;
    let factor = if machine.icount { ICOUNT_FACTOR } else { 1 };
    let limits = Limits {
        run: Duration::try_from_secs_f64(timeout).context("--timeout")?,
        boot: Duration::from_secs(120) * factor,
        silence: Duration::try_from_secs_f64(hang_after).context("--hang-after")? * factor,
    };
    let place = Place::find()?;
    let lab = prepared(&place, machine.kernel.as_deref())?;
    let program = qemu::program(&machine, &place)?;
    if machine.is_delicate() && program.is_relative() {
        say("the installed QEMU delivers interrupts twice in such a lab, and guests hang now and \
             then; `tests/lab/qemu/build` makes one that does not (docs/lab.md)");
    }
    let job = Job::here(command, stdin)?.message(&machine, &lab.modules)?;
    let snapshot = Snapshot::of(&machine, &lab.boot, &program, &place.snapshots());
    let attempt = |saved: bool| -> Result<End> {
        let (ends, inherited) = ports::connect()?;
        let peer = machine.net.map(cable).transpose()?;
        let (cable, _peer) = peer.unwrap_or_default();
        let shares = machine.rw.clone();
        let wiring =
            Wiring { console: inherited.console(), ports: inherited.ports(), shares, cable };
        let mut arguments = qemu::arguments(&machine, &lab.boot, &wiring);
        // Open until QEMU has inherited it.
        let file = saved.then(|| snapshot.open(limits.boot, &say)).transpose()?;
        if let Some(file) = &file {
            inherit(file)?;
            arguments.extend(["-incoming".to_owned(), format!("fd:{}", file.as_raw_fd())]);
        }
        let session =
            Session::new(qemu::start(&program, &arguments, inherited.stderr()?)?, verbose);
        drop(inherited);
        session.attend(ends, &job, stdin, limits)
    };
    let mut end = attempt(!no_snapshot)?;
    if !no_snapshot && matches!(end, End::Failed { lived: false, .. }) {
        // A saved lab may be damaged, or of a QEMU that is no longer there.
        say("the saved lab does not start: removed, booting anew");
        snapshot.remove();
        end = attempt(false)?;
    }
    Ok(match end {
        End::Exit(code) => code,
        End::TimeLimit => {
            say(&format!("the time limit of {timeout} s passed"));
            TIME_LIMIT
        }
        End::Failed { reason, .. } => {
            say(&reason);
            LAB_FAILED
        }
    })
}

/// Tells something on standard error.
pub fn say(text: &str) {
    eprintln!("varve-lab: {text}");
}

/// This lab's end of the cable to another, and the connection that QEMU is to inherit.
fn cable(net: Net) -> Result<(String, Option<TcpStream>)> {
    let address = format!("127.0.0.1:{}", net.port);
    if net.listens {
        return Ok((format!("socket,id=net,listen={address}"), None));
    }
    // QEMU would not wait for the other to be there.
    let end = Instant::now() + PEER;
    let stream = loop {
        match TcpStream::connect(&address) {
            Ok(stream) => break stream,
            Err(error) if Instant::now() > end => {
                bail!("no lab listens at {address} (--net connect={}): {error}", net.port)
            }
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    };
    inherit(&stream)?;
    Ok((format!("socket,id=net,fd={}", stream.as_raw_fd()), Some(stream)))
}
