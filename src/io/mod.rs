//! The seams: every way out of the process is a trait here. `src/os` implements them with tokio, sockets, files and
//! threads; the simulator with virtual ones under attack. Nothing above this floor can tell which it runs on.
//!
//! [`Io`] bundles them. The caller builds one per node and hands it down by constructor; there is no global.

mod access;
mod clock;
mod disk;
mod launcher;
mod network;
mod rng;
mod spawn;

use std::sync::Arc;

pub use access::{
    BEARER, HEALTH, LIVEZ, LOG_IN, LOG_IN_JSON, READYZ, Shown, TOKEN_NEEDED, TokenError, Tokens, USER_TOKEN,
    USER_TOKEN_JSON, VERSION, hear_out, is_grpc, refused,
};
pub use clock::{Clock, Elapsed};
pub use disk::{Backend, Disk, open_for_database};
pub use launcher::{Found, Launch, Launcher, LogPiece};
pub use network::{BoxError, Channel, ChannelError, Listener, Network};
pub(crate) use rng::scale;
pub use rng::{Rng, RngStream};
pub use spawn::{BlockingLoop, Spawn, TaskHandle, Wanted, Worker, own};

/// Everything a node may touch.
#[derive(Clone)]
pub struct Io {
    /// The node's own clock.
    pub clock: Arc<dyn Clock>,
    /// Sockets.
    pub network: Arc<dyn Network>,
    /// The node's data directory.
    pub disk: Arc<dyn Disk>,
    /// Processes; `None` where nothing may be run.
    pub launcher: Option<Arc<dyn Launcher>>,
    /// Tasks and threads.
    pub spawn: Arc<dyn Spawn>,
    /// Randomness.
    pub rng: Rng,
}

impl Io {
    /// The same, with a network on which calls carry these tokens and are answered only if they do.
    pub fn with_tokens(self, tokens: Tokens) -> Self {
        Self { network: access::guarded(self.network, self.clock.clone(), tokens), ..self }
    }
}
