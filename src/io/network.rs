//! The network as tower services: gRPC routes on one side, a channel of HTTP requests on the other.
//!
//! Generated servers are tower services over HTTP requests, generated clients are generic over one. So codecs, status
//! mapping, streams and interceptors are the same code in both worlds; only sockets are not. Deadlines and limits
//! must not be asked of a transport: the simulated one has none.

use std::io;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tonic::body::Body;
use tonic::service::Routes;
use tower::util::BoxCloneSyncService;

use crate::ids::Address;

/// Any error below a channel.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What failed below a channel. A type of its own, because the compiler cannot see that a future holding a boxed
/// error may change threads.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// No connection was made: the call has certainly not been seen by anyone.
    #[error("{0}")]
    Connect(#[source] BoxError),
    /// The connection broke: what became of the call is open.
    #[error("{0}")]
    Broken(#[source] BoxError),
}

impl ChannelError {
    /// Whether a call failed because no connection was made.
    pub fn is_connect(status: &tonic::Status) -> bool {
        let mut source = std::error::Error::source(status);
        while let Some(error) = source {
            if matches!(error.downcast_ref(), Some(Self::Connect(_))) {
                return true;
            }
            source = error.source();
        }
        false
    }
}

/// A connection to one address, opened when first used and again after it broke. Generated clients take it.
pub type Channel = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, ChannelError>;

/// Where nodes meet.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    /// Takes an address; nothing is answered before [`Listener::serve`].
    ///
    /// # Errors
    /// The address is in use, is not of this machine, or may not be taken.
    async fn bind(&self, address: &Address) -> io::Result<Box<dyn Listener>>;

    /// A channel to `address`. Fails when used, not here.
    fn connect(&self, address: &Address) -> Channel;

    /// What the URL of an address begins with: whether nodes speak TLS.
    fn scheme(&self) -> &'static str {
        "http"
    }
}

/// A bound address.
#[async_trait]
pub trait Listener: Send {
    /// The address, with the port the system chose where 0 was asked for.
    fn address(&self) -> Address;

    /// Answers calls until `stop` resolves, then refuses new ones and waits for those under way.
    ///
    /// # Errors
    /// The transport failed.
    async fn serve(self: Box<Self>, routes: Routes, stop: BoxFuture<'static, ()>) -> Result<(), BoxError>;
}
