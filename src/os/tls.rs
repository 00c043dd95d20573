//! TLS: whom a client trusts, and what a server shows.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::Stream;
use tokio::net::TcpStream;
use tokio::task::JoinError;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use super::network::{CONNECT_TIMEOUT, root};
use crate::error::{Context, Fault};
use crate::io::TaskHandle;

/// How long a client may take to agree on how to encrypt.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// Most connections that agree on it at once; others wait to be taken.
const HANDSHAKES_MAX: usize = 8192;
/// What is spoken here, the dearest first (RFC 7301): gRPC needs HTTP/2, JSON and metrics do not.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// How connections are encrypted.
#[derive(Clone)]
pub struct Tls {
    pub(super) trusted: ClientTlsConfig,
    /// What a server shows; a client that never listens has none.
    pub(super) shown: Option<Shown>,
}

impl Tls {
    /// Trusts whoever shows a certificate that one of these authorities has signed for the name it was called by.
    ///
    /// # Errors
    /// The text holds no certificates in PEM.
    pub fn trusting(authorities: &str) -> Result<Self, Fault> {
        if !authorities.contains("-----BEGIN CERTIFICATE-----") {
            return Err(Fault::new("there is no certificate in PEM"));
        }
        let trusted = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authorities));
        // Of a machine that is gone in the middle of that nobody would ever hear.
        let trusted = trusted.timeout(CONNECT_TIMEOUT);
        let what = || "read the certificates".into();
        Endpoint::from_static("https://localhost")
            .tls_config(trusted.clone())
            .map_err(|error| root(&error).to_string())
            .context(what)?;
        Ok(Self { trusted, shown: None })
    }

    /// The same, and shows a certificate to those who connect.
    ///
    /// # Errors
    /// The texts hold no certificate and its key in PEM.
    pub fn showing(self, certificate: &str, key: &str) -> Result<Self, Fault> {
        let shown = Shown::new(certificate, key).context(|| "read the certificate and its key".into())?;
        Ok(Self { shown: Some(shown), ..self })
    }
}

/// A certificate, and the key that proves that it is one's own.
#[derive(Clone)]
pub(super) struct Shown(Arc<ServerConfig>);

impl Shown {
    fn new(certificate: &str, key: &str) -> Result<Self, String> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect();
        let chain = chain.map_err(|error| format!("the certificate is not PEM: {error}"))?;
        if chain.is_empty() {
            return Err("there is no certificate in PEM".into());
        }
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|error| format!("the key is not a private key in PEM: {error}"))?;
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| error.to_string())?;
        config.alpn_protocols = PROTOCOLS.map(Vec::from).into();
        Ok(Self(Arc::new(config)))
    }

    /// Of these connections those with whom it was agreed in time how to encrypt, in the order in which it was.
    pub(super) fn encrypted(
        self,
        incoming: impl Stream<Item = io::Result<TcpStream>>,
    ) -> impl Stream<Item = io::Result<TlsStream<TcpStream>>> {
        let acceptor = TlsAcceptor::from(self.0);
        // Each in a task of its own: what costs here is arithmetic.
        let agree = move |stream: io::Result<TcpStream>| {
            let acceptor = acceptor.clone();
            let task =
                tokio::spawn(async move { tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream?)).await? });
            let abort = task.abort_handle();
            let ends_with_this = TaskHandle::new(move || abort.abort());
            async move {
                let outcome = task.await;
                drop(ends_with_this);
                outcome
            }
        };
        let agreed = |outcome: Result<io::Result<_>, JoinError>| async {
            let outcome = outcome.map_err(io::Error::from).flatten();
            outcome.inspect_err(|error| tracing::debug!(%error, "a connection was not encrypted")).ok()
        };
        incoming.map(agree).buffer_unordered(HANDSHAKES_MAX).filter_map(agreed).map(Ok)
    }
}
