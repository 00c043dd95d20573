//! What happened, as a hash: two runs of a seed that differ anywhere differ here. On request also as a record, and as
//! something to stop at.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use xxhash_rust::xxh3::Xxh3;

use crate::ids::NodeId;
use crate::raft::core::Status;
use crate::sim::network::MachineId;

/// Where a run is stopped, to be looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stop {
    /// At the first event at or after this time.
    Time(Duration),
    /// At the event with this number, counted from 1.
    Event(u64),
    /// At the first event whose line has this in it.
    Text(&'static str),
}

/// Something that a diagram shows.
#[derive(Clone, Debug)]
pub enum Note {
    /// A machine boots, goes down, is paused, or goes on.
    Machine(MachineId, &'static str),
    /// A frame of Raft messages leaves a machine for another, where it arrives so often at these times.
    Frame {
        /// From.
        from: MachineId,
        /// To.
        to: MachineId,
        /// Its bytes.
        frame: Bytes,
        /// When it arrives.
        arrives: Vec<Duration>,
    },
    /// A member says where it is.
    Status(NodeId, Box<Status>),
    /// Something begins or ends; the text is the same both times.
    Span(String, bool),
}

/// Events that are kept to be shown when a run is stopped.
const LAST_KEPT: usize = 40;

/// The running hash of a run's events, each with its virtual time.
pub struct Trace {
    inner: Mutex<Inner>,
    record: bool,
    stop: Option<Stop>,
    stopped: Notify,
}

struct Inner {
    hash: Xxh3,
    events: u64,
    print: bool,
    notes: Vec<(Duration, Note)>,
    last: VecDeque<String>,
}

impl Default for Trace {
    /// An empty trace of which only the hash is kept.
    fn default() -> Self {
        Self::new(false, false, None)
    }
}

impl Trace {
    /// An empty trace; with `print`, every event also goes to standard error.
    pub fn new(print: bool, record: bool, stop: Option<Stop>) -> Self {
        let (notes, last) = Default::default();
        let inner = Mutex::new(Inner { hash: Xxh3::new(), events: 0, print, notes, last });
        Self { inner, record, stop, stopped: Notify::new() }
    }

    /// Adds an event.
    pub fn event(&self, what: fmt::Arguments<'_>) {
        self.add(what, true);
    }

    /// Adds what the plan says anyway, and so nothing to the hash: that differs only if something came of it.
    pub fn planned(&self, what: fmt::Arguments<'_>) {
        self.add(what, false);
    }

    fn add(&self, what: fmt::Arguments<'_>, hashed: bool) {
        let now = madsim::time::TimeHandle::current().elapsed();
        let line = format!("{:>12.6} {what}", now.as_secs_f64());
        let mut inner = self.inner.lock().unwrap();
        if hashed {
            inner.hash.update(&now.as_nanos().to_le_bytes());
            inner.hash.update(line.as_bytes());
        }
        inner.events += 1;
        if inner.print {
            eprintln!("{line}");
        }
        let Some(stop) = self.stop else { return };
        let here = match stop {
            Stop::Time(at) => now >= at,
            Stop::Event(number) => inner.events >= number,
            Stop::Text(text) => line.contains(text),
        };
        let line = format!("{:>7} {line}", inner.events);
        inner.last.push_back(line);
        if inner.last.len() > LAST_KEPT {
            inner.last.pop_front();
        }
        if here {
            self.stopped.notify_one();
        }
    }

    /// Waits until the run is to be stopped.
    pub async fn stopped(&self) {
        self.stopped.notified().await;
    }

    /// The last events, if the run was to be stopped.
    pub fn last(&self) -> Vec<String> {
        self.inner.lock().unwrap().last.iter().cloned().collect()
    }

    /// Records what a diagram shows, if the run is recorded.
    pub fn note(&self, note: impl FnOnce() -> Note) {
        if self.record {
            let now = madsim::time::TimeHandle::current().elapsed();
            self.inner.lock().unwrap().notes.push((now, note()));
        }
    }

    /// What was recorded.
    pub fn take_notes(&self) -> Vec<(Duration, Note)> {
        std::mem::take(&mut self.inner.lock().unwrap().notes)
    }

    /// The hash so far, and of how many events.
    pub fn digest(&self) -> (u64, u64) {
        let inner = self.inner.lock().unwrap();
        (inner.hash.digest(), inner.events)
    }
}
