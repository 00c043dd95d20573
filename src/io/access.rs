//! Who may call: every call carries the cluster's token, and a node answers nothing without it but health checks, and users who
//! have a token of their own, or are about to get one: what those may do, the node itself finds out.
//!
//! It is a [`Network`] around a network, so members, joining nodes and clients carry the token by the same lines, over
//! sockets as in simulation. The token proves that the caller belongs here; that nobody reads it on the way is
//! the business of the transport below. It is a bearer token, as RFC 6750 has it, so that other programs can send it, too.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{BoxFuture, Either};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http_body::Body;
use http_body_util::BodyExt as _;
use subtle::ConstantTimeEq;
use tonic::Status;
use tonic::service::Routes;
use tower::{Layer, Service, ServiceExt};

use super::clock::Clock;
use super::network::{BoxError, Channel, Listener, Network};
use crate::ids::Address;
use crate::limits::{TOKEN_CHARS_MAX, TOKEN_CHARS_MIN};

/// What stands before the token in the header `authorization`.
pub const BEARER: &str = "Bearer ";
/// Longest request that is heard out though whoever makes it may not.
const HEARD_OUT_BYTES_MAX: u64 = 64 * 1024;
/// And for how long.
const HEARD_OUT_TIME_MAX: Duration = Duration::from_secs(1);
/// Probers know no tokens, and learn nothing but whether the node serves.
const OPEN_TO_ALL: &str = "/grpc.health.v1.Health/";

/// Where they ask over plain HTTP, as etcd's do.
pub const HEALTH: &str = "/health";
/// And whether a node is to be started again.
pub const LIVEZ: &str = "/livez";
/// And whether it is to be sent anything.
pub const READYZ: &str = "/readyz";
/// And where they ask for the version.
pub const VERSION: &str = "/version";

/// The metadata with the token of a user; etcd's clients send it so.
pub const USER_TOKEN: &str = "token";
/// And those that speak JSON so, or as `authorization`, with nothing before it.
pub const USER_TOKEN_JSON: &str = "grpc-metadata-token";
/// Where a user gets one.
pub const LOG_IN: &str = "/etcdserverpb.Auth/Authenticate";
/// And where by JSON.
pub const LOG_IN_JSON: &str = "/v3/auth/authenticate";
/// How the paths begin of what is called as JSON.
const AS_JSON: &str = "/v3/";

/// What is said to who has none.
pub const TOKEN_NEEDED: &str =
    "this cluster answers only to those who have its token; name the file that holds it with --token-file";

/// What a caller has shown, as an extension of its request. None is there where the cluster has no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// The cluster's token.
    Token,
    /// Nothing, or the token of a user.
    Nothing,
}

/// The tokens of a cluster: the first is sent, any of them is taken. While members change over to a new one, each takes
/// both.
#[derive(Clone, PartialEq, Eq)]
pub struct Tokens(Vec<HeaderValue>);

/// Why a text holds no tokens.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the tokens: {why}")]
pub struct TokenError {
    line: usize,
    why: String,
}

impl FromStr for Tokens {
    type Err = TokenError;

    /// Reads one token a line.
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut tokens = Vec::new();
        for (i, token) in text.lines().map(str::trim).enumerate().filter(|(_, token)| !token.is_empty()) {
            let bad = |why| TokenError { line: i + 1, why };
            if !(TOKEN_CHARS_MIN..=TOKEN_CHARS_MAX).contains(&token.len()) {
                return Err(bad(format!(
                    "{} characters; a token has from {TOKEN_CHARS_MIN} to {TOKEN_CHARS_MAX}",
                    token.len()
                )));
            }
            if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(bad("a token has only letters, digits and signs of ASCII".into()));
            }
            let mut value = HeaderValue::from_str(&format!("{BEARER}{token}")).expect("checked to be plain ASCII");
            value.set_sensitive(true);
            tokens.push(value);
        }
        if tokens.is_empty() {
            return Err(TokenError { line: 1, why: "there is none".into() });
        }
        Ok(Self(tokens))
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.0.len())
    }
}

impl Tokens {
    /// Looks at all of them, so that the time it takes tells nothing.
    fn take(&self, presented: &HeaderValue) -> bool {
        let matches = self.0.iter().map(|token| token.as_bytes().ct_eq(presented.as_bytes()));
        matches.fold(0.into(), |any: subtle::Choice, one| any | one).into()
    }
}

/// A network on which calls carry the first of these tokens, and are answered only if they carry any of them.
pub(super) fn guarded(network: Arc<dyn Network>, clock: Arc<dyn Clock>, tokens: Tokens) -> Arc<dyn Network> {
    Arc::new(Guarded { network, clock, tokens })
}

struct Guarded {
    network: Arc<dyn Network>,
    clock: Arc<dyn Clock>,
    tokens: Tokens,
}

#[async_trait]
impl Network for Guarded {
    async fn bind(&self, address: &Address) -> io::Result<Box<dyn Listener>> {
        let inner = self.network.bind(address).await?;
        Ok(Box::new(GuardedListener {
            inner,
            layer: GuardLayer { clock: self.clock.clone(), tokens: self.tokens.clone() },
        }))
    }

    fn connect(&self, address: &Address) -> Channel {
        let token = self.tokens.0[0].clone();
        Channel::new(self.network.connect(address).map_request(move |mut request: http::Request<_>| {
            request.headers_mut().insert(AUTHORIZATION, token.clone());
            request
        }))
    }

    fn scheme(&self) -> &'static str {
        self.network.scheme()
    }
}

struct GuardedListener {
    inner: Box<dyn Listener>,
    layer: GuardLayer,
}

#[async_trait]
impl Listener for GuardedListener {
    fn address(&self) -> Address {
        self.inner.address()
    }

    async fn serve(self: Box<Self>, routes: Routes, stop: BoxFuture<'static, ()>) -> Result<(), BoxError> {
        let guarded = routes.into_axum_router().layer(self.layer);
        self.inner.serve(Routes::from(guarded), stop).await
    }
}

#[derive(Clone)]
struct GuardLayer {
    clock: Arc<dyn Clock>,
    tokens: Tokens,
}

impl<S> Layer<S> for GuardLayer {
    type Service = Guard<S>;

    fn layer(&self, inner: S) -> Guard<S> {
        Guard { inner, clock: self.clock.clone(), tokens: self.tokens.clone() }
    }
}

#[derive(Clone)]
struct Guard<S> {
    inner: S,
    clock: Arc<dyn Clock>,
    tokens: Tokens,
}

impl<S, B, R> Service<http::Request<B>> for Guard<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>>,
    B: Body<Data: Send> + Send + 'static,
    R: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, BoxFuture<'static, Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        let path = request.uri().path();
        let has_users = |name: &str| request.headers().contains_key(name);
        let by_user = [LOG_IN, LOG_IN_JSON].contains(&path) || has_users(USER_TOKEN) || has_users(USER_TOKEN_JSON);
        let is_users =
            |presented: &HeaderValue| path.starts_with(AS_JSON) && !presented.as_bytes().starts_with(BEARER.as_bytes());
        let (refusal, shown) = match request.headers().get(AUTHORIZATION) {
            _ if path.starts_with(OPEN_TO_ALL) || [HEALTH, LIVEZ, READYZ, VERSION].contains(&path) => {
                (None, Shown::Nothing)
            }
            Some(presented) if self.tokens.take(presented) => (None, Shown::Token),
            Some(presented) if is_users(presented) => (None, Shown::Nothing),
            Some(_) => (Some("the token is not one of this cluster's"), Shown::Nothing),
            None if by_user => (None, Shown::Nothing),
            None => (Some(TOKEN_NEEDED), Shown::Nothing),
        };
        let Some(refusal) = refusal else {
            request.extensions_mut().insert(shown);
            return Either::Left(self.inner.call(request));
        };
        let (parts, body) = request.into_parts();
        let clock = self.clock.clone();
        let status = Status::unauthenticated(refusal);
        let refused = async move { Ok(refused(&*clock, &parts.headers, body, status).await) };
        Either::Right(Box::pin(refused))
    }
}

/// Reads the rest of a short request that is refused, for a moment: clients of HTTP/2 may lose an answer that comes while they still send
/// (curl 7.88 does), though they must not (RFC 9113, section 8.1).
pub async fn hear_out(clock: &dyn Clock, body: impl Body) {
    if body.size_hint().upper().is_some_and(|bytes| bytes <= HEARD_OUT_BYTES_MAX) {
        let mut body = std::pin::pin!(body);
        let rest = async { while let Some(Ok(_)) = body.frame().await {} };
        let _ = clock.timeout(HEARD_OUT_TIME_MAX, rest).await;
    }
}

/// How a call with these headers and this body is refused.
pub async fn refused<B: Body, R: Default>(
    clock: &dyn Clock,
    headers: &http::HeaderMap,
    body: B,
    status: Status,
) -> http::Response<R> {
    if is_grpc(headers) {
        return status.into_http();
    }
    hear_out(clock, body).await;
    let mut plain = http::Response::new(R::default());
    *plain.status_mut() = http::StatusCode::UNAUTHORIZED;
    plain.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    plain
}

/// Whether a request is a call of gRPC.
pub fn is_grpc(headers: &http::HeaderMap) -> bool {
    let grpc = |value: &HeaderValue| value.as_bytes().starts_with(b"application/grpc");
    headers.get(CONTENT_TYPE).is_some_and(grpc)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_line_by_line() {
        let (one, other) = ("0123456789abcdef", "fedcba9876543210");
        let tokens: Tokens = format!("{one}\n\n  {other}\n").parse().unwrap();
        let takes = |text: &str| tokens.take(&HeaderValue::from_str(&format!("{BEARER}{text}")).unwrap());
        assert!(takes(one) && takes(other));
        assert!(!takes("0123456789abcdeg") && !takes("") && !takes(&format!("{one}0")));
        assert_eq!(format!("{tokens:?}"), "2 tokens", "tokens must not be printed");
        let why = |text: &str| text.parse::<Tokens>().unwrap_err().to_string();
        assert!(why("").contains("there is none"));
        assert!(why(&format!("{one}\nshort")).contains("line 2 of the tokens: 5 characters"));
        assert!(why("0123456789abcdé0").contains("ASCII"));
    }
}
