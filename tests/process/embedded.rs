//! A node within a program.

use cairn::node::{NodeBuilder, Origin};
use cairn::os::Tls;
use cairn::proto::etcdserverpb::watch_client::WatchClient;
use cairn::proto::etcdserverpb::watch_request::RequestUnion;
use cairn::proto::etcdserverpb::{WatchCreateRequest, WatchRequest};
use cairn::proto::health::HealthCheckRequest;
use cairn::proto::health::health_client::HealthClient;
use tokio_stream::StreamExt as _;

use super::running::{PATIENCE, run};

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

#[tokio::test]
async fn who_accepts_and_never_answers_in_tls_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    assert!(run(&["credentials", "--dir", dir.path().to_str().unwrap(), "localhost"]).status.success());
    let authorities = std::fs::read_to_string(dir.path().join("ca.pem")).unwrap();
    // The kernel takes connections, and nobody reads from them.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("localhost:{}", silent.local_addr().unwrap().port()).parse().unwrap();
    let client = cairn::os::client_io(Some(Tls::trusting(&authorities).unwrap())).unwrap();
    let mut health = HealthClient::new(client.network.connect(&address));
    let asked = health.check(HealthCheckRequest::default());
    let answer = tokio::time::timeout(PATIENCE, asked).await.expect("it waits for ever");
    assert_eq!(answer.unwrap_err().code(), tonic::Code::Unavailable);
}
