//! Answers page faults through userfaultfd: which pages are watched, which were evicted, who answers.

pub(crate) mod answer;
pub(crate) mod backing_store;
pub(crate) mod evicted;
pub(crate) mod external;
pub(crate) mod histogram;
pub(crate) mod stats;
pub(crate) mod threads;
pub(crate) mod watchdog;
pub(crate) mod watched;
