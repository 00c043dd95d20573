//! Whatever a body holds, it is cut into objects, and these become messages or are refused; a message that came of one comes of what it is
//! written as.

#![no_main]

use bytes::Bytes;
use cairn::api::gateway::{Method, Objects, of_json, to_json};
use futures_util::{FutureExt as _, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, Vec<&[u8]>)| {
    let (method, pieces) = input;
    let methods: Vec<Method> = Method::all().collect();
    let method = &methods[usize::from(method) % methods.len()];
    let pieces: Vec<_> =
        pieces.into_iter().map(|piece| Ok::<_, tonic::Status>(Frame::data(Bytes::copy_from_slice(piece)))).collect();
    let mut objects = Objects::of(tonic::body::Body::new(StreamBody::new(stream::iter(pieces))));
    while let Ok(Some(object)) = objects.next().now_or_never().expect("all of it is here") {
        if let Ok(message) = of_json(&method.takes, &object) {
            let again = of_json(&method.takes, &to_json(&message)).expect("what was written can be read");
            assert_eq!(message, again);
        }
    }
});
