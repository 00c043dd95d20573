//! Consensus: one log, the same on a majority's disks before anyone hears of it.
//!
//! [`core`] is Raft without I/O, [`manager`] drives it, a [`handle`] is the way to that, [`snapshot`] is for members that are behind the log. Data goes down
//! once and comes back once:
//!
//! ```text
//!   clients ──► manager ──► core ──► effects ─┬─► messages ──► transport ──► peers
//!   peers ────►    ▲                          ├─► write ─────► log's owner ──┐
//!   ticks ────►    │                          ├─► apply ─────► machine ──────┤
//!                  │                          ├─► fetch ─────► log's owner ──┤
//!                  │                          └─► stage, take ► snapshots ───┤
//!                  └──── persisted, applied, fetched, staged, taken ◄────────┘
//! ```
//!
//! Invariants, each kept in one place:
//! - no message leaves before what it promises is durable ([`core`], duties 2 and 3);
//! - the log and the state never wait for each other (two files, two owners);
//! - a proposal ends as done, not done, or unknown, and never hangs ([`manager`]);
//! - nothing a peer sends can stop this member ([`validate`], [`codec`]).

pub mod codec;
pub mod core;
pub mod handle;
pub mod journal;
pub mod log;
mod logger;
pub mod manager;
pub mod owner;
mod reads;
pub mod snapshot;
pub mod tail;
pub mod transport;
pub mod validate;
