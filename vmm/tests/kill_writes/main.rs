//! Each verb that writes files is killed at each of its renames, syncs, removals, links and changes of a
//! length, and finds an error of the disk there. The folder then holds the old files or the new ones,
//! whole, and the same verb once more leaves what it leaves undisturbed.
//!
//! strace counts and injects, so that the real system calls of the real program are meant. It also shows
//! whether a loss of power would undo something: content is synced before its file gets its name, and
//! a folder is synced after a name in it has changed.
//!
//! A line of [`verbs::VERBS`] adds a verb. No guest is needed.
#![allow(clippy::unwrap_used)]

mod files;
mod node;
mod order;
mod sweep;
mod verbs;

use std::path::Path;

use sweep::{has_strace, sweep};
use verbs::{VERBS, Verb};

/// What a process does that is killed, where the product's binary cannot do it without a guest.
#[test]
#[ignore = "the others start it"]
fn victim() {
    let Some(dir) = std::env::var_os(verbs::DIR) else { return };
    verbs::victim(Path::new(&dir), &std::env::var(verbs::WHAT).unwrap());
}

/// Verbs by turns in several tests, which run beside one another.
fn part(nth: usize, parts: usize) {
    if !has_strace() {
        return println!("skipped: strace is missing (apt-get install strace)");
    }
    VERBS.iter().skip(nth).step_by(parts).for_each(|verb: &Verb| sweep(verb));
}

#[test]
fn whenever_it_is_killed_old_or_new_files_are_whole_1() {
    part(0, 4);
}

#[test]
fn whenever_it_is_killed_old_or_new_files_are_whole_2() {
    part(1, 4);
}

#[test]
fn whenever_it_is_killed_old_or_new_files_are_whole_3() {
    part(2, 4);
}

#[test]
fn whenever_it_is_killed_old_or_new_files_are_whole_4() {
    part(3, 4);
}

#[test]
fn whenever_a_node_of_the_pool_is_killed_it_has_whole_images() {
    if !has_strace() {
        return println!("skipped: strace is missing (apt-get install strace)");
    }
    node::sweep();
}

#[test]
fn whenever_a_client_of_the_pool_is_killed_nothing_stays_there() {
    if !has_strace() {
        return println!("skipped: strace is missing (apt-get install strace)");
    }
    node::sweep_client();
}
