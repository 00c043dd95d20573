//! What happened, as a hash: two runs of a seed that differ anywhere differ here.

use std::fmt;
use std::sync::Mutex;

use xxhash_rust::xxh3::Xxh3;

/// The running hash of a run's events, each with its virtual time.
pub struct Trace {
    inner: Mutex<Inner>,
}

struct Inner {
    hash: Xxh3,
    events: u64,
    print: bool,
}

impl Trace {
    /// An empty trace; with `print`, every event also goes to standard error.
    pub fn new(print: bool) -> Self {
        Self { inner: Mutex::new(Inner { hash: Xxh3::new(), events: 0, print }) }
    }

    /// Adds an event.
    pub fn event(&self, what: fmt::Arguments<'_>) {
        let now = madsim::time::TimeHandle::current().elapsed();
        let line = format!("{:>12.6} {what}", now.as_secs_f64());
        let mut inner = self.inner.lock().unwrap();
        inner.hash.update(&now.as_nanos().to_le_bytes());
        inner.hash.update(line.as_bytes());
        inner.events += 1;
        if inner.print {
            eprintln!("{line}");
        }
    }

    /// The hash so far, and of how many events.
    pub fn digest(&self) -> (u64, u64) {
        let inner = self.inner.lock().unwrap();
        (inner.hash.digest(), inner.events)
    }
}
