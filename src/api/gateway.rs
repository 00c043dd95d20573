//! What etcd's clients call, as JSON over plain HTTP: for those that speak no gRPC, as Patroni, APISIX and curl.
//!
//! ```text
//!   POST /v3/kv/range {"key": …} ──► a call of gRPC ──► the same services, behind the same gate
//!                        {"kvs": …} ◄── its answer
//! ```
//!
//! Nothing is decided here. Messages are JSON as protobuf has it (bytes in base64, numbers of 64 bits as text), with the names that stand
//! in `proto/`. Where a call takes a stream its requests follow each other, and where it gives one each answer is a line,
//! `{"result": …}`, and what ends it early the last, `{"error": …}`: as grpc-gateway has it, which etcd uses.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, ORIGIN};
use axum::http::uri::PathAndQuery;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::{Buf as _, BytesMut};
use futures_util::{Stream, StreamExt as _, stream};
use http::StatusCode;
use http_body_util::BodyExt as _;
use prost::Message as _;
use prost_reflect::{DynamicMessage, Kind, MessageDescriptor, SerializeOptions};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status, Streaming};

use super::{etcd, gate};
use crate::io::{BEARER, LOG_IN, LOG_IN_JSON, Shown, USER_TOKEN, USER_TOKEN_JSON, hear_out};
use crate::limits::{JSON_BYTES_MAX, JSON_READING_MAX, REQUEST_TIMEOUT};
use crate::proto::descriptors;
use crate::shared::{REQUIRES_LEADER, SharedNodeState, asked_timeout};

/// What is called, and as what.
const METHODS: [(&str, &str); 50] = [
    ("/v3/kv/range", "/etcdserverpb.KV/Range"),
    ("/v3/kv/put", "/etcdserverpb.KV/Put"),
    ("/v3/kv/deleterange", "/etcdserverpb.KV/DeleteRange"),
    ("/v3/kv/txn", "/etcdserverpb.KV/Txn"),
    ("/v3/kv/compaction", "/etcdserverpb.KV/Compact"),
    ("/v3/watch", "/etcdserverpb.Watch/Watch"),
    ("/v3/lease/grant", "/etcdserverpb.Lease/LeaseGrant"),
    ("/v3/lease/revoke", "/etcdserverpb.Lease/LeaseRevoke"),
    ("/v3/kv/lease/revoke", "/etcdserverpb.Lease/LeaseRevoke"),
    ("/v3/lease/keepalive", "/etcdserverpb.Lease/LeaseKeepAlive"),
    ("/v3/lease/timetolive", "/etcdserverpb.Lease/LeaseTimeToLive"),
    ("/v3/kv/lease/timetolive", "/etcdserverpb.Lease/LeaseTimeToLive"),
    ("/v3/lease/leases", "/etcdserverpb.Lease/LeaseLeases"),
    ("/v3/kv/lease/leases", "/etcdserverpb.Lease/LeaseLeases"),
    ("/v3/lock/lock", "/v3lockpb.Lock/Lock"),
    ("/v3/lock/unlock", "/v3lockpb.Lock/Unlock"),
    ("/v3/election/campaign", "/v3electionpb.Election/Campaign"),
    ("/v3/election/proclaim", "/v3electionpb.Election/Proclaim"),
    ("/v3/election/leader", "/v3electionpb.Election/Leader"),
    ("/v3/election/observe", "/v3electionpb.Election/Observe"),
    ("/v3/election/resign", "/v3electionpb.Election/Resign"),
    ("/v3/cluster/member/add", "/etcdserverpb.Cluster/MemberAdd"),
    ("/v3/cluster/member/remove", "/etcdserverpb.Cluster/MemberRemove"),
    ("/v3/cluster/member/update", "/etcdserverpb.Cluster/MemberUpdate"),
    ("/v3/cluster/member/list", "/etcdserverpb.Cluster/MemberList"),
    ("/v3/cluster/member/promote", "/etcdserverpb.Cluster/MemberPromote"),
    ("/v3/maintenance/alarm", "/etcdserverpb.Maintenance/Alarm"),
    ("/v3/maintenance/status", "/etcdserverpb.Maintenance/Status"),
    ("/v3/maintenance/defragment", "/etcdserverpb.Maintenance/Defragment"),
    ("/v3/maintenance/hash", "/etcdserverpb.Maintenance/Hash"),
    ("/v3/maintenance/hashkv", "/etcdserverpb.Maintenance/HashKV"),
    ("/v3/maintenance/snapshot", "/etcdserverpb.Maintenance/Snapshot"),
    ("/v3/maintenance/transfer-leadership", "/etcdserverpb.Maintenance/MoveLeader"),
    ("/v3/auth/enable", "/etcdserverpb.Auth/AuthEnable"),
    ("/v3/auth/disable", "/etcdserverpb.Auth/AuthDisable"),
    ("/v3/auth/status", "/etcdserverpb.Auth/AuthStatus"),
    (LOG_IN_JSON, LOG_IN),
    ("/v3/auth/user/add", "/etcdserverpb.Auth/UserAdd"),
    ("/v3/auth/user/get", "/etcdserverpb.Auth/UserGet"),
    ("/v3/auth/user/list", "/etcdserverpb.Auth/UserList"),
    ("/v3/auth/user/delete", "/etcdserverpb.Auth/UserDelete"),
    ("/v3/auth/user/changepw", "/etcdserverpb.Auth/UserChangePassword"),
    ("/v3/auth/user/grant", "/etcdserverpb.Auth/UserGrantRole"),
    ("/v3/auth/user/revoke", "/etcdserverpb.Auth/UserRevokeRole"),
    ("/v3/auth/role/add", "/etcdserverpb.Auth/RoleAdd"),
    ("/v3/auth/role/get", "/etcdserverpb.Auth/RoleGet"),
    ("/v3/auth/role/list", "/etcdserverpb.Auth/RoleList"),
    ("/v3/auth/role/delete", "/etcdserverpb.Auth/RoleDelete"),
    ("/v3/auth/role/grant", "/etcdserverpb.Auth/RoleGrantPermission"),
    ("/v3/auth/role/revoke", "/etcdserverpb.Auth/RoleRevokePermission"),
];

/// What is left of the time that a client gives, for the answer that there was too little.
const MARGIN: Duration = Duration::from_millis(100);

/// Headers that go with a call, and what they are called there.
pub const METADATA: [(&str, &str); 3] =
    [(USER_TOKEN_JSON, USER_TOKEN), ("grpc-metadata-hasleader", REQUIRES_LEADER), ("grpc-timeout", "grpc-timeout")];

/// Something that can be called.
#[derive(Clone, Debug)]
pub struct Method {
    /// Its path as JSON.
    pub path: &'static str,
    /// Its path in gRPC.
    pub call: &'static str,
    /// What it takes.
    pub takes: MessageDescriptor,
    takes_many: bool,
    /// What it gives.
    pub gives: MessageDescriptor,
    /// Whether that is a stream.
    pub gives_many: bool,
}

impl Method {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        METHODS.into_iter().map(|(path, call)| {
            let (service, name) = call[1..].split_once('/').expect("a call is of a service");
            let service = descriptors().get_service_by_name(service).expect("a service that is called is in proto/");
            let method = service.methods().find(|method| method.name() == name).expect("and so is its method");
            Self {
                path,
                call,
                takes: method.input(),
                takes_many: method.is_client_streaming(),
                gives: method.output(),
                gives_many: method.is_server_streaming(),
            }
        })
    }
}

/// A message as JSON.
pub fn to_json(message: &DynamicMessage) -> Vec<u8> {
    let mut text = Vec::new();
    write_json(message, &mut text);
    text
}

fn write_json(message: &DynamicMessage, text: &mut Vec<u8>) {
    let options = SerializeOptions::new().use_proto_field_name(true);
    message.serialize_with_options(&mut serde_json::Serializer::new(text), &options).expect("a message becomes JSON");
}

/// The message that JSON stands for. Fields that it does not have are not looked at, as with etcd.
///
/// # Errors
/// It is no such message.
pub fn of_json(message: &MessageDescriptor, text: &[u8]) -> Result<DynamicMessage, Status> {
    let read = || {
        let mut value = serde_json::from_slice(text)?;
        forget_unknown(message, &mut value);
        DynamicMessage::deserialize(message.clone(), value)
    };
    read().map_err(|error: serde_json::Error| Status::invalid_argument(format!("{}: {error}", message.name())))
}

/// Removes the fields that a message does not have. (What reads the rest can ignore them by itself, but then ignores values
/// that there are not, too.)
fn forget_unknown(message: &MessageDescriptor, value: &mut Value) {
    let field = |name: &str| message.get_field_by_name(name).or_else(|| message.get_field_by_json_name(name));
    match value {
        Value::Array(values) => values.iter_mut().for_each(|value| forget_unknown(message, value)),
        Value::Object(fields) => fields.retain(|name, value| {
            let field = field(name);
            if let Some(Kind::Message(inner)) = field.as_ref().map(|field| field.kind()) {
                forget_unknown(&inner, value);
            }
            field.is_some()
        }),
        _ => {}
    }
}

/// JSON objects, one after the other, of a body.
pub struct Objects {
    body: tonic::body::Body,
    bytes: BytesMut,
    /// How far it was looked at.
    seen: usize,
    depth: usize,
    quoted: bool,
    escaped: bool,
}

impl Objects {
    /// Those of a body.
    pub fn of(body: tonic::body::Body) -> Self {
        Self { body, bytes: BytesMut::new(), seen: 0, depth: 0, quoted: false, escaped: false }
    }

    /// The next; `None` if there is none any more.
    ///
    /// # Errors
    /// It is no object, is too large, or the body broke off.
    pub async fn next(&mut self) -> Result<Option<BytesMut>, Status> {
        loop {
            if self.depth == 0 {
                let spaces = self.bytes.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
                self.bytes.advance(spaces);
            }
            while let Some(byte) = self.bytes.get(self.seen).copied() {
                if self.depth == 0 && byte != b'{' {
                    let found = char::from(byte).escape_default();
                    return Err(Status::invalid_argument(format!(
                        "a request is a JSON object; it begins with {found}"
                    )));
                }
                self.seen += 1;
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' if self.quoted => self.escaped = true,
                    b'"' => self.quoted = !self.quoted,
                    b'{' if !self.quoted => self.depth += 1,
                    b'}' if !self.quoted => self.depth -= 1,
                    _ => {}
                }
                if self.depth == 0 {
                    let end = std::mem::take(&mut self.seen);
                    return Ok(Some(self.bytes.split_to(end)));
                }
            }
            if self.bytes.len() > JSON_BYTES_MAX {
                let text = format!("a request as JSON has more than {JSON_BYTES_MAX} bytes");
                return Err(Status::resource_exhausted(text));
            }
            match self.body.frame().await {
                Some(frame) => self.bytes.extend_from_slice(&frame?.into_data().unwrap_or_default()),
                None if self.bytes.is_empty() => return Ok(None),
                None => return Err(Status::invalid_argument("a request as JSON ends before its object does")),
            }
        }
    }
}

/// Has messages encoded of which only this tells what they are: those that come.
#[derive(Clone)]
pub struct Dynamic(pub MessageDescriptor);

impl Codec for Dynamic {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        self.clone()
    }

    fn decoder(&mut self) -> Self {
        self.clone()
    }
}

impl Encoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, message: DynamicMessage, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.encode(into).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let decoded = DynamicMessage::decode(self.0.clone(), from);
        decoded.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

/// What answers, and who may ask.
struct Gateway {
    shared: Arc<SharedNodeState>,
    services: Router,
    /// How many requests are being read: of all who have shown who they are, and of those who log in, whom nobody knows yet.
    reading: [Arc<AtomicUsize>; 2],
}

/// The routes to what is called, which these services of a member answer.
pub fn routes(shared: &Arc<SharedNodeState>, services: &Router) -> Router {
    let (shared, services, reading) = (shared.clone(), services.clone(), Default::default());
    let gateway = Arc::new(Gateway { shared, services, reading });
    Method::all().fold(Router::new(), |routes, method| {
        routes.route(method.path, post(call).with_state((gateway.clone(), Arc::new(method))))
    })
}

async fn call(State((gateway, method)): State<(Arc<Gateway>, Arc<Method>)>, request: Request) -> Response {
    gateway.answer(&method, request).await.unwrap_or_else(|status| refusal(&status))
}

impl Gateway {
    async fn answer(&self, method: &Method, request: Request) -> Result<Response, Status> {
        let (parts, body) = request.into_parts();
        if parts.headers.contains_key(ORIGIN) {
            // Any page that a person looks at could ask in that person's name.
            return Err(Status::permission_denied("web pages are not answered"));
        }
        sometimes!("a call came as JSON");
        let mut call = tonic::Request::new(());
        *call.metadata_mut() = metadata(&parts.headers);
        if let Some(shown) = parts.extensions.get::<Shown>() {
            call.extensions_mut().insert(*shown);
        }
        let clock = &self.shared.io.clock;
        if let Err(status) = gate::check(&self.shared, method.call, &call).await {
            hear_out(&**clock, body).await;
            return Err(status);
        }
        let mut objects = Objects::of(tonic::body::Body::new(body));
        let first = {
            let reading = &self.reading[usize::from(method.call == LOG_IN)];
            let _entered = etcd::enter(reading, JSON_READING_MAX)?;
            let late = |_| Status::deadline_exceeded(format!("a request was not there within {REQUEST_TIMEOUT:?}"));
            clock.timeout(REQUEST_TIMEOUT, objects.next()).await.map_err(late)??
        };
        let first = match first {
            Some(object) => Some(of_json(&method.takes, &object)?),
            None if method.takes_many => None,
            None => Some(DynamicMessage::new(method.takes.clone())),
        };
        let (spoilt, bad) = oneshot::channel();
        let rest = further(objects, method.takes.clone(), spoilt).take(if method.takes_many { usize::MAX } else { 0 });
        let asked = asked_timeout(call.metadata());
        let call = call.map(|()| stream::iter(first).chain(rest));
        let answered = self.pass_on(method, call, bad);
        match asked {
            // A little before the transport loses its patience, whose answer would be one of gRPC.
            Some(asked) => {
                let patience = asked.saturating_sub(MARGIN.min(asked / 10));
                let late = |_| Status::deadline_exceeded("context deadline exceeded");
                clock.timeout(patience, answered).await.map_err(late)?
            }
            None => answered.await,
        }
    }

    async fn pass_on(
        &self,
        method: &Method,
        call: tonic::Request<impl Stream<Item = DynamicMessage> + Send + 'static>,
        bad: oneshot::Receiver<Status>,
    ) -> Result<Response, Status> {
        let (path, codec) = (PathAndQuery::from_static(method.call), Dynamic(method.gives.clone()));
        // Answers are bounded, if at all, where they are given.
        let mut client = Grpc::new(self.services.clone()).max_decoding_message_size(usize::MAX);
        if !method.gives_many {
            let given = client.client_streaming(call, path, codec).await?;
            return Ok(json_of(StatusCode::OK, to_json(given.get_ref())));
        }
        let mut given = client.streaming(call, path, codec).await?.into_inner();
        // Whether all is well shows when there is something to be told.
        let first = given.message().await?.map(|first| Ok(line_of(&first)));
        Ok(json_of(StatusCode::OK, Body::from_stream(stream::iter(first).chain(lines(given, bad)))))
    }
}

/// The requests that follow; what is none ends them, and is told.
fn further(
    objects: Objects,
    takes: MessageDescriptor,
    spoilt: oneshot::Sender<Status>,
) -> impl Stream<Item = DynamicMessage> + Send {
    stream::unfold((objects, Some(spoilt)), move |(mut objects, mut spoilt)| {
        let takes = takes.clone();
        async move {
            let next = match objects.next().await {
                Ok(object) => object.map(|object| of_json(&takes, &object)).transpose(),
                Err(status) => Err(status),
            };
            match next {
                Ok(message) => message.map(|message| (message, (objects, spoilt))),
                Err(status) => {
                    // Whoever would hear it is gone if nobody does.
                    spoilt.take().map(|spoilt| spoilt.send(status));
                    None
                }
            }
        }
    })
}

/// Each answer in a line, and in the last what ended them early: what came, or else a request that was none.
fn lines(
    given: Streaming<DynamicMessage>,
    bad: oneshot::Receiver<Status>,
) -> impl Stream<Item = Result<Vec<u8>, Infallible>> {
    stream::unfold(Some((given, bad)), |state| async {
        let (mut given, mut bad) = state?;
        let status = match given.message().await {
            Ok(Some(message)) => return Some((Ok(line_of(&message)), Some((given, bad)))),
            Ok(None) => bad.try_recv().ok()?,
            Err(status) => status,
        };
        sometimes!("answers as JSON ended early");
        let http = http_code(status.code());
        let error = json!({ "error": {
            "grpc_code": status.code() as i32,
            "http_code": http.as_u16(),
            "message": status.message(),
            "http_status": http.canonical_reason(),
        } });
        Some((Ok(format!("{error}\n").into_bytes()), None))
    })
}

/// One of many answers.
fn line_of(message: &DynamicMessage) -> Vec<u8> {
    let mut line = br#"{"result":"#.to_vec();
    write_json(message, &mut line);
    line.extend_from_slice(b"}\n");
    line
}

/// What of the headers concerns the call.
fn metadata(headers: &HeaderMap) -> MetadataMap {
    let mut kept = HeaderMap::new();
    for (header, name) in METADATA {
        if let Some(value) = headers.get(header) {
            kept.insert(name, value.clone());
        }
    }
    // A user's token; the cluster's was looked at where the call came in.
    let token = headers.get(AUTHORIZATION).filter(|value| !value.as_bytes().starts_with(BEARER.as_bytes()));
    if let Some(token) = token.filter(|_| !kept.contains_key(USER_TOKEN)) {
        kept.insert(USER_TOKEN, token.clone());
    }
    MetadataMap::from_headers(kept)
}

fn json_of(code: StatusCode, body: impl Into<Body>) -> Response {
    (code, [(CONTENT_TYPE, "application/json")], body.into()).into_response()
}

fn refusal(status: &Status) -> Response {
    let text = json!({ "error": status.message(), "message": status.message(), "code": status.code() as i32 });
    json_of(http_code(status.code()), text.to_string())
}

/// How HTTP says it.
fn http_code(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::REQUEST_TIMEOUT,
        Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::FailedPrecondition => StatusCode::PRECONDITION_FAILED,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::FutureExt as _;
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    /// What is found in a body that comes in these pieces, and how that ends.
    fn objects(pieces: &[&str]) -> (Vec<String>, Option<Code>) {
        let pieces: Vec<_> = pieces.iter().map(|piece| Bytes::copy_from_slice(piece.as_bytes())).collect();
        let frames = pieces.into_iter().map(|piece| Ok::<_, Status>(Frame::data(piece)));
        let mut objects = Objects::of(tonic::body::Body::new(StreamBody::new(stream::iter(frames))));
        let mut found = Vec::new();
        loop {
            match objects.next().now_or_never().expect("all of it is here") {
                Ok(Some(object)) => found.push(String::from_utf8(object.to_vec()).unwrap()),
                Ok(None) => return (found, None),
                Err(status) => return (found, Some(status.code())),
            }
        }
    }

    fn read(method: &str, text: &str) -> Result<String, String> {
        let method = Method::all().find(|any| any.path == method).unwrap();
        let message = of_json(&method.takes, text.as_bytes()).map_err(|status| status.message().to_owned())?;
        Ok(String::from_utf8(to_json(&message)).unwrap())
    }

    #[test]
    fn objects_end_where_they_end() {
        let all = |texts: &[&str]| (texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>(), None);
        assert_eq!(objects(&[]), all(&[]));
        assert_eq!(objects(&[" \n"]), all(&[]));
        let braces = r#"{"a":"}{\"}","b":{"c":[{}]}}"#;
        assert_eq!(objects(&[braces, "\n", braces]), all(&[braces, braces]));
        let bytes: Vec<&str> = (0..braces.len()).map(|at| &braces[at..=at]).collect();
        assert_eq!(objects(&bytes), all(&[braces]));
        assert_eq!(objects(&["{}", "[]"]), (vec!["{}".into()], Some(Code::InvalidArgument)));
        assert_eq!(objects(&["{}{"]), (vec!["{}".into()], Some(Code::InvalidArgument)));
        let large = format!("{{\"key\":\"{}", "A".repeat(JSON_BYTES_MAX));
        assert_eq!(objects(&[&large]), (vec![], Some(Code::ResourceExhausted)));
    }

    #[test]
    fn json_is_read_as_etcd_reads_it() {
        let range = r#"{"key":"Zm9v","limit":"7","sort_order":"DESCEND"}"#;
        assert_eq!(read("/v3/kv/range", range).unwrap(), range);
        let other = r#"{"limit":7, "key":"Zm9v", "sortOrder":2, "revision":null, "whatever":{"x":[1]}}"#;
        assert_eq!(read("/v3/kv/range", other).unwrap(), range);
        assert!(read("/v3/kv/range", r#"{"sort_order":"UP"}"#).unwrap_err().contains("UP"));
        assert!(read("/v3/kv/range", r#"{"key":5}"#).unwrap_err().contains("base64"));
        assert!(read("/v3/kv/range", r#"{"key":"Zm9v"#).unwrap_err().contains("EOF"));
        let txn = r#"{"success":[{"request_put":{"key":"YQ==","x":1},"x":1}],"x":1}"#;
        assert_eq!(read("/v3/kv/txn", txn).unwrap(), r#"{"success":[{"request_put":{"key":"YQ=="}}]}"#);
    }

    #[test]
    fn all_that_etcds_clients_call_can_be_called() {
        let called: Vec<&str> = Method::all().map(|method| method.call).collect();
        for service in descriptors().services().filter(|service| !service.full_name().starts_with("cairn.")) {
            let methods = service.methods().map(|method| format!("/{}/{}", service.full_name(), method.name()));
            let missing: Vec<String> = methods.filter(|method| !called.contains(&&**method)).collect();
            assert!(missing.is_empty() || service.full_name() == "grpc.health.v1.Health", "{missing:?}");
        }
    }
}
