//! A network on which etcd's calls are made as JSON: whoever calls over it speaks as Patroni, APISIX or curl do, with the clients that
//! were generated for gRPC.

use std::io;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use http::header::HeaderName;
use http_body::Frame;
use http_body_util::StreamBody;
use prost_reflect::DynamicMessage;
use serde_json::Value;
use tonic::body::Body;
use tonic::server::{Grpc, StreamingService};
use tonic::{Code, Response, Status, Streaming};
use tower::{ServiceExt, service_fn};

use crate::api::gateway::{Dynamic, METADATA, Method, Objects, of_json, to_json};
use crate::ids::Address;
use crate::io::{Channel, ChannelError, Io, Listener, Network};

type Answers = BoxStream<'static, Result<DynamicMessage, Status>>;

/// Every other client calls as JSON what can be called so.
pub fn every_other(number: u64, io: Io) -> Io {
    match number % 2 {
        0 => Io { network: Arc::new(AsJson(io.network)), ..io },
        _ => io,
    }
}

struct AsJson(Arc<dyn Network>);

#[async_trait]
impl Network for AsJson {
    async fn bind(&self, address: &Address) -> io::Result<Box<dyn Listener>> {
        self.0.bind(address).await
    }

    fn connect(&self, address: &Address) -> Channel {
        over(self.0.connect(address))
    }

    fn scheme(&self) -> &'static str {
        self.0.scheme()
    }
}

fn over(channel: Channel) -> Channel {
    let methods: Arc<[Method]> = Method::all().collect();
    Channel::new(service_fn(move |request: http::Request<Body>| {
        let method = methods.iter().find(|method| method.call == request.uri().path()).cloned();
        let channel = channel.clone();
        async move {
            let Some(method) = method else { return channel.oneshot(request).await };
            let failed = Arc::default();
            let codec = Dynamic(method.takes.clone());
            let call = Call { channel, method, failed: Arc::clone(&failed) };
            let answer = Grpc::new(codec).streaming(call, request).await;
            let failed = failed.lock().unwrap().take();
            failed.map_or(Ok(answer), Err)
        }
    }))
}

struct Call {
    channel: Channel,
    method: Method,
    /// What became of the call itself.
    failed: Arc<Mutex<Option<ChannelError>>>,
}

impl StreamingService<DynamicMessage> for Call {
    type Response = DynamicMessage;
    type ResponseStream = Answers;
    type Future = BoxFuture<'static, Result<Response<Answers>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<DynamicMessage>>) -> Self::Future {
        let (channel, method, failed) = (self.channel.clone(), self.method.clone(), self.failed.clone());
        Box::pin(async move {
            let (metadata, _, asks) = request.into_parts();
            let asks = stream::unfold(asks, async |mut asks| {
                let ask = asks.message().await.ok().flatten()?;
                Some((Ok::<_, Status>(Frame::data(Bytes::from(to_json(&ask)))), asks))
            });
            let mut request = http::Request::post(method.path).body(Body::new(StreamBody::new(asks))).unwrap();
            for (header, name) in METADATA {
                if let Some(value) = metadata.as_ref().get(name) {
                    request.headers_mut().insert(HeaderName::from_static(header), value.clone());
                }
            }
            let response = match channel.oneshot(request).await {
                Ok(response) => response,
                Err(error) => {
                    *failed.lock().unwrap() = Some(error);
                    return Err(Status::unknown("the channel failed"));
                }
            };
            let is_refused = response.status() != http::StatusCode::OK;
            let mut objects = Objects::of(response.into_body());
            if is_refused {
                let refusal = objects.next().await?.unwrap_or_default();
                let refusal: Value = serde_json::from_slice(&refusal).unwrap_or_default();
                return Err(status(&refusal, "code"));
            }
            let answers = stream::try_unfold((objects, method), async |(mut objects, method)| {
                let Some(object) = objects.next().await? else { return Ok(None) };
                let answer = match method.gives_many {
                    false => of_json(&method.gives, &object)?,
                    true => {
                        let line: Value = serde_json::from_slice(&object).unwrap();
                        if let Some(error) = line.get("error") {
                            return Err(status(error, "grpc_code"));
                        }
                        of_json(&method.gives, line["result"].to_string().as_bytes())?
                    }
                };
                Ok(Some((answer, (objects, method))))
            });
            Ok(Response::new(Box::pin(answers) as Answers))
        })
    }
}

/// What an error says.
fn status(error: &Value, code: &str) -> Status {
    let code = error[code].as_i64().map_or(Code::Unknown, |code| Code::from_i32(code as i32));
    Status::new(code, error["message"].as_str().unwrap_or("nothing was said"))
}
