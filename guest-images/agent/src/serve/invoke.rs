//! `invoke`: sample functions, each in a Python process that is started at its first use and kept
//! warm. What the functions do is in guest-images/functions.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::PollFlags;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use varve_agent::protocol::{Invoke, InvokeReply};

use super::poll;

const DEFAULT_TIMEOUT_S: f64 = 600.0;
/// The longest line that a worker may answer, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// All workers, by function. Invocations of one function take turns.
#[derive(Debug)]
pub struct Workers {
    folder: PathBuf,
    workers: Mutex<HashMap<String, Arc<Mutex<Option<Worker>>>>>,
}

/// A worker's first line.
#[derive(Deserialize)]
struct Started {
    ready: bool,
    #[serde(default)]
    error: String,
}

/// A worker's line after each request.
#[derive(Deserialize)]
struct Answer {
    ok: bool,
    #[serde(default)]
    error: String,
    #[serde(default)]
    checksum: String,
    #[serde(default)]
    micros: u64,
    #[serde(default)]
    facts: serde_json::Value,
}

impl Workers {
    /// No workers yet; their program is `worker.py` in `folder`.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, workers: Mutex::default() }
    }

    /// Runs a function, starting its worker if there is none.
    pub fn invoke(&self, request: &Invoke) -> Result<InvokeReply> {
        let name = &request.function;
        if name.is_empty()
            || name.len() > 32
            || !name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
        {
            bail!("{name:?} is no function's name");
        }
        let deadline = poll::deadline(request.timeout_s.unwrap_or(DEFAULT_TIMEOUT_S))?;
        let place = {
            let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
            workers.entry(name.clone()).or_default().clone()
        };
        let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
        let started = Instant::now();
        // Taken out of its place, so that a worker which fails in any way is not used again.
        let (mut worker, start_micros) = match place.take() {
            Some(worker) => (worker, None),
            None => (Worker::start(&self.folder, name, deadline)?, Some(micros(started))),
        };
        let asked = Instant::now();
        let answer =
            worker.ask(request, deadline).with_context(|| format!("the worker of {name}"))?;
        let micros = micros(asked);
        *place = Some(worker);
        if !answer.ok {
            bail!("{name}: {}", answer.error);
        }
        Ok(InvokeReply {
            function: name.clone(),
            seed: request.seed,
            checksum: answer.checksum,
            micros,
            function_micros: answer.micros,
            start_micros,
            facts: answer.facts,
        })
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// A Python process that serves one function.
#[derive(Debug)]
struct Worker {
    child: Child,
    requests: ChildStdin,
    answers: ChildStdout,
    /// What came after the last whole line.
    rest: Vec<u8>,
}

impl Worker {
    fn start(folder: &Path, name: &str, deadline: Instant) -> Result<Self> {
        let program = folder.join("worker.py");
        if !program.exists() {
            bail!("there is no {}: boot the function image to invoke functions", program.display());
        }
        let mut child = Command::new("python3")
            .arg(&program)
            .arg(name)
            // The order of a set must not depend on chance.
            .env("PYTHONHASHSEED", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start python3")?;
        let (requests, answers) = match (child.stdin.take(), child.stdout.take()) {
            (Some(requests), Some(answers)) => (requests, answers),
            _ => bail!("the worker of {name} has no pipes"),
        };
        let mut worker = Self { child, requests, answers, rest: Vec::new() };
        let started: Started = worker
            .answer(deadline)
            .with_context(|| format!("the worker of {name} did not start"))?;
        if started.ready { Ok(worker) } else { Err(anyhow!("{name}: {}", started.error)) }
    }

    fn ask(&mut self, request: &Invoke, deadline: Instant) -> Result<Answer> {
        let mut line =
            serde_json::to_vec(&serde_json::json!({"seed": request.seed, "args": request.args}))?;
        line.push(b'\n');
        self.requests.write_all(&line)?;
        self.answer(deadline)
    }

    /// Reads one line, in time.
    fn answer<T: DeserializeOwned>(&mut self, deadline: Instant) -> Result<T> {
        let mut buffer = [0; 8192];
        loop {
            if let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return serde_json::from_slice(&line).context("its answer is malformed");
            }
            if self.rest.len() > MAX_ANSWER {
                bail!("its answer is longer than {MAX_ANSWER} bytes");
            }
            if poll::ready([Some((self.answers.as_fd(), PollFlags::IN))], deadline)?.is_none() {
                bail!("its time was up, and it was killed");
            }
            match self.answers.read(&mut buffer)? {
                0 => bail!("it ended: {}", self.child.wait()?),
                count => self.rest.extend_from_slice(&buffer[..count]),
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
