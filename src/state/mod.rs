//! The replicated state: what every member computes from the log, the same everywhere.
//!
//! [`machine::State`] owns the database and [`machine::State::apply`] is the one way to change it: a pure function of
//! the state and the entry. No clock, no randomness, no float, no hash order. One file per kind holds its commands,
//! its rules and its tables; [`table`] is the only way to a row.

pub mod alarm;
pub mod auth;
pub mod backup;
mod budget;
pub mod command;
pub mod defragment;
pub mod format;
pub mod kv;
pub mod lease;
pub mod machine;
pub mod member;
pub mod session;
pub mod snapshot;
pub mod table;
pub mod task;
pub mod worker;
