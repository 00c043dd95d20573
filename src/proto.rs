//! Generated code: messages, services and clients of `proto/`.

#![allow(missing_docs, clippy::all, clippy::unwrap_used)]

use std::sync::LazyLock;

use prost_reflect::DescriptorPool;

/// What the messages of all these are, for those who learn only while they run what they have to do with.
pub fn descriptors() -> &'static DescriptorPool {
    static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
        let bytes = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
        DescriptorPool::decode(&bytes[..]).expect("what was compiled can be read")
    });
    &POOL
}

/// Cairn's own services.
pub mod cairn {
    pub mod v1 {
        tonic::include_proto!("cairn.v1");
    }
}

pub use cairn::v1;

/// What etcd's clients call: the data.
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}

/// What etcd's clients call: users and roles.
pub mod authpb {
    tonic::include_proto!("authpb");
}

/// What etcd's clients call: the services.
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}

/// What etcd's clients call: locks.
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}

/// What etcd's clients call: elections.
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}

/// The gRPC health checking protocol.
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}
