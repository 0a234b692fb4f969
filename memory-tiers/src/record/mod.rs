//! Records which pages a guest reads and writes.

pub(crate) mod access_log;
pub(crate) mod recorder;
pub(crate) mod scanner;
#[cfg(test)]
pub(crate) mod tests;
