//! TCP, HTTP/2 and tonic's transport.

use std::io;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::net::{TcpListener, lookup_host};
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};
use tower::{ServiceExt, service_fn};

use crate::ids::Address;
use crate::io::{BoxError, Channel, ChannelError, Listener, Network};

/// How long a connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Idle time after which HTTP/2 pings a peer, so that a dead machine is noticed without traffic.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Flow-control window of a connection; each stream's is a quarter of it. The default, 64 KiB, stalls batches.
const WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// Plain TCP.
pub struct Sockets;

#[async_trait]
impl Network for Sockets {
    async fn bind(&self, address: &Address) -> io::Result<Box<dyn Listener>> {
        let explain = |error: io::Error| io::Error::new(error.kind(), format!("listen on {address}: {error}"));
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("listen on {address}: the host has no address"));
        for candidate in lookup_host((address.host(), address.port())).await.map_err(explain)? {
            match TcpListener::bind(candidate).await {
                Ok(socket) => {
                    let address = address.with_port(socket.local_addr()?.port());
                    return Ok(Box::new(Socket { address, socket }));
                }
                Err(error) => last = explain(error),
            }
        }
        Err(last)
    }

    fn connect(&self, address: &Address) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map(|endpoint| {
            endpoint
                .connect_timeout(CONNECT_TIMEOUT)
                .tcp_nodelay(true)
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

fn classify(error: tonic::transport::Error) -> ChannelError {
    let mut cause: &(dyn std::error::Error + 'static) = &error;
    while let Some(source) = cause.source() {
        cause = source;
        if cause.is::<tonic::ConnectError>() {
            return ChannelError::Connect(error.into());
        }
    }
    ChannelError::Broken(error.into())
}

struct Socket {
    address: Address,
    socket: TcpListener,
}

#[async_trait]
impl Listener for Socket {
    fn address(&self) -> Address {
        self.address.clone()
    }

    async fn serve(self: Box<Self>, routes: Routes, stop: BoxFuture<'static, ()>) -> Result<(), BoxError> {
        Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .initial_connection_window_size(WINDOW_BYTES)
            .initial_stream_window_size(WINDOW_BYTES / 4)
            .add_routes(routes)
            .serve_with_incoming_shutdown(TcpIncoming::from(self.socket).with_nodelay(Some(true)), stop)
            .await?;
        Ok(())
    }
}
