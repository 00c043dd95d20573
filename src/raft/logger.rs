//! raft-rs's log lines as tracing events.

/// What raft-rs is to log to.
pub(super) fn new() -> slog::Logger {
    slog::Logger::root(Bridge, slog::o!())
}

struct Bridge;

impl slog::Drain for Bridge {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
        if record.level().is_at_least(slog::Level::Warning) {
            tracing::warn!(target: "raft", "{}", record.msg());
        } else {
            tracing::debug!(target: "raft", "{}", record.msg());
        }
        Ok(())
    }
}
