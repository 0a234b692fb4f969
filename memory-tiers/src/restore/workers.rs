//! Threads that share what the guest waits for with the thread that restores. They are started once, as to
//! start a thread, and to confine it, takes as long as making dozens of pages ready.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use crate::error::TierError;
use crate::ram::error::RamError;
use crate::ram::threads::spawn;

type Job = Box<dyn FnOnce() + Send>;

/// Helper threads; the thread that [shares](Workers::share) work takes part in it.
pub(crate) struct Workers {
    helpers: Vec<(Sender<Job>, JoinHandle<()>)>,
}

impl Workers {
    /// So many workers, of which the calling thread is one.
    pub fn of(many: usize) -> Result<Workers, TierError> {
        let start = |_| {
            let (sender, inbox) = channel::<Job>();
            let helper = spawn("populate", move || inbox.iter().for_each(|job| job()))?;
            Ok((sender, helper))
        };
        let helpers = (1..many).map(start).collect::<Result<_, TierError>>()?;
        Ok(Workers { helpers })
    }

    /// Number of workers, the calling thread included.
    pub fn len(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Has everybody do `work`, which takes parts of a whole until none is left, and waits for all.
    pub fn share<F>(&self, work: F) -> Result<(), TierError>
    where
        F: Fn() -> Result<(), TierError> + Send + Sync + 'static,
    {
        let work = Arc::new(work);
        let (done, results) = channel();
        for (helper, _) in &self.helpers {
            let (work, done) = (work.clone(), done.clone());
            // Whoever has panicked before takes none, and gives no result.
            let _ = helper.send(Box::new(move || drop(done.send(work()))));
        }
        drop(done);
        let own = work();
        let others: Vec<Result<(), TierError>> = results.iter().collect();
        if others.len() < self.helpers.len() {
            return Err(RamError::Thread(io::Error::other("a thread that helps panicked")).into());
        }
        others.into_iter().fold(own, Result::and)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for (sender, helper) in self.helpers.drain(..) {
            drop(sender);
            let _ = helper.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::sync::{Arc, Barrier};

    use super::*;

    #[test]
    fn everybody_works_and_all_are_waited_for() {
        for many in 1..4 {
            let workers = Workers::of(many).unwrap();
            assert_eq!(workers.len(), many);
            let (count, all) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(many)));
            for round in 1..3 {
                let (count, all) = (count.clone(), all.clone());
                let seen = count.clone();
                let work = move || {
                    // Nobody could pass alone.
                    all.wait();
                    count.fetch_add(1, SeqCst);
                    Ok(())
                };
                workers.share(work).unwrap();
                assert_eq!(seen.load(SeqCst), many * round);
            }
        }
    }

    #[test]
    fn what_fails_for_one_fails_for_all() {
        let workers = Workers::of(3).unwrap();
        let turn = AtomicUsize::new(0);
        let one_fails = move || match turn.fetch_add(1, SeqCst) {
            2 => Err(TierError::Plan("no".into())),
            _ => Ok(()),
        };
        let error = workers.share(one_fails).unwrap_err();
        assert!(error.to_string().contains("no"), "{error}");
    }

    #[test]
    fn a_panic_is_an_error_then_and_later() {
        let workers = Workers::of(2).unwrap();
        let main = std::thread::current().id();
        let panics = move || {
            assert_eq!(std::thread::current().id(), main, "a panic that is wanted");
            Ok(())
        };
        assert!(matches!(workers.share(panics), Err(TierError::Ram(RamError::Thread(_)))));
        assert!(matches!(workers.share(|| Ok(())), Err(TierError::Ram(RamError::Thread(_)))));
    }
}
