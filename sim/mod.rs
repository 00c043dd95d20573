//! The simulator: the real node on virtual machines under attack, reproducible from one number.
//!
//! madsim is the executor only: tasks in random order, virtual time, one madsim node per machine. Everything a fault
//! can touch is here: [`network`], [`disk`], [`clock`], [`launcher`] and [`spawn`] implement the seams of [`crate::io`], and a
//! [`world::World`] owns the machines. Randomness comes from labelled streams of the seed, so one kind of fault
//! never shifts another.

#![allow(clippy::expect_used, clippy::unwrap_used)]

pub mod aim;
pub mod clock;
pub mod cluster;
pub mod cost;
pub mod diagram;
pub mod disk;
pub mod door;
pub mod draw;
pub mod export;
pub mod fault;
pub mod guests;
pub mod history;
pub mod holders;
pub mod janitor;
pub mod json;
pub mod launcher;
pub mod load;
pub mod mark;
pub mod mutant;
pub mod network;
mod operator;
pub mod oracle;
pub mod plan;
pub mod restore;
pub mod run;
pub mod shrink;
pub mod spawn;
pub mod stage;
pub mod tasks;
pub mod trace;
mod upgrade;
pub mod watch;
pub mod watchers;
pub mod world;
