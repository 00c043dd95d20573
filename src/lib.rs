//! Cairn: a deterministic simulation-first consensus node.
//!
//! The same code runs in production and in the simulator; every way out of the process is a trait of [`io`].
//! `ARCHITECTURE.md` draws the floors; a module imports from its own floor and those below.
//!
//! | floor | modules |
//! |---|---|
//! | 0 words | [`ids`], [`time`], [`limits`], [`error`] |
//! | 1 seams | [`io`], [`proto`], [`metrics`] |
//! | 2 replicated | [`state`], [`raft`] |
//! | 3 decide | [`scheduler`], [`controller`] |
//! | 4 act | [`worker`] |
//! | 5 shared | [`shared`], [`forward`], [`lane`], [`client`] |
//! | 6 face | [`api`] |
//! | 7 node | [`node`] |
//! | 8 edge | [`cli`], [`os`] |
//!
//! # In your own program
//!
//! A node is a library: [`node::NodeBuilder`] makes one over the seams of [`os::io`], [`node::Node::client`] asks it without a socket,
//! and others may join it at its address. It needs a tokio runtime, and no more than one thread of it.
//!
//! ```
//! use std::time::Duration;
//!
//! use cairn::node::{NodeBuilder, Origin};
//! use futures_util::StreamExt;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path();
//! let io = cairn::os::io(dir, None)?;
//! let node = NodeBuilder::new(io, "127.0.0.1:0".parse()?).origin(Origin::Bootstrap).start().await?;
//! node.wait_ready().await;
//!
//! let client = node.client(Duration::from_secs(5));
//! let revision = client.put(b"greeting", b"hello", None).await?;
//! let found = client.get(b"greeting").await?.expect("it was put");
//! assert_eq!((&found.value[..], found.mod_revision), (&b"hello"[..], revision.0 as i64));
//!
//! let mut leaders = node.leader_changes();
//! assert_eq!(leaders.next().await, Some(Some(node.identity().id)));
//! let mut members = node.membership_changes();
//! assert_eq!(members.next().await.expect("it runs").voters, [node.identity().id]);
//!
//! node.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! One that was started alone grows while it serves. Others join it, in this process, in another, or as `node start --join`: they catch
//! up as learners, and get a vote by themselves when they have. What a process runs by the way is kept by a lock, and seen by a watch:
//!
//! ```
//! # use std::time::Duration;
//! # use cairn::node::{NodeBuilder, Origin};
//! # use futures_util::StreamExt;
//! use cairn::client::with_prefix;
//! use cairn::proto::etcdserverpb::WatchCreateRequest;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path();
//! let node = |name: &str, origin| -> Result<_, Box<dyn std::error::Error>> {
//!     Ok(NodeBuilder::new(cairn::os::io(&dir.join(name), None)?, "127.0.0.1:0".parse()?).origin(origin))
//! };
//! let first = node("n1", Origin::Bootstrap)?.start().await?;
//! first.wait_ready().await;
//! let second = node("n2", Origin::Join(vec![first.advertised().clone()]))?.start().await?;
//! let third = node("n3", Origin::Join(vec![first.advertised().clone()]))?.start().await?;
//! let mut members = first.membership_changes();
//! while members.next().await.expect("it runs").voters.len() < 3 {}
//!
//! // Everything with a prefix, from now on, whichever member dies.
//! let client = first.client(Duration::from_secs(5));
//! let (key, range_end) = with_prefix(b"job/");
//! let mut watch = client.watch(WatchCreateRequest { key, range_end, ..Default::default() });
//! watch.next().await?;
//!
//! // One at a time, in the whole cluster; the lock goes with the lease, which is kept alive for as long as `keep` is polled.
//! let mut lease = client.hold_lease(Duration::from_secs(10)).await?;
//! let id = lease.id();
//! let turn = tokio::select! {
//!     biased;
//!     turn = client.wait_turn("jobs", id, b"who I am") => turn?,
//!     lost = lease.keep() => return Err(lost.into()),
//! };
//! client.put(b"job/1", format!("done under token {}", turn.token).as_bytes(), None).await?;
//! assert_eq!(watch.next().await?.events.len(), 1);
//! assert_eq!((client.list(b"job/").await?.len(), client.delete_prefix(b"job/").await?), (1, 1));
//! lease.revoke().await?;
//!
//! for node in [third, second, first] {
//!     node.stop().await;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A node whose seams have no launcher, as those of [`os::io`], runs no tasks, whatever its role. A client of a node keeps the node's data
//! directory locked until it is dropped, also when the node has been stopped. A node that cannot go on safely ends the process, see
//! [`NodeBuilder::start`](node::NodeBuilder::start).

#[macro_use]
pub mod mark;

pub mod entry;
pub mod error;
pub mod ids;
pub mod limits;
pub mod time;

pub mod io;
pub mod metrics;
pub mod proto;

pub mod raft;
pub mod state;

pub mod controller;
pub mod scheduler;

pub mod worker;

pub mod client;
pub mod forward;
pub mod lane;
pub mod questions;
pub mod shared;
pub mod threads;

pub mod api;

pub mod node;

pub mod cli;

pub mod os;

#[cfg(all(feature = "sim", not(madsim)))]
compile_error!(
    "the feature `sim` needs `--cfg madsim`, which `.cargo/config.toml` sets; the environment variable RUSTFLAGS \
     replaces it: unset RUSTFLAGS, or add `--cfg madsim` to it"
);

#[cfg(feature = "sim")]
#[path = "../sim/mod.rs"]
pub mod sim;
