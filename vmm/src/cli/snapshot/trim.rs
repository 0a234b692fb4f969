//! Getting a guest's free pages back before a snapshot, so that they are zero in it: what a function
//! allocates next is then a zero page, not a stale one that must be restored to be overwritten.

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::client::{self, ClientError};

/// How long a guest may take for each step.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two looks at how far it is.
const POLL: Duration = Duration::from_millis(5);
/// `host_cmd` of a round of hints that is over (virtio 1.2, 5.5.6.5: VIRTIO_BALLOON_CMD_ID_DONE).
const DONE: u64 = 1;
/// Free memory that the guest keeps while its balloon is full.
const SPARE_MIB: u64 = 8;

/// One round of free page hinting for large free blocks, then the balloon filled and emptied for
/// single pages; whichever the machine's balloon can do, but at least one.
pub fn trim(socket: &Path) -> Result<(), Box<dyn Error>> {
    let hinted = hint(socket);
    let squeezed = squeeze(socket);
    match (hinted, squeezed) {
        (Err(Step::Impossible(why)), Err(Step::Impossible(_))) => {
            Err(format!("--trim: {why}").into())
        }
        (Err(Step::Failed(e)), _) | (_, Err(Step::Failed(e))) => Err(format!("--trim: {e}").into()),
        _ => Ok(()),
    }
}

/// Why a step was not done.
enum Step {
    /// The machine's balloon cannot.
    Impossible(ClientError),
    /// It could, but did not.
    Failed(Box<dyn Error>),
}

impl From<ClientError> for Step {
    fn from(error: ClientError) -> Step {
        Step::Failed(error.into())
    }
}

fn hint(socket: &Path) -> Result<(), Step> {
    let start = json!({ "acknowledge_on_stop": true });
    client::request(socket, "PATCH", "/balloon/hinting/start", &start).map_err(Step::Impossible)?;
    let done = wait(|| {
        let status = client::request(socket, "GET", "/balloon/hinting/status", &Value::Null)?;
        Ok(status["host_cmd"].as_u64() == Some(DONE))
    })?;
    if !done {
        client::request(socket, "PATCH", "/balloon/hinting/stop", &Value::Null)?;
        return Err(Step::Failed("the guest does not finish naming its free pages".into()));
    }
    Ok(())
}

/// The balloon takes what is free, page by page, and gives it back: zero.
fn squeeze(socket: &Path) -> Result<(), Step> {
    let stats = || client::request(socket, "GET", "/balloon/statistics", &Value::Null);
    let before = stats().map_err(Step::Impossible)?;
    let mut free = before["free_memory"].as_u64();
    wait(|| {
        free = stats()?["free_memory"].as_u64();
        Ok(free.is_some())
    })?;
    let mib = (free.unwrap_or(0) >> 20).saturating_sub(SPARE_MIB);
    let resize = |amount_mib: u64| {
        let body = json!({ "amount_mib": amount_mib });
        client::request(socket, "PATCH", "/balloon", &body)
    };
    let target = before["target_mib"].as_u64().unwrap_or(0);
    resize(target + mib)?;
    // A guest that has used its memory meanwhile gives less: what it gave is enough.
    let mut last = (None, Instant::now());
    wait(|| {
        let actual = stats()?["actual_mib"].as_u64();
        if actual != last.0 {
            last = (actual, Instant::now());
        }
        Ok(actual >= Some(target + mib) || last.1.elapsed() > Duration::from_secs(2))
    })?;
    resize(target)?;
    let deflated = wait(|| Ok(stats()?["actual_mib"].as_u64() <= Some(target)))?;
    match deflated {
        true => Ok(()),
        false => Err(Step::Failed("the guest does not take its memory back".into())),
    }
}

/// Asks until the answer is yes; false if that takes too long.
fn wait(mut done: impl FnMut() -> Result<bool, ClientError>) -> Result<bool, ClientError> {
    let deadline = Instant::now() + PATIENCE;
    while !done()? {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(POLL);
    }
    Ok(true)
}
