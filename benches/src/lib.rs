//! What the demo and the benchmarks share: figures, their statistics, reports, and the parts that
//! measure.
//!
//! [`replay`] restores guest memory in plain processes, without KVM.
//!
//! A part ([`parts`]) records values of *series* into a [`recorder::Recorder`]; a series is a name
//! with labels (`kernel=bzImage`), so a comparison adds labels, not structure. [`report`] is what is
//! saved, [`table`] what is shown.

pub mod compare;
pub mod demo;
pub mod environment;
pub mod outside;
pub mod parts;
pub mod plot;
pub mod prepare;
pub mod progress;
pub mod recorder;
pub mod replay;
pub mod report;
pub mod session;
pub mod settle;
pub mod smaps;
pub mod stats;
pub mod summary;
pub mod table;
pub mod tune;
