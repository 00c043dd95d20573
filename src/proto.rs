//! Generated code: messages, services and clients of `proto/`.

#![allow(missing_docs, clippy::all, clippy::unwrap_used)]

/// Cairn's own services.
pub mod v1 {
    tonic::include_proto!("cairn.v1");
}

/// The gRPC health checking protocol.
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}
