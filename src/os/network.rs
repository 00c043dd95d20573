//! TCP, HTTP/2 and tonic's transport.

use std::io;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, Stream};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tonic::service::Routes;
use tonic::transport::server::Connected;
use tonic::transport::{Endpoint, Server};
use tower::{ServiceExt, service_fn};

use super::tls::{Shown, Tls};
use crate::ids::Address;
use crate::io::{BoxError, Channel, ChannelError, Listener, Network};

/// How long a connection attempt may take.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause after a connection that could not be taken.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Idle time after which HTTP/2 pings a peer, so that a dead machine is noticed without traffic.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Flow-control window of a connection; each stream's is a quarter of it. The default, 64 KiB, stalls batches.
const WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// TCP, encrypted or not.
pub struct Sockets {
    /// `None`: in plain text.
    pub tls: Option<Tls>,
}

#[async_trait]
impl Network for Sockets {
    async fn bind(&self, address: &Address) -> io::Result<Box<dyn Listener>> {
        let explain = |error: io::Error| io::Error::new(error.kind(), format!("listen on {address}: {error}"));
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("listen on {address}: the host has no address"));
        for candidate in lookup_host((address.host(), address.port())).await.map_err(explain)? {
            match TcpListener::bind(candidate).await {
                Ok(socket) => {
                    let address = address.with_port(socket.local_addr()?.port());
                    let tls = self.tls.as_ref().and_then(|tls| tls.shown.clone());
                    return Ok(Box::new(Socket { address, socket, tls }));
                }
                Err(error) => last = explain(error),
            }
        }
        Err(last)
    }

    fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    fn connect(&self, address: &Address) -> Channel {
        let scheme = self.scheme();
        let endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).and_then(|endpoint| match &self.tls {
            Some(tls) => endpoint.tls_config(tls.trusted.clone().domain_name(address.host())),
            None => Ok(endpoint),
        });
        let endpoint = endpoint.map(|endpoint| {
            endpoint
                .connect_timeout(CONNECT_TIMEOUT)
                .tcp_nodelay(true)
                .tcp_keepalive(Some(KEEPALIVE))
                .http2_keep_alive_interval(KEEPALIVE)
                .keep_alive_timeout(KEEPALIVE)
                .keep_alive_while_idle(true)
                .initial_connection_window_size(WINDOW_BYTES)
                .initial_stream_window_size(WINDOW_BYTES / 4)
                .connect_lazy()
        });
        match endpoint {
            Ok(channel) => Channel::new(channel.map_err(classify)),
            Err(error) => {
                let text = format!("{address} is not an address one can connect to: {error}");
                Channel::new(service_fn(move |_| {
                    let text = text.clone();
                    async move { Err(ChannelError::Connect(text.into())) }
                }))
            }
        }
    }
}

/// What lies at the bottom of an error of the transport, which itself says little.
pub(super) fn root(error: &tonic::transport::Error) -> &(dyn std::error::Error + 'static) {
    let mut cause: &(dyn std::error::Error + 'static) = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause
}

fn classify(error: tonic::transport::Error) -> ChannelError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(error_below) = cause {
        if error_below.is::<tonic::ConnectError>() {
            return ChannelError::Connect(error.into());
        }
        cause = error_below.source();
    }
    // What an alert of TLS looks like to who expects frames: nobody has read the request.
    if root(&error).to_string().contains("frame with invalid size") {
        return ChannelError::Connect(
            "what answers there does not speak plain HTTP/2; if it is TLS, give --tls-ca".into(),
        );
    }
    ChannelError::Broken(error.into())
}

struct Socket {
    address: Address,
    socket: TcpListener,
    tls: Option<Shown>,
}

#[async_trait]
impl Listener for Socket {
    fn address(&self) -> Address {
        self.address.clone()
    }

    async fn serve(self: Box<Self>, routes: Routes, stop: BoxFuture<'static, ()>) -> Result<(), BoxError> {
        let incoming = incoming(self.socket);
        match self.tls {
            Some(tls) => serve(routes, tls.encrypted(incoming), stop).await,
            None => serve(routes, incoming, stop).await,
        }
    }
}

async fn serve<S>(
    routes: Routes,
    incoming: impl Stream<Item = io::Result<S>>,
    stop: BoxFuture<'static, ()>,
) -> Result<(), BoxError>
where
    S: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    Server::builder()
        .accept_http1(true) // for `curl` and Prometheus
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .initial_connection_window_size(WINDOW_BYTES)
        .initial_stream_window_size(WINDOW_BYTES / 4)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop)
        .await?;
    Ok(())
}

/// A connection that does not wait to send, and ends when the other machine is gone: HTTP/2 finds that out by itself, HTTP/1.1 does not.
fn prepared(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
    Ok(stream)
}

/// Connections as they come. What cannot be taken, most often because too many are open, is tried again after a pause.
fn incoming(socket: TcpListener) -> impl Stream<Item = io::Result<TcpStream>> {
    stream::unfold(socket, async |socket| {
        loop {
            let taken = socket.accept().await.and_then(|(stream, _)| prepared(stream));
            match taken {
                Ok(stream) => return Some((Ok(stream), socket)),
                Err(error) => {
                    tracing::warn!(%error, "a connection was not taken");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}
