//! Cairn: a deterministic simulation-first consensus node.
//!
//! The same code runs in production and in the simulator; every way out of the process is a trait of [`io`].
//! `ARCHITECTURE.md` draws the floors; a module imports from floors below its own only.
//!
//! | floor | modules |
//! |---|---|
//! | 0 words | [`ids`], [`time`], [`limits`], [`error`] |
//! | 1 seams | [`io`], [`proto`], [`metrics`] |
//! | 2 replicated | [`state`], [`raft`] |
//! | 3 decide | [`scheduler`], [`controller`] |
//! | 4 act | [`worker`] |
//! | 5 shared | [`shared`], [`forward`], [`client`] |
//! | 6 face | [`api`] |
//! | 7 node | [`node`] |
//! | 8 edge | [`cli`], [`os`] |

#[macro_use]
pub mod mark;

pub mod entry;
pub mod error;
pub mod ids;
pub mod limits;
pub mod time;

pub mod io;
pub mod metrics;
pub mod proto;

pub mod raft;
pub mod state;

pub mod controller;
pub mod scheduler;

pub mod worker;

pub mod client;
pub mod forward;
pub mod shared;

pub mod api;

pub mod node;

pub mod cli;

pub mod os;

#[cfg(all(feature = "sim", not(madsim)))]
compile_error!(
    "the feature `sim` needs `--cfg madsim`, which `.cargo/config.toml` sets; the environment variable RUSTFLAGS \
     replaces it: unset RUSTFLAGS, or add `--cfg madsim` to it"
);

#[cfg(feature = "sim")]
#[path = "../sim/mod.rs"]
pub mod sim;
