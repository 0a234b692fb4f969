//! The demo: the whole life of a function, shown step by step, then compared strategy by strategy.
//!
//! [`boot`] starts a machine and calls functions. [`life`] boots, snapshots, records, tiers and
//! restores one function with the `varve` command ([`command`]), whose reports ([`said`]) become rows
//! of tables ([`columns`], [`trim`], [`text`]) and a page ([`page`], [`charts`]). docs/demo.md explains the
//! columns.

pub mod boot;
pub mod charts;
pub mod columns;
pub mod command;
pub mod life;
pub mod page;
pub mod said;
pub mod text;
pub mod trim;

/// What is restored with each strategy.
pub const STRATEGIES: [&str; 7] =
    ["lazy", "eager", "reap", "faasnap", "tiered", "template", "auto"];
/// What is restored when it has to be quick.
pub const QUICK_STRATEGIES: [&str; 3] = ["lazy", "reap", "tiered"];
