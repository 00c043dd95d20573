//! Changes of keys, as a client is told of them.

use std::time::Duration;

use http::HeaderValue;
use tokio::sync::mpsc;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};

use super::{Client, ClientError, Failure};
use crate::error::{AuthReject, KvReject, Reject};
use crate::limits::{ANSWER_BYTES_MAX, RECONNECT_PAUSE_MIN};
use crate::proto::etcdserverpb::watch_client::WatchClient;
use crate::proto::etcdserverpb::watch_request::RequestUnion;
use crate::proto::etcdserverpb::{WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse as Told};
use crate::proto::mvccpb::Event;
use crate::shared::REQUIRES_LEADER;
use crate::time::Monotonic;

/// How long a stream may be silent before its member is asked whether it is there.
const SILENCE: Duration = Duration::from_secs(3);
/// How long the member may take to answer that.
const PATIENCE: Duration = Duration::from_secs(3);

/// What was changed, up to a revision: whole revisions, in order.
#[derive(Clone, Debug)]
pub struct Changes {
    /// Everything up to here has been told.
    pub revision: u64,
    /// What was changed since the changes before. Never empty but at the beginning, where it says from where on the watch tells, and
    /// when a member answers again after it was said that none does, see [`KeyWatch::patience`].
    pub events: Vec<Event>,
}

/// A watch that goes on, at whichever member answers, where it stopped: nothing is missed, and nothing told twice.
pub struct KeyWatch {
    client: Client,
    create: WatchCreateRequest,
    stream: Option<Stream>,
    begun: bool,
    patience: Option<Duration>,
    /// Since when no member has been heard.
    alone_since: Option<Monotonic>,
    /// It was said that no member answers.
    gave_up: bool,
}

struct Stream {
    asks: mpsc::Sender<WatchRequest>,
    answers: Streaming<Told>,
    /// By which the member knows whose it is.
    token: Option<HeaderValue>,
    /// When the member was last heard, and whether it was asked since.
    heard: Monotonic,
    asked: bool,
}

fn ask(union: RequestUnion) -> WatchRequest {
    WatchRequest { request_union: Some(union) }
}

impl Client {
    /// Watches keys. Where the watch is to begin now, that is when it first reaches a member.
    pub fn watch(&self, create: WatchCreateRequest) -> KeyWatch {
        KeyWatch {
            client: self.clone(),
            create: WatchCreateRequest { fragment: false, ..create },
            stream: None,
            begun: false,
            patience: None,
            alone_since: None,
            gave_up: false,
        }
    }
}

impl KeyWatch {
    /// Has [`Self::next`] say so when no member has answered for so long; without this it tries for ever.
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience: Some(patience), ..self }
    }

    /// Waits for the next changes, for as long as it takes; members that break are left for others. Whoever stops waiting can go on
    /// later, and misses nothing.
    ///
    /// # Errors
    /// Unavailable: no member has answered for as long as [`Self::patience`] says; call this again to go on. Rejected
    /// as compacted: what comes next was forgotten before it was told, see [`KvReject::Compacted`]. Invalid, if the watch
    /// makes no sense.
    pub async fn next(&mut self) -> Result<Changes, ClientError> {
        loop {
            let told = match &mut self.stream {
                Some(stream) => stream.next(&self.client).await,
                None => match self.open().await {
                    Ok(stream) => {
                        self.stream = Some(stream);
                        continue;
                    }
                    Err(Failure::Final(refused)) => return Err(refused),
                    Err(Failure::NotDone(why) | Failure::Unknown(why)) => Err(Status::unavailable(why)),
                },
            };
            match told {
                Ok(told) => {
                    self.alone_since = None;
                    if let Some(changes) = self.take(told)? {
                        return Ok(changes);
                    }
                }
                Err(status) if self.is_outdated(&status) => self.stream = None,
                Err(status) if matches!(status.code(), Code::Unauthenticated | Code::Unimplemented) => {
                    return Err(ClientError::Invalid(status.message().into()));
                }
                Err(status) => {
                    sometimes!(self.begun && self.stream.is_some(), "a watch went on at another member");
                    self.stream = None;
                    self.client.turn_away();
                    let now = self.client.io.clock.now();
                    let since = *self.alone_since.get_or_insert(now);
                    self.client.io.clock.sleep(RECONNECT_PAUSE_MIN).await;
                    if self.patience.is_some_and(|patience| now.since(since) >= patience) {
                        (self.alone_since, self.gave_up) = (None, true);
                        return Err(ClientError::Unavailable(status.message().into()));
                    }
                }
            }
        }
    }

    fn is_outdated(&self, status: &Status) -> bool {
        let token = self.stream.as_ref().and_then(|stream| stream.token.as_ref());
        self.client.is_outdated(status, token)
    }

    /// A stream to the next member.
    async fn open(&self) -> Result<Stream, Failure> {
        let clock = &self.client.io.clock;
        let (asks, outgoing) = mpsc::channel(2);
        let late = |_| Failure::NotDone(format!("no answer within {PATIENCE:?}"));
        asks.try_send(ask(RequestUnion::CreateRequest(self.create.clone()))).map_err(late)?;
        let member = self.client.preferred();
        self.client.log_in(&member, clock.now() + PATIENCE).await?;
        let token = self.client.token();
        let mut watch = WatchClient::new(member).max_decoding_message_size(ANSWER_BYTES_MAX);
        let mut request = Request::new(ReceiverStream::new(outgoing));
        request.metadata_mut().insert(REQUIRES_LEADER, "true".parse().expect("plain text"));
        match clock.timeout(PATIENCE, watch.watch(request)).await {
            Ok(Ok(answers)) => {
                Ok(Stream { asks, answers: answers.into_inner(), token, heard: clock.now(), asked: false })
            }
            Ok(Err(status)) => Err(match status.code() {
                Code::Unauthenticated if !self.client.is_outdated(&status, token.as_ref()) => {
                    Failure::Final(ClientError::Invalid(status.message().into()))
                }
                _ => Failure::NotDone(status.message().into()),
            }),
            Err(_) => Err(Failure::NotDone(format!("no answer within {PATIENCE:?}"))),
        }
    }

    /// What a message says that was not known; nothing, if that is nothing.
    fn take(&mut self, told: Told) -> Result<Option<Changes>, ClientError> {
        let revision = super::revision(told.header.as_ref()).0;
        if told.canceled {
            // As a status is written: its code, and what it says.
            let (code, text) = told.cancel_reason.split_once(" desc = ").unwrap_or(("", &told.cancel_reason));
            let is_outdated = code.ends_with("Unauthenticated") && self.is_outdated(&Status::unauthenticated(text));
            self.stream = None;
            if is_outdated {
                return Ok(None);
            }
            return Err(match told.compact_revision {
                0 if told.cancel_reason.ends_with("permission denied") => {
                    ClientError::Rejected(AuthReject::Denied.into())
                }
                0 => ClientError::Invalid(text.to_owned()),
                oldest => ClientError::Rejected(Reject::Kv(KvReject::Compacted {
                    asked: self.create.start_revision.cast_unsigned(),
                    compacted: oldest.cast_unsigned(),
                })),
            });
        }
        if told.created {
            if self.create.start_revision == 0 {
                self.create.start_revision = revision.cast_signed() + 1;
            }
            let first = !std::mem::replace(&mut self.begun, true);
            let again = std::mem::take(&mut self.gave_up);
            let revision = self.create.start_revision.cast_unsigned() - 1;
            return Ok((first || again).then_some(Changes { revision, events: Vec::new() }));
        }
        // An answer to the question whether the member is there names what the member has, not what this watch waits for.
        let Some(last) = told.events.last().and_then(|event| event.kv.as_ref()) else { return Ok(None) };
        self.create.start_revision = last.mod_revision + 1;
        Ok(Some(Changes { revision: last.mod_revision.cast_unsigned(), events: told.events }))
    }
}

impl Stream {
    async fn next(&mut self, client: &Client) -> Result<Told, Status> {
        let clock = &client.io.clock;
        loop {
            let until = self.heard + if self.asked { SILENCE + PATIENCE } else { SILENCE };
            match clock.deadline(until, self.answers.message()).await {
                Ok(Ok(Some(told))) => {
                    (self.heard, self.asked) = (clock.now(), false);
                    return Ok(told);
                }
                Ok(Ok(None)) => return Err(Status::unavailable("the stream has ended")),
                Ok(Err(status)) => return Err(status),
                Err(_) if self.asked => return Err(Status::unavailable("the member does not answer")),
                Err(_) => {
                    self.asked = true;
                    let progress = ask(RequestUnion::ProgressRequest(WatchProgressRequest {}));
                    if self.asks.try_send(progress).is_err() {
                        return Err(Status::unavailable("the stream takes no questions"));
                    }
                }
            }
        }
    }
}
