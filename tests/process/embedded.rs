//! A node within a program.

use cairn::node::{NodeBuilder, Origin};
use cairn::proto::etcdserverpb::watch_client::WatchClient;
use cairn::proto::etcdserverpb::watch_request::RequestUnion;
use cairn::proto::etcdserverpb::{WatchCreateRequest, WatchRequest};
use tokio_stream::StreamExt as _;

use super::running::PATIENCE;

#[tokio::test]
async fn a_watch_ends_with_its_node_and_another_may_start_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let builder = || {
        let io = cairn::os::io(dir.path(), None)?;
        Ok::<_, cairn::error::Fault>(NodeBuilder::new(io, "127.0.0.1:0".parse().unwrap()))
    };
    let node = builder().unwrap().origin(Origin::Bootstrap).start().await.unwrap();
    node.wait_ready().await;
    let client = cairn::os::client_io(None).unwrap();
    let create = WatchCreateRequest { key: "k".into(), ..WatchCreateRequest::default() };
    let asks = tokio_stream::iter([WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }]);
    // The client would listen for ever.
    let asks = asks.chain(tokio_stream::pending());
    let mut told = WatchClient::new(client.network.connect(node.address())).watch(asks).await.unwrap().into_inner();
    assert!(told.message().await.unwrap().unwrap().created);
    node.stop().await;
    let ended = tokio::time::timeout(PATIENCE, told.message()).await.expect("a watch outlives its node");
    assert_eq!(ended.unwrap_err().message(), "etcdserver: server stopped");
    // Its connection ends, too, and with it the last hold on the directory.
    let again = async {
        loop {
            match builder() {
                Ok(builder) => break builder.start().await.unwrap(),
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let again = tokio::time::timeout(PATIENCE, again).await.expect("the directory stays in use");
    again.wait_ready().await;
    again.stop().await;
}
