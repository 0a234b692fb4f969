//! `PUT /snapshot/load`, and what `PUT /trace` asks of its recording.

use std::time::Instant;

use super::{ApiError, Monitor, Outcome, Response};
use crate::api::request::{LoadSnapshot, TraceRequest};
use crate::end::End;
use crate::error::chain;

/// Loads a snapshot. If that fails the process ends once the client has been told, as Firecracker's
/// does: whoever supervises it sees at once that it will not serve.
pub fn load(monitor: &mut Monitor, load: LoadSnapshot) -> Outcome {
    let started = Instant::now();
    if monitor.is_configured() {
        return Err(ApiError::LoadAfterConfiguration);
    }
    if load.deprecated {
        monitor.metrics().deprecated_api.deprecated_http_api_calls.inc();
        log::warn!("PUT /snapshot/load: mem_file_path field is deprecated.");
    }
    let LoadSnapshot { mut wanted, resume, .. } = load;
    let resources = monitor.resources();
    wanted.overrides.console = resources.console.clone();
    wanted.overrides.console_limiter = resources.console_limiter;
    let loaded = monitor.restore(wanted).map_err(ApiError::LoadSnapshot).and_then(|()| {
        if resume { monitor.resume().map_err(ApiError::ResumeLoaded) } else { Ok(()) }
    });
    if let Err(error) = loaded {
        monitor.end().announce(End::NotLoaded(chain(&error)));
        return Err(error);
    }
    let done = if resume { "loaded and resumed" } else { "loaded" };
    log::info!("snapshot {done} in {} us", started.elapsed().as_micros());
    Ok(Response::no_content())
}

/// Marks an invocation, or ends the recording and writes its trace.
pub fn trace(monitor: &Monitor, request: TraceRequest) -> Outcome {
    let recording = monitor.machine()?.restored().and_then(|restored| restored.recording());
    let recording = recording.ok_or(ApiError::NotRecorded)?;
    match request {
        TraceRequest::Mark(_) if !recording.goes_on() => return Err(ApiError::RecordingEnded),
        TraceRequest::Mark(label) => {
            recording.mark(&label).map_err(|e| ApiError::Trace(e.into()))?;
        }
        TraceRequest::Save => {
            if let Some((pages, written)) = monitor.save_trace().map_err(ApiError::Trace)? {
                log::info!("trace saved: {pages} pages touched, {written} of them written");
            }
        }
    }
    Ok(Response::no_content())
}
